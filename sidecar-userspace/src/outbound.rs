//! A connection that the application opened.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    addr::{ClientAddr, OrigDst, UpstreamLocal},
    config::Transport,
    hbone::{self, Ask, Authority, Target, Tunnel},
    id::SpiffeId,
    mtls::{self, Outward, Way},
    native::{ClientEnd, Handshakes, Secured, TlsStream, spare},
    net::{self, Stream, Transports},
    serve::{Accepted, Connected, Relay, Shared, Upstream, why_not_connected},
    telemetry::{CloseReason, NotEncrypted, Security},
    tls::{Contexts, Failure},
};

/// Carries one connection from the application to where it meant to go.
pub async fn carry(accepted: Accepted) {
    // What it takes to connect is gone before the relay begins.
    let relay = Box::pin(connected(accepted)).await;
    if let Some(relay) = relay {
        relay.await;
    }
}

async fn connected(accepted: Accepted) -> Option<Relay> {
    let (client, source) = (accepted.client.0, accepted.source);
    let original_dst = accepted.downstream.original_dst(accepted.client);
    let own_address = accepted.downstream.own_address();
    let permitted = accepted.addressed(original_dst)?.permit(own_address)?;
    let shared = Arc::clone(permitted.shared());
    let dial = Dial { to: permitted.to(), source, client, shared: &shared };
    let (downstream, upstream, connection) = permitted.connect(dial.with_protection()).await?.split();
    Some(match upstream {
        Outbound::Plaintext(upstream) => connection.with(downstream, upstream).relay(),
        Outbound::Native(upstream) => {
            if let Err(reason) = introduced(&connection, &downstream, &upstream).await {
                connection.finish(reason);
                return None;
            }
            connection.with(downstream, upstream).relay()
        }
        Outbound::Tunnel(upstream) => connection.with(downstream, *upstream).relay(),
    })
}

/// Has the header leave, and a handshake's last flight: with what the application has said already, if it has, in one
/// segment, which wakes the other end once.
async fn introduced(
    connection: &Connected<(), ()>,
    downstream: &Stream,
    upstream: &TlsStream<ClientEnd>,
) -> Result<(), CloseReason> {
    if downstream.has_arrived() {
        return Ok(());
    }
    tokio::select! {
        flushed = upstream.flush_all() => flushed.map_err(|_| CloseReason::UpstreamReset),
        reason = connection.told_to_close() => Err(reason),
    }
}

/// A connection out of the pod.
enum Outbound {
    Plaintext(Stream),
    Native(TlsStream<ClientEnd>),
    Tunnel(Box<Tunnel>),
}

impl Upstream for Outbound {
    fn local(&self) -> io::Result<UpstreamLocal> {
        match self {
            Self::Plaintext(stream) => stream.upstream_local(),
            Self::Native(stream) => stream.socket().upstream_local(),
            Self::Tunnel(tunnel) => tunnel.local(),
        }
    }
}

type Dialled = Result<(Outbound, Option<Security>), CloseReason>;

struct Dial<'a> {
    to: OrigDst,
    /// The address that the application chose for its own end.
    source: Option<IpAddr>,
    /// The application.
    client: SocketAddr,
    shared: &'a Arc<Shared>,
}

