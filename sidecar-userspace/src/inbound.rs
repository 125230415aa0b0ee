//! A connection that somebody opened to the application.

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    addr::{ClientAddr, OrigDst},
    config::Transport,
    detect::{self, Opening},
    id::SpiffeId,
    mtls::{self, Inward},
    native::{Handshakes, Secured, ServerEnd, TlsStream},
    net::{Side, Stream, Transports},
    policy::Request,
    proxy_protocol::Header,
    serve::{Accepted, Addressed, Application, Connected, OnItsWay, Relay},
    telemetry::{CloseReason, NotEncrypted, Role, Security, Spare},
    tls::{Contexts, Failure},
};

/// Carries one connection from its client to the application, which sees the client as its peer.
pub async fn carry(accepted: Accepted) {
    // What it takes to connect is gone before the relay begins.
    let relay = Box::pin(connected(accepted)).await;
    if let Some(relay) = relay {
        relay.await;
    }
}

async fn connected(accepted: Accepted) -> Option<Relay> {
    // The kernel handed over the connection as it was: our own end is the address that the client meant.
    let local = match accepted.downstream.local() {
        Ok(local) => local,
        Err(gone) => {
            accepted.addressed(Err(gone));
            return None;
        }
    };
    let meshed = speaks_native(&accepted.downstream);
    match accepted.shared.mtls.inward(accepted.client.0, local.port(), meshed) {
        Inward::Plaintext(reason) => plaintext(accepted, local, reason).await,
        Inward::Refused(reason) => {
            accepted.refuse(OrigDst(local), reason);
            None
        }
        // On the heap, so that plaintext connections do not need its room.
        Inward::Encrypted(contexts) => Box::pin(encrypted(accepted, local, contexts)).await,
        Inward::Either(contexts) if meshed => Box::pin(client_speaks_first(accepted, local, contexts)).await,
        Inward::Either(contexts) => Box::pin(unannounced(accepted, local, contexts)).await,
    }
}

/// Whether the client said that it is a sidecar which speaks the native transport.
fn speaks_native(downstream: &Stream) -> bool {
    downstream.mesh_peer().is_ok_and(|peer| peer.is_some_and(|peer| peer.contains(Transports::NATIVE)))
}

async fn plaintext(accepted: Accepted, local: SocketAddr, reason: NotEncrypted) -> Option<Relay> {
    let addressed = accepted.addressed(Ok(Some(OrigDst(local))))?.secured(Security::Plaintext(reason));
    Some(connect(addressed, local).await?.relay())
}

/// Connects to the application.
async fn connect<D: Side>(addressed: Addressed<D>, local: SocketAddr) -> Option<Connected<D>> {
    let (client, peer) = (addressed.client(), addressed.peer().cloned());
    let permitted = addressed.permit(Some(local.ip()))?;
    let (device_bound, shared) = (permitted.is_for_device(), Arc::clone(permitted.shared()));
    let application = Application { to: OrigDst(local), client, peer, device_bound, shared };
    permitted.connect(async { Ok((application.dial().await?, None)) }).await
}

/// Mutual TLS is a must.
async fn encrypted(accepted: Accepted, local: SocketAddr, contexts: Arc<Contexts>) -> Option<Relay> {
    let under_way = accepted.shared.under_way.begin();
    let failure = match opening(&accepted, &Cell::default()).await {
        Some(Opening::Native) => return native(accepted, local, contexts, under_way).await,
        Some(_) => Failure::Plaintext,
        None => Failure::Timeout,
    };
    accepted.shared.telemetry.handshake_failed(Role::Server, failure.label());
    refuse(accepted, local, failure);
    None
}

fn refuse<D>(accepted: Accepted<D>, local: SocketAddr, failure: Failure) {
    let reason = failure.label();
    tracing::info!(client = %accepted.client, to = %local, reason, %failure, "no mutual TLS with the client");
    accepted.refuse(OrigDst(local), mtls::close_reason(failure));
}

