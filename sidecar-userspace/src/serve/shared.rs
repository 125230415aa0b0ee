//! What connections share, whatever their state.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::HeaderValue;
use tokio::sync::Semaphore;

use super::Turns;
use crate::{config, lifecycle::board::BoardReader, mtls::Mtls, net::Tuning, policy::Permits, telemetry::Telemetry};

/// What all connections share.
pub struct Shared {
    /// How connections are treated.
    pub limits: config::Proxy,
    /// Ports to which no connection may go through the proxy: its own.
    pub own_ports: Vec<u16>,
    /// What the supervisor knows: on which ports the application listens on a certain device.
    pub board: BoardReader,
    /// Outbound dials that may run at once.
    pub dials: Arc<Semaphore>,
    /// Inbound TLS handshakes that may run at once.
    pub handshakes: Turns,
    /// Secured inbound connections that may wait for their use.
    pub waiting: Arc<Semaphore>,
    /// Secured outbound connections that each thread may keep for their use.
    pub spares: usize,
    /// Inbound connections on their way from the accept to a record.
    pub under_way: UnderWay,
    /// What protects connections.
    pub mtls: Mtls,
    /// Who may connect to the application.
    pub permits: Permits,
    /// What other workloads are told of this one ([`crate::hbone::Baggage::of`]); proof of nothing.
    pub baggage: Option<HeaderValue>,
    /// Records every connection.
    pub telemetry: Telemetry,
}

impl Shared {
    /// How the sockets of connections are set.
    pub fn tuning(&self) -> Tuning {
        Tuning { keepalive: self.limits.keepalive, buffer: self.limits.socket_buffer }
    }
}

/// Counts connections that have no record yet, so that a sidecar that ends waits for them.
#[derive(Clone, Default)]
pub struct UnderWay(Arc<AtomicUsize>);

/// One of them.
#[must_use = "it is counted only as long as this lives"]
pub struct OnItsWay(UnderWay);

impl UnderWay {
    /// One more, until the guard is dropped.
    pub fn begin(&self) -> OnItsWay {
        self.0.fetch_add(1, Ordering::Relaxed);
        OnItsWay(self.clone())
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
