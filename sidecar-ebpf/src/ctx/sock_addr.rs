//! The context of `connect`, `getpeername` and `getsockname`.

use core::ptr::{NonNull, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_set_retval, bpf_skc_to_mptcp_sock},
    programs::SockAddrContext,
};
use sidecar_common::{
    addr::{Endpoint, Ip, PortBe},
    capture::{Bound, Transport},
};

use super::{AF_INET6, Socket, read_v6};

/// Whether the kernel has `bpf_skc_to_mptcp_sock` (since 5.19, with `CONFIG_MPTCP` and `CAP_PERFMON`). Set by the loader
/// before the verifier sees the programs, which then leaves out what it guards: where it is zero, an MPTCP socket is
/// captured as TCP.
#[unsafe(no_mangle)]
static TELLS_SUBFLOWS: u8 = 0;

/// `connect`, `getpeername`, `getsockname`.
pub struct SockAddr<'a>(pub &'a SockAddrContext);

impl SockAddr<'_> {
    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.0.sock_addr
    }

    /// How the socket speaks. The connect of an MPTCP socket is seen as that of its first subflow, a TCP socket.
    #[inline(always)]
    pub fn transport(&self) -> Transport {
        let (kind, protocol) = unsafe {
            (read_volatile(&raw const (*self.raw()).type_), read_volatile(&raw const (*self.raw()).protocol))
        };
        let transport = Transport::of(kind, protocol);
        if transport == Transport::Tcp && self.multipath().is_some() { Transport::Mptcp } else { transport }
    }

    /// The MPTCP socket that the application holds and asks for names, if the socket is a subflow of one.
    #[inline(always)]
    pub fn multipath(&self) -> Option<Socket> {
        if unsafe { read_volatile(&raw const TELLS_SUBFLOWS) } == 0 {
            return None;
        }
        let subflow = self.socket()?;
        NonNull::new(unsafe { bpf_skc_to_mptcp_sock(subflow.0.as_ptr().cast()) }.cast()).map(Socket)
    }

    /// The socket; never null in these hooks, but the verifier wants it asked.
    #[inline(always)]
    pub fn socket(&self) -> Option<Socket> {
        NonNull::new(unsafe { read_volatile(&raw const (*self.raw()).__bindgen_anon_1.sk) }).map(Socket)
    }

    /// What the application chose for its own end. The family is the hook's.
    #[inline(always)]
    pub fn bound<F: Family>(&self, socket: Socket) -> Bound {
        socket.bound(F::NUMBER)
    }

    /// The address of the call.
    #[inline(always)]
    pub fn address<F: Family>(&self) -> Endpoint {
        let port = unsafe { read_volatile(&raw const (*self.raw()).user_port) };
        Endpoint::new(F::read(self), PortBe::from_be(port as u16))
    }

    /// Replaces the address of the call, but not its port.
    #[inline(always)]
    pub fn set_ip<F: Family>(&self, ip: Ip) {
        F::write(self, ip);
    }

    /// Replaces the address of the call.
    #[inline(always)]
    pub fn set_address<F: Family>(&self, to: Endpoint) {
        F::write(self, to.ip);
        unsafe { write_volatile(&raw mut (*self.raw()).user_port, u32::from(to.port.be())) };
    }
}

/// The address family of a `cgroup_sock_addr` hook: the kernel attaches each hook to one.
pub trait Family {
    /// `AF_INET` or `AF_INET6`.
    const NUMBER: u32;
    /// Reads the address of the call.
    fn read(ctx: &SockAddr<'_>) -> Ip;
    /// Writes the address of the call.
    fn write(ctx: &SockAddr<'_>, ip: Ip);
}

/// `connect4` and its siblings.
pub struct V4;
/// `connect6` and its siblings; also sees IPv4-mapped addresses.
pub struct V6;

impl Family for V4 {
    const NUMBER: u32 = 2;

    #[inline(always)]
    fn read(ctx: &SockAddr<'_>) -> Ip {
        Ip::from_v4(unsafe { read_volatile(&raw const (*ctx.raw()).user_ip4) })
    }

    #[inline(always)]
    fn write(ctx: &SockAddr<'_>, ip: Ip) {
        unsafe { write_volatile(&raw mut (*ctx.raw()).user_ip4, ip.v4()) };
    }
}

impl Family for V6 {
    const NUMBER: u32 = AF_INET6;

    #[inline(always)]
    fn read(ctx: &SockAddr<'_>) -> Ip {
        unsafe { read_v6(&raw const (*ctx.raw()).user_ip6) }
    }

    #[inline(always)]
    fn write(ctx: &SockAddr<'_>, ip: Ip) {
        let to = unsafe { (&raw mut (*ctx.raw()).user_ip6).cast::<u32>() };
        let [a, b, c, d] = ip.words();
        unsafe {
            write_volatile(to, a);
            write_volatile(to.add(1), b);
            write_volatile(to.add(2), c);
            write_volatile(to.add(3), d);
        }
    }
}

/// The errno that a denied connect fails with (`bpf_set_retval`, since 5.19 in these hooks). Older kernels give `EPERM`.
#[inline(always)]
pub fn set_errno(errno: i32) {
    unsafe { bpf_set_retval(-errno) };
}
