//! A connection in the reactor.
//!
//! tokio's own `TcpStream` never hears of urgent data; this one is registered for it.

mod receivable;

use std::{
    cell::Cell,
    io::{self, Read as _},
    mem::MaybeUninit,
    net::{IpAddr, Shutdown, SocketAddr},
};

use socket2::Socket;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::coop,
};

pub use receivable::Receivable;

use super::{ClientLocal, Side, Transports, options, two_queues::TwoQueues};
use crate::addr::{ClientAddr, OrigDst, UpstreamLocal, canonical};

/// A connected TCP socket.
pub struct Stream {
    socket: AsyncFd<Socket>,
    queues: TwoQueues,
    /// What the reactor said last has been used: see [`Receivable`].
    used: Cell<bool>,
}

impl Stream {
    /// Watches a connected, non-blocking socket with this thread's reactor.
    ///
    /// # Errors
    /// The kernel's answer to `epoll_ctl`.
    pub fn register(socket: Socket) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        // SAFETY: the socket is owned by the `AsyncFd`, which gives it out by shared reference only: its descriptor
        // stays open and the same as long as it is registered.
        let registered = unsafe { AsyncFd::register_with_interest(socket, interest) }.map_err(io::Error::from)?;
        Ok(Self { socket: registered, queues: TwoQueues::new(true), used: Cell::new(false) })
    }

    /// The same connection, whose other end is no application of this pod: it has TCP's queue alone.
    pub fn through_the_network(self) -> Self {
        Self { queues: TwoQueues::new(false), ..self }
    }

    pub(super) async fn connect(socket: Socket, to: SocketAddr) -> io::Result<Self> {
        let to = to.into();
        // On this machine the handshake is over when `connect` returns, but only a second call says so
        // (net/ipv4/af_inet.c, `__inet_stream_connect`): no turn of the reactor, in which others would go first.
        match socket.connect(&to).or_else(|error| match error.raw_os_error() {
            Some(libc::EINPROGRESS) => socket.connect(&to),
            _ => Err(error),
        }) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EALREADY | libc::EINPROGRESS)) => {}
            result => return result.and_then(|()| Self::register(socket)),
        }
        let stream = Self::register(socket)?;
        let _ = stream.socket.ready(Interest::WRITABLE).await?;
        match stream.socket.get_ref().take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }

    /// Looks at what the connection begins with, until `tell` can tell from it; `None`: it ends before. Nothing is
    /// received. `waited` is set when the reactor was asked for more than there was: see [`Stream::watched_anew`].
    ///
    /// # Errors
    /// The connection was reset or given up.
    pub async fn peek<T>(&self, waited: &Cell<bool>, tell: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        let mut seen = vec![MaybeUninit::uninit(); 1024];
        loop {
            let mut ready = self.socket.readable().await?;
            // Asked before looking: what came before the end is seen.
            let ended = ready.ready().is_read_closed();
            let there = match self.socket.get_ref().peek(&mut seen) {
                Ok(0) => return Ok(None),
                Ok(there) => there,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            // SAFETY: the kernel has written so many bytes.
            let told = tell(unsafe { seen[..there].assume_init_ref() });
            if told.is_some() {
                return Ok(told);
            }
            if there == seen.len() {
                seen.resize(there * 2, MaybeUninit::uninit());
            } else if ended {
                return Ok(None);
            } else {
                waited.set(true);
                ready.clear_ready();
            }
            // The reactor's readiness is no part of tokio's budget: whoever drips bytes must not keep the thread.
            coop::consume_budget().await;
        }
    }

    /// Whether bytes can be received now.
    pub fn has_arrived(&self) -> bool {
        matches!(self.socket.get_ref().peek(&mut [MaybeUninit::uninit()]), Ok(1))
    }

    /// The same connection, as if the reactor had never been asked about it: it tells again of what is there already.
    ///
    /// # Errors
    /// The kernel's answer to `epoll_ctl`.
    pub fn watched_anew(self) -> io::Result<Self> {
        let queues = TwoQueues::new(self.queues.is_from_application());
        Ok(Self { queues, ..Self::register(self.socket.into_inner())? })
    }

    /// Asks the kernel before the reactor, which knows nothing of a socket that it has not yet been asked about.
    fn try_send(&self, send: impl Fn(&Socket) -> io::Result<usize>) -> io::Result<usize> {
        let sent = match send(self.socket.get_ref()) {
            // Once more, so that the reactor knows that it is to tell when there is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.try_io(Interest::WRITABLE, send),
            sent => sent,
        };
        match sent {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            result => result,
        }
    }

    /// Sends as [`Side::send`] does, but what was taken leaves with what comes next, were it the end.
    ///
    /// # Errors
    /// The connection was reset or given up.
    pub fn send_before_more(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_send(|socket| socket.send_with_flags(bytes, libc::MSG_MORE | libc::MSG_NOSIGNAL))
    }

    /// Where the application at the other end of an accepted, captured connection meant to go.
    ///
    /// # Errors
    /// The kernel's answer to `getsockopt`.
    pub fn original_dst(&self, client: ClientAddr) -> io::Result<Option<OrigDst>> {
        options::original_dst(self.socket.get_ref(), client)
    }

    /// The application's own end of an accepted, captured connection; `None`: it is the address that this socket shows.
    ///
    /// # Errors
    /// The kernel's answer to `getsockopt`.
    pub fn client_local(&self) -> io::Result<Option<ClientLocal>> {
        options::client_local(self.socket.get_ref())
    }

    /// Whether the application at the other end of a connection that [`connect_in`](super::connect_in) opened sees the
    /// client that was named.
    pub(super) fn is_presented(&self) -> io::Result<bool> {
        options::is_presented(self.socket.get_ref())
    }

    /// What the other end said in the handshake: see [`mesh_peer`](super::mesh_peer).
    ///
    /// # Errors
    /// The kernel's answer to `getsockopt`.
    pub fn mesh_peer(&self) -> io::Result<Option<Transports>> {
        options::mesh_peer(self.socket.get_ref())
    }

    /// Our own end.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let address = self.socket.get_ref().local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok(canonical(address))
    }

    /// The address of our own end, if the connection still has one.
    pub fn own_address(&self) -> Option<IpAddr> {
        self.local().ok().map(|local| local.ip())
    }

    /// Our own end of a connection that we opened.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn upstream_local(&self) -> io::Result<UpstreamLocal> {
        self.local().map(UpstreamLocal)
    }
}

