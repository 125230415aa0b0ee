//! TLS 1.3 on a socket, as a side of a relay.
//!
//! Built on rustls' unbuffered connections: bytes are decrypted in and encrypted into buffers of the thread, so that an
//! idle connection keeps none. The end of a direction is `close_notify` (RFC 8446 §6.1) followed by FIN; a FIN without it
//! is a truncated stream, and an error.

use std::{
    cell::{Ref, RefCell, RefMut},
    io,
};

use rustls::{pki_types::CertificateDer, unbuffered::WriteTraffic};

use tokio::task::coop;

use super::{
    role::Role,
    session::{self, Progress, Session, broken},
};
use crate::{
    id::SpiffeId,
    identity,
    net::{Arrived, Receivable, Received, Side, Stream},
    tls::{Alpn, Contexts, Failure},
};

/// Bytes encrypted by one call: all that a relay has received at once, unless it is configured to receive more. What is left
/// over would have to be kept.
const ENCRYPTED_AT_ONCE: usize = 256 * 1024;
/// Bytes that may wait for data to leave with: the last flight with a certificate, a session ticket, the header.
const WAITING_AT_MOST: usize = 4096;

thread_local! {
    /// Ciphertext between the socket and decryption, which is never longer than one call.
    static RECEIVED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// Ciphertext between encryption and the socket.
    static ENCRYPTED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A connection that is, or is being, secured.
pub struct TlsStream<R> {
    socket: Stream,
    /// On the heap: rustls' connections are large, and this is moved from state to state.
    session: Box<RefCell<Session<R>>>,
}

impl<R: Role> TlsStream<R> {
    /// A connection on `socket` of which nothing has been exchanged yet.
    pub(super) fn new(socket: Stream, tls: R) -> Self {
        Self { socket, session: Box::new(RefCell::new(Session::new(tls))) }
    }

    /// The socket below.
    pub fn socket(&self) -> &Stream {
        &self.socket
    }

    /// The connection's TLS state.
    pub(super) fn tls(&self) -> RefMut<'_, R> {
        RefMut::map(self.session.borrow_mut(), |session| &mut session.tls)
    }

    /// Exchanges what is necessary until data can move in both directions. What the last flight of our own is made of may
    /// still be unsent: it leaves with the first data, or by [`Side::flush`].
    ///
    /// # Errors
    /// The other end is not who it should be, speaks no TLS, or is gone; what can be told to it has been.
    pub(super) async fn handshake(&self) -> Result<(), HandshakeError> {
        self.advance(&[])?;
        while self.tls().common().is_handshaking() {
            self.flush_all().await?;
            let mut records = [0; 4096];
            let arrived = match self.socket.receivable().await?.receive(&mut records, false)? {
                Received::Nothing => continue,
                Received::End => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Received::Urgent(byte) => {
                    records[0] = byte;
                    1
                }
                Received::Bytes(bytes) => bytes,
            };
            self.advance(&records[..arrived])?;
            coop::consume_budget().await;
        }
        Ok(())
    }

    /// Waits until everything that was taken is on its way.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn flush_all(&self) -> io::Result<()> {
        while !self.flush()? {
            self.sendable().await?;
        }
        Ok(())
    }

    /// The other end's certificate and those that came with it.
    pub fn peer_certificates(&self) -> Option<Ref<'_, [CertificateDer<'static>]>> {
        let session = self.session.borrow();
        Ref::filter_map(session, |session| session.tls.common().peer_certificates()).ok()
    }

    /// Who the client at the other end is, if `now` still believes what `then` did.
    ///
    /// # Errors
    /// Why it is not believed any more.
    pub fn admit_again(&self, now: &Contexts, then: &Contexts) -> Result<SpiffeId, Failure> {
        now.admit_again(then, self.session.borrow().tls.common(), Alpn::Native, identity::Role::Client)
    }

    /// Whether the other end has neither closed the connection nor said anything.
    pub(super) fn is_silent(&self) -> bool {
        let mut waits = true;
        while waits {
            let heard = self.receive_by(&mut [0; 1024], |records| match self.socket.receive_now(records) {
                Ok(0) => Ok(Received::End),
                Ok(bytes) => Ok(Received::Bytes(bytes)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    waits = false;
                    Ok(Received::Nothing)
                }
                Err(error) => Err(error),
            });
            // What TLS says for itself, session tickets above all, is nothing.
            if !matches!(heard, Ok(Received::Nothing)) {
                return false;
            }
        }
        true
    }

    /// Whether something was received that nobody has taken.
    pub(super) fn has_more(&self) -> bool {
        self.session.borrow().has_more()
    }

    /// Puts back what was received and belongs to the next receiver.
    pub(super) fn unreceive(&self, bytes: &[u8]) {
        self.session.borrow_mut().put_back(bytes);
    }

    fn advance(&self, arrived: &[u8]) -> Result<(), rustls::Error> {
        let mut session = self.session.borrow_mut();
        let processed = session.process_more(arrived);
        if processed.is_err() {
            session.tell_why(&self.socket);
        }
        processed
    }

    /// Receives with `read`, of which the caller may only pass on what is returned.
    fn receive_by(
        &self,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<Received>,
    ) -> io::Result<Received> {
        let session = &mut *self.session.borrow_mut();
        if let Some(received) = session.next_decrypted(buffer) {
            return Ok(received);
        }
        session.check()?;
        RECEIVED.with_borrow_mut(|records| {
            let kept = session.incoming.len();
            let room = session::encrypted_size(buffer.len());
            if records.len() < kept + room {
                records.resize(kept + room, 0);
            }
            let read = match read(&mut records[kept..kept + room])? {
                Received::Nothing => return Ok(Received::Nothing),
                Received::End => {
                    session.fail(&truncated());
                    return Err(truncated());
                }
                Received::Urgent(byte) => {
                    records[kept] = byte;
                    1
                }
                Received::Bytes(bytes) => bytes,
            };
            records[..kept].copy_from_slice(&session.incoming);
            let mut progress = Progress::default();
            let processed = session.process(&mut records[..kept + read], buffer, &mut progress);
            session.incoming = records[progress.done..kept + read].to_vec();
            if processed.is_err() {
                session.tell_why(&self.socket);
            }
            // Answers to key updates and session tickets: with data, to which there will be an answer, they wait for it
            // (RFC 8446 §4.6.3 asks for no more), as does what the kernel does not take now.
            let waits = progress.filled > 0 && session.outgoing.bytes.len() <= WAITING_AT_MOST;
            let send = |()| if waits { Ok(false) } else { session.outgoing.send_to(&self.socket) };
            let answered = processed.map_err(broken).and_then(send);
            if let Err(error) = &answered {
                session.fail(error);
            }
            // A failure comes after what came before it, and nothing comes after a failure: the stream has no holes.
            if progress.filled > 0 {
                return Ok(Received::Bytes(progress.filled));
            }
            match session.next_decrypted(buffer) {
                Some(received) => Ok(received),
                None => answered.map(|_| Received::Nothing),
            }
        })
    }

    /// Has `bytes` leave before whatever is sent next.
    pub(super) fn keep_encrypted(&self, bytes: &[u8]) -> io::Result<()> {
        self.send_encrypted(|_, _| Ok(0), |traffic, records| session::encrypt(traffic, bytes, records))
    }

    /// Whether more may be taken: what waits has left, or is so little that it leaves with what is taken.
    fn has_room(&self) -> io::Result<bool> {
        let outgoing = &mut self.session.borrow_mut().outgoing;
        Ok(outgoing.bytes.len() <= WAITING_AT_MOST || outgoing.send_to(&self.socket)?)
    }

    /// Sends with `send` what `encrypt` appends to the records that it is given; what the kernel does not take now is kept.
    fn send_encrypted(
        &self,
        send: impl FnOnce(&Stream, &[u8]) -> io::Result<usize>,
        encrypt: impl FnOnce(&mut WriteTraffic<'_, R::Data>, &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let session = &mut *self.session.borrow_mut();
        session.check()?;
        // What TLS itself has to say goes first.
        if let Err(error) = session.settle().map_err(broken) {
            session.fail(&error);
            return Err(error);
        }
        ENCRYPTED.with_borrow_mut(|records| {
            records.clear();
            session.outgoing.move_to(records);
            encrypt(&mut session.write_traffic()?, records)?;
            let sent = send(&self.socket, records)?;
            session.outgoing.bytes.extend_from_slice(&records[sent..]);
            Ok(())
        })
    }
}

