//! Applications that fast paths of others have broken, by name, and what a neighbour must not notice.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::libc;
use sidecar_tests::{
    agent::{puppet::Order, sys},
    cases::net::TO_V4,
    harness::{self, PATIENCE, Process, Sidecar, eventually, patient, wait_for_port, work},
};
use socket2::Socket;

use super::{EVENTS, MIB, stage::Stage};

/// Where HAProxy listens, for those in its own pod.
const THROUGH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9100);

/// Starts one in the client's pod, which splices in these directions.
fn haproxy(stage: &Stage, option: &str) -> Result<Process> {
    let pod = &stage.world.client;
    let file = pod.directory().join("haproxy.cfg");
    let text = format!(
        "global\n  nbthread 1\n  tune.bufsize 65536\n  stats socket {}\n\
         defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n  {option}\n\
         listen through\n  bind {THROUGH}\n  server only {TO_V4}\n",
        statistics(pod.directory()).display()
    );
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(&file);
    let haproxy = pod.spawn(command).context("is haproxy installed?")?;
    wait_for_port(pod, THROUGH.port(), PATIENCE).with_context(|| haproxy.output())?;
    Ok(haproxy)
}

fn statistics(directory: &Path) -> std::path::PathBuf {
    directory.join("haproxy.sock")
}

/// Pipes through which it has spliced.
fn pipes(directory: &Path) -> Result<u64> {
    let mut socket = UnixStream::connect(statistics(directory))?;
    socket.write_all(b"show info\n")?;
    let mut told = String::new();
    socket.read_to_string(&mut told)?;
    let pipes = told.lines().filter_map(|line| line.strip_prefix("Pipes")?.split_once(": "));
    pipes.map(|(_, count)| count.parse::<u64>().map_err(Into::into)).sum()
}

/// Completions have the numbers of an application's calls, and on an enrolled socket those of pieces.
#[test]
fn fastpath_lets_go_of_an_application_that_sends_without_copy() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let (socket, local) = stage.app.open(TO_V4)?;
    stage.await_enrolled(socket)?;
    let is_it = |end: &_| harness::address(Socket::local_addr(end)).is_some_and(|own| own.port() == local.port());
    let owned = harness::sockets_of(stage.app.process().pid(), is_it)?;
    sys::set_int(owned.first().context("the application's socket")?, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1)?;
    let kept_off = || stage.sidecar.verdict("enrol", "tcp", "zero_copy");
    // The probe's own.
    let before = kept_off()?;
    stage.app.must(Order::Stream(socket, MIB, 20_000))?;
    ensure!(
        eventually(patient(PATIENCE), || kept_off().is_ok_and(|count| count > before)),
        "{}",
        stage.sidecar.verdicts()
    );
    let quiet = stage.redirected()?;
    stage.app.must(Order::Stream(socket, MIB, 20_000))?;
    ensure!(stage.connections()? == 0 && stage.redirected()? == quiet, "{}", stage.sidecar.verdicts());
    Ok(())
}

/// What it receives on an enrolled connection it splices to its client; then what it sends there as well, which goes by TCP.
#[test]
fn fastpath_passes_every_byte_of_an_haproxy_that_splices() -> Result<()> {
    for (option, spliced_to_us) in
        [("option splice-response", false), ("option splice-request\n  option splice-response", true)]
    {
        let Some(mut stage) = Stage::forced()? else { return Ok(()) };
        let _haproxy = haproxy(&stage, option)?;
        let (socket, _) = stage.app.open(THROUGH)?;
        let enrolled = eventually(patient(PATIENCE), || {
            stage.app.must(Order::Stream(socket, 2 * MIB, 128 * 1024)).is_ok()
                && stage.connections().is_ok_and(|n| n == 1)
        });
        ensure!(enrolled, "{}", stage.sidecar.verdicts());
        let before = stage.redirected()?;
        stage.app.must(Order::Stream(socket, u64::from(work(64)) * MIB, 128 * 1024))?;
        ensure!(pipes(stage.world.client.directory())? > 0, "nothing was spliced");
        if spliced_to_us {
            let left = stage.sidecar.verdict("sk_msg", "tcp", "not_plain")?;
            ensure!(left > 0, "{}", stage.sidecar.verdicts());
        } else {
            ensure!(stage.redirected()? > before, "{}", stage.sidecar.verdicts());
        }
        stage.app.must(Order::Finish(socket))?;
        let end = stage.app.order(Order::AwaitEnd(socket))?.outcome;
        ensure!(end == "ok", "{end}");
        stage.app.must(Order::Close(socket))?;
        stage.nothing_is_enrolled()?;
    }
    Ok(())
}

