//! A socket that the fast path fills beside TCP: when a receive that came back with less than was asked for has emptied it.

use std::{cell::Cell, sync::OnceLock};

use sidecar_common::fastpath::{WORTH_BYTES, mixed::place};
use socket2::Socket;

use crate::lifecycle::mixed::Mixes;

/// Whether bytes may come past TCP, and where the kernel side tells of which sockets both queues may be filled at once; without that,
/// it may be any.
static PAST_TCP: OnceLock<Option<Mixes>> = OnceLock::new();

/// From now on sockets that have carried [`WORTH_BYTES`], of which the kernel counts a few more, may have a second queue beside TCP's,
/// which the fast path fills. Their bytes are in order, but what TCP says of its own queue is no longer the whole truth.
pub fn expect_data_past_tcp(mixes: Option<Mixes>) {
    // Said once in the life of a process.
    let _ = PAST_TCP.set(mixes);
}

/// What is known of one socket's two queues.
pub(super) struct TwoQueues {
    /// The application is at the other end: bytes may come past TCP.
    from_application: bool,
    /// Bytes received, as far as they matter.
    received: Cell<u64>,
    /// Where the kernel side counts for it, once that was asked.
    place: Cell<Option<u32>>,
    /// The number at which both queues were found empty last.
    settled: Cell<Option<u64>>,
}

/// What the kernel side tells at one moment.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Told {
    /// The socket has TCP's queue alone.
    One,
    /// It may have two; the number grows before TCP gets something beside what is redirected and unread.
    Two(u64),
    /// It may have two, and both may be filled at any time.
    Any,
}

impl TwoQueues {
    pub(super) fn new(from_application: bool) -> Self {
        Self { from_application, received: Cell::new(0), place: Cell::new(None), settled: Cell::new(None) }
    }

    pub(super) fn is_from_application(&self) -> bool {
        self.from_application
    }

    pub(super) fn add(&self, bytes: usize) {
        self.received.set(self.received.get().saturating_add(bytes as u64));
    }

    /// Some loads, and once for each socket two system calls.
    pub(super) fn told(&self, socket: &Socket) -> Told {
        self.told_by(PAST_TCP.get(), socket)
    }

    fn told_by(&self, past_tcp: Option<&Option<Mixes>>, socket: &Socket) -> Told {
        // The kernel counts what was acknowledged, we what a receive has returned: the last one may be under way.
        if !self.from_application || self.received.get() < WORTH_BYTES / 2 {
            return Told::One;
        }
        match past_tcp {
            None => Told::One,
            Some(None) => Told::Any,
            Some(Some(mixes)) => {
                let place = self.place.get().or_else(|| place_of(socket));
                self.place.set(place);
                place.and_then(|place| mixes.count(place)).map_or(Told::Any, Told::Two)
            }
        }
    }

    /// Both queues were empty at some time after this was told.
    pub(super) fn found_empty(&self, told: Told) {
        if let Told::Two(count) = told {
            self.settled.set(Some(count));
        }
    }

    /// Whether a receive that emptied one queue may have left something in the other that was told of before. `told` comes from after
    /// that receive.
    pub(super) fn may_hold_more(&self, told: Told) -> bool {
        match told {
            Told::One => false,
            Told::Two(count) => self.settled.get() != Some(count),
            Told::Any => true,
        }
    }
}

/// `None`: the connection is gone.
fn place_of(socket: &Socket) -> Option<u32> {
    let (local, remote) = (socket.local_addr().ok()?.as_socket()?, socket.peer_addr().ok()?.as_socket()?);
    Some(place(local.port(), remote.port()))
}
