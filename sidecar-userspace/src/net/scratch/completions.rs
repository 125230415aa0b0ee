//! Completions of sends without copy, which the kernel numbers by the calls.

use std::{
    io,
    os::fd::AsRawFd as _,
    ptr::null_mut,
    thread,
    time::{Duration, Instant},
};

use super::{PATIENCE, Scratch, counted, tcp_info};

/// Between two looks at what the other end has acknowledged.
const A_MOMENT: Duration = Duration::from_millis(1);
/// `tcpi_unacked` in `struct tcp_info` (linux/tcp.h).
const UNACKNOWLEDGED: usize = 24;
/// `SO_EE_ORIGIN_ZEROCOPY` (linux/errqueue.h).
const ZERO_COPY: u8 = 5;

impl Scratch {
    /// Waits until everything that was sent is acknowledged, by when all have come: how many there are.
    ///
    /// # Errors
    /// The kernel's answer; `TimedOut` if the other end does not acknowledge.
    pub fn await_completions(&self) -> io::Result<u32> {
        let began = Instant::now();
        // The kernel answers with the socket locked: what is acknowledged is completed.
        while tcp_info::<4>(&self.0, UNACKNOWLEDGED)? != [0; 4] {
            if began.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(A_MOMENT);
        }
        let mut all = 0;
        loop {
            match self.completed() {
                Ok(completed) => all += completed,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(all),
                Err(error) => return Err(error),
            }
        }
    }

    /// Those of the next message in the error queue.
    fn completed(&self) -> io::Result<u32> {
        /// Room for a header and the message, aligned as the kernel wants it.
        #[repr(C, align(8))]
        struct Room([u8; 128]);
        let mut room = Room([0; 128]);
        // SAFETY: zeros are a message without name, bytes and control.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = null_mut();
        message.msg_control = room.0.as_mut_ptr().cast();
        message.msg_controllen = room.0.len() as _;
        // SAFETY: the kernel writes at most `msg_controllen` bytes.
        let received = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE) };
        counted(received)?;
        // SAFETY: the kernel has set the length to what it wrote.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        if header.is_null() {
            return Ok(0);
        }
        // SAFETY: every message of a TCP socket's error queue has this content (`ip_recv_error`).
        let error: libc::sock_extended_err =
            unsafe { libc::CMSG_DATA(header).cast::<libc::sock_extended_err>().read_unaligned() };
        // From the number `ee_info` to `ee_data`.
        let range = error.ee_data.wrapping_sub(error.ee_info).wrapping_add(1);
        Ok(if error.ee_origin == ZERO_COPY { range } else { 0 })
    }
}
