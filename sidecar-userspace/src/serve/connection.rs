//! One connection on its way through the proxy, as states that follow each other by value:
//! [`Accepted`] → [`Addressed`] → [`Permitted`] → [`Connected`] → relayed.
//!
//! A state that cannot go on ends its record with the reason and drops its sockets, which resets them.

mod connected;

use std::{io, net::IpAddr, pin::pin, sync::Arc, time::Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Shared, dial::within};
use crate::{
    addr::{ClientAddr, OrigDst, UpstreamLocal},
    id::SpiffeId,
    net::{self, Side, Stream},
    policy::{Permit, Request},
    telemetry::{CloseReason, ConnectionRecord, Direction, Security},
};

pub use connected::{Proved, Relay};

/// Taken from a listener's queue, or out of a tunnel.
pub struct Accepted<D = Stream> {
    /// The connection to whoever dialled.
    pub downstream: D,
    /// Who dialled.
    pub client: ClientAddr,
    /// The address that an application chose for its own end; `None`: it left the choice to the kernel.
    pub source: Option<IpAddr>,
    /// Which way it goes.
    pub direction: Direction,
    /// When it was accepted.
    pub at: Instant,
    /// Born when it is known to be one of the application's connections.
    pub record: Option<ConnectionRecord>,
    /// What all connections share.
    pub shared: Arc<Shared>,
    /// One of the connections that may be open at once; `None` while it waits to become one of the application's.
    pub slot: Option<OwnedSemaphorePermit>,
}

/// Its original destination is known.
pub struct Addressed<D = Stream> {
    accepted: Accepted<D>,
    record: ConnectionRecord,
    to: OrigDst,
    /// The identity that the other end has proved.
    peer: Option<SpiffeId>,
}

/// It may go on. Made only by [`Addressed::permit`].
pub struct Permitted<D = Stream> {
    addressed: Addressed<D>,
    permit: Option<Permit>,
}

/// Both sides are connected.
pub struct Connected<D = Stream, U = Stream> {
    accepted: Accepted<D>,
    record: ConnectionRecord,
    upstream: U,
    /// Leave to go on; taken back by a change of the rules.
    permit: Option<Permit>,
}

impl<D> Accepted<D> {
    /// The original destination is `to`, if the kernel knows one: this is a connection of the application's.
    pub fn addressed(mut self, to: io::Result<Option<OrigDst>>) -> Option<Addressed<D>> {
        let mut record = self.take_record();
        match to {
            Ok(Some(to)) => {
                record.addressed(to);
                Some(Addressed { accepted: self, record, to, peer: None })
            }
            Ok(None) => {
                tracing::debug!(client = %self.client, "not captured");
                record.finish(CloseReason::NoOriginalDst);
                None
            }
            Err(error) => {
                tracing::debug!(client = %self.client, %error, "the original destination is gone");
                record.finish(CloseReason::DownstreamReset);
                None
            }
        }
    }

    fn take_record(&mut self) -> ConnectionRecord {
        let born = || self.shared.telemetry.accepted_at(self.direction, self.client, self.at);
        self.record.take().unwrap_or_else(born)
    }

    /// Resolves when somebody wants it closed, which nobody can before it has a record.
    pub async fn told_to_close(&self) -> CloseReason {
        match &self.record {
            Some(record) => record.told_to_close().await,
            None => std::future::pending().await,
        }
    }

    /// It waits and is no connection of the application's for now: its slot is free. Tells where to get one again.
    pub fn give_slot_back(&mut self) -> Option<Arc<Semaphore>> {
        self.slot.take().map(|slot| Arc::clone(slot.semaphore()))
    }

    /// It ends without having been one of the application's, or with its record if it was taken for one before.
    pub fn end(mut self, reason: CloseReason) {
        let record = self.record.take();
        drop(self);
        if let Some(record) = record {
            record.finish(reason);
        }
    }

    /// It was meant for `to`, and goes nowhere.
    pub fn refuse(self, to: OrigDst, reason: CloseReason) {
        if let Some(addressed) = self.addressed(Ok(Some(to))) {
            addressed.refuse(reason);
        }
    }

    /// The same with the connection taken out, to become something else.
    pub fn split(self) -> (D, Accepted<()>) {
        let Self { downstream, client, source, direction, at, record, shared, slot } = self;
        (downstream, Accepted { downstream: (), client, source, direction, at, record, shared, slot })
    }
}

