//! When a worker that has ended is started again.

use std::time::{Duration, Instant};

/// Pauses before a start: the first is short enough for whoever waits in a queue, and each is twice the one before.
const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(10);
/// A worker that has lived for this long did not fail for the same reason as the one before.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// So many short lives in a row are a loop.
const LOOP: u32 = 5;

/// The short lives so far.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    short: u32,
    told: bool,
}

/// What to do about the end of a worker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// When to start the next.
    pub(super) at: Instant,
    /// The pause until then.
    pub(super) pause: Duration,
    /// It is to be told that this is a loop: once for each.
    pub(super) new_loop: bool,
    /// Every end is told, but in a loop that was told.
    pub(super) tell: bool,
}

impl Restarts {
    /// A worker has ended at `now` after it lived for `life`.
    pub(super) fn after(&mut self, life: Duration, now: Instant) -> Plan {
        if life >= LONG_LIFE {
            *self = Self::default();
        }
        let pause = FIRST.saturating_mul(1 << self.short.min(20)).min(LONGEST);
        self.short += 1;
        let looping = self.short >= LOOP;
        let new_loop = looping && !self.told;
        let tell = !self.told;
        self.told = looping;
        Plan { at: now + pause, pause, new_loop, tell }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_lives_are_followed_by_longer_and_longer_pauses_and_a_loop_is_told_once() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let plans: Vec<Plan> = (0..14).map(|_| restarts.after(Duration::from_secs(1), now)).collect();
        let pauses: Vec<u128> = plans.iter().map(|plan| plan.pause.as_millis()).collect();
        assert_eq!(pauses[..6], [10, 20, 40, 80, 160, 320]);
        assert_eq!(pauses[10..], [10_000; 4]);
        assert_eq!(plans.iter().filter(|plan| plan.new_loop).count(), 1);
        assert_eq!(plans.iter().position(|plan| plan.new_loop), Some(4));
        assert_eq!(plans.iter().filter(|plan| plan.tell).count(), 5);
        assert!(plans.iter().all(|plan| plan.at == now + plan.pause));
    }

    #[test]
    fn a_long_life_makes_the_next_pause_short_and_the_next_loop_new() {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        for _ in 0..9 {
            restarts.after(Duration::ZERO, now);
        }
        let plan = restarts.after(LONG_LIFE, now);
        assert!(plan.pause == FIRST && plan.tell && !plan.new_loop, "{plan:?}");
        let told = (0..9).filter(|_| restarts.after(Duration::ZERO, now).new_loop).count();
        assert_eq!(told, 1);
    }
}
