//! Moves bytes between two connections until both ends have finished, or one is gone.
//!
//! Half-close, reset and urgent data pass through: an end is passed on after the last byte before it; a side that is
//! reset has the other side reset. Nothing is kept for a connection that is idle or whose receiver keeps up: the
//! buffer belongs to the thread.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::pin,
};

use tokio::task::coop;

use crate::{
    net::{Arrived, Received, Side},
    telemetry::{CloseReason, End, Traffic},
};

/// The bytes read at once from a connection that has moved little so far.
const FIRST_READ: usize = 16 * 1024;

thread_local! {
    /// Where received bytes stay between receiving and sending, which is never longer than one call.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Relays until the end. Says how it ended; the sockets are still open, and closing them resets both unless the end was
/// [`CloseReason::Completed`].
///
/// `max_buffer` bounds the bytes that are kept for a receiver that is slower than its sender.
pub async fn relay(downstream: &impl Side, upstream: &impl Side, traffic: &Traffic, max_buffer: usize) -> CloseReason {
    match both_ways(downstream, upstream, traffic, max_buffer).await {
        Ok(()) => {
            downstream.end_cleanly();
            upstream.end_cleanly();
            CloseReason::Completed
        }
        Err(reason) => reason,
    }
}

/// A side that has finished sending is watched until the other has: nothing is read from it that could tell of a reset.
async fn both_ways(down: &impl Side, up: &impl Side, traffic: &Traffic, max_buffer: usize) -> Result<(), CloseReason> {
    let forth = Way::new(down, up, |bytes| traffic.add_from_downstream(bytes), max_buffer);
    let back = Way::new(up, down, |bytes| traffic.add_from_upstream(bytes), max_buffer);
    let forth_reason = |gone| match gone {
        Gone::Sender => {
            forth.deliver_arrived();
            CloseReason::DownstreamReset
        }
        Gone::Cut => CloseReason::Truncated,
        Gone::Receiver => {
            back.deliver_arrived();
            CloseReason::UpstreamReset
        }
    };
    let back_reason = |gone| match gone {
        Gone::Sender => {
            back.deliver_arrived();
            CloseReason::UpstreamReset
        }
        Gone::Cut => CloseReason::Truncated,
        Gone::Receiver => {
            forth.deliver_arrived();
            CloseReason::DownstreamReset
        }
    };
    let (mut forth_ends, mut back_ends) = (pin!(forth.copy()), pin!(back.copy()));
    tokio::select! {
        ended = &mut forth_ends => {
            ended.map_err(forth_reason)?;
            traffic.finished(End::Downstream);
            tokio::select! {
                ended = back_ends => ended.map_err(back_reason),
                () = down.failed() => Err(CloseReason::DownstreamReset),
            }
        }
        ended = &mut back_ends => {
            ended.map_err(back_reason)?;
            traffic.finished(End::Upstream);
            tokio::select! {
                ended = forth_ends => ended.map_err(forth_reason),
                () = up.failed() => Err(CloseReason::UpstreamReset),
            }
        }
    }
}

/// Which side of a direction is gone.
enum Gone {
    Sender,
    /// It did not say that it would send no more, as it must where ends are said.
    Cut,
    Receiver,
}

fn sender(error: io::Error) -> Gone {
    if error.kind() == io::ErrorKind::UnexpectedEof { Gone::Cut } else { Gone::Sender }
}

fn receiver(_: io::Error) -> Gone {
    Gone::Receiver
}

/// One direction.
struct Way<'a, F, T, C> {
    from: &'a F,
    to: &'a T,
    count: C,
    read: Cell<ReadSize>,
    /// The last receive filled its buffer.
    full: Cell<bool>,
    /// Bytes since other tasks had a turn.
    since_yield: Cell<usize>,
    /// What was received but not yet sent. Outside the future, because it goes before whatever is received later, also
    /// when the future is given up.
    unsent: RefCell<Unsent>,
}

#[derive(Default)]
struct Unsent {
    bytes: Box<[u8]>,
    sent: usize,
    urgent: Option<u8>,
}

impl Unsent {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len() && self.urgent.is_none()
    }
}

/// What was done with what arrived.
enum Passed {
    /// All of it was sent.
    All,
    /// Some of it is unsent: the receiver is slow.
    Part,
    /// The sender has finished.
    End,
}

impl<'a, F: Side, T: Side, C: Fn(u64)> Way<'a, F, T, C> {
    fn new(from: &'a F, to: &'a T, count: C, max_buffer: usize) -> Self {
        let read = Cell::new(ReadSize { now: FIRST_READ.min(max_buffer), max: max_buffer });
        Self { from, to, count, read, full: Cell::new(false), since_yield: Cell::new(0), unsent: RefCell::default() }
    }