impl Dial<'_> {
    /// Connects, protected as the destination asks for.
    async fn with_protection(&self) -> Dialled {
        let mtls = &self.shared.mtls;
        match mtls.outward(self.to.0) {
            Outward::Plaintext(reason) => Ok(plaintext(self.connect(Transports::NONE).await?, reason)),
            Outward::Refused(reason) => Err(reason),
            Outward::Encrypted { contexts, workload, strict } => {
                let expected = workload.and_then(|workload| workload.identity.as_ref());
                let transport = workload.and_then(|workload| workload.transport);
                if transport == Some(Transport::Hbone) {
                    return Box::pin(self.tunnelled(expected)).await;
                }
                let known = strict || transport == Some(Transport::Native);
                // On the heap, so that plaintext connections do not carry its room for life.
                Box::pin(self.encrypted(contexts, expected, known)).await
            }
        }
    }

    async fn connect(&self, offer: Transports) -> Result<Stream, CloseReason> {
        let connected = net::connect_out(self.to, self.source, offer, self.shared.tuning()).await;
        connected.map_err(|error| why_not_connected(&error))
    }

    /// `known`: the destination speaks the native transport, or must.
    async fn encrypted(&self, contexts: Arc<Contexts>, expected: Option<&SpiffeId>, known: bool) -> Dialled {
        let spare = match self.source {
            None => spare::take(self.to.0, &contexts, &self.shared.telemetry),
            // A spare connection comes from wherever the kernel chose.
            Some(_) => None,
        };
        let hit = spare.is_some();
        let secured = match spare {
            Some(secured) => secured,
            None => {
                let socket = self.connect(self.shared.mtls.offer()).await?;
                match Way::to(spoken(&socket), known) {
                    Way::Native => {}
                    Way::Tunnel => {
                        drop(socket);
                        return self.tunnelled(expected).await;
                    }
                    Way::Plaintext => return Ok(plaintext(socket, NotEncrypted::PeerNotMeshed)),
                }
                secure(self.shared, &contexts, socket, self.to.0).await.map_err(|failure| self.refused(failure))?
            }
        };
        if self.source.is_none() {
            self.replenish(hit, &contexts, known);
        }
        let Secured { stream, peer } = secured;
        if expected.is_some_and(|expected| *expected != peer) {
            self.shared.telemetry.handshake_failed(crate::telemetry::Role::Client, Failure::WrongPeer.label());
            tracing::warn!(to = %self.to, %peer, "the destination is another workload than mtls.workloads says");
            return Err(CloseReason::WrongPeer);
        }
        stream.open(self.client, self.to.0).map_err(|_| CloseReason::UpstreamReset)?;
        Ok((Outbound::Native(stream), Some(Security::MutualTls { peer, transport: Transport::Native })))
    }

    /// Through a tunnel to the port of the destination's pod where tunnels end.
    async fn tunnelled(&self, expected: Option<&SpiffeId>) -> Dialled {
        /// Where Istio's ambient mesh has it.
        const PORT: u16 = 15008;
        let port = self.shared.mtls.config.hbone_port.unwrap_or(PORT);
        let address = SocketAddr::new(self.to.0.ip(), port);
        let target = Target { address, source: self.source, identity: expected.cloned() };
        let (to, client) = (Authority::from(self.to.0), ClientAddr(self.client));
        let ask = Ask { to, client, service: None, baggage: self.shared.baggage.as_ref(), traceparent: None };
        let tunnel = hbone::of_this_thread(self.shared).open(&target, &ask).await.map_err(|error| {
            tracing::info!(to = %self.to, through = %address, %error, "no tunnel to the destination");
            error.reason()
        })?;
        let security = Security::MutualTls { peer: tunnel.peer().clone(), transport: Transport::Hbone };
        Ok((Outbound::Tunnel(Box::new(tunnel)), Some(security)))
    }

    fn refused(&self, failure: Failure) -> CloseReason {
        tracing::info!(to = %self.to, reason = failure.label(), %failure, "no mutual TLS with the destination");
        mtls::close_reason(failure)
    }

    /// Has connections ready for the application's next ones.
    fn replenish(&self, hit: bool, contexts: &Arc<Contexts>, known: bool) {
        let limits = self.shared.mtls.config.spare;
        if limits.per_destination == 0 {
            return;
        }
        let to = self.to;
        let (most, telemetry) = (self.shared.spares, &self.shared.telemetry);
        let replenish = spare::Replenish { to: to.0, hit, contexts, limits, most, telemetry };
        let (shared, contexts) = (Arc::clone(self.shared), Arc::clone(contexts));
        replenish.with(move || {
            let (shared, contexts) = (Arc::clone(&shared), Arc::clone(&contexts));
            async move {
                let dial = net::connect_out(to, None, shared.mtls.offer(), shared.tuning());
                let socket = tokio::time::timeout(shared.limits.connect_timeout, dial).await.ok()?.ok()?;
                if Way::to(spoken(&socket), known) != Way::Native {
                    return None;
                }
                let secured = secure(&shared, &contexts, socket, to.0).await.ok()?;
                // Nothing will be sent for a while that the last flight could leave with.
                secured.stream.flush_all().await.ok()?;
                Some(secured)
            }
        });
    }
}

fn plaintext(stream: Stream, reason: NotEncrypted) -> (Outbound, Option<Security>) {
    (Outbound::Plaintext(stream), Some(Security::Plaintext(reason)))
}

/// What the other end said that it speaks.
fn spoken(socket: &Stream) -> Transports {
    socket.mesh_peer().ok().flatten().unwrap_or(Transports::NONE)
}

async fn secure(
    shared: &Shared,
    contexts: &Contexts,
    socket: Stream,
    to: SocketAddr,
) -> Result<Secured<ClientEnd>, Failure> {
    let limit = shared.mtls.config.handshake_timeout;
    Handshakes { contexts, limit, telemetry: &shared.telemetry }.connect(socket, to).await
}
