//! How connections begin, and how they fail to.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6},
};

use anyhow::{Result, ensure};
use nix::{net::if_::if_nametoindex, poll::PollFlags};
use socket2::Socket;

use super::{
    Case, InStrict, REFUSED_LATE,
    net::{
        ANY, CLIENT_V4, CLIENT_V6, CLOSED_PORT, LIMIT, PORT, SERVER_LINK_LOCAL, SERVER_V4, SERVER_V6, TO_V4, TO_V6,
        accept, address, connect, limit, listen, no_server, serve_one, tcp, wait_for_end,
    },
};
use crate::agent::{Seen, sys};

const NOBODY_V4: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), CLOSED_PORT);
const NOBODY_V6: SocketAddr = SocketAddr::new(IpAddr::V6(SERVER_V6), CLOSED_PORT);

pub(super) const CASES: &[Case] = &[
    Case::new("connect_without_blocking", echo_one, |seen| connect_without_blocking(seen, TO_V4)),
    Case::new("connect_without_blocking_v6", echo_one, |seen| connect_without_blocking(seen, TO_V6)),
    Case::new("connect_again_says_connected", echo_one, connect_again),
    Case::new("connect_again_after_disconnect", echo_two, connect_after_disconnect).counts(2, 2),
    Case::new("connect_to_loopback_after_disconnect", echo_one, loopback_after_disconnect)
        .counts(1, 1)
        .and_bypassed("loopback", 1),
    Case::new("connect_to_closed_port", no_server, |seen| refused(seen, NOBODY_V4)).counts(1, 0).differs(REFUSED_LATE),
    Case::new("connect_to_closed_port_v6", no_server, |seen| refused(seen, NOBODY_V6))
        .counts(1, 0)
        .differs(REFUSED_LATE),
    Case::new("connect_to_closed_port_without_blocking", no_server, refused_without_blocking)
        .counts(1, 0)
        .differs(REFUSED_LATE),
    Case::new("server_speaks_first", greet, hear_greeting),
    Case::new("server_speaks_first_and_ends", greet_and_end, hear_greeting),
    Case::new("fifty_connections_at_once", serve_fifty, open_fifty).counts(50, 50),
    Case::new("connect_without_a_route", no_server, |seen| no_route(seen, Ipv4Addr::new(198, 51, 100, 1).into()))
        .bypassed("no_route", 1, 0)
        .in_strict(InStrict::Denied),
    Case::new("connect_to_broadcast", no_server, |seen| no_route(seen, Ipv4Addr::BROADCAST.into())).bypassed(
        "not_unicast",
        1,
        0,
    ),
    Case::new("connect_to_loopback", no_server, |seen| to_self(seen, Ipv4Addr::LOCALHOST.into()))
        .bypassed("loopback", 1, 0),
    Case::new("connect_to_loopback_v6", no_server, |seen| to_self(seen, Ipv6Addr::LOCALHOST.into()))
        .bypassed("loopback", 1, 0),
    Case::new("connect_to_mapped_loopback", no_server, |seen| {
        to_self(seen, Ipv4Addr::LOCALHOST.to_ipv6_mapped().into())
    })
    .bypassed("loopback", 1, 0),
    Case::new("connect_to_own_address", no_server, |seen| to_self(seen, CLIENT_V4.into())).bypassed(
        "own_address",
        1,
        0,
    ),
    Case::new("connect_to_own_address_v6", no_server, |seen| to_self(seen, CLIENT_V6.into())).bypassed(
        "own_address",
        1,
        0,
    ),
    Case::new("connect_to_own_mapped_address", no_server, |seen| to_self(seen, CLIENT_V4.to_ipv6_mapped().into()))
        .bypassed("own_address", 1, 0),
    Case::new("connect_to_unspecified", no_server, |seen| to_self(seen, Ipv4Addr::UNSPECIFIED.into())).bypassed(
        "unspecified",
        1,
        0,
    ),
    Case::new("connect_to_unspecified_v6", no_server, |seen| to_self(seen, Ipv6Addr::UNSPECIFIED.into())).bypassed(
        "unspecified",
        1,
        0,
    ),
    Case::new("connect_to_link_local", echo_one, link_local).bypassed("link_local", 1, 0).in_strict(InStrict::Refused),
    Case::new("calls_on_an_unconnected_socket", no_server, unconnected).counts(0, 0),
];

