//! The sidecar's own HTTP endpoints: metrics, health, and the admin interface.
//!
//! They run on a thread of their own, so that a scrape of 100 000 connections costs no connection any time, and a
//! stalled proxy can still be asked what it is doing. This module knows no proxy type: what it tells comes from
//! [`Hooks`]. Clients are not trusted: headers, connections and their number have limits, and the admin interface
//! refuses what a web page in somebody's browser could send.

mod connection;
mod endpoints;
mod origin;
pub mod socket;

use std::{convert::Infallible, io, net::TcpListener, os::unix::net::UnixListener, sync::Arc};

use tokio::sync::watch;

use crate::lifecycle::readiness::Unready;

use connection::{Door, admit};
use endpoints::Interface;

/// Takes log directives, or says what is wrong with them.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Switches the fast path, or says why not and what can be done.
pub type SwitchFastPath = Arc<dyn Fn(bool) -> Result<(), String> + Send + Sync>;

/// What the endpoints tell and do.
#[derive(Clone)]
pub struct Hooks {
    /// The conditions that do not hold; none: ready.
    pub ready: Arc<dyn Fn() -> Vec<Unready> + Send + Sync>,
    /// What only a new process can mend; none: alive.
    pub live: Arc<dyn Fn() -> Vec<Unready> + Send + Sync>,
    /// The configuration in force.
    pub config_dump: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// The open connections.
    pub connections: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// All metrics in Prometheus' text format 0.0.4.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Whether the fast path is on, and why.
    pub fast_path: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Switches it.
    pub switch_fast_path: SwitchFastPath,
    /// Whether the sidecar drains, and what remains.
    pub drain_state: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Begins to drain.
    pub drain: Arc<dyn Fn() + Send + Sync>,
    /// The log directives in force.
    pub log_level: Arc<dyn Fn() -> String + Send + Sync>,
    /// Sets the log directives; the error says what is wrong with them.
    pub set_log_level: SetLogLevel,
}

/// Where the endpoints are served: sockets that are bound already.
pub struct Listeners {
    /// `/metrics`.
    pub metrics: TcpListener,
    /// `/healthz/…`.
    pub health: TcpListener,
    /// The admin interface, on a loopback address.
    pub admin: TcpListener,
    /// The admin interface, for whoever may open the socket's file.
    pub admin_socket: UnixListener,
}

/// Why the endpoints cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime cannot watch a listener.
    #[error("epoll_ctl() on the {listener} listener: {source}")]
    Register {
        /// Which.
        listener: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Serves all endpoints until the future is dropped, which also ends the connections of their clients. Once `no_more` is true
/// nobody else is served: those who have asked are answered, and the listeners are another process's.
///
/// # Errors
/// The runtime cannot watch a listener.
pub async fn serve(listeners: Listeners, hooks: Hooks, no_more: watch::Receiver<bool>) -> Result<Infallible, Error> {
    let metrics = tcp("metrics", listeners.metrics)?;
    let health = tcp("health", listeners.health)?;
    let admin = tcp("admin", listeners.admin)?;
    let socket = unix("admin socket", listeners.admin_socket)?;
    let hooks = Arc::new(hooks);
    let (never, ..) = tokio::join!(
        admit(metrics, Interface::Metrics, Arc::clone(&hooks), no_more.clone()),
        admit(health, Interface::Health, Arc::clone(&hooks), no_more.clone()),
        admit(admin, Interface::Admin, Arc::clone(&hooks), no_more.clone()),
        admit(socket, Interface::AdminSocket, hooks, no_more),
    );
    Ok(never)
}

fn tcp(listener: &'static str, socket: TcpListener) -> Result<Door, Error> {
    let register = || {
        socket.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(socket)
    };
    register().map(Door::Tcp).map_err(|source| Error::Register { listener, source })
}

fn unix(listener: &'static str, socket: UnixListener) -> Result<Door, Error> {
    let register = || {
        socket.set_nonblocking(true)?;
        tokio::net::UnixListener::from_std(socket)
    };
    register().map(Door::Unix).map_err(|source| Error::Register { listener, source })
}

#[cfg(test)]
mod tests;
