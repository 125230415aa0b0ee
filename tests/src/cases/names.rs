//! The addresses that both ends see.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;

use super::{
    Case, REFUSED_LATE,
    net::{
        ANY, ANY_V4, CLOSED_PORT, PORT, SERVER_SECOND_V4, SERVER_V4, SERVER_V6, TO_V4, TO_V6, accept, address, connect,
        listen, listen_v6_only, wait_for_end,
    },
};
use crate::agent::{Seen, sys};

const MAPPED: SocketAddr = SocketAddr::new(IpAddr::V6(SERVER_V4.to_ipv6_mapped()), PORT);
const SECOND: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_SECOND_V4), PORT);
const EXACT_V4: SocketAddr = TO_V4;
const EXACT_V6: SocketAddr = TO_V6;

pub(super) const CASES: &[Case] = &[
    Case::new("names_v4", |seen| serve(seen, ANY_V4), |seen| ask(seen, TO_V4)),
    Case::new("names_v6", |seen| serve(seen, ANY), |seen| ask(seen, TO_V6)),
    Case::new("names_v4_client_of_dual_stack_listener", |seen| serve(seen, ANY), |seen| ask(seen, TO_V4)),
    Case::new("names_mapped_client_of_v4_listener", |seen| serve(seen, ANY_V4), |seen| ask(seen, MAPPED)),
    Case::new("names_mapped_client_of_dual_stack_listener", |seen| serve(seen, ANY), |seen| ask(seen, MAPPED)),
    Case::new("names_listener_on_one_v4_address", |seen| serve(seen, EXACT_V4), |seen| ask(seen, TO_V4)),
    Case::new("names_listener_on_one_v6_address", |seen| serve(seen, EXACT_V6), |seen| ask(seen, TO_V6)),
    Case::new("names_second_address_of_the_server", |seen| serve(seen, ANY), |seen| ask(seen, SECOND)),
    Case::new("names_v6_only_listener", serve_v6_only, |seen| ask(seen, TO_V6)),
    Case::new("v6_only_listener_refuses_v4", serve_v6_only_and_nobody_comes, refused_v4)
        .counts(2, 1)
        .differs(REFUSED_LATE),
    Case::new("listener_on_loopback_is_not_reachable", serve_on_loopback, refused_v4)
        .counts(2, 1)
        .differs(REFUSED_LATE),
    Case::new("recvmsg_gives_no_name", serve_hello, ask_recvmsg),
    Case::new("names_after_the_peer_has_gone", serve_and_go, ask_after_end),
];

fn serve(seen: &mut Seen, at: SocketAddr) -> Result<()> {
    serve_at(seen, &listen(at)?)
}

fn serve_v6_only(seen: &mut Seen) -> Result<()> {
    serve_at(seen, &listen_v6_only(ANY)?)
}

fn serve_at(seen: &mut Seen, listener: &socket2::Socket) -> Result<()> {
    seen.addr("listener", address(&listener.local_addr()?)?);
    seen.ready();
    let (mut socket, peer) = accept(listener)?;
    seen.client_addr("accept", peer);
    seen.client_addr("getpeername", address(&socket.peer_addr()?)?);
    seen.addr("getsockname", address(&socket.local_addr()?)?);
    socket.write_all(b"hello")?;
    wait_for_end(&socket)?;
    seen.client_addr("getpeername at the end", address(&socket.peer_addr()?)?);
    Ok(())
}

fn ask(seen: &mut Seen, to: SocketAddr) -> Result<()> {
    let socket = connect(to)?;
    seen.addr("getpeername", address(&socket.peer_addr()?)?);
    seen.addr("getsockname", address(&socket.local_addr()?)?);
    seen.note("greeting", String::from_utf8(sys::recv(&socket, 5, nix::libc::MSG_WAITALL)?)?);
    seen.addr("getpeername later", address(&socket.peer_addr()?)?);
    Ok(())
}

fn serve_v6_only_and_nobody_comes(seen: &mut Seen) -> Result<()> {
    nobody_comes(seen, &listen_v6_only(ANY)?)
}

fn serve_on_loopback(seen: &mut Seen) -> Result<()> {
    nobody_comes(seen, &listen(SocketAddr::new([127, 0, 0, 1].into(), PORT))?)
}

/// Keeps the listener until the client has said on another one that it is done.
fn nobody_comes(seen: &mut Seen, listener: &socket2::Socket) -> Result<()> {
    let done = listen(SocketAddr::new(IpAddr::V6(SERVER_V6), CLOSED_PORT))?;
    seen.ready();
    accept(&done)?;
    listener.set_nonblocking(true)?;
    seen.result("accept", &listener.accept());
    Ok(())
}

fn refused_v4(seen: &mut Seen) -> Result<()> {
    super::connect::refused(seen, TO_V4)?;
    connect(SocketAddr::new(IpAddr::V6(SERVER_V6), CLOSED_PORT))?;
    Ok(())
}

fn serve_hello(seen: &mut Seen) -> Result<()> {
    let mut socket = super::net::serve_one(seen, ANY)?;
    socket.write_all(b"hello")?;
    Ok(wait_for_end(&socket)?)
}

fn ask_recvmsg(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    let (bytes, name_length) = sys::recvmsg(&socket, 100)?;
    seen.note("bytes", bytes);
    seen.note("length of the name", name_length);
    Ok(())
}

fn serve_and_go(seen: &mut Seen) -> Result<()> {
    let socket = super::net::serve_one(seen, ANY)?;
    Ok(socket.shutdown(std::net::Shutdown::Write).and_then(|()| wait_for_end(&socket))?)
}

fn ask_after_end(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    wait_for_end(&socket)?;
    seen.addr("getpeername", address(&socket.peer_addr()?)?);
    socket.shutdown(std::net::Shutdown::Both)?;
    // Both directions have ended: what the kernel says now depends on how far the closing handshake is.
    seen.addr("getsockname", address(&socket.local_addr()?)?);
    Ok(())
}
