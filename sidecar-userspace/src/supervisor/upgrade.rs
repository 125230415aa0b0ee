//! A new binary takes the place of the one that runs, and nobody notices: the process stays the same, with its number, its
//! children and all that it holds.
//!
//! The new binary says what it is ([`facts`]); its worker is started beside the one that serves, on the same listeners; the process
//! goes on as the new binary by execve(2) with everything it holds ([`state`]), puts its programs in the place of those before
//! ([`takeover`]), and has the worker before take nothing more. Up to the execve(2) nothing has changed and the upgrade is refused;
//! after it, what fails has the process go on as the binary before.

mod door;
mod facts;
mod leaving;
mod outcome;
mod peer;
mod standby;
pub(super) mod state;
mod steps;
mod takeover;
mod tracee;
mod watch;

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

pub(super) use door::Door;
pub use door::ask;
pub use facts::{COMMAND as FACTS, Facts};
pub(super) use leaving::Leaving;
pub use outcome::{Done, MOST_PATIENCE, Outcome, Wanted};
pub use takeover::COMMAND as TAKE_OVER;
pub(super) use takeover::take_over;
pub use watch::{COMMAND as STAND_BY, stand_by};

use super::{
    Error,
    worker::{OWN_BINARY, Worker},
};
use facts::Asking;

/// All that is to be known of upgrades.
pub(super) struct Upgrades {
    /// `None`: only SIGUSR2 asks for them.
    pub(super) door: Option<Door>,
    /// Where the binary lies that runs.
    pub(super) binary: PathBuf,
    /// The binary that runs, whatever lies there.
    pub(super) own: File,
    pub(super) under_way: Option<UnderWay>,
    /// Workers that were replaced.
    pub(super) leaving: Vec<Leaving>,
}

/// The one that is under way.
pub(super) struct UnderWay {
    /// Who waits for the outcome; `None`: a signal has asked.
    pub(super) client: Option<UnixStream>,
    pub(super) path: PathBuf,
    pub(super) binary: File,
    pub(super) patience: Duration,
    pub(super) outcome: Outcome,
    /// When the step before ended.
    pub(super) step: Instant,
    pub(super) stage: Stage,
}

/// How far it is.
pub(super) enum Stage {
    /// The new binary is asked what it is.
    Asked(Asking),
    /// Its worker starts.
    Starts {
        /// Which.
        worker: Box<Worker>,
        /// Its rules are those of this configuration.
        generation: u64,
    },
    /// The new binary runs; the worker before is to say what it still carries.
    Done {
        /// When nobody waits for that any more.
        until: Instant,
    },
}

impl UnderWay {
    /// A step has been made.
    pub(super) fn made(&mut self, what: &str) {
        let now = Instant::now();
        self.outcome.steps.push((what.to_owned(), now.saturating_duration_since(self.step).as_micros() as u64));
        self.step = now;
    }
}

impl Upgrades {
    pub(super) fn new(door: Option<Door>) -> Result<Self, Error> {
        let own = File::open(OWN_BINARY).map_err(Error::runtime("open the own binary"))?;
        let binary = std::fs::read_link(OWN_BINARY).map_err(Error::runtime("find the own binary"))?;
        Ok(Self { door, binary, own, under_way: None, leaving: Vec::new() })
    }

    /// What to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let door = self.door.iter().flat_map(Door::descriptors);
        let under_way = self.under_way.as_ref().and_then(|under_way| match &under_way.stage {
            Stage::Asked(asking) => Some(asking.descriptor()),
            Stage::Starts { worker, .. } => worker.descriptor(),
            Stage::Done { .. } => None,
        });
        door.chain(under_way).chain(self.leaving.iter().filter_map(|leaving| leaving.worker.descriptor()))
    }

    /// When to come back at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        let under_way = self.under_way.as_ref().and_then(|under_way| match &under_way.stage {
            Stage::Asked(_) => None,
            Stage::Starts { worker, .. } => Some(worker.since + under_way.patience),
            Stage::Done { until } => Some(*until),
        });
        let leaving = self.leaving.iter().filter_map(Leaving::due);
        leaving.chain(under_way).chain(self.door.as_ref().and_then(Door::due)).min()
    }
}

/// Opens the new binary: what is asked, started and run is one file, whatever becomes of its name. A named pipe must not keep the
/// supervisor until somebody writes into it.
fn open(path: &std::path::Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
}

/// Runs the new binary. The child finds it among its own descriptors: those of this process are closed to others, its children among
/// them, if it has its capabilities from its file (proc_pid_fd(5)). It keeps the descriptor: a script is opened by its interpreter.
fn command(binary: &File) -> Command {
    let descriptor = binary.as_raw_fd();
    let keep = move || {
        // SAFETY: it is open as long as `binary` is, and else refused.
        let binary = unsafe { BorrowedFd::borrow_raw(descriptor) };
        fcntl(binary, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    let mut command = Command::new(format!("/proc/self/fd/{descriptor}"));
    // SAFETY: it makes one system call, which is allowed between fork(2) and execve(2), and takes no lock and no memory.
    unsafe { command.pre_exec(keep) };
    command
}