fn echo_one(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    seen.ready();
    echo(&accept(&listener)?.0)
}

fn echo_two(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    seen.ready();
    echo(&accept(&listener)?.0)?;
    echo(&accept(&listener)?.0)
}

fn echo(mut socket: &Socket) -> Result<()> {
    loop {
        let bytes = sys::recv(socket, 4096, 0)?;
        if bytes.is_empty() {
            return Ok(());
        }
        socket.write_all(&bytes)?;
    }
}

fn exchange(mut socket: &Socket) -> Result<String> {
    socket.write_all(b"ping")?;
    Ok(String::from_utf8(sys::recv(socket, 4, nix::libc::MSG_WAITALL)?)?)
}

/// Starts to connect; on a loaded machine the handshake may be over before the call returns, with or without a sidecar.
fn start_connecting(to: SocketAddr) -> io::Result<(Socket, io::Result<()>)> {
    let socket = tcp(to)?;
    limit(&socket)?;
    socket.set_nonblocking(true)?;
    let started = match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => Ok(()),
        other => other,
    };
    Ok((socket, started))
}

fn connect_without_blocking(seen: &mut Seen, to: SocketAddr) -> Result<()> {
    let (socket, started) = start_connecting(to)?;
    seen.result("start", &started);
    seen.note("events", format!("{:?}", sys::poll(&socket, PollFlags::POLLOUT, LIMIT)?));
    seen.note("error", socket.take_error()?.is_none());
    seen.addr("getpeername", address(&socket.peer_addr()?)?);
    seen.addr("getsockname", address(&socket.local_addr()?)?);
    seen.note("readable", socket.recv(&mut [std::mem::MaybeUninit::uninit()]).is_ok());
    socket.set_nonblocking(false)?;
    seen.note("echo", exchange(&socket)?);
    Ok(())
}

fn connect_again(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    seen.result("connect again", &socket.connect(&TO_V4.into()));
    seen.note("echo", exchange(&socket)?);
    Ok(())
}

fn connect_after_disconnect(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    seen.note("echo", exchange(&socket)?);
    socket.shutdown(Shutdown::Write)?;
    wait_for_end(&socket)?;
    seen.result("disconnect", &sys::disconnect(&socket));
    seen.result("getpeername", &socket.peer_addr());
    seen.result("connect", &socket.connect(&TO_V4.into()));
    seen.addr("getpeername again", address(&socket.peer_addr()?)?);
    seen.note("echo again", exchange(&socket)?);
    Ok(())
}

/// What was known of the first destination must not be told of the second.
fn loopback_after_disconnect(seen: &mut Seen) -> Result<()> {
    let here = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT))?;
    let socket = connect(TO_V4)?;
    seen.note("echo", exchange(&socket)?);
    socket.shutdown(Shutdown::Write)?;
    wait_for_end(&socket)?;
    seen.result("disconnect", &sys::disconnect(&socket));
    seen.result("connect", &socket.connect(&here.local_addr()?));
    seen.addr("getpeername", address(&socket.peer_addr()?)?);
    seen.addr("getsockname", address(&socket.local_addr()?)?);
    Ok(())
}

/// Connects where nobody answers, and reads.
pub(super) fn refused(seen: &mut Seen, to: SocketAddr) -> Result<()> {
    let socket = tcp(to)?;
    limit(&socket)?;
    let connected = socket.connect(&to.into());
    note_refusal(seen, &socket, connected);
    Ok(())
}

/// Reports how connecting and the first read ended. A reset may come before the thread that connects wakes up after the
/// handshake, or looks at the socket: then it is the handshake that succeeded and the read that is told.
fn note_refusal(seen: &mut Seen, socket: &Socket, connected: io::Result<()>) {
    let early = connected.as_ref().is_err_and(|error| error.raw_os_error() == Some(nix::libc::ECONNRESET));
    let (connected, read) = if early { (Ok(()), connected) } else { (connected, wait_for_end(socket)) };
    seen.result("connect", &connected);
    seen.result("read", &read);
}

