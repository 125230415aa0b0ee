//! One open connection: what its owner writes and everyone may read, and how others ask for its end.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::{Serialize, Serializer};
use tokio::sync::Notify;

use crate::{
    addr::{ClientAddr, OrigDst, UpstreamLocal},
    id::SpiffeId,
};

use super::{CloseReason, Direction, End, Security, Traffic, istio::Series};

/// One open connection, as everyone but its owner sees it.
pub(super) struct Live {
    pub(super) id: u64,
    pub(super) direction: Direction,
    pub(super) client: ClientAddr,
    pub(super) accepted_at: SystemTime,
    pub(super) accepted: Instant,
    pub(super) destination: OnceLock<OrigDst>,
    pub(super) upstream: OnceLock<Upstream>,
    pub(super) secured: OnceLock<Secured>,
    pub(super) traffic: Traffic,
    /// What the metrics have already counted of `traffic`.
    flushed: Traffic,
    /// Why someone else wants it closed; the first one is heard.
    told: OnceLock<CloseReason>,
    told_now: Notify,
    seen: LastSweep,
}

/// The connection to the destination.
#[derive(Clone, Copy)]
pub(super) struct Upstream {
    pub(super) local: UpstreamLocal,
    /// From knowing the destination to being connected to it.
    pub(super) took: Duration,
}

/// What is known once it is decided whether it is encrypted.
pub(super) struct Secured {
    pub(super) security: Security,
    /// The series of a peer that proved who it is; they know whom this sidecar showed itself to be.
    pub(super) series: Option<Arc<Series>>,
}

/// What the last sweep found, so that the data path keeps no time stamps.
struct LastSweep {
    bytes: AtomicU64,
    /// Nanoseconds after the accept at which a sweep last found more bytes than before.
    moved_ns: AtomicU64,
}

/// What each of 100 000 connections costs here.
const _: () = assert!(size_of::<Live>() <= 320);

impl Live {
    /// The connection that was accepted at `accepted`.
    pub(super) fn new(id: u64, direction: Direction, client: ClientAddr, accepted: Instant) -> Self {
        let waited = accepted.elapsed();
        Self {
            id,
            direction,
            client,
            accepted_at: SystemTime::now() - waited,
            accepted,
            destination: OnceLock::new(),
            upstream: OnceLock::new(),
            secured: OnceLock::new(),
            traffic: Traffic::default(),
            flushed: Traffic::default(),
            told: OnceLock::new(),
            told_now: Notify::new(),
            // What waited before it had a record has not been idle.
            seen: LastSweep { bytes: AtomicU64::new(0), moved_ns: AtomicU64::new(waited.as_nanos() as u64) },
        }
    }

    /// Bytes moved since the last call, each counted once however many threads ask.
    pub(super) fn unflushed(&self) -> (u64, u64) {
        self.flushed.catch_up(&self.traffic)
    }

    /// Asks the owner to end it.
    pub(super) fn close(&self, reason: CloseReason) {
        if self.told.set(reason).is_ok() {
            self.told_now.notify_one();
        }
    }

    /// Asks for a clean end if the application, which is gone, has finished: nobody reads what may still come for it.
    pub(super) fn end_without_application(&self) {
        let application = match self.direction {
            Direction::Outbound => End::Downstream,
            Direction::Inbound => End::Upstream,
        };
        if self.traffic.has_finished(application) {
            self.close(CloseReason::Completed);
        }
    }

    /// Resolves when someone asked for its end.
    pub(super) async fn told_to_close(&self) -> CloseReason {
        loop {
            if let Some(reason) = self.told.get() {
                return *reason;
            }
            self.told_now.notified().await;
        }
    }