/// A wake-up that is missed once in a million is a connection that hangs once a day: `SIDECAR_TEST_MORE=50` makes it a million.
#[test]
fn fastpath_misses_no_edge_of_an_edge_triggered_epoll() -> Result<()> {
    let exchanges = work(20_000);
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let other = Sidecar::start(&stage.world.server, "acceleration: force\n")?;
    other.fast_path_probed()?;
    stage.server.must(Order::ServeEvents(EVENTS))?;
    let (socket, _) = stage.app.open(SocketAddr::new(TO_V4.ip(), EVENTS.port()))?;
    stage.app.must(Order::Stream(socket, 4 * MIB, 128 * 1024))?;
    stage.await_connections(1)?;
    let there = || other.fast_path().is_ok_and(|status| status["connections"] == 1);
    ensure!(eventually(patient(PATIENCE), there), "{}", other.verdicts());
    let before = [stage.redirected()?, other.verdict("sk_msg", "redirect", "fast")?];
    stage.app.begin(Order::Edges(socket, exchanges, 4000))?;
    let answer = stage.app.answer(PATIENCE.max(PATIENCE * (exchanges / 20_000)))?;
    ensure!(answer.outcome == "ok", "{answer:?}{}", stage.sidecar.verdicts());
    let after = [stage.redirected()?, other.verdict("sk_msg", "redirect", "fast")?];
    for (before, after) in before.into_iter().zip(after) {
        let past = after - before;
        ensure!(past > u64::from(exchanges) / 2, "{past} of {exchanges} went past TCP{}", stage.sidecar.verdicts());
    }
    Ok(())
}

/// Two pods with the same addresses and ports: to the kernel the same connection, but for the namespace.
#[test]
fn fastpath_of_two_pods_with_equal_connections_do_not_meet() -> Result<()> {
    const PORT: u16 = 41_234;
    let (Some(one), Some(other)) = (Stage::forced()?, Stage::forced()?) else { return Ok(()) };
    let (mut stages, mut ends, mut sockets) = ([one, other], vec![], vec![]);
    for stage in &mut stages {
        let socket = stage.app.make(TO_V4)?;
        stage.app.must(Order::Bind(socket, (Ipv4Addr::UNSPECIFIED, PORT).into()))?;
        stage.app.must(Order::Connect(socket, TO_V4))?;
        stage.await_enrolled(socket)?;
        let port = |end: &Socket| harness::address(end.local_addr()).map(|end| end.port());
        let legs = harness::sockets_of(stage.app.process().pid(), |end| port(end) == Some(PORT))?;
        let leg = legs.first().context("the application's end")?;
        // Asked from outside the pod, the kernel tells of the leg as it is.
        ends.push((harness::address(leg.local_addr()), harness::address(leg.peer_addr())));
        sockets.push(socket);
    }
    ensure!(ends[0] == ends[1] && ends[0].1.is_some(), "{ends:?}");
    let before = [stages[0].redirected()?, stages[1].redirected()?];
    for round in 0..3 {
        for (pod, stage) in stages.iter_mut().enumerate() {
            // Another count is another pattern.
            stage.app.begin(Order::Edges(sockets[pod], 2 * work(150) + 2 * round + pod as u32, 30_000))?;
        }
        for stage in &mut stages {
            let answer = stage.app.answer(6 * PATIENCE)?;
            ensure!(answer.outcome == "ok", "{answer:?}");
        }
    }
    for (stage, before) in stages.iter().zip(before) {
        ensure!(stage.redirected()? > before, "{}", stage.sidecar.verdicts());
    }
    stages[0].app.must(Order::Close(sockets[0]))?;
    stages[0].nothing_is_enrolled()?;
    stages[1].await_connections(1)?;
    stages[1].app.must(Order::Stream(sockets[1], MIB, 30_000)).map(drop)
}
