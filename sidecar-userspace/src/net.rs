//! Sockets of connections: the only place, with its parts, that sets socket options.

mod options;
mod queue;
pub mod scratch;
mod side;
mod stream;
mod two_queues;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::AsFd,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::addr::{ClientAddr, OrigDst};

pub use options::{backlog, mesh_answer, mesh_offer, mesh_peer, netns_cookie};
pub use queue::Queue;
pub use side::{Arrived, Received, Side};
pub use sidecar_common::mesh::Transports;
pub use stream::{Receivable, Stream};
pub use two_queues::expect_data_past_tcp;

/// The application's own end of a captured connection, as it would be without us.
#[derive(Clone, Copy, Debug)]
pub struct ClientLocal {
    /// Its address.
    pub address: IpAddr,
    /// The application chose it with `bind`; else the kernel did.
    pub chosen: bool,
}

/// How the sockets of connections are set.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Time between keep-alive probes, and of silence before the first.
    pub keepalive: Duration,
    /// Bytes of the kernel's memory for what waits in each direction; `None`: as the kernel sees fit.
    pub buffer: Option<usize>,
}

impl Tuning {
    /// Probes without answer after which the kernel gives a connection up, as ztunnel does.
    const PROBES: u32 = 9;

    fn keepalive(self) -> TcpKeepalive {
        TcpKeepalive::new().with_time(self.keepalive).with_interval(self.keepalive).with_retries(Self::PROBES)
    }
}

/// Listens for captured connections on a port of every address of the pod. What it accepts inherits everything that
/// [`prepare`] sets, and is kept alive.
///
/// # Errors
/// The kernel's answer to `socket`, `setsockopt`, `bind` or `listen`.
pub fn listen_for_relay(port: u16, tuning: Tuning) -> io::Result<TcpListener> {
    let listener = listen((Ipv6Addr::UNSPECIFIED, port).into())?;
    prepare(&listener, tuning)?;
    SockRef::from(&listener).set_tcp_keepalive(&tuning.keepalive())?;
    Ok(listener)
}

/// Listens for connections that carry tunnels on a port of every address of the pod. What it accepts sends without delay and
/// is kept alive.
///
/// # Errors
/// The kernel's answer to `socket`, `setsockopt`, `bind` or `listen`.
pub fn listen_for_tunnels(port: u16, tuning: Tuning) -> io::Result<TcpListener> {
    let listener = listen((Ipv6Addr::UNSPECIFIED, port).into())?;
    prepare_carrier(&SockRef::from(&listener), tuning)?;
    Ok(listener)
}

/// Connects to where tunnels end, from `source` if an application chose it.
///
/// # Errors
/// The kernel's answer to `socket`, `setsockopt`, `bind` or `connect`.
pub async fn connect_carrier(to: SocketAddr, source: Option<IpAddr>, tuning: Tuning) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    prepare_carrier(&SockRef::from(&socket), tuning)?;
    if let Some(source) = source {
        options::bind_address(&socket, source)?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// A stream of many streams says by itself which of them are whole, so that its end need not be a reset.
fn prepare_carrier(socket: &SockRef<'_>, tuning: Tuning) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&tuning.keepalive())
}

/// Listens on one address. `[::]` serves IPv4 as well, and IPv4 alone where the kernel has no IPv6.
///
/// # Errors
/// The kernel's answer to `socket`, `setsockopt`, `bind` or `listen`.
pub fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    match listen_on(at) {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && at.ip() == Ipv6Addr::UNSPECIFIED => {
            listen_on((Ipv4Addr::UNSPECIFIED, at.port()).into())
        }
        result => result,
    }
}

/// Has a listener listen no more, whoever holds a descriptor of it: its port is free for others, and what waits in its queue
/// is reset.
pub fn stop_listening(listener: &TcpListener) {
    // Fails only if it does not listen.
    let _ = SockRef::from(listener).shutdown(std::net::Shutdown::Both);
}

fn listen_on(at: SocketAddr) -> io::Result<TcpListener> {
    /// The kernel cuts it to `net.core.somaxconn`.
    const BACKLOG: i32 = 65_535;
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    if at.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A restarted sidecar must get its ports back although connections of the old one are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Prepares a socket for the relay: no delay, urgent bytes in the stream, and a reset instead of a clean end until
/// [`Stream::end_cleanly`] says otherwise, so that a proxy that dies never makes a stream look complete.
fn prepare(socket: &impl AsFd, tuning: Tuning) -> io::Result<()> {
    if let Some(bytes) = tuning.buffer {
        options::limit_buffers(socket, bytes)?;
    }
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    socket.set_linger(Some(Duration::ZERO))
}

/// Connects to the original destination, from the address that the application chose if it chose one. `offer`: what a
/// sidecar at the other end is told that we speak; nothing is said if it is empty.
///
/// # Errors
/// The kernel's answer to `socket`, `setsockopt`, `bind` or `connect`.
pub async fn connect_out(to: OrigDst, source: Option<IpAddr>, offer: Transports, tuning: Tuning) -> io::Result<Stream> {
    let socket = new_socket(to, tuning)?;
    socket.set_tcp_keepalive(&tuning.keepalive())?;
    if !offer.is_empty() {
        mesh_offer(&socket, offer)?;
    }
    if let Some(source) = source {
        options::bind_address(&socket, source)?;
    }
    Stream::connect(socket, to.0).await.map(Stream::through_the_network)
}

/// Connects to the application and has it see `client` as its peer. Not kept alive: an application on this machine does not
/// vanish without the kernel's saying so. `device_bound`: the application listens on a certain device.
///
/// # Errors
/// The kernel's answer to `socket`, `setsockopt` or `connect`.
pub async fn connect_in(to: OrigDst, client: ClientAddr, device_bound: bool, tuning: Tuning) -> io::Result<Stream> {
    let socket = new_socket(to, tuning)?;
    options::present_as(&socket, client)?;
    // Between the pod's address and itself there are some 28,000 ports for all clients, each held for a minute after use.
    // A socket that listens on a device could not answer a loopback address.
    if !device_bound {
        options::bind_address(&socket, options::loopback_for(client))?;
    }
    let stream = Stream::connect(socket, to.0).await?;
    // The application would take the sidecar for its client, and what it allows the sidecar is not for others.
    if !stream.is_presented()? {
        return Err(io::Error::other(
            "the kernel side could not pass the client's address on (the map PRESENTED_FLOWS is full)",
        ));
    }
    Ok(stream)
}

fn new_socket(to: OrigDst, tuning: Tuning) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to.0), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    prepare(&socket, tuning)?;
    Ok(socket)
}

/// Whether `address` reaches this machine itself wherever it is used.
pub fn is_loopback_or_unspecified(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}
