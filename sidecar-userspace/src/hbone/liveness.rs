//! Whether a connection is alive, and whether it is used.

use std::{cell::Cell, rc::Rc, time::Duration};

use h2::{Ping, PingPong};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// How long things may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time between a pong and the next ping. ztunnel: 10 s.
    pub ping_every: Duration,
    /// Time in which a ping must be answered. ztunnel: 20 s.
    pub ping_timeout: Duration,
    /// A connection without streams for so long is closed. ztunnel: 5 min.
    pub idle: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            ping_every: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            idle: Duration::from_secs(300),
        }
    }
}

/// Resolves when the peer no longer answers. The pings travel while the connection is driven.
pub(super) async fn dead(mut pings: PingPong, pace: Pace) {
    loop {
        sleep(pace.ping_every).await;
        match timeout(pace.ping_timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// The streams of one connection.
#[derive(Default)]
pub(super) struct Seats {
    taken: Cell<usize>,
    changed: Notify,
}

impl Seats {
    /// Takes one.
    pub(super) fn take(self: &Rc<Self>) -> Seat {
        self.taken.set(self.taken.get() + 1);
        self.changed.notify_waiters();
        Seat(Rc::clone(self))
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.get()
    }

    /// Resolves when none was taken for `limit`.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let changed = self.changed.notified();
            if self.taken() > 0 {
                changed.await;
            } else if timeout(limit, changed).await.is_err() {
                return;
            }
        }
    }
}

/// One stream of a connection, until it is dropped.
pub(super) struct Seat(Rc<Seats>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get() - 1);
        self.0.changed.notify_waiters();
    }
}
