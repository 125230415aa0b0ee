//! Signals, read like anything else that the loop waits for.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::{
    signal::{SigHandler, SigSet, Signal, signal},
    signalfd::{SfdFlags, SignalFd},
};

use super::Error;

/// Signals for this process, each read instead of handled. The worker inherits no blocked ones: the standard library unblocks
/// all for the programs that it starts.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// From here on none of them ends the process by itself. One that comes while the sidecar starts waits until there is
    /// something to undo.
    ///
    /// Whoever ignores SIGCHLD hands that on by execve(2), and the kernel then keeps the end of no child for wait(2).
    pub(super) fn block() -> Result<Self, Error> {
        // SAFETY: the default action runs no code of this process.
        unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }.map_err(Error::runtime("be told of children's ends"))?;
        let mut set = SigSet::empty();
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD, Signal::SIGUSR2]
            .into_iter()
            .for_each(|signal| set.add(signal));
        set.thread_block().map_err(Error::runtime("block signals"))?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        signals.map(Self).map_err(Error::runtime("listen for signals"))
    }

    /// The next one, if there is one.
    pub(super) fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo.cast_signed()).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
