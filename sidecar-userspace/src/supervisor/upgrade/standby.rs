//! The process that stands by while a new binary takes over ([`super::watch`]), as the supervisor sees it.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd, RawFd},
    process::{Command, Stdio},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::{state, watch};
use crate::supervisor::{child::Child, worker::OWN_BINARY};

/// Time for the process to say that it traces: it does little, and its binary is in memory.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The process that stands by, before the supervisor's execve(2). It ends when this is dropped.
pub(super) struct Standby {
    child: Child,
    /// What it is to start the binary before with.
    pub(super) memory: File,
}

/// The same process, as the new binary is told of it by the [`State`](super::state::State).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::supervisor) struct Known {
    pid: u32,
    pub(super) memory: RawFd,
}

impl Standby {
    /// Starts it, and waits until it traces this process.
    pub(super) fn start(patience: Duration) -> io::Result<Self> {
        let memory = state::memory()?;
        let mut command = Command::new(OWN_BINARY);
        command.args([watch::COMMAND, &patience.as_millis().to_string()]);
        let mut child = command.stdin(memory.try_clone()?).stdout(Stdio::piped()).spawn()?;
        let standby = Self { child: Child::of(child.id()), memory };
        // SAFETY: the call takes no pointers. Where nobody restricts tracing it is not known, and not needed.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::c_ulong::from(child.id())) };
        let mut said = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let limit = PollTimeout::try_from(START_LIMIT).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(said.as_fd(), PollFlags::POLLIN)], limit)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        said.read_exact(&mut [0; watch::READY.len()])?;
        Ok(standby)
    }

    pub(super) fn known(&self) -> Known {
        Known { pid: self.child.id(), memory: self.memory.as_raw_fd() }
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        Known { pid: self.child.id(), memory: self.memory.as_raw_fd() }.dismiss();
    }
}

impl Known {
    /// Ends it: from here on nobody takes anything back. It cannot be doing that now: this process would not run.
    pub(super) fn dismiss(&self) {
        let mut child = Child::of(self.pid);
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            tracing::warn!(%error, pid = self.pid, "the process that stood by cannot be waited for");
        }
    }
}
