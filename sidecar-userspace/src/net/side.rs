//! What a relay needs of each of its two connections, whatever carries them.

use std::io;

/// What was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, now in the buffer.
    Bytes(usize),
    /// An urgent byte (RFC 9293 §3.8.5), after everything that was sent before it.
    Urgent(u8),
    /// The other end will send no more, and everything that it sent has been received.
    End,
    /// Nothing after all.
    Nothing,
}

/// One of the two connections of a relay.
///
/// Dropping it resets the connection unless [`Side::end_cleanly`] was called.
pub trait Side {
    /// Proof that something can be received.
    type Arrived<'a>: Arrived
    where
        Self: 'a;

    /// Waits until something can be received, the end or a failure among it.
    ///
    /// # Errors
    /// The runtime is shutting down.
    fn receivable(&self) -> impl Future<Output = io::Result<Self::Arrived<'_>>>;

    /// Receives what has arrived already; `WouldBlock` if nothing has. Zero is the end.
    ///
    /// # Errors
    /// The connection was reset or given up.
    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Waits until something can be sent, or what was taken before can go on its way.
    ///
    /// # Errors
    /// The runtime is shutting down.
    fn sendable(&self) -> impl Future<Output = io::Result<()>>;

    /// Takes as many bytes as can be taken now; zero if none.
    ///
    /// # Errors
    /// The connection was reset or given up.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Takes one urgent byte; false if not now.
    ///
    /// # Errors
    /// The connection was reset or given up.
    fn send_urgent(&self, byte: u8) -> io::Result<bool>;

    /// Whether everything that was taken is on its way; what is not needs [`Side::sendable`] and another call.
    ///
    /// # Errors
    /// The connection was reset or given up.
    fn flush(&self) -> io::Result<bool>;

    /// Nothing more will be sent: the end, after everything that was. False if it needs [`Side::sendable`] and another
    /// call.
    ///
    /// # Errors
    /// The connection is gone.
    fn finish_sending(&self) -> io::Result<bool>;

    /// Waits until the connection has failed: a reset, or it was given up.
    fn failed(&self) -> impl Future<Output = ()>;

    /// Dropping it no longer resets the connection: what was sent is still delivered.
    fn end_cleanly(&self);
}

/// Something can be received.
pub trait Arrived {
    /// Receives what is there, at most as much as fits into `buffer`.
    ///
    /// `more`: the receive before this one filled its buffer, so that the reactor was not asked since.
    ///
    /// # Errors
    /// The connection was reset or given up.
    fn receive(self, buffer: &mut [u8], more: bool) -> io::Result<Received>;
}
