//! What a CONNECT request asks for.

use std::net::SocketAddr;

use http::{Method, Request};

use super::{Authority, Baggage, Host, forwarded, secure::Carrier};
use crate::{
    addr::{ClientAddr, OrigDst},
    id::SpiffeId,
};

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who asks, as its certificate says.
    pub identity: SpiffeId,
    /// Who opened the connection in the tunnel.
    pub client: ClientAddr,
    /// Where the tunnel leads.
    pub to: OrigDst,
    /// What the client says about itself; proof of nothing.
    pub baggage: Baggage,
    /// The trace that it belongs to, as it came (W3C Trace Context §3.2).
    pub traceparent: Option<Box<str>>,
}

impl Asked {
    /// Reads a request. `hosts`: names by which clients may call the pod.
    ///
    /// # Errors
    /// A sentence on why it is refused with 400.
    pub(super) fn read<B>(request: &Request<B>, of: &Carrier, hosts: &[Box<str>]) -> Result<Self, &'static str> {
        if request.method() != Method::CONNECT {
            return Err("the method is not CONNECT");
        }
        let authority = request.uri().authority().ok_or("there is no authority")?;
        let authority = Authority::parse(authority.as_str()).map_err(|_| "the authority names no destination")?;
        let of_this_pod = match authority.host {
            Host::Address(address) => address == of.local.ip(),
            Host::Name(name) => hosts.iter().any(|host| host.eq_ignore_ascii_case(name)),
        };
        if !of_this_pod {
            return Err("the authority is not where the connection came to");
        }
        let to = SocketAddr::new(of.local.ip(), authority.port);
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        Ok(Self {
            identity: of.identity.clone(),
            client: client(of, header(FORWARDED)),
            to: OrigDst(to),
            baggage: header(BAGGAGE).map(Baggage::parse).unwrap_or_default(),
            traceparent: header(TRACEPARENT).map(Into::into),
        })
    }
}

/// Header names of the requests.
pub(super) const FORWARDED: &str = "forwarded";
pub(super) const BAGGAGE: &str = "baggage";
pub(super) const TRACEPARENT: &str = "traceparent";

/// The client as the application is to see it: the real port, where the sidecar in between is the client's own.
fn client(of: &Carrier, forwarded: Option<&str>) -> ClientAddr {
    // An address that the network does not show is a claim that nobody can check, and rules are on addresses as well.
    let named = forwarded.and_then(forwarded::client).filter(|client| client.0.ip() == of.remote.ip());
    named.unwrap_or(ClientAddr(of.remote))
}
