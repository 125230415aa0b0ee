//! The last resort of a worker whose supervisor is gone: it must not keep the ports for ever, whatever has become of its
//! reactors.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::Error;
use crate::control::Channel;

/// A worker that is well ends itself when the drain deadline has passed, and has so long for it.
const GRACE: Duration = Duration::from_secs(3);

/// Whether there is anything yet that would be cut off.
pub(super) struct Serves(Arc<AtomicBool>);

impl Serves {
    /// From now on there may be.
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has a thread of its own wait for the supervisor's end, and end the process `deadline` and a little later, or at once if it does
/// not serve yet: it may wait for an identity without end.
pub(super) fn watch(channel: Channel, deadline: Duration) -> Result<Serves, Error> {
    let serves = Arc::new(AtomicBool::new(false));
    let begun = Arc::clone(&serves);
    let failed = |source| Error::Runtime { what: "start the thread that watches the supervisor", source };
    let watching = thread::Builder::new().name("orphan".to_owned()).stack_size(64 * 1024).spawn(move || {
        // No answer but the end is asked for: poll(2) tells of that always.
        while let Ok(0) | Err(Errno::EINTR) =
            poll(&mut [PollFd::new(channel.as_fd(), PollFlags::empty())], PollTimeout::NONE)
        {}
        let carries = begun.load(Ordering::Relaxed);
        let end = Instant::now() + if carries { deadline + GRACE } else { Duration::ZERO };
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            thread::sleep(left);
        }
        // Without a word: whoever hangs may hang in the log.
        // SAFETY: ends the process; nothing of it is used afterwards.
        unsafe { libc::_exit(1) }
    });
    watching.map(|_| Serves(serves)).map_err(failed)
}