fn refused_without_blocking(seen: &mut Seen) -> Result<()> {
    let (socket, started) = start_connecting(NOBODY_V4)?;
    let connected = started.and_then(|()| {
        sys::poll(&socket, PollFlags::POLLOUT, LIMIT)?;
        socket.take_error()?.map_or(Ok(()), Err)
    });
    socket.set_nonblocking(false)?;
    note_refusal(seen, &socket, connected);
    Ok(())
}

fn greet(seen: &mut Seen) -> Result<()> {
    let mut socket = serve_one(seen, ANY)?;
    socket.write_all(b"220 ready\r\n")?;
    Ok(wait_for_end(&socket)?)
}

fn greet_and_end(seen: &mut Seen) -> Result<()> {
    let mut socket = serve_one(seen, ANY)?;
    socket.write_all(b"220 ready\r\n")?;
    Ok(())
}

fn hear_greeting(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    seen.note("greeting", String::from_utf8(sys::recv(&socket, 11, nix::libc::MSG_WAITALL)?)?);
    Ok(())
}

fn serve_fifty(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    seen.ready();
    let sockets = (0..50).map(|_| accept(&listener)).collect::<Result<Vec<_>>>()?;
    for (mut socket, _) in sockets {
        let greeting = sys::recv(&socket, 4, nix::libc::MSG_WAITALL)?;
        socket.write_all(&greeting)?;
    }
    Ok(())
}

fn open_fifty(seen: &mut Seen) -> Result<()> {
    let sockets = (0..50).map(|_| connect(TO_V4)).collect::<Result<Vec<_>>>()?;
    for (number, mut socket) in (0_u32..).zip(&sockets) {
        socket.write_all(&number.to_be_bytes())?;
    }
    for (number, socket) in (0_u32..).zip(&sockets) {
        ensure!(
            sys::recv(socket, 4, nix::libc::MSG_WAITALL)? == number.to_be_bytes(),
            "the answer to another connection"
        );
    }
    seen.note("answers", sockets.len());
    Ok(())
}

fn no_route(seen: &mut Seen, to: IpAddr) -> Result<()> {
    let to = SocketAddr::new(to, PORT);
    seen.result("connect", &tcp(to)?.connect(&to.into()));
    Ok(())
}

/// The client's pod talks to itself.
fn to_self(seen: &mut Seen, to: IpAddr) -> Result<()> {
    let listener = listen(ANY)?;
    let mut socket = connect(SocketAddr::new(to, PORT))?;
    let (accepted, peer) = accept(&listener)?;
    seen.client_addr("accept", peer);
    seen.addr("getpeername", address(&socket.peer_addr()?)?);
    seen.addr("getsockname", address(&socket.local_addr()?)?);
    seen.addr("server's getsockname", address(&accepted.local_addr()?)?);
    socket.write_all(b"ping")?;
    seen.note("received", String::from_utf8(sys::recv(&accepted, 4, nix::libc::MSG_WAITALL)?)?);
    Ok(())
}

fn link_local(seen: &mut Seen) -> Result<()> {
    let to = SocketAddrV6::new(SERVER_LINK_LOCAL, PORT, 0, if_nametoindex("eth0")?);
    let socket = connect(to.into())?;
    seen.addr("getpeername", address(&socket.peer_addr()?)?);
    seen.note("echo", exchange(&socket)?);
    Ok(())
}

fn unconnected(seen: &mut Seen) -> Result<()> {
    for (family, like) in [("v4", TO_V4), ("v6", TO_V6)] {
        let mut socket = tcp(like)?;
        seen.addr(&format!("getsockname {family}"), address(&socket.local_addr()?)?);
        seen.result(&format!("getpeername {family}"), &socket.peer_addr());
        seen.result(&format!("shutdown {family}"), &socket.shutdown(Shutdown::Both));
        seen.result(&format!("recv {family}"), &sys::recv(&socket, 1, 0));
        seen.result(&format!("send {family}"), &socket.write(b"x"));
        seen.note(&format!("events {family}"), format!("{:?}", sys::poll(&socket, PollFlags::POLLOUT, LIMIT)?));
    }
    Ok(())
}
