//! Socket options and binding before the connection.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::libc::{IPPROTO_TCP, MSG_WAITALL, TCP_DEFER_ACCEPT, TCP_FASTOPEN, TCP_FASTOPEN_CONNECT, TCP_MAXSEG};
use socket2::{SockRef, Socket};

use super::{
    Case, InStrict,
    net::{
        ANY, CLIENT_SECOND_V4, CLIENT_V4, CLIENT_V6, CLOSED_PORT, PORT, SERVER_SECOND_V4, SERVER_V6, TO_V4, TO_V6,
        accept, address, limit, listen, tcp, wait_for_end,
    },
};
use crate::agent::{Seen, sys};

/// Ports below those that the kernel chooses: one for each case, because a closed connection keeps its four numbers for a
/// minute (TIME_WAIT).
const BOUND_PORT: u16 = 20_001;
const BOUND_PORT_OF_ADDRESS: u16 = 20_002;
const BOUND_PORT_OF_TWO: u16 = 20_003;

pub(super) const CASES: &[Case] = &[
    Case::new("fast_open_by_sendto", serve_twice_fast, |seen| twice(seen, fast_open_by_sendto)).counts(2, 2),
    Case::new("fast_open_by_option", serve_twice_fast, |seen| twice(seen, fast_open_by_option)).counts(2, 2),
    Case::new("fast_open_of_a_plain_listener", serve_twice, |seen| twice(seen, fast_open_by_sendto)).counts(2, 2),
    Case::new("deferred_accept", serve_deferred, speak_late),
    Case::new("bound_to_a_port", serve, |seen| from(seen, any(BOUND_PORT), TO_V4)),
    Case::new("bound_to_an_address", serve, |seen| from(seen, SocketAddr::new(CLIENT_V4.into(), 0), TO_V4)),
    Case::new("bound_to_an_address_v6", serve, |seen| from(seen, SocketAddr::new(CLIENT_V6.into(), 0), TO_V6)),
    Case::new("bound_to_a_second_address", serve, |seen| {
        from(seen, SocketAddr::new(CLIENT_SECOND_V4.into(), 0), TO_V4)
    }),
    Case::new("bound_to_address_and_port", serve, |seen| {
        from(seen, SocketAddr::new(CLIENT_V4.into(), BOUND_PORT_OF_ADDRESS), TO_V4)
    }),
    Case::new("bound_to_loopback_cannot_leave", serve_nobody, from_loopback)
        .and_bypassed("loopback_source", 1)
        .in_strict(InStrict::Denied),
    Case::new("one_port_to_two_destinations", serve_both, one_port_twice).counts(2, 2),
    Case::new("bound_to_the_device", serve, to_device),
    Case::new("listener_on_the_device", serve_on_device, |seen| ask(seen, &super::net::connect(TO_V4)?)),
    Case::new("options_read_back", serve, read_back),
    Case::new("marked_sockets_are_captured", serve, marked),
    Case::new("another_user_is_captured", serve, as_another_user),
];

const fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), port)
}

fn serve(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    seen.ready();
    answer(seen, &listener)
}

fn serve_on_device(seen: &mut Seen) -> Result<()> {
    let socket = tcp(ANY)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(b"eth0"))?;
    let listener = super::net::start_listening(socket, ANY)?;
    seen.ready();
    answer(seen, &listener)
}

fn serve_twice(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    serve_two(seen, &listener)
}

fn serve_twice_fast(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    sys::set_int(&listener, IPPROTO_TCP, TCP_FASTOPEN, 16).context("TCP_FASTOPEN")?;
    serve_two(seen, &listener)
}

fn serve_two(seen: &mut Seen, listener: &Socket) -> Result<()> {
    seen.ready();
    answer(seen, listener)?;
    answer(seen, listener)
}

/// One request of four bytes and its answer.
fn answer(seen: &mut Seen, listener: &Socket) -> Result<()> {
    let (mut socket, peer) = accept(listener)?;
    seen.client_addr("accept", peer);
    let request = sys::recv(&socket, 4, MSG_WAITALL)?;
    seen.note("request", String::from_utf8(request.clone())?);
    socket.write_all(&request)?;
    Ok(wait_for_end(&socket)?)
}

fn ask(seen: &mut Seen, mut socket: &Socket) -> Result<()> {
    socket.write_all(b"ping")?;
    hear(seen, socket)
}

fn hear(seen: &mut Seen, socket: &Socket) -> Result<()> {
    seen.note("answer", String::from_utf8(sys::recv(socket, 4, MSG_WAITALL)?)?);
    seen.addr("getpeername", address(&socket.peer_addr()?)?);
    seen.addr("getsockname", address(&socket.local_addr()?)?);
    Ok(())
}

/// Once to get the server's cookie, once to use it.
fn twice(seen: &mut Seen, once: fn(&mut Seen) -> Result<()>) -> Result<()> {
    once(seen)?;
    once(seen)
}

