//! A listener's queue in the reactor.

use std::{
    io,
    net::TcpListener,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use socket2::{SockAddr, Socket};
use tokio::io::{Interest, unix::AsyncFd};

use crate::addr::{ClientAddr, canonical};

/// Connections that wait to be accepted.
pub struct Queue(AsyncFd<TcpListener>);

impl Queue {
    /// Watches a non-blocking listener with this thread's reactor; other threads may watch the same queue by another
    /// descriptor.
    ///
    /// # Errors
    /// The kernel's answer to `epoll_ctl`.
    pub fn watch(listener: TcpListener) -> io::Result<Self> {
        // SAFETY: the listener is owned by the `AsyncFd`, which gives it out by shared reference only: its descriptor
        // stays open and the same as long as it is registered.
        unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }.map(Self).map_err(io::Error::from)
    }

    /// Waits until there is, probably, a connection to accept.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn filled(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    /// Takes a connection; `None` if another thread was faster.
    ///
    /// # Errors
    /// The kernel's answer to `accept4`.
    pub fn accept(&self) -> io::Result<Option<(Socket, ClientAddr)>> {
        match self.0.try_io(Interest::READABLE, accept) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => result.map(Some),
        }
    }

    /// The same, also of a connection whose arrival this thread has not heard of yet.
    ///
    /// # Errors
    /// The kernel's answer to `accept4`.
    pub fn accept_unheard(&self) -> io::Result<Option<(Socket, ClientAddr)>> {
        match accept(self.0.get_ref()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => result.map(Some),
        }
    }
}

/// Takes a connection from the listener's queue.
fn accept(listener: &TcpListener) -> io::Result<(Socket, ClientAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `accept4` writes the peer's address into the storage, at most as much as the length says, and corrects the
    // length.
    let (fd, address) = unsafe {
        SockAddr::try_init(|storage, length| match libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(fd),
        })
    }?;
    // SAFETY: the kernel just made this descriptor for us; nobody else has it.
    let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let address = address.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((socket, ClientAddr(canonical(address))))
}
