//! Addresses that say whose they are. A bare `SocketAddr` never crosses a module's edge.

use std::{fmt, net::SocketAddr};

/// Where the application meant to go (outbound), or where its client meant to go (inbound).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OrigDst(pub SocketAddr);

/// Who opened the connection that we accepted: the application (outbound) or the real client (inbound).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

/// The local address of the connection that we opened towards the destination.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamLocal(pub SocketAddr);

macro_rules! shown_as_its_address {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
shown_as_its_address!(OrigDst, ClientAddr, UpstreamLocal);

/// The same address with an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`) written as IPv4.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