/// The client speaks first: it said that it is a sidecar, or nothing else could help it.
async fn client_speaks_first(accepted: Accepted, local: SocketAddr, contexts: Arc<Contexts>) -> Option<Relay> {
    let under_way = accepted.shared.under_way.begin();
    let waited = Cell::default();
    let opening = opening(&accepted, &waited).await.unwrap_or(Opening::Plaintext);
    if opening == Opening::Native {
        return native(accepted, local, contexts, under_way).await;
    }
    let (downstream, accepted) = accepted.split();
    let downstream = if waited.get() { downstream.watched_anew() } else { Ok(downstream) };
    match downstream {
        Ok(downstream) => plaintext(accepted.with(downstream), local, why_plaintext(opening)).await,
        Err(_) => {
            accepted.refuse(OrigDst(local), CloseReason::DownstreamReset);
            None
        }
    }
}

/// Nobody said anything: the application is connected at once, for it may be the one that speaks first.
async fn unannounced(accepted: Accepted, local: SocketAddr, contexts: Arc<Contexts>) -> Option<Relay> {
    let anyone = Request { client: accepted.client.0.ip(), principal: None, port: local.port() };
    if !accepted.shared.permits.would_allow(&anyone) {
        // Only an identity could help the client, so that it has to speak first.
        return client_speaks_first(accepted, local, contexts).await;
    }
    let addressed = accepted.addressed(Ok(Some(OrigDst(local))))?;
    let (downstream, upstream, mut connection) = connect(addressed, local).await?.split();
    let waited = Cell::default();
    let opening = tokio::select! {
        biased;
        opening = downstream.peek(&waited, told) => opening.ok().flatten().unwrap_or(Opening::Plaintext),
        _ = upstream.receivable() => Opening::Plaintext,
        reason = connection.told_to_close() => {
            connection.finish(reason);
            return None;
        }
    };
    if opening == Opening::Native {
        // The network took the option out. The application sees a client that goes away again.
        drop(upstream);
        let accepted = connection.accepted_again(downstream);
        let under_way = accepted.shared.under_way.begin();
        return native(accepted, local, contexts, under_way).await;
    }
    connection.record().secured(Security::Plaintext(why_plaintext(opening)));
    let downstream = if waited.get() { downstream.watched_anew() } else { Ok(downstream) };
    match downstream {
        Ok(downstream) => Some(connection.with(downstream, upstream).relay()),
        Err(_) => {
            connection.finish(CloseReason::DownstreamReset);
            None
        }
    }
}

fn why_plaintext(opening: Opening) -> NotEncrypted {
    if opening == Opening::OtherTls { NotEncrypted::OwnTls } else { NotEncrypted::PeerPlaintext }
}

fn told(bytes: &[u8]) -> Option<Opening> {
    Some(detect::opening(bytes)).filter(|opening| *opening != Opening::Unclear)
}

/// What the client begins with; `None`: it takes longer to say so than a handshake may.
async fn opening(accepted: &Accepted, waited: &Cell<bool>) -> Option<Opening> {
    let limit = accepted.shared.mtls.config.handshake_timeout;
    let peek = tokio::time::timeout(limit, accepted.downstream.peek(waited, told)).await;
    Some(peek.ok()?.ok().flatten().unwrap_or(Opening::Plaintext))
}

/// The client is a sidecar: believes it, waits for the application's connection that it carries, and carries it on.
async fn native(accepted: Accepted, local: SocketAddr, contexts: Arc<Contexts>, under_way: OnItsWay) -> Option<Relay> {
    let (accepted, peer) = secured(accepted, local, &contexts).await?;
    let shared = Arc::clone(&accepted.shared);
    let request = Request { client: accepted.client.0.ip(), principal: Some(&peer), port: local.port() };
    let may_wait = shared.permits.would_allow(&request);
    drop(under_way);
    let (mut accepted, header) = header(accepted, may_wait).await?;
    let _under_way = shared.under_way.begin();
    // What was true when it began to wait need not be true any more.
    match still_admitted(&accepted, &contexts) {
        Ok(peer) => {
            accepted.client = client(accepted.client, header.source);
            carry_on(accepted, local, peer).await
        }
        Err(failure) => {
            shared.telemetry.handshake_failed(Role::Server, failure.label());
            refuse(accepted, local, failure);
            None
        }
    }
}

