//! The record of one connection: born when it is accepted, or when it is known to be one of the application's; finished
//! exactly once.

use std::{sync::Arc, time::Instant};

use crate::addr::{ClientAddr, OrigDst, UpstreamLocal};

use super::{
    CloseReason, Direction, Security, Telemetry, Traffic,
    access_log::Ended,
    live::{Live, Secured, Upstream},
};

/// One open connection, owned by the task that carries it.
///
/// Dropping it without [`Self::finish`] (a panic, a cancelled task) finishes it as [`CloseReason::Aborted`].
pub struct ConnectionRecord {
    telemetry: Telemetry,
    live: Arc<Live>,
    slot: usize,
    /// When its destination became known.
    addressed: Instant,
    reason: CloseReason,
}

impl ConnectionRecord {
    pub(super) fn new(telemetry: Telemetry, direction: Direction, client: ClientAddr, accepted: Instant) -> Self {
        let (live, slot) = telemetry.0.connections.insert(direction, client, accepted);
        telemetry.0.families.accepted(direction);
        let addressed = live.accepted;
        Self { telemetry, live, slot, addressed, reason: CloseReason::Aborted }
    }

    /// Number of the connection, unique in this process.
    pub fn id(&self) -> u64 {
        self.live.id
    }

    /// Its original destination is known. Connect time counts from here.
    pub fn addressed(&mut self, dst: OrigDst) {
        self.addressed = Instant::now();
        // Only the first answer is kept: a connection has one destination.
        let _ = self.live.destination.set(dst);
    }

    /// It is connected to its destination, from `local`.
    pub fn connected(&mut self, local: UpstreamLocal) {
        let took = self.addressed.elapsed();
        if self.live.upstream.set(Upstream { local, took }).is_ok() {
            self.telemetry.connected(self.live.direction, took);
        }
    }

    /// It is known what protects it: to be said once, before the first byte of the application moves, of every connection
    /// that is carried. Only the first answer is kept.
    pub fn secured(&mut self, security: Security) {
        if self.live.secured.get().is_some() {
            return;
        }
        let inner = &self.telemetry.0;
        let own = security.peer().and_then(|_| inner.own_identity());
        let series = inner.families.secured(self.live.direction, &security, own.as_ref());
        let _ = self.live.secured.set(Secured { security, series });
    }

    /// The application bytes that it has moved; the relay adds to it.
    pub fn traffic(&self) -> &Traffic {
        &self.live.traffic
    }

    /// Resolves when someone else wants it closed: the idle sweeper, or the drain deadline. At once when that was
    /// said before.
    pub async fn told_to_close(&self) -> CloseReason {
        self.live.told_to_close().await
    }

    /// A handle with which others can tell it to close.
    pub fn closer(&self) -> Closer {
        Closer(Arc::clone(&self.live))
    }

    /// It ended: counts it, logs it, and takes it out of the table.
    pub fn finish(mut self, reason: CloseReason) {
        self.reason = reason;
    }
}

/// Tells one connection to close. Does nothing once it has ended.
#[derive(Clone)]
pub struct Closer(Arc<Live>);

impl Closer {
    /// Asks the connection to end. If it has been asked before it keeps its first reason.
    pub fn close(&self, reason: CloseReason) {
        self.0.close(reason);
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let inner = &self.telemetry.0;
        inner.families.closed(&self.live, self.reason);
        if let Some(log) = &inner.access_log {
            log.tell(Ended::new(Arc::clone(&self.live), self.reason));
        }
        // Last, so that whoever waits for the empty table finds everything counted and logged.
        inner.connections.remove(&self.live, self.slot);
    }
}
