//! Tunnels of an Istio ambient mesh: HTTP/2 CONNECT over mutual TLS, on port 15008 of the pod ("HBONE").
//!
//! A [`Server`] ends them for the application: one is accepted, its request says where it leads ([`Asked`]), the
//! application is dialled, and only then the client hears 200. A [`Pool`] opens them for the application, many on one
//! connection. Either way a [`Tunnel`] comes out, which the relay moves bytes through as through a socket.
//!
//! The answers: 200; 400 for another method, an authority that is not where the connection came to, or a port of the
//! sidecar itself; 401 what the rules deny; 503 an application that cannot be reached, or no room for the connection.

mod authority;
mod baggage;
mod chunk;
mod forwarded;
mod introduction;
mod liveness;
mod pool;
mod request;
mod secure;
mod server;
mod settings;
#[cfg(test)]
mod tests;
mod trace;
mod tunnel;

pub use authority::{Authority, AuthorityError, Host};
pub use baggage::{Baggage, Kind};
pub use forwarded::{Forwarded, client as forwarded_client};
pub use liveness::Pace;
pub use pool::{Ask, OpenError, Pool, PoolConfig, Target, of_this_thread};
pub use request::Asked;
pub use server::{Dial, Server, ServerConfig, dial_application};
pub use tunnel::{Receivable, Tunnel};