async fn carry_on(accepted: Accepted<Downstream>, local: SocketAddr, peer: SpiffeId) -> Option<Relay> {
    let security = Security::MutualTls { peer, transport: Transport::Native };
    let addressed = accepted.addressed(Ok(Some(OrigDst(local))))?.secured(security);
    Some(connect(addressed, local).await?.relay())
}

/// Waits for the header: for long if it `may_wait` and there is room among those that wait, which hold no slot meanwhile;
/// else only as long as a header that is on its way may take. Without one it is no connection of an application's, so that
/// a client whom the rules do not let in is refused when it says for whom it connects, and once for each of those.
async fn header(mut accepted: Accepted<Downstream>, may_wait: bool) -> Option<(Accepted<Downstream>, Header)> {
    let shared = Arc::clone(&accepted.shared);
    let config = &shared.mtls.config;
    let room = if may_wait { Arc::clone(&shared.waiting).try_acquire_owned().ok() } else { None };
    let slots = if room.is_some() { accepted.give_slot_back() } else { None };
    let idle = if room.is_some() { unused_limit(config.spare.idle) } else { config.handshake_timeout };
    let waits = shared.telemetry.spare_waits(Role::Server);
    let header = tokio::select! {
        header = accepted.downstream.opened(idle, config.handshake_timeout) => header,
        reason = accepted.told_to_close() => {
            accepted.end(reason);
            return None;
        }
    };
    drop((waits, room));
    match header {
        Ok(header) => {
            accepted.at = Instant::now();
            if let Some(slots) = slots {
                accepted.slot = slots.acquire_owned().await.ok();
            }
            Some((accepted, header))
        }
        Err(error) => {
            tracing::debug!(client = %accepted.client, %error, may_wait, "a sidecar's connection ended unused");
            if !may_wait {
                shared.telemetry.spare(Spare::Unauthorized);
            }
            accepted.end(CloseReason::DownstreamReset);
            None
        }
    }
}

fn still_admitted(accepted: &Accepted<Downstream>, then: &Contexts) -> Result<SpiffeId, Failure> {
    let now = accepted.shared.mtls.current.get().ok_or(Failure::OwnExpired)?;
    accepted.downstream.admit_again(&now, then)
}

/// A client closes what it does not use after its own `mtls.spare.idle`, which may be longer than ours; closing first
/// would race with its use.
fn unused_limit(idle: Duration) -> Duration {
    const LEAST: Duration = Duration::from_secs(600);
    (idle * 4).max(LEAST)
}

/// The client as the application is to see it: the real port, where the sidecar in between is the client's own.
fn client(seen: ClientAddr, told: SocketAddr) -> ClientAddr {
    // An address that the network does not show is a claim that nobody can check.
    if told.ip() == seen.0.ip() { ClientAddr(told) } else { seen }
}

type Downstream = TlsStream<ServerEnd>;

async fn secured(
    accepted: Accepted,
    local: SocketAddr,
    contexts: &Contexts,
) -> Option<(Accepted<Downstream>, SpiffeId)> {
    let (socket, accepted) = accepted.split();
    let shared = Arc::clone(&accepted.shared);
    let limit = shared.mtls.config.handshake_timeout;
    let handshakes = Handshakes { contexts, limit, telemetry: &shared.telemetry };
    let secured = shared.handshakes.take(handshakes.accept(socket)).await.unwrap_or_else(|| {
        // Its turn was taken, so that it has not been counted.
        shared.telemetry.handshake_failed(Role::Server, Failure::Timeout.label());
        Err(Failure::Timeout)
    });
    match secured {
        Ok(Secured { stream, peer }) => Some((accepted.with(stream), peer)),
        Err(failure) => {
            refuse(accepted, local, failure);
            None
        }
    }
}