/// Something can be received.
pub struct TlsArrived<'a, R> {
    stream: &'a TlsStream<R>,
    /// `None`: it has been decrypted already.
    socket: Option<Receivable<'a>>,
}

impl<R: Role> Arrived for TlsArrived<'_, R> {
    fn receive(self, buffer: &mut [u8], _more: bool) -> io::Result<Received> {
        self.stream.receive_by(buffer, |records| match self.socket {
            // Urgent marks of the ciphertext mean nothing.
            Some(socket) => socket.receive(records, false),
            None => Ok(Received::Nothing),
        })
    }
}

impl<R: Role> Side for TlsStream<R> {
    type Arrived<'a>
        = TlsArrived<'a, R>
    where
        R: 'a;

    async fn receivable(&self) -> io::Result<TlsArrived<'_, R>> {
        let socket = if self.has_more() { None } else { Some(self.socket.receivable().await?) };
        Ok(TlsArrived { stream: self, socket })
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let received = self.receive_by(buffer, |records| match self.socket.receive_now(records)? {
            0 => Ok(Received::End),
            bytes => Ok(Received::Bytes(bytes)),
        })?;
        match received {
            Received::Bytes(bytes) => Ok(bytes),
            Received::End => Ok(0),
            // Its place is lost, the byte is not.
            Received::Urgent(byte) => {
                buffer[0] = byte;
                Ok(1)
            }
            Received::Nothing => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    async fn sendable(&self) -> io::Result<()> {
        self.socket.sendable().await
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        if !self.has_room()? {
            return Ok(0);
        }
        let taken = &bytes[..bytes.len().min(ENCRYPTED_AT_ONCE)];
        self.send_encrypted(Stream::send, |traffic, records| session::encrypt(traffic, taken, records))?;
        Ok(taken.len())
    }

    fn send_urgent(&self, byte: u8) -> io::Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        self.send_encrypted(Stream::send, |traffic, records| session::encrypt_urgent(traffic, byte, records))?;
        Ok(true)
    }

    fn flush(&self) -> io::Result<bool> {
        self.session.borrow_mut().outgoing.send_to(&self.socket)
    }

    fn finish_sending(&self) -> io::Result<bool> {
        if !std::mem::replace(&mut self.session.borrow_mut().finished, true) {
            // One segment with the FIN: it wakes the other end once.
            self.send_encrypted(Stream::send_before_more, session::encrypt_end)?;
        }
        Ok(self.flush()? && self.socket.finish_sending()?)
    }

    async fn failed(&self) {
        self.socket.failed().await;
    }

    fn end_cleanly(&self) {
        self.socket.end_cleanly();
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// TLS says so.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The socket says so.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A FIN that nobody announced: whoever cuts a connection must not make a stream look complete.
fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended without close_notify")
}

#[cfg(test)]
mod tests;