impl Accepted<()> {
    /// The same with a connection again.
    pub fn with<D>(self, downstream: D) -> Accepted<D> {
        let Self { downstream: (), client, source, direction, at, record, shared, slot } = self;
        Accepted { downstream, client, source, direction, at, record, shared, slot }
    }
}

impl<D> Addressed<D> {
    /// Who dialled.
    pub fn client(&self) -> ClientAddr {
        self.accepted.client
    }

    /// The identity that the other end has proved.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.peer.as_ref()
    }

    /// It is known what protects it.
    pub fn secured(mut self, security: Security) -> Self {
        self.peer = security.peer().cloned();
        self.record.secured(security);
        self
    }

    /// Refuses what would come back to the proxy itself (the kernel side does, and this is the second lock), and what the
    /// rules do not allow. `own_address` is that of our end of the connection.
    pub fn permit(self, own_address: Option<IpAddr>) -> Option<Permitted<D>> {
        let to = self.to.0;
        let comes_back = net::is_loopback_or_unspecified(to.ip()) || own_address == Some(to.ip());
        if comes_back && self.accepted.shared.own_ports.contains(&to.port()) {
            tracing::info!(client = %self.accepted.client, %to, "denied: the sidecar's own port");
            self.refuse(CloseReason::OwnPort);
            return None;
        }
        if self.accepted.direction == Direction::Outbound {
            return Some(Permitted { addressed: self, permit: None });
        }
        let request =
            Request { client: self.accepted.client.0.ip(), principal: self.peer.as_ref(), port: self.to.0.port() };
        match self.accepted.shared.permits.check(&request, self.record.closer()) {
            Ok(permit) => Some(Permitted { addressed: self, permit: Some(permit) }),
            Err(_) => {
                self.refuse(CloseReason::Unauthorized);
                None
            }
        }
    }

    fn refuse(self, reason: CloseReason) {
        let Self { accepted, record, .. } = self;
        // The record tells of the end when the sockets are closed.
        drop(accepted);
        record.finish(reason);
    }
}

/// A connection to the destination, or what is to become one.
pub trait Upstream {
    /// Our own end.
    ///
    /// # Errors
    /// The connection is gone.
    fn local(&self) -> io::Result<UpstreamLocal>;
}

impl Upstream for Stream {
    fn local(&self) -> io::Result<UpstreamLocal> {
        self.upstream_local()
    }
}

impl<D: Side> Permitted<D> {
    /// Whether the application may listen for it on a certain device only.
    pub fn is_for_device(&self) -> bool {
        self.addressed.accepted.shared.board.is_device_bound(self.addressed.to.0.port())
    }

    /// Where it goes.
    pub fn to(&self) -> OrigDst {
        self.addressed.to
    }

    /// What all connections share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.addressed.accepted.shared
    }

    /// Goes nowhere after all.
    pub fn refuse(self, reason: CloseReason) {
        self.addressed.refuse(reason);
    }

    /// Connects to the original destination with `dial`, which also says what protects the connection if that was not
    /// known before.
    pub async fn connect<U, F>(self, dial: F) -> Option<Connected<D, U>>
    where
        U: Upstream,
        F: Future<Output = Result<(U, Option<Security>), CloseReason>>,
    {
        let Addressed { accepted, mut record, to, .. } = self.addressed;
        let leaves_pod = accepted.direction == Direction::Outbound;
        let dialled = {
            // Pinned here, so that what waits for it does not hold copies of its room. Gone before the record tells of the end.
            let dial = pin!(dial);
            tokio::select! {
                dialled = within(&accepted.shared, leaves_pod, dial) => dialled,
                () = accepted.downstream.failed() => Err(CloseReason::DownstreamReset),
                reason = record.told_to_close() => Err(reason),
            }
        };
        match dialled {
            Ok((upstream, security)) => {
                if let Ok(local) = upstream.local() {
                    record.connected(local);
                }
                if let Some(security) = security {
                    record.secured(security);
                }
                Some(Connected { accepted, record, upstream, permit: self.permit })
            }
            Err(reason) => {
                tracing::debug!(client = %accepted.client, %to, reason = reason.label(), "not connected");
                drop(accepted);
                record.finish(reason);
                None
            }
        }
    }
}
