//! What lies in both queues of the proxy's end at once, so that one receive may leave something behind.
//!
//! A receive looks into the queue of redirected messages first, and into TCP's if that is empty. One that comes back with less than
//! was asked for has emptied the queue that it looked into, and no other. That matters to a reader that is woken by edges: what was
//! in the second queue has been told already. It is in there if and only if a message goes by TCP while a redirected one is unread.
//! For the other order there is none: a message is redirected only when everything that went by TCP has been received.
//!
//! So whoever sends by TCP from an enrolled socket adds to a number before TCP gets the message, and the reader compares it. What is
//! never enrolled adds nothing, and what is redirected adds nothing.
//!
//! **Why no edge is lost.** Let a receive return less than was asked for and the reader wait for the next edge, while the last edge
//! that it was told of covers bytes that are still in a queue. They came by TCP (the other queue is looked into first and was
//! emptied), and the receive returned redirected messages. Those were judged before these bytes, since none is redirected while these
//! are unread; judged *alone*, no redirection was still on its way into the queue when these bytes were judged, so that the messages
//! were in it, unread: the number grew before TCP got the bytes. The reader loads it after its receive and sees it grown, unless it
//! took that for settled before; but it settles only what it loaded before it found both queues empty, by a receive or by poll(2),
//! either of which would have found the messages. A thread that sends by TCP while another may be in the middle of a redirection cannot tell
//! ([`Mixing::Always`]), nor does anybody count for what a socket sends after it was let go.
//!
//! Connections share places in the map by the hash of their ports: another one's messages cost a receive more and no edge.

use core::mem::size_of;

use super::{Refusal, Waiting};

/// Places in the map `MIXED`: 64 KiB.
pub const PLACES: u32 = 4096;

/// Value of the map `MIXED`, of all legs whose ports fall on one place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mixed {
    /// Messages that went by TCP while something redirected may have been unread.
    pub count: u64,
    /// Not zero: nobody counts for one of the legs, or nobody can tell.
    pub always: u64,
}

/// The place of a leg, whose ends have these ports in host order; which is which does not matter.
#[inline(always)]
pub const fn place(one: u16, other: u16) -> u32 {
    // Fibonacci hashing (Knuth, The Art of Computer Programming 6.4): the kernel gives out every second port first.
    (one as u32 ^ other as u32).wrapping_mul(0x9e37_79b1) >> (32 - PLACES.trailing_zeros())
}

/// What the proxy's end must know of a message that goes by TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixing {
    /// Nothing: everything that was redirected has been received.
    Apart,
    /// Both queues may be filled at once until it finds them empty.
    Mixed,
    /// From now on they may at any time.
    Always,
}

/// `alone`: no other thread is in a call on the socket.
///
/// For all but three reasons the message may not be the only one that moves: whoever blocks lets others send in the middle of it, and
/// of io_uring's threads nothing is known.
#[inline(always)]
pub const fn mixing(refusal: Refusal, waiting: Waiting, alone: bool) -> Mixing {
    match refusal {
        Refusal::Off | Refusal::Order | Refusal::Full if alone => {
            if waiting.messages == 0 {
                Mixing::Apart
            } else {
                Mixing::Mixed
            }
        }
        _ => Mixing::Always,
    }
}

const _: () = assert!(size_of::<Mixed>() == 16 && PLACES.is_power_of_two());
