//! The addresses of a world, and the few steps that every case begins with.

use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::agent::Seen;

/// The client's pod.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The client's pod.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// A second address of the client's pod.
pub const CLIENT_SECOND_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
/// The server's pod.
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The server's pod.
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// A second address of the server's pod.
pub const SERVER_SECOND_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);
/// The client's pod on the link.
pub const CLIENT_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The server's pod on the link.
pub const SERVER_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Where servers listen.
pub const PORT: u16 = 8080;
/// Where nobody listens.
pub const CLOSED_PORT: u16 = 8081;
/// The longest that any step of a case waits.
pub const LIMIT: Duration = Duration::from_secs(10);

/// All addresses of both families.
pub const ANY: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), PORT);
/// All IPv4 addresses.
pub const ANY_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT);
/// The server by IPv4.
pub const TO_V4: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), PORT);
/// The server by IPv6.
pub const TO_V6: SocketAddr = SocketAddr::new(IpAddr::V6(SERVER_V6), PORT);

/// A TCP socket for addresses like this one.
pub fn tcp(like: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(like), Type::STREAM, Some(Protocol::TCP))
}

/// A listener that shares the port with nobody.
pub fn listen(at: SocketAddr) -> Result<Socket> {
    let socket = tcp(at)?;
    socket.set_reuse_address(true)?;
    start_listening(socket, at)
}

/// The same for IPv6 alone.
pub fn listen_v6_only(at: SocketAddr) -> Result<Socket> {
    let socket = tcp(at)?;
    socket.set_reuse_address(true)?;
    socket.set_only_v6(true)?;
    start_listening(socket, at)
}

/// Binds and listens.
pub fn start_listening(socket: Socket, at: SocketAddr) -> Result<Socket> {
    socket.bind(&at.into()).with_context(|| format!("bind {at}"))?;
    socket.listen(128).with_context(|| format!("listen at {at}"))?;
    Ok(socket)
}

/// Accepts the next connection within [`LIMIT`], and limits every read and write on it likewise.
pub fn accept(listener: &Socket) -> Result<(Socket, SocketAddr)> {
    listener.set_read_timeout(Some(LIMIT))?;
    let (socket, peer) = listener.accept().context("accept")?;
    limit(&socket)?;
    Ok((socket, address(&peer)?))
}

/// A server with one connection: listens at `at`, says so, accepts.
pub fn serve_one(seen: &mut Seen, at: SocketAddr) -> Result<Socket> {
    let listener = listen(at)?;
    seen.ready();
    Ok(accept(&listener)?.0)
}

/// A connected socket, every read and write on it limited.
pub fn connect(to: SocketAddr) -> Result<Socket> {
    let socket = tcp(to)?;
    limit(&socket)?;
    socket.connect(&to.into()).with_context(|| format!("connect to {to}"))?;
    Ok(socket)
}

/// Limits every read and write by [`LIMIT`].
pub fn limit(socket: &Socket) -> io::Result<()> {
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))
}

/// An IP address from the kernel.
pub fn address(address: &SockAddr) -> Result<SocketAddr> {
    address.as_socket().with_context(|| format!("not an IP address: {address:?}"))
}

/// Waits until the other side has ended the stream or reset it.
pub fn wait_for_end(mut socket: &Socket) -> io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    while socket.read(&mut buffer)? > 0 {}
    Ok(())
}

/// A server without a listener.
pub fn no_server(seen: &mut Seen) -> Result<()> {
    seen.ready();
    Ok(())
}
