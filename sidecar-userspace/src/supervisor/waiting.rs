//! Waiting for descriptors, whatever becomes of the limit on their number.
//!
//! poll(2) answers EINVAL when it is asked for more descriptors than the process may have: those that are open when somebody lowers the
//! limit stay open. That must not end the sidecar.

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::Once,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        select::{FD_SETSIZE, FdSet, pselect},
        time::TimeSpec,
    },
};

/// Waits until one of them can be read, or the time is over. Says of each whether it can.
pub(super) fn wait(descriptors: &[BorrowedFd<'_>], time: Duration) -> Result<Vec<bool>, Errno> {
    match polled(descriptors, time) {
        Err(Errno::EINVAL) if raise_descriptor_limit() => {
            tracing::warn!(
                "somebody has lowered the limit of file descriptors below those that are open; it is raised to its hard limit \
                 again, for a new worker needs some"
            );
            wait(descriptors, time)
        }
        Err(Errno::EINVAL) => {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                tracing::error!(
                    pid = std::process::id(),
                    "the hard limit of file descriptors is below those that are open: the sidecar goes on, but what needs another \
                     one fails, the next worker among it; raise it (`prlimit --pid PID --nofile=N:N`)"
                );
            });
            selected(descriptors, time)
        }
        spoke => spoke,
    }
}

fn polled(descriptors: &[BorrowedFd<'_>], time: Duration) -> Result<Vec<bool>, Errno> {
    let mut polled: Vec<PollFd<'_>> =
        descriptors.iter().map(|descriptor| PollFd::new(*descriptor, PollFlags::POLLIN)).collect();
    match poll(&mut polled, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(polled.iter().map(|polled| polled.any().unwrap_or(true)).collect()),
        Err(errno) => Err(errno),
    }
}

/// The same by select(2), which asks nobody for a limit, but knows no higher numbers than 1023: the lowest free one is given first,
/// and a supervisor has some dozens.
fn selected(descriptors: &[BorrowedFd<'_>], time: Duration) -> Result<Vec<bool>, Errno> {
    let known = |descriptor: &BorrowedFd<'_>| usize::try_from(descriptor.as_raw_fd()).is_ok_and(|fd| fd < FD_SETSIZE);
    let mut set = FdSet::new();
    descriptors.iter().filter(|descriptor| known(descriptor)).for_each(|descriptor| set.insert(*descriptor));
    match pselect(None, &mut set, None, None, &TimeSpec::from_duration(time), None) {
        Ok(_) => {}
        Err(Errno::EINTR) => set.clear(),
        Err(errno) => return Err(errno),
    }
    Ok(descriptors.iter().map(|descriptor| known(descriptor) && set.contains(*descriptor)).collect())
}

/// Raises the limit as far as it may be. Returns whether it was lower.
fn raise_descriptor_limit() -> bool {
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    limit.is_ok_and(|(soft, hard)| soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok())
}

#[cfg(test)]
mod tests {
    use std::{io, io::Write as _, os::fd::AsFd, time::Instant};

    use super::*;

    #[test]
    fn select_says_what_poll_says() {
        let (closed, _) = io::pipe().unwrap();
        let (silent, _writer) = io::pipe().unwrap();
        let (speaks, mut writer) = io::pipe().unwrap();
        writer.write_all(b".").unwrap();
        let descriptors = [closed.as_fd(), silent.as_fd(), speaks.as_fd()];
        for wait in [polled, selected] {
            assert_eq!(wait(&descriptors, Duration::from_secs(1000)), Ok(vec![true, false, true]));
            let (time, start) = (Duration::from_millis(20), Instant::now());
            assert_eq!(wait(&[silent.as_fd()], time), Ok(vec![false]));
            assert!(start.elapsed() >= time);
        }
    }
}
