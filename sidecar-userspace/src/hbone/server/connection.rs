//! One connection that carries tunnels: its handshakes, then its streams.

use std::{io, pin::pin, rc::Rc, sync::Arc, time::Instant};

use h2::{PingPong, Reason, RecvStream, server::SendResponse};
use http::Request;
use socket2::Socket;
use tokio::{net::TcpStream, sync::OwnedSemaphorePermit, time::timeout};
use tokio_rustls::server::TlsStream;

use super::{Server, stream};
use crate::{
    addr::{ClientAddr, OrigDst, canonical},
    hbone::{
        Pace,
        chunk::Chunk,
        liveness::{self, Seats},
        secure::{Carrier, Handshakes},
        settings,
    },
    telemetry::{CloseReason, Direction, Role},
    tls::Failure,
};

type Http2 = h2::server::Connection<TlsStream<TcpStream>, Chunk>;

/// Streams that may be in our hands, those included that the peer has reset and that are about to end. HTTP/2 counts only
/// open ones: without this bound a peer that opens and resets could have us dial without end (CVE-2023-44487).
const MAX_SEATS: usize = 2 * settings::MAX_STREAMS as usize;

/// Serves one connection to its end. It is none of the application's: its tunnels are, and a connection that cannot carry
/// any is recorded as one that was meant for the port of tunnels.
pub(super) async fn serve(server: Arc<Server>, socket: Socket, client: ClientAddr, _slot: OwnedSemaphorePermit) {
    let at = Instant::now();
    let Ok(tcp) = TcpStream::from_std(socket.into()) else { return };
    let Ok(local) = tcp.local_addr().map(canonical) else { return };
    let under_way = server.0.shared.under_way.begin();
    match shake_hands(&server, tcp, client).await {
        Ok((carrier, http2)) => {
            let draining = *server.0.drain.borrow();
            // A sidecar that ends waits until it has told a client that it does; not for those that it serves.
            let _under_way = draining.then_some(under_way);
            Connection { server, carrier: Rc::new(carrier), seats: Rc::default() }.serve(http2).await;
        }
        Err(reason) => {
            let mut record = server.0.shared.telemetry.accepted_at(Direction::Inbound, client, at);
            record.addressed(OrigDst(local));
            record.finish(reason);
        }
    }
}

async fn shake_hands(server: &Server, tcp: TcpStream, client: ClientAddr) -> Result<(Carrier, Http2), CloseReason> {
    let shared = &server.0.shared;
    let limit = shared.mtls.config.handshake_timeout;
    let contexts = shared.mtls.current.get();
    let handshakes = Handshakes { contexts: contexts.as_ref(), limit, telemetry: &shared.telemetry };
    let shaken = shared.handshakes.take(handshakes.accept(tcp)).await.unwrap_or_else(|| {
        // Its turn was taken, so that it has not been counted.
        shared.telemetry.handshake_failed(Role::Server, Failure::Timeout.label());
        Err(Failure::Timeout)
    });
    let (carrier, tls) = shaken.map_err(|failure: Failure| {
        tracing::info!(%client, reason = failure.label(), %failure, "no mutual TLS with who wants a tunnel");
        CloseReason::HandshakeFailed
    })?;
    match timeout(limit, settings::server().handshake(tls)).await {
        Ok(Ok(http2)) => Ok((carrier, http2)),
        Ok(Err(error)) => Err(no_http2(client, &io::Error::other(error))),
        Err(late) => Err(no_http2(client, &late.into())),
    }
}

fn no_http2(client: ClientAddr, error: &io::Error) -> CloseReason {
    tracing::info!(%client, %error, "no HTTP/2 follows the TLS handshake");
    CloseReason::BadRequest
}

struct Connection {
    server: Arc<Server>,
    carrier: Rc<Carrier>,
    seats: Rc<Seats>,
}

impl Connection {
    async fn serve(self, mut http2: Http2) {
        let pings = http2.ping_pong();
        let mut dead = pin!(dead(pings, self.server.0.pace));
        let mut unwanted = pin!(self.unwanted());
        let mut closing = false;
        // Streams that are open when it ends fail when the connection is dropped.
        loop {
            tokio::select! {
                asked = http2.accept() => match asked {
                    Some(Ok((request, respond))) if self.seats.taken() < MAX_SEATS => self.carry(request, respond),
                    Some(Ok(_)) => http2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM),
                    Some(Err(error)) => {
                        return tracing::debug!(%error, peer = %self.carrier.remote, "the HTTP/2 connection failed");
                    }
                    None => return,
                },
                () = &mut dead => return tracing::debug!(peer = %self.carrier.remote, "no answer to pings"),
                () = &mut unwanted, if !closing => {
                    closing = true;
                    http2.graceful_shutdown();
                }
            }
        }
    }

    fn carry(&self, request: Request<RecvStream>, respond: SendResponse<Chunk>) {
        let (server, carrier) = (Arc::clone(&self.server), Rc::clone(&self.carrier));
        tokio::task::spawn_local(stream::carry(server, carrier, request, respond, self.seats.take()));
    }

    /// Resolves when the sidecar drains, when no tunnel was open for long, or when the peer is no longer believed; its
    /// tunnels end by themselves then.
    async fn unwanted(&self) {
        let mut drain = self.server.0.drain.clone();
        tokio::select! {
            _ = drain.wait_for(|drain| *drain) => {}
            () = self.seats.idle(self.server.0.pace.idle) => {}
            () = self.server.0.shared.mtls.current.others(|contexts| self.carrier.is_revoked(contexts)) => {}
        }
    }
}

async fn dead(pings: Option<PingPong>, pace: Pace) {
    match pings {
        Some(pings) => liveness::dead(pings, pace).await,
        None => std::future::pending().await,
    }
}
