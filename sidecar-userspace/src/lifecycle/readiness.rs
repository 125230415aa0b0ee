//! Whether the sidecar is ready: named conditions, each owned by the part that can tell.
//!
//! Silence is failure. A condition is unready until its owner says otherwise, and again, for good, when its owner is
//! gone: a task that panics does not leave a ready sidecar behind. With no condition at all the sidecar is not ready.

use serde::Serialize;
use tokio::sync::watch;

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unready {
    /// Which.
    pub name: &'static str,
    /// Why not.
    pub reason: String,
}

/// All conditions. Clones see the same ones.
#[derive(Clone, Default)]
pub struct Readiness(watch::Sender<Vec<Slot>>);

#[derive(Default)]
struct Slot {
    name: &'static str,
    /// Why it does not hold; `None`: it holds.
    unready: Option<String>,
}

/// One condition, held by the part that can tell whether it holds. Dropping it makes it unready for good.
#[must_use = "a dropped condition is never ready"]
pub struct Condition {
    all: watch::Sender<Vec<Slot>>,
    index: usize,
}

impl Readiness {
    /// Without conditions; not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition that does not hold yet.
    pub fn condition(&self, name: &'static str) -> Condition {
        let mut index = 0;
        self.0.send_modify(|slots| {
            index = slots.len();
            slots.push(Slot { name, unready: Some("starting".to_owned()) });
        });
        Condition { all: self.0.clone(), index }
    }

    /// The conditions that do not hold, in the order of their creation.
    pub fn unready(&self) -> Vec<Unready> {
        let slots = self.0.borrow();
        if slots.is_empty() {
            return vec![Unready { name: "start", reason: "nothing has started yet".to_owned() }];
        }
        let failing = slots.iter().filter_map(|slot| Some((slot.name, slot.unready.clone()?)));
        failing.map(|(name, reason)| Unready { name, reason }).collect()
    }

    /// Whether all conditions hold.
    pub fn ready(&self) -> bool {
        all_hold(&self.0.borrow())
    }

    /// Resolves when all conditions hold.
    pub async fn wait_ready(&self) {
        // Cannot fail: `self` keeps the sender alive.
        let _ = self.0.subscribe().wait_for(|slots| all_hold(slots)).await;
    }
}

fn all_hold(slots: &[Slot]) -> bool {
    !slots.is_empty() && slots.iter().all(|slot| slot.unready.is_none())
}

impl Condition {
    /// It holds.
    pub fn ready(&self) {
        self.say(None);
    }

    /// It does not hold, because of `reason`.
    pub fn unready(&self, reason: impl Into<String>) {
        self.say(Some(reason.into()));
    }

    fn say(&self, unready: Option<String>) {
        self.all.send_if_modified(|slots| {
            let changed = slots[self.index].unready != unready;
            slots[self.index].unready = unready;
            changed
        });
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        self.unready("stopped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(readiness: &Readiness) -> Vec<(&'static str, String)> {
        readiness.unready().into_iter().map(|u| (u.name, u.reason)).collect()
    }

    #[test]
    fn nothing_started_is_not_ready() {
        assert!(!Readiness::new().ready());
        assert_eq!(names(&Readiness::new()), [("start", "nothing has started yet".to_owned())]);
    }

    #[test]
    fn it_is_ready_only_while_every_condition_holds_and_names_those_that_do_not() {
        let readiness = Readiness::new();
        let programs = readiness.condition("programs");
        let listeners = readiness.condition("listeners");
        assert_eq!(names(&readiness), [("programs", "starting".into()), ("listeners", "starting".into())]);
        programs.ready();
        assert!(!readiness.ready());
        listeners.ready();
        assert!(readiness.ready() && readiness.unready().is_empty());
        programs.unready("detached by someone else");
        assert_eq!(names(&readiness), [("programs", "detached by someone else".into())]);
    }

    #[test]
    fn a_condition_whose_owner_panicked_is_unready_for_good() {
        let readiness = Readiness::new();
        let condition = readiness.condition("worker");
        condition.ready();
        let owner = std::thread::spawn(move || {
            let _held = condition;
            panic!("on purpose");
        });
        assert!(owner.join().is_err());
        assert_eq!(names(&readiness), [("worker", "stopped".into())]);
    }

    #[tokio::test]
    async fn waiting_ends_when_the_last_condition_holds() {
        let readiness = Readiness::new();
        let first = readiness.condition("first");
        let second = readiness.condition("second");
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait_ready().await }
        });
        first.ready();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        second.ready();
        waiting.await.unwrap();
    }
}
