//! One connection of the pool.

use std::{
    cell::RefCell,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
};

use h2::client::SendRequest;
use http::{Request, StatusCode};
use tokio::{net::TcpStream, sync::Notify, time::timeout};
use tokio_rustls::client::TlsStream;

use super::{Inner, OpenError, PoolConfig, Target, retire};
use crate::{
    hbone::{
        Tunnel,
        chunk::Chunk,
        liveness::{self, Seat, Seats},
        secure::{Carrier, Handshakes},
        settings,
    },
    net,
    tls::{Contexts, Failure},
};

type Http2 = h2::client::Connection<TlsStream<TcpStream>, Chunk>;

/// A connection, from the moment somebody wants it.
pub(super) struct Connection {
    /// Who we are on it, and whom it believes.
    pub(super) contexts: Arc<Contexts>,
    seats: Rc<Seats>,
    state: RefCell<State>,
    changed: Notify,
}

enum State {
    Connecting,
    Ready(SendRequest<Chunk>, Rc<Carrier>),
    /// It takes no more streams.
    Closed(OpenError),
}

impl Connection {
    pub(super) fn new(contexts: Arc<Contexts>) -> Rc<Self> {
        let state = RefCell::new(State::Connecting);
        Rc::new(Self { contexts, seats: Rc::default(), state, changed: Notify::new() })
    }

    /// Whether it takes one more stream.
    pub(super) fn has_room(&self) -> bool {
        self.seats.taken() < self.limit()
    }

    /// Whether more wait for it than the peer turned out to take; the others would wait for the first ones to end.
    pub(super) fn is_overfull(&self) -> bool {
        let made = matches!(*self.state.borrow(), State::Ready(..));
        made && self.seats.taken() > self.limit()
    }

    /// Whether it carries no tunnel, and nobody waits for one.
    pub(super) fn is_unused(&self) -> bool {
        self.seats.taken() == 0
    }

    /// How many streams it takes. A peer that takes none for now is asked one by one.
    fn limit(&self) -> usize {
        match &*self.state.borrow() {
            State::Connecting => settings::STREAMS_PER_CONNECTION,
            State::Ready(send, _) => send.current_max_send_streams().clamp(1, settings::STREAMS_PER_CONNECTION),
            State::Closed(_) => 0,
        }
    }

    /// Room for one stream.
    pub(super) fn seat(&self) -> Seat {
        self.seats.take()
    }

    /// Takes no more streams. Those that are open live; with the last one the connection closes.
    pub(super) fn retire(&self) {
        self.close(OpenError::Retired);
    }

    fn close(&self, why: OpenError) {
        let mut state = self.state.borrow_mut();
        if !matches!(*state, State::Closed(_)) {
            *state = State::Closed(why);
            self.changed.notify_waiters();
        }
    }

    /// Waits until it is made, or cannot be.
    pub(super) async fn made(&self) {
        loop {
            let changed = self.changed.notified();
            if !matches!(*self.state.borrow(), State::Connecting) {
                return;
            }
            changed.await;
        }
    }

    /// Asks for a tunnel, once it is made.
    pub(super) async fn ask(&self, request: Request<()>, seat: Seat) -> Result<Tunnel, OpenError> {
        let (send, carrier) = match &*self.state.borrow() {
            State::Ready(send, carrier) => (send.clone(), Rc::clone(carrier)),
            State::Closed(why) => return Err(why.clone()),
            State::Connecting => return Err(OpenError::Retired),
        };
        let mut send = send.ready().await?;
        let (response, stream) = send.send_request(request, false)?;
        drop(send);
        let response = response.await?;
        match response.status() {
            StatusCode::OK => Ok(Tunnel::open(stream, response.into_body(), seat, carrier)),
            status => Err(OpenError::Refused(status)),
        }
    }
}

/// Makes the connection and drives it to its end. In a task of its own: whoever wanted it first may give up.
pub(super) async fn run(pool: Weak<Inner>, connection: Rc<Connection>, target: Target) {
    let made = match pool.upgrade() {
        Some(pool) => make(&pool.config, &target, &connection.contexts).await.map(|made| (made, pool.config.pace)),
        None => Err(OpenError::Retired),
    };
    let ((send, mut http2, carrier), pace) = match made {
        Ok(made) => made,
        Err(error) => {
            tracing::debug!(%error, to = %target.address, "no connection for tunnels");
            connection.close(error);
            return retire(&pool, &target, &connection);
        }
    };
    let pings = http2.ping_pong();
    let mut http2 = pin!(http2);
    connection.is_made(send, Rc::new(carrier));
    tokio::select! {
        ended = &mut http2 => {
            if let Err(error) = ended {
                tracing::debug!(%error, to = %target.address, "the connection of tunnels failed");
            }
        }
        () = async { match pings {
            Some(pings) => liveness::dead(pings, pace).await,
            None => std::future::pending().await,
        } } => tracing::debug!(to = %target.address, "no answer to pings"),
        () = connection.seats.idle(pace.idle) => {
            retire(&pool, &target, &connection);
            // Without streams and without us it says GOAWAY and closes.
            let _ = timeout(pace.ping_timeout, &mut http2).await;
        }
    }
    // Tunnels that are open fail when the connection is dropped.
    retire(&pool, &target, &connection);
}

impl Connection {
    fn is_made(&self, send: SendRequest<Chunk>, carrier: Rc<Carrier>) {
        let mut state = self.state.borrow_mut();
        // Retired meanwhile: those that waited have been told.
        if matches!(*state, State::Connecting) {
            *state = State::Ready(send, carrier);
            self.changed.notify_waiters();
        }
    }
}

async fn make(
    config: &PoolConfig,
    target: &Target,
    contexts: &Arc<Contexts>,
) -> Result<(SendRequest<Chunk>, Http2, Carrier), OpenError> {
    let connect = net::connect_carrier(target.address, target.source, config.tuning);
    let tcp = timeout(config.connect_timeout, connect).await.map_err(|_| OpenError::ConnectTimeout)?;
    let tcp = tcp.map_err(|error| OpenError::Connect(Arc::new(error)))?;
    let limit = config.handshake_timeout;
    let handshakes = Handshakes { contexts: Some(contexts), limit, telemetry: &config.telemetry };
    let (carrier, tls) = handshakes.connect(tcp, target.identity.as_ref()).await?;
    let http2 =
        timeout(limit, settings::client().handshake(tls)).await.map_err(|_| OpenError::Tls(Failure::Timeout))?;
    let (send, http2) = http2.map_err(|error| OpenError::Http2(Arc::new(error)))?;
    Ok((send, http2, carrier))
}
