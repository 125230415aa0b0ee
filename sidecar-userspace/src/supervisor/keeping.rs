//! What keeps the kernel side true while the sidecar runs: its addresses, its listeners, and that its programs are effective.

use std::{
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Error, itself};
use crate::{
    config::Acceleration,
    control::{Condition, Order},
    lifecycle::{
        beats::Carried,
        board::{Board, Figure},
    },
    redirect::{
        AddressWatch, Attached, BpfLog, Capture, ListenerWatch, SharedMaps, Store, Uncaptured, UncapturedWatch,
        fast_path::FastPath,
    },
};

/// Time between two checks that the programs are still effective.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Who waits for which descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    Addresses,
    Listeners,
    BpfLog,
}

/// The capture, and everything that follows what happens in the pod.
pub(super) struct Keeping {
    pub(super) capture: Capture,
    pub(super) shared: SharedMaps,
    addresses: AddressWatch,
    listeners: ListenerWatch,
    uncaptured: UncapturedWatch,
    log: Option<BpfLog>,
    check_at: Instant,
    /// Why the programs are not effective, and why the addresses are not known; `None`: they are.
    programs: Option<String>,
    unfollowed: Option<String>,
}

impl Keeping {
    /// Begins, and checks at once.
    pub(super) fn begin(attached: Attached, board: &Board) -> Self {
        let Attached { capture, shared, addresses, listeners, uncaptured, log } = attached;
        let mut keeping = Self {
            capture,
            shared,
            addresses,
            listeners,
            uncaptured,
            log,
            check_at: Instant::now(),
            programs: None,
            unfollowed: None,
        };
        keeping.check();
        board.set_device_bound(keeping.listeners.device_bound());
        show(board, keeping.uncaptured.figures());
        itself::show(board);
        keeping
    }

    /// What a new binary of this sidecar would go on with, or why there is nothing.
    pub(super) fn store(&self) -> Result<&Store, String> {
        let refused = || {
            let why = Store::detached().err().map(|error| error.to_string());
            format!(
                "the kernel keeps none of them: {}; give it CAP_SYS_ADMIN for the next time",
                why.as_deref().unwrap_or("no place was to be had at the start")
            )
        };
        self.capture.store()?.ok_or_else(refused)
    }

    /// Why the programs are not effective.
    pub(super) fn failure(&self) -> Option<&String> {
        self.programs.as_ref()
    }

    /// Has the fast path begin, if the configuration asks for it: it takes its time on a thread of its own.
    pub(super) fn accelerate(
        &mut self,
        acceleration: Acceleration,
        board: &Arc<Board>,
    ) -> Result<Option<FastPath>, Error> {
        let Some(parts) = self.capture.fast_path() else { return Ok(None) };
        let carried = Carried::map(self.shared.heartbeat()).map_err(Error::runtime("see what the worker carries"))?;
        let open = move || carried.connections();
        Ok(Some(FastPath::start(acceleration, parts, Arc::clone(board), open)))
    }

    /// Whether everything holds, as the worker is told it.
    pub(super) fn conditions(&self) -> [Order; 2] {
        [
            Order::Condition { condition: Condition::Programs, unready: self.programs.clone() },
            Order::Condition { condition: Condition::Addresses, unready: self.unfollowed.clone() },
        ]
    }

    /// What to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (Watched, BorrowedFd<'_>)> {
        [
            self.addresses.descriptor().map(|descriptor| (Watched::Addresses, descriptor)),
            self.listeners.descriptor().map(|descriptor| (Watched::Listeners, descriptor)),
            self.log.as_ref().map(|log| (Watched::BpfLog, log.descriptor())),
        ]
        .into_iter()
        .flatten()
    }

    /// When to come back at the latest, if not for a look.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.addresses.due(), self.listeners.rests_until()].into_iter().flatten().min()
    }

    /// When the next look is due, which may come somewhat later.
    pub(super) fn look_due(&self) -> Instant {
        self.check_at.min(self.listeners.due()).min(self.uncaptured.due())
    }

    /// Does what is due. Returns whether [`Keeping::conditions`] have changed.
    pub(super) fn turn(&mut self, ready: &[Watched], board: &Board) -> bool {
        let spoke = |watched| ready.contains(&watched);
        if let Some(log) = self.log.as_mut().filter(|_| spoke(Watched::BpfLog)) {
            log.turn();
        }
        let before = self.listeners.device_bound().clone();
        if self.listeners.turn(spoke(Watched::Listeners)) && before != *self.listeners.device_bound() {
            board.set_device_bound(self.listeners.device_bound());
        }
        if self.uncaptured.turn() {
            show(board, self.uncaptured.figures());
        }
        let mut changed = false;
        if let Some(refreshed) = self.addresses.turn(spoke(Watched::Addresses)) {
            changed |= self.refreshed(refreshed.err().map(|error| error.to_string()));
        }
        if self.check_at <= Instant::now() {
            changed |= self.check();
            itself::show(board);
        }
        changed
    }

    fn refreshed(&mut self, failure: Option<String>) -> bool {
        if let Some(error) = failure.as_ref().filter(|_| self.unfollowed.is_none()) {
            tracing::error!(error, "the pod's addresses could not be told to the kernel side; trying again");
        }
        let changed = failure != self.unfollowed;
        self.unfollowed = failure;
        changed
    }

    /// Ready only while the programs are effective and a real connection passes them.
    fn check(&mut self) -> bool {
        let failure = self.capture.check().err().map(|error| error.to_string());
        self.check_at = Instant::now() + CHECK_EVERY;
        let changed = failure != self.programs;
        match &failure {
            None if changed => tracing::info!("capturing again"),
            Some(error) if changed => tracing::error!(error, "not capturing"),
            _ => {}
        }
        self.programs = failure;
        changed
    }
}

fn show(board: &Board, Uncaptured { other_cgroup, older }: Uncaptured) {
    board.set(Figure::OtherCgroupOpen, other_cgroup.open);
    board.set(Figure::OtherCgroupSeen, other_cgroup.seen);
    board.set(Figure::OlderOpen, older.open);
    board.set(Figure::OlderSeen, older.seen);
}
