//! The worker process as its supervisor sees it.

use std::{
    fmt, io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use super::Error;
use crate::control::{self, Channel, Order, Report};

/// A start that takes longer has failed: a cold binary on a loaded machine takes a second.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);

/// The worker process. It is killed when this is dropped.
pub(super) struct Worker {
    child: Child,
    pub(super) channel: Channel,
    pub(super) stage: Stage,
    pub(super) since: Instant,
    /// It gets no more time.
    pub(super) hung: bool,
    /// It has closed its end of the channel, which it does when it ends.
    pub(super) silent_since: Option<Instant>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It makes ready to serve.
    Starting,
    /// It carries connections.
    Serving,
}

impl Worker {
    /// Starts the process: this binary again, whatever has become of its file. It waits for its [`Order::Start`].
    pub(super) fn spawn() -> Result<Self, Error> {
        let (ours, theirs) = Channel::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg(control::COMMAND).stdin(OwnedFd::from(theirs));
        let child = command.spawn().map_err(Error::Spawn)?;
        Ok(Self {
            child,
            channel: ours,
            stage: Stage::Starting,
            since: Instant::now(),
            hung: false,
            silent_since: None,
        })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something. One that is gone is noticed by its end, and one that does not read by its silence.
    pub(super) fn tell(&self, order: &Order) {
        match self.channel.send(order, &[]) {
            Ok(()) | Err(control::Error::Gone) => {}
            Err(error) => tracing::warn!(%error, ?order, "the worker was not told"),
        }
    }

    /// The next thing that it says.
    pub(super) fn heard(&self) -> Result<Report, control::Error> {
        self.channel.receive::<Report>().map(|(report, _)| report)
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> io::Result<Option<End>> {
        let status = self.child.try_wait()?;
        Ok(status.map(|status| End { status, hung: self.hung }))
    }

    /// Ends it at once, which resets what it carries.
    pub(super) fn kill(&mut self) {
        if let Err(error) = self.child.kill() {
            tracing::error!(%error, pid = self.pid(), "the worker cannot be killed");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    status: ExitStatus,
    hung: bool,
}

/// Why a worker ended, as the metrics tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// By itself.
    Exited,
    /// By a signal that was not ours.
    Killed,
    /// By us, because it gave no sign of life.
    Hung,
}

impl End {
    pub(super) fn success(&self) -> bool {
        self.status.success()
    }

    pub(super) fn reason(&self) -> Reason {
        match self.status.signal() {
            _ if self.hung => Reason::Hung,
            Some(_) => Reason::Killed,
            None => Reason::Exited,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hung { f.write_str("it hung and was killed") } else { self.status.fmt(f) }
    }
}
