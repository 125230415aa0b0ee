//! The worker process as its supervisor sees it.

use std::{
    fmt, fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use super::{Error, child::Child, pings::Seen};
use crate::control::{self, Channel, Order, Report};

/// A start that takes longer has failed: a cold binary on a loaded machine takes a second.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);

/// The binary that this process runs, whatever has become of its file.
pub(super) const OWN_BINARY: &str = "/proc/self/exe";

/// The worker process. It is killed when this is dropped.
pub(super) struct Worker {
    child: Child,
    pub(super) channel: Channel,
    pub(super) stage: Stage,
    pub(super) since: Instant,
    /// When it was looked for in its cgroup.
    pub(super) looked_for: Instant,
    /// It was killed by us, and why.
    pub(super) killed: Option<Why>,
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
    /// Starts the process by a command without arguments: of [`OWN_BINARY`] or another. It waits for its [`Order::Start`].
    pub(super) fn spawn(mut command: Command) -> Result<Self, Error> {
        let (ours, theirs) = Channel::pair()?;
        command.arg(control::COMMAND).stdin(OwnedFd::from(theirs));
        let child = command.spawn().map_err(Error::Spawn)?;
        Ok(Self::adopt(Child::of(child.id()), ours, Stage::Starting, Duration::ZERO))
    }

    /// One that was started so long ago, and is that far.
    pub(super) fn adopt(child: Child, channel: Channel, stage: Stage, lived: Duration) -> Self {
        let now = Instant::now();
        Self {
            child,
            channel,
            stage,
            since: now.checked_sub(lived).unwrap_or(now),
            looked_for: now,
            killed: None,
            silent_since: None,
        }
    }

    /// Its main thread, by proc_pid_stat(5) and the first number of `schedstat` beside it, nanoseconds on a CPU
    /// (Documentation/scheduler/sched-stats.rst). Where the kernel does not count them, one that is not short of CPU.
    pub(super) fn seen(&self) -> Seen {
        let of_thread =
            |file: &str| fs::read_to_string(format!("/proc/{0}/task/{0}/{file}", self.pid())).unwrap_or_default();
        let (state, counted) = (of_thread("stat"), of_thread("schedstat"));
        let had = counted.split_ascii_whitespace().next().and_then(|nanoseconds| nanoseconds.parse().ok());
        // The name, in parentheses, may have some in it.
        let runnable = state.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R')) && had.is_some();
        Seen { runnable, had: Duration::from_nanos(had.unwrap_or(0)) }
    }

    /// What to wait for: what it says, as long as it can say anything.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.silent_since.is_none().then(|| self.channel.as_fd())
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
        Ok(status.map(|status| End { status, killed: self.killed }))
    }

    /// Ends it at once, which resets what it carries.
    pub(super) fn kill(&mut self, why: Why) {
        if self.killed.is_some() {
            return;
        }
        self.killed = Some(why);
        if let Err(error) = self.child.kill() {
            tracing::error!(%error, pid = self.pid(), "the worker cannot be killed");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // One that cannot be killed would be waited for without end.
        if self.child.kill().is_ok() {
            let _ = self.child.wait();
        }
    }
}

/// Why we killed a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It gave no sign of life.
    Hung,
    /// It is in another cgroup than it was born in.
    Moved,
    /// It was told to end at once and did not.
    Asked,
    /// What it says is not understood.
    NotUnderstood,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    status: ExitStatus,
    killed: Option<Why>,
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
    /// By us, because somebody had moved it.
    Moved,
}

impl End {
    pub(super) fn success(&self) -> bool {
        self.status.success()
    }

    pub(super) fn reason(&self) -> Reason {
        match (self.killed, self.status.signal()) {
            (Some(Why::Hung), _) => Reason::Hung,
            (Some(Why::Moved), _) => Reason::Moved,
            (_, Some(_)) => Reason::Killed,
            (_, None) => Reason::Exited,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.killed {
            Some(Why::Hung) => f.write_str("it hung and was killed"),
            Some(Why::Moved) => f.write_str("it was moved to another cgroup and killed"),
            Some(Why::Asked | Why::NotUnderstood) | None => self.status.fmt(f),
        }
    }
}