    /// Whether no byte moved for `limit`, as far as sweeps can tell.
    pub(super) fn idle_for(&self, limit: Duration) -> bool {
        let (from_downstream, from_upstream) = self.traffic.totals();
        let bytes = from_downstream + from_upstream;
        let now = self.accepted.elapsed();
        if self.seen.bytes.swap(bytes, Ordering::Relaxed) != bytes {
            self.seen.moved_ns.store(now.as_nanos() as u64, Ordering::Relaxed);
            return false;
        }
        now.saturating_sub(Duration::from_nanos(self.seen.moved_ns.load(Ordering::Relaxed))) >= limit
    }

    /// The identities of who opened it and of its destination, as far as mutual TLS proved them.
    pub(super) fn identities(&self) -> (Option<&SpiffeId>, Option<&SpiffeId>) {
        let Some(Secured { security, series }) = self.secured.get() else { return (None, None) };
        let own = series.as_ref().and_then(|series| series.own());
        match self.direction {
            Direction::Inbound => (security.peer(), own),
            Direction::Outbound => (own, security.peer()),
        }
    }

    fn state(&self) -> ConnectionState {
        if self.told.get().is_some() {
            ConnectionState::Closing
        } else if self.upstream.get().is_some() {
            ConnectionState::Connected
        } else if self.destination.get().is_some() {
            ConnectionState::Connecting
        } else {
            ConnectionState::Accepted
        }
    }

    pub(super) fn row(&self) -> ConnectionRow {
        let (from_downstream, from_upstream) = self.traffic.totals();
        let (src_identity, dst_identity) = self.identities();
        let security = self.secured.get().map(|secured| &secured.security);
        ConnectionRow {
            id: self.id,
            direction: self.direction,
            client: self.client.0,
            original_destination: self.destination.get().map(|dst| dst.0),
            upstream_local: self.upstream.get().map(|upstream| upstream.local.0),
            state: self.state(),
            age_seconds: self.accepted.elapsed().as_secs_f64(),
            bytes_from_downstream: from_downstream,
            bytes_from_upstream: from_upstream,
            security: security.map(Security::label),
            src_identity: src_identity.cloned(),
            dst_identity: dst_identity.cloned(),
            transport: security.and_then(Security::transport),
            not_encrypted: security.and_then(Security::not_encrypted).map(|reason| reason.label()),
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// Its original destination is not known yet.
    Accepted,
    /// Its destination is being dialled.
    Connecting,
    /// Bytes can move.
    Connected,
    /// It has been told to close.
    Closing,
}

/// One open connection, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConnectionRow {
    /// Number of the connection, counted from 1 in the order of their records; the access log's `connection_id`.
    pub id: u64,
    /// Which way it goes.
    pub direction: Direction,
    /// Who opened it.
    pub client: SocketAddr,
    /// Where it was meant to go.
    pub original_destination: Option<SocketAddr>,
    /// Our address on the connection to the destination.
    pub upstream_local: Option<SocketAddr>,
    /// How far it has come.
    pub state: ConnectionState,
    /// Seconds since it was accepted.
    pub age_seconds: f64,
    /// Application bytes delivered from the side that opened it.
    pub bytes_from_downstream: u64,
    /// Application bytes delivered from its destination.
    pub bytes_from_upstream: u64,
    /// `mutual_tls` or `plaintext`; `None`: not decided yet.
    pub security: Option<&'static str>,
    /// Who opened it, as mutual TLS proved it.
    #[serde(serialize_with = "as_text")]
    pub src_identity: Option<SpiffeId>,
    /// Whom it reaches, as mutual TLS proved it.
    #[serde(serialize_with = "as_text")]
    pub dst_identity: Option<SpiffeId>,
    /// How mutual TLS is spoken: `native` or `hbone`.
    pub transport: Option<&'static str>,
    /// Why it is not encrypted: [`super::NotEncrypted::label`].
    pub not_encrypted: Option<&'static str>,
}

fn as_text<S: Serializer>(id: &Option<SpiffeId>, serializer: S) -> Result<S::Ok, S::Error> {
    id.as_ref().map(SpiffeId::as_str).serialize(serializer)
}
