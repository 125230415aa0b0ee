//! Ctrl-C while something is being installed: noticed, and acted on where stopping leaves nothing half done.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The signals by which a person or a CI runner ends a command.
const ENDINGS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// While this lives a signal to stop is remembered instead of ending the process, so that destructors run.
/// Programs started meanwhile still get the signal from the terminal, with its default effect.
pub(crate) struct Caught {
    before: Vec<(Signal, SigAction)>,
}

/// Starts remembering signals to stop.
///
/// # Errors
/// When the kernel refuses the signal disposition.
pub(crate) fn catch() -> Result<Caught> {
    let remember = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    let mut caught = Caught { before: Vec::new() };
    for signal in ENDINGS {
        // SAFETY: the handler stores one atomic, which is async-signal-safe.
        let before = unsafe { sigaction(signal, &remember) }.with_context(|| format!("sigaction({signal})"))?;
        caught.before.push((signal, before));
    }
    Ok(caught)
}

/// Fails when a signal to stop has come.
///
/// # Errors
/// After SIGINT, SIGTERM or SIGHUP.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted; run the command again to go on");
    }
    Ok(())
}

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

impl Drop for Caught {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: the disposition put back is the one the kernel returned when ours was set. A failure leaves
            // our own handler in place, which is harmless.
            let _ = unsafe { sigaction(*signal, before) };
        }
    }
}
