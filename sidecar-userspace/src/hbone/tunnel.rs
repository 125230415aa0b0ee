//! One HTTP/2 stream as a side of a relay.
//!
//! | TCP | HTTP/2 |
//! |---|---|
//! | bytes | DATA, as far as the peer's windows allow |
//! | a full receive buffer | a window that is not opened again: it opens by what the relay took |
//! | FIN | END_STREAM |
//! | RST | RST_STREAM(CANCEL), and every other RST_STREAM, GOAWAY or end of the connection |
//! | urgent data | nothing: an urgent byte goes in its place in the stream, as ordinary data |

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io, mem,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::{
    chunk::{Chunk, Unwritten},
    liveness::Seat,
    request::BAGGAGE,
    secure::Carrier,
};
use crate::{
    addr::UpstreamLocal,
    id::SpiffeId,
    net::{Arrived, Received, Side},
    serve::{Proved, Upstream},
    tls::Contexts,
};

/// A tunnel through an HTTP/2 connection, whose task must be running on the same thread.
pub struct Tunnel {
    sending: RefCell<Sending>,
    receiving: RefCell<Receiving>,
    unwritten: Rc<Unwritten>,
    ends_cleanly: Cell<bool>,
    /// Moved on to whatever outlives the tunnel.
    seat: Option<Seat>,
    carrier: Rc<Carrier>,
    /// What a client hears whose tunnel is dropped before it was opened.
    refusal: Rc<Cell<StatusCode>>,
}

enum Sending {
    /// A client asked for it and waits for the answer.
    Asked(SendResponse<Chunk>),
    /// Bytes can move.
    Open(SendStream<Chunk>),
    /// The stream is gone.
    Over,
}

struct Receiving {
    stream: RecvStream,
    /// What is left of the DATA frame that was taken last.
    rest: Bytes,
    ended: Option<Ended>,
}

#[derive(Clone, Copy)]
enum Ended {
    Cleanly,
    Failed,
}

fn gone() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl Tunnel {
    /// One that a client asked for. It is opened by [`Self::accept`]; dropped before, the client gets the status that
    /// [`Self::refusal`] holds then.
    pub(super) fn asked(respond: SendResponse<Chunk>, body: RecvStream, seat: Seat, carrier: Rc<Carrier>) -> Self {
        Self::new(Sending::Asked(respond), body, seat, carrier)
    }

    /// One that we asked for and got.
    pub(super) fn open(send: SendStream<Chunk>, body: RecvStream, seat: Seat, carrier: Rc<Carrier>) -> Self {
        Self::new(Sending::Open(send), body, seat, carrier)
    }

    fn new(sending: Sending, stream: RecvStream, seat: Seat, carrier: Rc<Carrier>) -> Self {
        Self {
            sending: RefCell::new(sending),
            receiving: RefCell::new(Receiving { stream, rest: Bytes::new(), ended: None }),
            unwritten: Rc::default(),
            ends_cleanly: Cell::new(false),
            seat: Some(seat),
            carrier,
            refusal: Rc::new(Cell::new(StatusCode::SERVICE_UNAVAILABLE)),
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &SpiffeId {
        &self.carrier.identity
    }

    /// The status that its client gets if it is dropped before it was opened; 503 unless it is set.
    pub(super) fn refusal(&self) -> Rc<Cell<StatusCode>> {
        Rc::clone(&self.refusal)
    }

    /// Answers 200, with what we say about ourselves: from now on bytes can move. A client that is gone meanwhile is noticed
    /// by whoever relays.
    pub(super) fn accept(&self, baggage: Option<&HeaderValue>) {
        let mut answer = Response::new(());
        answer.headers_mut().extend(baggage.map(|value| (HeaderName::from_static(BAGGAGE), value.clone())));
        let mut sending = self.sending.borrow_mut();
        if let Sending::Asked(respond) = &mut *sending {
            *sending = match respond.send_response(answer, false) {
                Ok(send) => Sending::Open(send),
                Err(_) => Sending::Over,
            };
        }
    }

    /// Answers with a status that says why there is no tunnel.
    pub(super) fn refuse(self, status: StatusCode) {
        self.answer(status);
    }

    /// Resets the stream after what it gave to the connection is written, because HTTP/2 throws away what is not: what was
    /// delivered before a reset arrives without us as well.
    fn reset(&mut self, mut stream: SendStream<Chunk>) {
        /// A peer that does not read for so long has no use for it.
        const LAST_WORDS: Duration = Duration::from_secs(1);
        if !self.unwritten.any() {
            return stream.send_reset(Reason::CANCEL);
        }
        let (unwritten, seat) = (Rc::clone(&self.unwritten), self.seat.take());
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = unwritten.none() => {}
                _ = poll_fn(|cx| stream.poll_reset(cx)) => {}
                () = tokio::time::sleep(LAST_WORDS) => {}
            }
            stream.send_reset(Reason::CANCEL);
            drop(seat);
        });
    }

    fn answer(&self, status: StatusCode) {
        let mut sending = self.sending.borrow_mut();
        if let Sending::Asked(respond) = &mut *sending {
            let mut response = Response::new(());
            *response.status_mut() = status;
            // Fails only if the client is gone.
            let _ = respond.send_response(response, true);
            *sending = Sending::Over;
        }
    }

    fn take(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let receiving = &mut *self.receiving.borrow_mut();
        let mut taken = 0;
        while taken < buffer.len() && receiving.look(&mut Context::from_waker(Waker::noop())).is_ready() {
            if receiving.rest.is_empty() {
                break;
            }
            let bytes = receiving.rest.len().min(buffer.len() - taken);
            receiving.rest.copy_to_slice(&mut buffer[taken..taken + bytes]);
            taken += bytes;
        }
        match receiving.ended {
            _ if taken > 0 => {
                // Fails only if the stream is gone, which the next receive tells.
                let _ = receiving.stream.flow_control().release_capacity(taken);
                Ok(Received::Bytes(taken))
            }
            None => Ok(Received::Nothing),
            Some(Ended::Cleanly) => Ok(Received::End),
            Some(Ended::Failed) => Err(gone()),
        }
    }
}

