//! Sockets that are no longer what they were when they were enrolled.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use sidecar_tests::{
    agent::{
        puppet::{Handle, Order},
        sys,
    },
    cases::net::TO_V4,
    harness::{self, PATIENCE, eventually, patient},
};
use socket2::Socket;

use super::{MIB, stage::Stage};

/// The application's own socket with this port.
fn own(stage: &Stage, local: SocketAddr) -> Result<Socket> {
    let is_it = |end: &_| harness::address(Socket::local_addr(end)).is_some_and(|end| end.port() == local.port());
    harness::sockets_of(stage.app.process().pid(), is_it)?.pop().context("the application's socket")
}

/// An enrolled connection and a copy of its socket.
fn enrolled(stage: &mut Stage) -> Result<(Handle, SocketAddr, Socket)> {
    let (handle, local) = stage.app.open(TO_V4)?;
    stage.await_enrolled(handle)?;
    let socket = own(stage, local)?;
    Ok((handle, local, socket))
}

/// Its port becomes free, its place in the map does not: another connection with the same ends has nothing of what it sends.
#[test]
fn fastpath_of_a_disconnected_socket_ends_and_never_leads_into_another_connection() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let (first, local, socket) = enrolled(&mut stage)?;
    sys::disconnect(&socket)?;
    let second = stage.app.make(TO_V4)?;
    stage.app.must(Order::Bind(second, (Ipv4Addr::UNSPECIFIED, local.port()).into()))?;
    stage.app.must(Order::Connect(second, TO_V4))?;
    stage.app.must(Order::Stream(second, MIB, 20_000))?;
    // Without which nothing that it sends is judged.
    let reset = socket.take_error()?.and_then(|error| error.raw_os_error());
    ensure!(reset == Some(Errno::ECONNRESET as i32), "{reset:?}");
    let unknown = stage.sidecar.verdict("sk_msg", "tcp", "unknown")?;
    for _ in 0..20 {
        let sent = (&socket).write(b"stray").map_err(|error| error.raw_os_error());
        ensure!(sent == Err(Some(Errno::EPIPE as i32)), "{sent:?}");
        stage.app.must(Order::Stream(second, 20_000, 1000))?;
    }
    ensure!(stage.sidecar.verdict("sk_msg", "tcp", "unknown")? > unknown, "{}", stage.sidecar.verdicts());
    // The same socket again, as another connection, which comes onto the fast path as others do.
    let released = stage.sidecar.verdict("enrol", "released", "released")?;
    stage.app.must(Order::Begin(first, TO_V4))?;
    let before = stage.redirected()?;
    let back = eventually(patient(PATIENCE), || {
        stage.app.must(Order::Stream(first, 2 * MIB, 20_000)).is_ok()
            && stage.redirected().is_ok_and(|messages| messages > before)
    });
    ensure!(back, "{}", stage.sidecar.verdicts());
    ensure!(stage.sidecar.verdict("enrol", "released", "released")? > released, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Stream(second, MIB, 20_000))?;
    drop(socket);
    for socket in [first, second] {
        stage.app.must(Order::Close(socket))?;
    }
    stage.nothing_is_enrolled()
}
