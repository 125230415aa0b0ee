//! Whether the application still has processes: what a drain waits for, and a job's sidecar ends with.

use std::{
    io,
    time::{Duration, Instant},
};

use crate::{
    lifecycle::board::{Board, Figure},
    pod::Applications,
};

/// Time between two looks at who is in the pod while somebody waits for its last process. The kernel tells when a cgroup
/// empties, but not for a pod with the sidecar in it, and a watch on each cgroup would need one for each that comes. A look
/// takes some ten microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// While nobody waits: for those who ask.
const LOOK_SELDOM: Duration = Duration::from_secs(10);

/// The pod's application.
pub(super) struct Application {
    processes: Applications,
    /// `lifecycle.exit_with_application`: the sidecar ends with it.
    follows: bool,
    were_there: bool,
    draining: bool,
    at: Instant,
}

impl Application {
    /// `were_there`: somebody has seen them before.
    pub(super) fn new(processes: Applications, follows: bool, were_there: bool) -> Self {
        Self { processes, follows, were_there, draining: false, at: Instant::now() }
    }

    /// Whether there have been any.
    pub(super) fn were_there(&self) -> bool {
        self.were_there
    }

    /// Whether a process is one of them.
    pub(super) fn holds(&self, pid: u32) -> io::Result<bool> {
        self.processes.hold(pid)
    }

    /// When to look again.
    pub(super) fn due(&self) -> Instant {
        self.at
    }

    /// From now on somebody waits for its end.
    pub(super) fn await_end(&mut self, board: &Board) {
        self.draining = true;
        self.look(board);
    }

    /// Looks if that is due. Returns whether the sidecar is to end because the application has.
    pub(super) fn turn(&mut self, board: &Board) -> bool {
        if self.at > Instant::now() {
            return false;
        }
        let nobody = self.look(board);
        if !self.follows || self.draining {
            return false;
        }
        self.were_there = self.were_there || self.processes.were_there();
        self.were_there && nobody
    }

    /// Writes how many there are where the worker sees it. Returns whether there are none; a pod that cannot be asked may
    /// have some.
    fn look(&mut self, board: &Board) -> bool {
        let count = self.processes.count().ok();
        board.set(Figure::Applications, count.map_or(0, |count| count as u64 + 1));
        self.at = Instant::now() + if self.draining || self.follows { LOOK_EVERY } else { LOOK_SELDOM };
        count == Some(0)
    }
}
