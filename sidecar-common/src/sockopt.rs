//! Socket options that the kernel side answers on the proxy's own sockets: the whole interface between a running proxy
//! and the capture, usable without any capability and without `bpf(2)`.

use core::mem::size_of;

use crate::addr::{Endpoint, PortBe};

/// Level of `SO_ORIGINAL_DST` (`SOL_IP`).
pub const SOL_IP: i32 = 0;
/// Level of `IP6T_SO_ORIGINAL_DST` (`SOL_IPV6`).
pub const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` (linux/netfilter_ipv4.h) and `IP6T_SO_ORIGINAL_DST` (linux/netfilter_ipv6/ip6_tables.h) share a number.
pub const SO_ORIGINAL_DST: i32 = 80;

/// Level of the options that only sidecar's own program answers: "SC". No kernel protocol uses it.
pub const SOL_SIDECAR: i32 = 0x5343;
/// `setsockopt` before `connect`: an [`Endpoint`](crate::addr::Endpoint) that the application at the other end of this
/// socket's connection is to see as its peer. `getsockopt` after `connect`: the same, or `ENOPROTOOPT` if the other end was
/// not told.
pub const SO_PRESENT_AS: i32 = 1;
/// `getsockopt` on the accepted socket of a captured connection: a [`Local`](crate::flow::Local), the application's own end.
pub const SO_CLIENT_LOCAL: i32 = 2;
/// `setsockopt` before `connect`: a byte, the [`Transports`](crate::mesh::Transports) that the SYN is to offer.
pub const SO_MESH_OFFER: i32 = 3;
/// `setsockopt` on the inbound listener: a byte, the [`Transports`](crate::mesh::Transports) with which SYN-ACKs answer an
/// offer from now on; zero: none does.
pub const SO_MESH_ANSWER: i32 = 4;
/// `getsockopt` on a connected socket that offered, or on an accepted one: a byte, the
/// [`Transports`](crate::mesh::Transports) that the other end said in the handshake; `ENOPROTOOPT` if it said nothing.
pub const SO_MESH_PEER: i32 = 5;

/// `struct sockaddr_in` (linux/in.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockaddrIn {
    /// `AF_INET`.
    pub family: u16,
    /// Port.
    pub port: PortBe,
    /// Address in network byte order.
    pub addr: u32,
    /// Padding of the C structure; zero.
    pub zero: [u8; 8],
}

/// `struct sockaddr_in6` (linux/in6.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SockaddrIn6 {
    /// `AF_INET6`.
    pub family: u16,
    /// Port.
    pub port: PortBe,
    /// Zero.
    pub flowinfo: u32,
    /// Address, four words in network byte order.
    pub addr: [u32; 4],
    /// Zero: captured destinations need no scope.
    pub scope_id: u32,
}

impl From<Endpoint> for SockaddrIn {
    #[inline(always)]
    fn from(at: Endpoint) -> Self {
        Self { family: 2, port: at.port, addr: at.ip.v4(), zero: [0; 8] }
    }
}

impl From<Endpoint> for SockaddrIn6 {
    #[inline(always)]
    fn from(at: Endpoint) -> Self {
        Self { family: 10, port: at.port, flowinfo: 0, addr: at.ip.words(), scope_id: 0 }
    }
}

const _: () = assert!(size_of::<SockaddrIn>() == 16 && size_of::<SockaddrIn6>() == 28);
