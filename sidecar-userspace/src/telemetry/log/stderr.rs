//! Standard error that never makes the writer wait: a log collector that has stopped reading must not stop traffic.
//!
//! A line is written at once or not at all, in the caller's thread, so that nothing is lost when the process exits
//! right after saying why.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// What a pipe that polls as writable takes without blocking: `PIPE_BUF` (pipe(7)).
const CHUNK: usize = 4096;

/// Lines lost since the process started.
static LOST: AtomicU64 = AtomicU64::new(0);

/// One line at a time, or two threads that both found room could fill it together.
static WRITING: Mutex<()> = Mutex::new(());

/// Lines of the own log that were lost because standard error was not read, or could not be written.
pub(in crate::telemetry) fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Writes lines to `F` or loses them.
#[derive(Clone, Copy)]
pub(super) struct Unblocked<F>(pub(super) F);

impl<F: AsFd> io::Write for Unblocked<F> {
    /// Takes everything: what cannot be written is lost and counted, and is no error to whoever logs.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _one_at_a_time = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
        if write_now(&self.0, line).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_now(output: &impl AsFd, mut line: &[u8]) -> nix::Result<()> {
    while !line.is_empty() {
        let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(0) => return Err(Errno::EAGAIN),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        }
        match write_without_waiting(output, &line[..line.len().min(CHUNK)]) {
            Ok(written) => line = &line[written..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The supervisor, its workers and perhaps the access log share one pipe: what polled as writable may be full by now. Where the
/// kernel cannot tell (a pipe before Linux 6.4, a terminal), as write(2) does.
fn write_without_waiting(output: &impl AsFd, bytes: &[u8]) -> nix::Result<usize> {
    match write_nowait(output, bytes) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::EPERM) => nix::unistd::write(output, bytes),
        answer => answer,
    }
}

/// pwritev2(2) with `RWF_NOWAIT`.
fn write_nowait(output: &impl AsFd, bytes: &[u8]) -> nix::Result<usize> {
    /// Where the file is.
    const HERE: libc::off_t = -1;
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one part, which the kernel only reads and which lives through the call.
    let written = unsafe { libc::pwritev2(output.as_fd().as_raw_fd(), &raw const part, 1, HERE, libc::RWF_NOWAIT) };
    Errno::result(written).map(isize::cast_unsigned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write, pipe};

    #[test]
    fn a_full_pipe_loses_lines_and_takes_new_ones_when_it_is_read_again() {
        let (mut reader, writer) = pipe().unwrap();
        let mut log = Unblocked(writer);
        let line = [b'x'; 1000];
        let before = lost();
        for _ in 0..1000 {
            log.write_all(&line).unwrap();
        }
        assert!(lost() - before > 900 - 64);
        let mut some = vec![0; 64 * 1024];
        assert!(reader.read(&mut some).unwrap() > 0);
        log.write_all(b"heard\n").unwrap();
        drop(log);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"heard\n"));
    }

    #[test]
    fn a_pipe_that_another_process_has_filled_since_the_look_makes_nobody_wait() {
        let (_reader, writer) = pipe().unwrap();
        // Without a look before it.
        let refused = (0..1000).find_map(|_| write_nowait(&writer, &[b'x'; CHUNK]).err());
        assert!(matches!(refused, Some(Errno::EAGAIN | Errno::EOPNOTSUPP)), "{refused:?}");
    }
}