impl Receiving {
    /// Looks for bytes or the end.
    fn look(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.rest.is_empty() && self.ended.is_none() {
            match std::task::ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(error)) => {
                    tracing::debug!(%error, "a tunnel failed");
                    self.ended = Some(Ended::Failed);
                }
                None => self.ended = Some(Ended::Cleanly),
            }
        }
        Poll::Ready(())
    }
}

impl Side for Tunnel {
    type Arrived<'a> = Receivable<'a>;

    async fn receivable(&self) -> io::Result<Receivable<'_>> {
        poll_fn(|cx| self.receiving.borrow_mut().look(cx)).await;
        Ok(Receivable(self))
    }

    fn receive_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.take(buffer)? {
            Received::Bytes(bytes) => Ok(bytes),
            Received::End => Ok(0),
            Received::Urgent(_) | Received::Nothing => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    async fn sendable(&self) -> io::Result<()> {
        poll_fn(|cx| match &mut *self.sending.borrow_mut() {
            Sending::Asked(_) => Poll::Pending,
            Sending::Over => Poll::Ready(()),
            Sending::Open(stream) if stream.capacity() > 0 => Poll::Ready(()),
            sending @ Sending::Open(_) => sending.poll_capacity(cx),
        })
        .await;
        Ok(())
    }

    /// Takes no more than the windows of the stream and of the connection allow. What is not taken is asked for, so that
    /// [`Side::sendable`] resolves when there is room; an idle stream holds no part of the connection's window.
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut sending = self.sending.borrow_mut();
        let Sending::Open(stream) = &mut *sending else { return Err(gone()) };
        stream.reserve_capacity(bytes.len());
        let taken = stream.capacity().min(bytes.len());
        if taken > 0 {
            stream.send_data(Chunk::new(&bytes[..taken], &self.unwritten), false).map_err(|_| gone())?;
        }
        Ok(taken)
    }

    /// HTTP/2 knows no urgent data: the byte goes in line.
    fn send_urgent(&self, byte: u8) -> io::Result<bool> {
        self.send(&[byte]).map(|sent| sent == 1)
    }

    /// Always: the connection's task writes what was taken.
    fn flush(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn finish_sending(&self) -> io::Result<bool> {
        let mut sending = self.sending.borrow_mut();
        let Sending::Open(stream) = &mut *sending else { return Err(gone()) };
        stream.send_data(Chunk::new(&[], &self.unwritten), true).map(|()| true).map_err(|_| gone())
    }

    async fn failed(&self) {
        poll_fn(|cx| match &mut *self.sending.borrow_mut() {
            Sending::Asked(respond) => respond.poll_reset(cx).map(drop),
            Sending::Open(stream) => stream.poll_reset(cx).map(drop),
            Sending::Over => Poll::Ready(()),
        })
        .await;
    }

    fn end_cleanly(&self) {
        self.ends_cleanly.set(true);
    }
}

impl Proved for Tunnel {
    const NOTHING: bool = false;

    fn is_revoked(&self, contexts: &Contexts) -> bool {
        self.carrier.is_revoked(contexts)
    }
}

impl Upstream for Tunnel {
    fn local(&self) -> io::Result<UpstreamLocal> {
        Ok(UpstreamLocal(self.carrier.local))
    }
}

impl Sending {
    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self::Open(stream) = self else { return Poll::Ready(()) };
        match std::task::ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            // Only now is it known that nothing can be sent any more: `capacity` says zero then as well.
            Some(Err(_)) | None => *self = Self::Over,
        }
        Poll::Ready(())
    }
}

/// Something can be received.
pub struct Receivable<'a>(&'a Tunnel);

impl Arrived for Receivable<'_> {
    fn receive(self, buffer: &mut [u8], _more: bool) -> io::Result<Received> {
        self.0.take(buffer)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.answer(self.refusal.get());
        let Sending::Open(stream) = mem::replace(self.sending.get_mut(), Sending::Over) else { return };
        if !self.ends_cleanly.get() {
            self.reset(stream);
        }
    }
}