impl Side for Stream {
    type Arrived<'a> = Receivable<'a>;

    async fn receivable(&self) -> io::Result<Receivable<'_>> {
        let guard = self.socket.ready(Interest::READABLE | Interest::PRIORITY).await?;
        Ok(Receivable { guard, queues: &self.queues, used: &self.used })
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut self.socket.get_ref()).read(buffer)
    }

    async fn sendable(&self) -> io::Result<()> {
        self.socket.ready(Interest::WRITABLE).await.map(drop)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        /// A peer that is gone is an error, not a signal.
        const NO_SIGNAL: i32 = libc::MSG_NOSIGNAL;
        self.try_send(|socket| socket.send_with_flags(bytes, NO_SIGNAL))
    }

    fn send_urgent(&self, byte: u8) -> io::Result<bool> {
        self.try_send(|socket| socket.send_with_flags(&[byte], libc::MSG_OOB | libc::MSG_NOSIGNAL))
            .map(|sent| sent == 1)
    }

    fn flush(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn finish_sending(&self) -> io::Result<bool> {
        self.socket.get_ref().shutdown(Shutdown::Write).map(|()| true)
    }

    async fn failed(&self) {
        // An error of the runtime itself ends the waiting as well: the connection is of no use then.
        let _ = self.socket.ready(Interest::ERROR).await;
    }

    fn end_cleanly(&self) {
        // Fails only for sockets that are gone already, which then end as they may.
        let _ = self.socket.get_ref().set_linger(None);
    }
}
