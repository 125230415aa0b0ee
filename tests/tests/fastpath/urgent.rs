//! Urgent data beside what goes past TCP.

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use anyhow::{Result, ensure};
use nix::{libc::MSG_OOB, poll::PollFlags};
use sidecar_tests::{
    agent::{puppet::Order, sys},
    cases::net::{LIMIT, TO_V4, accept, listen},
    harness::work,
};

use super::stage::{ENOUGH, Stage};

/// What is before an urgent byte goes past TCP, and the urgent byte by TCP: it comes in the moment in which the worker looks for more.
#[test]
fn fastpath_keeps_every_urgent_byte_urgent() -> Result<()> {
    /// Large enough to stay on the fast path though each second message is one byte.
    const BEFORE: usize = 5000;
    let rounds = u64::from(work(100));
    let at = SocketAddr::new(TO_V4.ip(), 8090);
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let listener = stage.world.server.netns().run(|| listen(at))??;
    let (handle, local) = stage.app.open(at)?;
    let (mut server, _) = accept(&listener)?;
    let flooded = stage.app.must(Order::Flood(handle, 20_000, ENOUGH))?.moved;
    server.read_exact(&mut vec![0; flooded as usize])?;
    stage.await_connections(1)?;
    let mut client = stage.own(local)?;
    let before = stage.redirected()?;
    let (ordinary, mut received) = ([b'.'; BEFORE], [0; BEFORE]);
    for round in 0..rounds {
        client.write_all(&ordinary)?;
        ensure!(client.send_out_of_band(b"!")? == 1, "no room");
        let seen = sys::poll(&server, PollFlags::POLLPRI, LIMIT)?;
        ensure!(seen.contains(PollFlags::POLLPRI), "the urgent byte {round} is an ordinary one");
        let urgent = sys::recv(&server, 1, MSG_OOB)?;
        server.read_exact(&mut received)?;
        ensure!(urgent == b"!" && received == ordinary, "{urgent:?} in round {round}");
    }
    let past = stage.redirected()? - before;
    ensure!(past > rounds / 2, "{past} of {rounds} went past TCP{}", stage.sidecar.verdicts());
    Ok(())
}
