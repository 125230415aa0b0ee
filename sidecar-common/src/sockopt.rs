//! Socket options that the kernel side answers on the proxy's own sockets: the whole interface between a running proxy
//! and the capture, usable without any capability and without `bpf(2)`.

/// Level of `SO_ORIGINAL_DST` (`SOL_IP`).
pub const SOL_IP: i32 = 0;
/// Level of `IP6T_SO_ORIGINAL_DST` (`SOL_IPV6`).
pub const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` (linux/netfilter_ipv4.h) and `IP6T_SO_ORIGINAL_DST` (linux/netfilter_ipv6/ip6_tables.h) share a number.
pub const SO_ORIGINAL_DST: i32 = 80;

/// Level of the options that only sidecar's own program answers: "SC". No kernel protocol uses it.
pub const SOL_SIDECAR: i32 = 0x5343;
/// `setsockopt` before `connect`: an [`Endpoint`](crate::addr::Endpoint) that the application at the other end of this
/// socket's connection is to see as its peer.
pub const SO_PRESENT_AS: i32 = 1;
