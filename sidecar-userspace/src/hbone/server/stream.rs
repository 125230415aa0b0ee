//! One tunnel: the story of [`inbound`](crate::inbound), from a request instead of a captured connection.

use std::{rc::Rc, sync::Arc, time::Instant};

use h2::{RecvStream, server::SendResponse};
use http::{Request, StatusCode};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::Server;
use crate::{
    addr::{ClientAddr, OrigDst},
    config::Transport,
    hbone::{Asked, Tunnel, chunk::Chunk, liveness::Seat, secure::Carrier},
    serve::{Accepted, Application, Relay},
    telemetry::{CloseReason, Direction, Limit, Security},
};

/// Carries one tunnel to the application, which sees the client as its peer.
pub(super) async fn carry(
    server: Arc<Server>,
    carrier: Rc<Carrier>,
    request: Request<RecvStream>,
    respond: SendResponse<Chunk>,
    seat: Seat,
) {
    // What it takes to connect is gone before the relay begins.
    let relay = Box::pin(connected(server, carrier, request, respond, seat)).await;
    if let Some(relay) = relay {
        relay.await;
    }
}

async fn connected(
    server: Arc<Server>,
    carrier: Rc<Carrier>,
    request: Request<RecvStream>,
    respond: SendResponse<Chunk>,
    seat: Seat,
) -> Option<Relay> {
    let (at, direction) = (Instant::now(), Direction::Inbound);
    let asked = Asked::read(&request, &carrier, &server.0.hosts);
    let (client, to) = match &asked {
        Ok(asked) => (asked.client, Some(asked.to)),
        Err(_) => (ClientAddr(carrier.remote), None),
    };
    let tunnel = Tunnel::asked(respond, request.into_body(), seat, Rc::clone(&carrier));
    let slot = match admit(&server, &carrier, asked).await {
        Ok(slot) => slot,
        Err(reason) => {
            refuse(&server, tunnel, (client, to), at, reason);
            return None;
        }
    };
    let (status, shared, baggage) = (tunnel.refusal(), Arc::clone(&server.0.shared), server.0.shared.baggage.clone());
    let accepted =
        Accepted { downstream: tunnel, client, source: None, direction, at, record: None, shared, slot: Some(slot) };
    let peer = carrier.identity.clone();
    let security = Security::MutualTls { peer: peer.clone(), transport: Transport::Hbone };
    let addressed = accepted.addressed(Ok(to))?.secured(security);
    status.set(StatusCode::UNAUTHORIZED);
    let permitted = addressed.permit(Some(carrier.local.ip()))?;
    status.set(StatusCode::SERVICE_UNAVAILABLE);
    let (device_bound, shared) = (permitted.is_for_device(), Arc::clone(permitted.shared()));
    let application = Application { to: permitted.to(), client, peer: Some(peer), device_bound, shared };
    let dial = (server.0.dial)(application);
    let connected = permitted.connect(async { Ok((dial.await?, None)) }).await?;
    connected.downstream().accept(baggage.as_ref());
    Some(connected.relay())
}

/// What does not depend on the rules; room for one more connection of the application's.
async fn admit(
    server: &Server,
    carrier: &Carrier,
    asked: Result<Asked, &'static str>,
) -> Result<OwnedSemaphorePermit, CloseReason> {
    let shared = &server.0.shared;
    let asked = asked.map_err(|why| {
        tracing::info!(peer = %carrier.remote, why, "a tunnel was refused");
        CloseReason::BadRequest
    })?;
    tracing::debug!(?asked, "a tunnel is asked for");
    if shared.mtls.current.get().is_some_and(|contexts| carrier.is_revoked(&contexts)) {
        return Err(CloseReason::Revoked);
    }
    // A tunnel to the sidecar itself would come back, through the listener that it came by as well.
    let port = asked.to.0.port();
    if shared.own_ports.contains(&port) || port == carrier.local.port() {
        tracing::info!(client = %asked.client, to = %asked.to, "denied: the sidecar's own port");
        return Err(CloseReason::OwnPort);
    }
    if let Ok(slot) = Arc::clone(&server.0.slots).try_acquire_owned() {
        return Ok(slot);
    }
    Limit::Tunnels.waited();
    let free = Arc::clone(&server.0.slots).acquire_owned();
    if let Ok(Ok(slot)) = timeout(shared.mtls.config.handshake_timeout, free).await {
        return Ok(slot);
    }
    Limit::Tunnels.refused();
    Err(CloseReason::ConnectFailed)
}

/// It goes nowhere.
fn refuse(server: &Server, tunnel: Tunnel, ends: (ClientAddr, Option<OrigDst>), at: Instant, reason: CloseReason) {
    let (client, to) = ends;
    let mut record = server.0.shared.telemetry.accepted_at(Direction::Inbound, client, at);
    if let Some(to) = to {
        record.addressed(to);
    }
    tunnel.refuse(match reason {
        CloseReason::BadRequest | CloseReason::OwnPort => StatusCode::BAD_REQUEST,
        CloseReason::Revoked => StatusCode::UNAUTHORIZED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    });
    record.finish(reason);
}