fn fast_open_by_sendto(seen: &mut Seen) -> Result<()> {
    let socket = tcp(TO_V4)?;
    limit(&socket)?;
    seen.note("sent", sys::connect_with_data(&socket, TO_V4, b"ping")?);
    hear(seen, &socket)
}

fn fast_open_by_option(seen: &mut Seen) -> Result<()> {
    let mut socket = tcp(TO_V4)?;
    limit(&socket)?;
    sys::set_int(&socket, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1).context("TCP_FASTOPEN_CONNECT")?;
    seen.result("connect", &socket.connect(&TO_V4.into()));
    socket.write_all(b"pi")?;
    socket.write_all(b"ng")?;
    hear(seen, &socket)
}

fn serve_deferred(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    sys::set_int(&listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, 5)?;
    seen.ready();
    let (mut socket, _) = accept(&listener)?;
    seen.note("request", String::from_utf8(sys::recv(&socket, 8, MSG_WAITALL)?)?);
    socket.write_all(b"pong")?;
    Ok(wait_for_end(&socket)?)
}

fn speak_late(seen: &mut Seen) -> Result<()> {
    let mut socket = super::net::connect(TO_V4)?;
    // The accept is deferred only if the first bytes come after the handshake is over, which sends no event.
    std::thread::sleep(Duration::from_millis(20));
    socket.write_all(b"AAAA")?;
    std::thread::sleep(Duration::from_millis(20));
    socket.write_all(b"BBBB")?;
    hear(seen, &socket)
}

fn bound(at: SocketAddr) -> Result<Socket> {
    let socket = tcp(at)?;
    limit(&socket)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into()).with_context(|| format!("bind {at}"))?;
    Ok(socket)
}

fn from(seen: &mut Seen, source: SocketAddr, to: SocketAddr) -> Result<()> {
    let socket = bound(source)?;
    seen.addr("bound", address(&socket.local_addr()?)?);
    socket.connect(&to.into())?;
    ask(seen, &socket)
}

fn serve_nobody(seen: &mut Seen) -> Result<()> {
    let (listener, done) = (listen(ANY)?, listen(SocketAddr::new(SERVER_V6.into(), CLOSED_PORT))?);
    seen.ready();
    accept(&done)?;
    listener.set_nonblocking(true)?;
    seen.result("accept", &listener.accept());
    Ok(())
}

fn from_loopback(seen: &mut Seen) -> Result<()> {
    let socket = bound(SocketAddr::new([127, 0, 0, 1].into(), 0))?;
    seen.result("connect", &socket.connect(&TO_V4.into()));
    super::net::connect(SocketAddr::new(SERVER_V6.into(), CLOSED_PORT))?;
    Ok(())
}

/// Two connections at once, which may come in either order.
fn serve_both(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    seen.ready();
    let sockets = [accept(&listener)?.0, accept(&listener)?.0];
    for mut socket in &sockets {
        let request = sys::recv(socket, 4, MSG_WAITALL)?;
        socket.write_all(&request)?;
    }
    sockets.iter().try_for_each(|socket| Ok(wait_for_end(socket)?))
}

fn one_port_twice(seen: &mut Seen) -> Result<()> {
    let sockets = [bound(any(BOUND_PORT_OF_TWO))?, bound(any(BOUND_PORT_OF_TWO))?];
    let destinations = [TO_V4, SocketAddr::new(SERVER_SECOND_V4.into(), PORT)];
    for (mut socket, to) in sockets.iter().zip(destinations) {
        seen.result("connect", &socket.connect(&to.into()));
        socket.write_all(b"ping")?;
    }
    sockets.iter().try_for_each(|socket| hear(seen, socket))
}

fn to_device(seen: &mut Seen) -> Result<()> {
    let socket = tcp(TO_V4)?;
    limit(&socket)?;
    socket.bind_device(Some(b"eth0"))?;
    seen.result("connect", &socket.connect(&TO_V4.into()));
    ask(seen, &socket)
}

fn read_back(seen: &mut Seen) -> Result<()> {
    let socket = super::net::connect(TO_V4)?;
    let options = SockRef::from(&socket);
    seen.note("nodelay", options.tcp_nodelay()?);
    seen.note("keepalive", options.keepalive()?);
    seen.note("linger", options.linger()?.is_some());
    seen.note("ttl", options.ttl_v4()?);
    seen.note("type", format!("{:?}", options.r#type()?));
    seen.note("protocol", format!("{:?}", options.protocol()?));
    seen.note("a segment size", sys::get_int(&socket, IPPROTO_TCP, TCP_MAXSEG)? > 500);
    ask(seen, &socket)
}

fn marked(seen: &mut Seen) -> Result<()> {
    let socket = tcp(TO_V4)?;
    limit(&socket)?;
    socket.set_mark(1337)?;
    socket.connect(&TO_V4.into())?;
    ask(seen, &socket)
}

/// The user that other sidecars exempt by its number.
fn as_another_user(seen: &mut Seen) -> Result<()> {
    sys::become_user(1337)?;
    ask(seen, &super::net::connect(TO_V4)?)
}
