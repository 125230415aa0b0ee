//! Sockets that nobody else has, on which the fast path tries what a kernel does to sockets of applications.

mod completions;
mod rendezvous;

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd, FromRawFd as _, OwnedFd},
    ptr::null_mut,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use super::options::{at_urgent_mark, set};

pub use rendezvous::Rendezvous;

/// What loopback takes microseconds for has failed when it takes longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// One end of a scratch connection, non-blocking unless said otherwise: then it waits no longer than anything else does.
pub struct Scratch(Socket);

impl Scratch {
    /// `write(2)`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel only reads the bytes. Not `send(2)`, for which SIGPIPE could be switched off: Rust's runtime ignores it.
        counted(unsafe { libc::write(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
    }

    /// `send(2)` with flags.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn send(&self, bytes: &[u8], flags: i32) -> io::Result<usize> {
        self.0.send_with_flags(bytes, flags | libc::MSG_NOSIGNAL)
    }

    /// `recv(2)` of at most so many bytes with flags, without waiting.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn receive(&self, most: usize, flags: i32) -> io::Result<Vec<u8>> {
        let mut buffer = vec![MaybeUninit::uninit(); most];
        let received = self.0.recv_with_flags(&mut buffer, flags)?;
        // SAFETY: the kernel has written so many bytes.
        Ok(unsafe { buffer[..received].assume_init_ref() }.to_vec())
    }

    /// The same in blocking mode, where the socket itself waits no longer than anything else does.
    ///
    /// # Errors
    /// The kernel's answer; `TimedOut` if nothing comes.
    pub fn receive_in_time(&self, most: usize) -> io::Result<Vec<u8>> {
        let began = Instant::now();
        match self.receive(most, 0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && began.elapsed() >= PATIENCE => {
                Err(io::ErrorKind::TimedOut.into())
            }
            received => received,
        }
    }

    /// Waits for bytes and receives at most so many; none at the end.
    ///
    /// # Errors
    /// The kernel's answer; `TimedOut` if nothing comes.
    pub fn await_bytes(&self, most: usize) -> io::Result<Vec<u8>> {
        let began = Instant::now();
        loop {
            match self.receive(most, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Readable and without a byte is what a kernel may say for ever.
                    let left = PATIENCE.saturating_sub(began.elapsed());
                    if left.is_zero() || self.wait(PollFlags::POLLIN, left)?.is_empty() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                received => return received,
            }
        }
    }

    /// Waits for exactly so many bytes, or the end.
    ///
    /// # Errors
    /// The kernel's answer; `TimedOut` if nothing comes.
    pub fn await_all(&self, wanted: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < wanted {
            let more = self.await_bytes(wanted - all.len())?;
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        Ok(all)
    }

    /// Waits for one of these events; none: it did not come.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn wait(&self, events: PollFlags, limit: Duration) -> io::Result<PollFlags> {
        let mut descriptors = [PollFd::new(self.0.as_fd(), events)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        poll(&mut descriptors, limit)?;
        Ok(descriptors[0].revents().unwrap_or(PollFlags::empty()))
    }

    /// Waits as long as loopback may take.
    ///
    /// # Errors
    /// The kernel's answer; `TimedOut` if none of them comes.
    pub fn await_event(&self, events: PollFlags) -> io::Result<PollFlags> {
        let seen = self.wait(events, PATIENCE)?;
        if seen.is_empty() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(seen) }
    }

    /// The port of this end.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn port(&self) -> io::Result<u16> {
        let address = self.0.local_addr()?.as_socket();
        address.map(|address| address.port()).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// `FIONREAD`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn unread(&self) -> io::Result<i32> {
        let mut unread = 0;
        // SAFETY: the request writes one int.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
        counted(result as isize).map(|_| unread)
    }

    /// Bytes that came by TCP (`tcpi_bytes_received`, RFC 4898 `tcpEStatsAppHCThruOctetsReceived`).
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn received_by_tcp(&self) -> io::Result<u64> {
        /// `tcpi_bytes_received` in `struct tcp_info` (linux/tcp.h), since 4.1.
        const AT: usize = 128;
        tcp_info(&self.0, AT).map(u64::from_ne_bytes)
    }

    /// `SO_RCVLOWAT`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_low_water(&self, bytes: i32) -> io::Result<()> {
        set(self.0.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, &bytes)
    }

    /// `SO_ZEROCOPY`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn allow_zero_copy(&self) -> io::Result<()> {
        set(self.0.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1_i32)
    }

    /// Whether the next byte is the urgent one.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn is_at_mark(&self) -> io::Result<bool> {
        at_urgent_mark(&self.0)
    }

    /// Ends one direction.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn finish(&self) -> io::Result<()> {
        self.0.shutdown(std::net::Shutdown::Write)
    }

    /// Closes with a reset.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn reset(self) -> io::Result<()> {
        self.0.set_linger(Some(Duration::ZERO))
    }

    /// `splice(2)` into a pipe; bytes that came out of it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn splice(&self, bytes: usize) -> io::Result<Vec<u8>> {
        let (from, into) = nix::unistd::pipe()?;
        // SAFETY: both are descriptors of ours, and no offsets are given.
        let spliced = unsafe {
            libc::splice(self.0.as_raw_fd(), null_mut(), into.as_raw_fd(), null_mut(), bytes, libc::SPLICE_F_NONBLOCK)
        };
        let mut out = vec![0; counted(spliced)?];
        File::from(from).read_exact(&mut out)?;
        Ok(out)
    }

    /// `sendfile(2)`.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn send_file(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the name is a string that ends with a zero.
        let memory = unsafe { libc::memfd_create(c"sidecar-probe".as_ptr(), libc::MFD_CLOEXEC) };
        counted(memory as isize)?;
        // SAFETY: the kernel just made this descriptor for us; nobody else has it.
        let mut file = File::from(unsafe { OwnedFd::from_raw_fd(memory) });
        file.write_all(bytes)?;
        file.rewind()?;
        // SAFETY: both are descriptors of ours, and no offset is given.
        counted(unsafe { libc::sendfile(self.0.as_raw_fd(), file.as_raw_fd(), null_mut(), bytes.len()) })
    }

    /// Watches it for edges of readability.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn watch(&self) -> io::Result<Edges> {
        // SAFETY: the call takes no pointers.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        counted(epoll as isize)?;
        // SAFETY: the kernel just made this descriptor for us; nobody else has it.
        let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
        // SAFETY: the event lives through the call.
        let added =
            unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, self.0.as_raw_fd(), &raw mut event) };
        counted(added as isize)?;
        Ok(Edges(epoll))
    }
}

/// Edges of readability of a scratch socket.
pub struct Edges(OwnedFd);

impl Edges {
    /// Waits for one.
    ///
    /// # Errors
    /// The kernel's answer; `TimedOut` if none comes.
    pub fn await_next(&self) -> io::Result<()> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let limit = PATIENCE.as_millis() as i32;
        // SAFETY: there is room for the one event that is asked for.
        let seen = unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, limit) };
        if counted(seen as isize)? == 0 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// Some bytes of `TCP_INFO`.
fn tcp_info<const BYTES: usize>(socket: &Socket, at: usize) -> io::Result<[u8; BYTES]> {
    /// The part of it that anything here asks for.
    const MOST: usize = 136;
    let mut info = [0_u8; MOST];
    let mut length = info.len() as libc::socklen_t;
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: the kernel writes at most `length` bytes.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, info.as_mut_ptr().cast(), &raw mut length) };
    counted(result as isize)?;
    Ok(info[at..at + BYTES].try_into().expect("as many"))
}

fn counted(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
