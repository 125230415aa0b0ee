//! Socket options that socket2 does not know.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, RawFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sidecar_common::{
    addr::{Endpoint, Ip, PortBe},
    capture::loopback_of,
    flow::Local,
    mesh::Transports,
    sockopt::{
        SO_CLIENT_LOCAL, SO_MESH_ANSWER, SO_MESH_OFFER, SO_MESH_PEER, SO_ORIGINAL_DST, SO_PRESENT_AS, SOL_IP, SOL_IPV6,
        SOL_SIDECAR, SockaddrIn, SockaddrIn6,
    },
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::ClientLocal;
use crate::addr::{ClientAddr, OrigDst, canonical};

/// Types of which every bit pattern is a value, so that an option may be read and written as bytes.
pub(super) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for i32 {}
impl Plain for u64 {}
impl Plain for Endpoint {}
impl Plain for Local {}
impl Plain for SockaddrIn {}
impl Plain for SockaddrIn6 {}

/// Chooses the address but leaves the port to `connect`, which then need not be unique among all connections.
pub(super) fn bind_address(socket: &Socket, address: IpAddr) -> io::Result<()> {
    /// `IP_BIND_ADDRESS_NO_PORT` (linux/in.h); serves IPv6 as well.
    const BIND_ADDRESS_NO_PORT: i32 = 24;
    set(socket.as_raw_fd(), SOL_IP, BIND_ADDRESS_NO_PORT, &1_i32)?;
    socket.bind(&SockAddr::from(SocketAddr::new(address, 0)))
}

/// Bounds the kernel's memory for what waits in each direction to so many bytes. Before `connect` or `listen`: the window
/// scale follows it.
pub(super) fn limit_buffers(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    // The kernel doubles what it is given, to count what a packet costs beside its bytes (net/core/sock.c,
    // `__sock_set_rcvbuf`). `FORCE` is for CAP_NET_ADMIN, which the supervisor has for the listeners and the worker has not for
    // what it dials: without it the kernel cuts to `net.core.rmem_max` and `wmem_max`, which is still a bound.
    let half = i32::try_from(bytes / 2).unwrap_or(i32::MAX);
    let fd = socket.as_fd().as_raw_fd();
    for (forced, cut) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        match set(fd, libc::SOL_SOCKET, forced, &half) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => set(fd, libc::SOL_SOCKET, cut, &half)?,
            forced => forced?,
        }
    }
    Ok(())
}

/// Names the client that the application at the other end is to see. Before `connect`.
pub(super) fn present_as(socket: &Socket, client: ClientAddr) -> io::Result<()> {
    set(socket.as_raw_fd(), SOL_SIDECAR, SO_PRESENT_AS, &endpoint(client))
}

fn endpoint(client: ClientAddr) -> Endpoint {
    let ip = match canonical(client.0).ip() {
        IpAddr::V4(v4) => Ip::from_v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => Ip::from_octets(v6.octets()),
    };
    Endpoint::new(ip, PortBe::from_host(client.0.port()))
}

/// The application's own end of a captured connection, as it would be without us.
pub(super) fn client_local(socket: &Socket) -> io::Result<Option<ClientLocal>> {
    let local = get::<Local>(socket.as_raw_fd(), SOL_SIDECAR, SO_CLIENT_LOCAL)?;
    Ok(local.filter(|local| !local.ip.is_unspecified()).map(|local| ClientLocal {
        address: IpAddr::from(local.ip.octets()).to_canonical(),
        chosen: local.chosen != 0,
    }))
}

/// A loopback address that stands for a client: connections from different clients then have ports of their own.
pub(super) fn loopback_for(client: ClientAddr) -> IpAddr {
    let at = endpoint(client);
    if at.ip.is_v4() { IpAddr::from(loopback_of(at).octets()).to_canonical() } else { Ipv6Addr::LOCALHOST.into() }
}

/// Whether the application at the other end sees the client that was named.
pub(super) fn is_presented(socket: &Socket) -> io::Result<bool> {
    Ok(get::<Endpoint>(socket.as_raw_fd(), SOL_SIDECAR, SO_PRESENT_AS)?.is_some())
}