    /// Passes on until the sender has finished and all of it has been sent.
    async fn copy(&self) -> Result<(), Gone> {
        loop {
            let arrived = self.from.receivable().await.map_err(sender)?;
            match self.pass_on(arrived)? {
                Passed::All => {}
                Passed::Part => self.send_rest().await?,
                Passed::End => return self.finish().await,
            }
            self.give_way().await;
        }
    }

    /// Passes on the end.
    async fn finish(&self) -> Result<(), Gone> {
        while !self.to.finish_sending().map_err(receiver)? {
            self.to.sendable().await.map_err(receiver)?;
        }
        Ok(())
    }

    /// A stream that never runs dry must not keep its thread from other connections and from the heartbeat.
    async fn give_way(&self) {
        /// Half a millisecond of copying.
        const BYTES: usize = 1 << 20;
        if self.since_yield.get() >= BYTES {
            self.since_yield.set(0);
            tokio::task::yield_now().await;
        }
        coop::consume_budget().await;
    }

    fn pass_on(&self, arrived: F::Arrived<'_>) -> Result<Passed, Gone> {
        let mut read = self.read.get();
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.len() < read.now {
                scratch.resize(read.now, 0);
            }
            let buffer = &mut scratch[..read.now];
            match arrived.receive(buffer, self.full.get()).map_err(sender)? {
                Received::Nothing => Ok(Passed::All),
                Received::End => Ok(Passed::End),
                Received::Urgent(byte) => {
                    self.unsent.borrow_mut().urgent = Some(byte);
                    Ok(Passed::Part)
                }
                Received::Bytes(received) => {
                    self.full.set(received == buffer.len());
                    self.since_yield.set(self.since_yield.get() + received);
                    let passed = self.send_or_keep(&buffer[..received]).map_err(receiver)?;
                    read.adapt(received, matches!(passed, Passed::All));
                    self.read.set(read);
                    Ok(passed)
                }
            }
        })
    }

    fn send_or_keep(&self, bytes: &[u8]) -> io::Result<Passed> {
        let sent = self.to.send(bytes);
        let kept = &bytes[*sent.as_ref().unwrap_or(&0)..];
        if !kept.is_empty() {
            *self.unsent.borrow_mut() = Unsent { bytes: kept.into(), sent: 0, urgent: None };
        }
        (self.count)(sent? as u64);
        Ok(if kept.is_empty() && self.to.flush()? { Passed::All } else { Passed::Part })
    }

    /// Nothing is read from a sender whose receiver is slow, so its reset is noticed here.
    async fn send_rest(&self) -> Result<(), Gone> {
        while !self.try_send_rest().map_err(receiver)? {
            tokio::select! {
                ready = self.to.sendable() => ready.map_err(receiver)?,
                () = self.from.failed() => return Err(Gone::Sender),
            }
        }
        *self.unsent.borrow_mut() = Unsent::default();
        Ok(())
    }

    /// Sends of the rest what the kernel takes now; true when nothing is left.
    fn try_send_rest(&self) -> io::Result<bool> {
        let mut unsent = self.unsent.borrow_mut();
        while unsent.sent < unsent.bytes.len() {
            let sent = self.to.send(&unsent.bytes[unsent.sent..])?;
            if sent == 0 {
                return Ok(false);
            }
            unsent.sent += sent;
            (self.count)(sent as u64);
        }
        if let Some(byte) = unsent.urgent {
            if !self.to.send_urgent(byte)? {
                return Ok(false);
            }
            unsent.urgent = None;
            (self.count)(1);
        }
        Ok(unsent.is_empty() && self.to.flush()?)
    }

    /// Passes on what the sender sent before it was reset: without us it would be in its receiver's queue, where a reset
    /// does not reach it. Stops at the first byte that the receiver does not take: what it gets has no holes.
    fn deliver_arrived(&self) {
        if !self.try_send_rest().unwrap_or(false) {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            while let Ok(received @ 1..) = self.from.receive_now(scratch) {
                match self.to.send(&scratch[..received]) {
                    Ok(sent) => {
                        (self.count)(sent as u64);
                        if sent < received {
                            return;
                        }
                    }
                    Err(_) => return,
                }
            }
        });
    }
}

/// Bytes asked for at once: few while a connection says little, many when it streams.
#[derive(Clone, Copy)]
struct ReadSize {
    now: usize,
    max: usize,
}

impl ReadSize {
    /// More is asked for while the receiver takes all; what it does not take would have to be kept.
    fn adapt(&mut self, received: usize, taken: bool) {
        let first = FIRST_READ.min(self.max);
        if !taken {
            self.now = first;
        } else if received >= self.now - self.now / 8 {
            self.now = (self.now * 2).min(self.max);
        } else if received < self.now / 4 {
            self.now = (self.now / 2).max(first);
        }
    }
}

#[cfg(test)]
mod tests;
