//! Tunnels that we open: many on one connection.

mod connection;
mod error;

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Method, Request, Uri};

use super::{
    Authority, Forwarded, Pace, Tunnel,
    liveness::Seat,
    request::{BAGGAGE, FORWARDED, TRACEPARENT},
    trace,
};
use crate::{
    addr::ClientAddr,
    id::SpiffeId,
    net::Tuning,
    serve::Shared,
    telemetry::Telemetry,
    tls::{Current, Failure},
};
use connection::Connection;

pub use error::OpenError;

/// Where tunnels end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The pod's address and HBONE port.
    pub address: SocketAddr,
    /// The address that the application chose for its own end; `None`: it left the choice to the kernel.
    pub source: Option<IpAddr>,
    /// Who must be there; `None`: anyone whom the TLS configuration accepts.
    pub identity: Option<SpiffeId>,
}

/// What a tunnel is asked for with.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Where it leads.
    pub to: Authority<'a>,
    /// Who opened the connection in it.
    pub client: ClientAddr,
    /// The service that the client asked for.
    pub service: Option<&'a str>,
    /// What we say about ourselves ([`super::Baggage`], printed).
    pub baggage: Option<&'a HeaderValue>,
    /// The trace that it belongs to (W3C Trace Context §3.2); `None`: one that begins with the tunnel.
    pub traceparent: Option<&'a HeaderValue>,
}

impl Ask<'_> {
    fn request(&self) -> Result<Request<()>, http::Error> {
        let authority = Uri::try_from(self.to.to_string())?;
        let forwarded = Forwarded { client: self.client, host: self.service }.to_string();
        let mut request =
            Request::builder().method(Method::CONNECT).uri(authority).header(FORWARDED, forwarded).body(())?;
        // Without randomness there would have been no handshake either.
        let traceparent = self.traceparent.cloned().or_else(|| trace::begin().ok());
        for (name, value) in [(BAGGAGE, self.baggage.cloned()), (TRACEPARENT, traceparent)] {
            if let Some(value) = value {
                request.headers_mut().insert(name, value);
            }
        }
        Ok(request)
    }
}

/// What a [`Pool`] is given.
pub struct PoolConfig {
    /// Who we are. A connection that was made as somebody else, or believing others, gets no new tunnels.
    pub current: Current,
    /// How connections are kept alive.
    pub tuning: Tuning,
    /// Counts handshakes.
    pub telemetry: Telemetry,
    /// Time limit for the TCP connection.
    pub connect_timeout: Duration,
    /// Time limit for the handshakes after it.
    pub handshake_timeout: Duration,
    /// Pings and idle connections.
    pub pace: Pace,
    /// From so many connections on, one that carries no tunnel is closed for each that is made: each holds a descriptor.
    pub most: usize,
}

thread_local! {
    static POOL: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

/// The pool of the calling thread, whose tasks its connections are.
pub fn of_this_thread(shared: &Shared) -> Pool {
    let new = || {
        Pool::new(PoolConfig {
            current: shared.mtls.current.clone(),
            tuning: shared.tuning(),
            telemetry: shared.telemetry.clone(),
            connect_timeout: shared.limits.connect_timeout,
            handshake_timeout: shared.mtls.config.handshake_timeout,
            pace: Pace::default(),
            most: shared.spares,
        })
    };
    POOL.with_borrow_mut(|pool| pool.get_or_insert_with(new).clone())
}

/// The connections of one thread. Dropping the last clone of it closes those that carry no tunnel; the others live until theirs end.
#[derive(Clone)]
pub struct Pool(Rc<Inner>);

struct Inner {
    config: PoolConfig,
    connections: RefCell<Connections>,
}

type Connections = HashMap<Target, Vec<Rc<Connection>>>;

/// Closes one that carries no tunnel if there are `most` of them.
fn make_room(connections: &mut Connections, most: usize) {
    if connections.values().map(Vec::len).sum::<usize>() < most {
        return;
    }
    for to_target in connections.values_mut() {
        if let Some(unused) = to_target.iter().position(|connection| connection.is_unused()) {
            return to_target.swap_remove(unused).retire();
        }
    }
}

impl Pool {
    /// One without connections.
    pub fn new(config: PoolConfig) -> Self {
        Self(Rc::new(Inner { config, connections: RefCell::default() }))
    }

    /// Opens a tunnel, on a connection that is there or on a new one. Those that ask while a connection is being made wait
    /// for the same one, as far as it has room.
    ///
    /// A connection that the peer is closing, or that has as many streams as the peer takes, is left for another; nothing
    /// else is tried twice, because the application at the other end may have been dialled.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(&self, target: &Target, ask: &Ask<'_>) -> Result<Tunnel, OpenError> {
        /// A peer that turns everybody away gets that many handshakes from each who asks.
        const ATTEMPTS: usize = 4;
        let mut attempt = 1;
        loop {
            let (connection, seat) = self.connection(target)?;
            connection.made().await;
            if connection.is_overfull() {
                continue;
            }
            match connection.ask(ask.request()?, seat).await {
                Err(error @ (OpenError::TurnedAway(_) | OpenError::Retired)) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, to = %target.address, attempt, "another connection is tried");
                    if error.closes_connection() {
                        self.0.retire(target, &connection);
                    }
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Opens no more tunnels on the connections that are there: each closes with its last tunnel.
    pub fn drain(&self) {
        self.0.drain();
    }

    /// Connections that take new tunnels, or will when they are made.
    pub fn len(&self) -> usize {
        self.0.connections.borrow().values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A connection with room for one more stream, and that room.
    fn connection(&self, target: &Target) -> Result<(Rc<Connection>, Seat), OpenError> {
        let contexts = self.0.config.current.get().ok_or(OpenError::Tls(Failure::NoIdentity))?;
        let mut connections = self.0.connections.borrow_mut();
        let to_target = connections.entry(target.clone()).or_default();
        to_target.retain(|connection| {
            let current = Arc::ptr_eq(&connection.contexts, &contexts);
            if !current {
                connection.retire();
            }
            current
        });
        if let Some(connection) = to_target.iter().find(|connection| connection.has_room()) {
            return Ok((Rc::clone(connection), connection.seat()));
        }
        make_room(&mut connections, self.0.config.most);
        let connection = Connection::new(contexts);
        let seat = connection.seat();
        connections.entry(target.clone()).or_default().push(Rc::clone(&connection));
        let made = connection::run(Rc::downgrade(&self.0), Rc::clone(&connection), target.clone());
        tokio::task::spawn_local(made);
        Ok((connection, seat))
    }
}

impl Inner {
    /// Takes a connection out, so that it gets no more tunnels.
    fn retire(&self, target: &Target, gone: &Rc<Connection>) {
        gone.retire();
        let mut connections = self.connections.borrow_mut();
        if let Some(to_target) = connections.get_mut(target) {
            to_target.retain(|connection| !Rc::ptr_eq(connection, gone));
            if to_target.is_empty() {
                connections.remove(target);
            }
        }
    }

    fn drain(&self) {
        for connection in self.connections.take().into_values().flatten() {
            connection.retire();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.drain();
    }
}

/// Takes a connection out of a pool that may be gone.
fn retire(pool: &Weak<Inner>, target: &Target, connection: &Rc<Connection>) {
    match pool.upgrade() {
        Some(pool) => pool.retire(target, connection),
        None => connection.retire(),
    }
}