/// Where the application at the other end of an accepted socket meant to go; `None`: the connection was not captured.
///
/// A captured connection keeps its family on the way to the proxy, so the client's address says at which level to ask.
pub(super) fn original_dst(socket: &Socket, client: ClientAddr) -> io::Result<Option<OrigDst>> {
    let fd = socket.as_raw_fd();
    if client.0.is_ipv4() {
        let v4 = get::<SockaddrIn>(fd, SOL_IP, SO_ORIGINAL_DST)?;
        return Ok(v4.map(|v4| OrigDst((Ipv4Addr::from_bits(u32::from_be(v4.addr)), v4.port.host()).into())));
    }
    let v6 = get::<SockaddrIn6>(fd, SOL_IPV6, SO_ORIGINAL_DST)?;
    Ok(v6.map(|v6| OrigDst((Ipv6Addr::from(Ip::from_v6(v6.addr).octets()), v6.port.host()).into())))
}

/// Has the SYN of this socket's connection offer `transports` to a sidecar at the other end. Before `connect`. On a kernel
/// without discovery nothing is sent.
///
/// # Errors
/// The kernel has no memory, or the capture is not attached.
pub fn mesh_offer(socket: &Socket, transports: Transports) -> io::Result<()> {
    set(socket.as_raw_fd(), SOL_SIDECAR, SO_MESH_OFFER, &transports.bits())
}

/// What the other end said in the handshake: a hint that anybody can give, never a proof. On a socket that offered, once it
/// is connected, and on one that the inbound listener accepted. `None`: it has no sidecar, or something on the way took the
/// option out, or this kernel cannot tell.
///
/// # Errors
/// The kernel's answer to `getsockopt`.
pub fn mesh_peer(socket: &Socket) -> io::Result<Option<Transports>> {
    Ok(get::<u8>(socket.as_raw_fd(), SOL_SIDECAR, SO_MESH_PEER)?.map(Transports::from_bits))
}

/// Has the inbound listener answer the SYNs of other sidecars with `transports` from now on; [`Transports::NONE`]: it
/// answers none.
///
/// # Errors
/// The capture is not attached.
pub fn mesh_answer(listener: &TcpListener, transports: Transports) -> io::Result<()> {
    // What the SYN said is read again when the connection is established; without offers nothing is kept for it.
    set(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, &i32::from(!transports.is_empty()))?;
    set(listener.as_raw_fd(), SOL_SIDECAR, SO_MESH_ANSWER, &transports.bits())
}

/// Whether an urgent byte is among what can be received now; `None`: nothing can be. The kernel looks for bytes before it looks for
/// the mark (net/ipv4/tcp.c, `tcp_poll`), which it sets before it queues the byte: without one, the next byte is an ordinary one.
pub(super) fn arrived(socket: &Socket) -> io::Result<Option<bool>> {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLIN | PollFlags::POLLPRI)];
    poll(&mut asked, PollTimeout::ZERO)?;
    let events = asked[0].revents().unwrap_or(PollFlags::POLLIN);
    Ok((!events.is_empty()).then(|| events.contains(PollFlags::POLLPRI)))
}

/// Whether the next byte to read is at the urgent mark (`SIOCATMARK`, tcp(7)).
pub(super) fn at_urgent_mark(socket: &Socket) -> io::Result<bool> {
    /// linux/sockios.h
    const SIOCATMARK: libc::Ioctl = 0x8905;
    let mut at_mark = 0_i32;
    // SAFETY: the request writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCATMARK, &raw mut at_mark) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(at_mark != 0) }
}

/// The number by which the kernel side knows this thread's network namespace (`SO_NETNS_COOKIE`, since Linux 5.14).
///
/// # Errors
/// The kernel's answer to `socket` or `getsockopt`.
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    get(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE)?.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Connections that are complete but not yet accepted.
///
/// # Errors
/// The kernel's answer to `getsockopt`.
pub fn backlog(listener: &TcpListener) -> io::Result<u32> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into the structure, of which every bit pattern is a value.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // For a listener the field holds the accept queue's length (net/ipv4/tcp.c, `tcp_get_info`).
    // SAFETY: zeroed before and written by the kernel.
    Ok(unsafe { info.assume_init() }.tcpi_unacked)
}

pub(super) fn set<T: Plain>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is as long as the length says and is only read.
    let result = unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `None`: the kernel has no such option, or no value of it for this socket.
fn get<T: Plain>(fd: RawFd, level: i32, name: i32) -> io::Result<Option<T>> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into the value.
    let result = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if result == 0 {
        // SAFETY: zeroed before, and every bit pattern is a value of a `Plain` type.
        return Ok(Some(unsafe { value.assume_init() }));
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::ENOENT | libc::EOPNOTSUPP)) => Ok(None),
        error => Err(error),
    }
}
