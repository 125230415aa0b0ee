//! What applications send goes past TCP where it may, and nobody can tell.

#[path = "fastpath/leaving.rs"]
mod leaving;
#[path = "fastpath/probe.rs"]
mod probe;
#[path = "fastpath/receives.rs"]
mod receives;
#[path = "fastpath/stage.rs"]
mod stage;
#[path = "fastpath/stumbling.rs"]
mod stumbling;
#[path = "fastpath/urgent.rs"]
mod urgent;
#[path = "fastpath/victims.rs"]
mod victims;
#[path = "fastpath/worker.rs"]
mod worker;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4, TO_V6},
    harness::{self, PATIENCE, Puppet, Sidecar, World, bpf, eventually, patient, work},
};
use socket2::Socket;
use stage::{ENOUGH, Stage, command};

const MIB: u64 = 1 << 20;
/// Where the server's event loop answers.
const EVENTS: std::net::SocketAddr = std::net::SocketAddr::new(ANY.ip(), 8091);

#[test]
fn fastpath_carries_what_an_event_loop_sends_past_tcp_and_every_byte_arrives() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    let before = stage.redirected()?;
    for piece in [1, 1000, 16 * 1024, 300_000] {
        let total = if piece == 1 { 2000 } else { u64::from(work(8)) * MIB };
        stage.app.must(Order::Stream(socket, total, piece))?;
    }
    ensure!(stage.redirected()? > before, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Finish(socket))?;
    let end = stage.app.order(Order::AwaitEnd(socket))?.outcome;
    ensure!(end == "ok", "{end}{}", stage.sidecar.process.output());
    stage.app.must(Order::Close(socket))?;
    stage.nothing_is_enrolled()
}

/// The other way in: what a server answers, whose client is elsewhere. IPv4 and IPv6.
#[test]
fn fastpath_carries_what_a_server_answers_past_tcp() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.server, "acceleration: force\n")?;
    if sidecar.fast_path_probed()?["redirects"] != true {
        harness::skip("fastpath", "this kernel does not redirect");
        return Ok(());
    }
    let mut server = Puppet::start(&world.server)?;
    server.must(Order::ServeEvents(ANY))?;
    let mut app = Puppet::start(&world.client)?;
    for (count, to) in [(1, TO_V4), (2, TO_V6)] {
        let (socket, _) = app.open(to)?;
        app.must(Order::Stream(socket, 4 * ENOUGH, 100_000))?;
        let there = || sidecar.fast_path().is_ok_and(|status| status["connections"] == count);
        ensure!(eventually(patient(PATIENCE), there), "{}", sidecar.verdicts());
        let before = sidecar.verdict("sk_msg", "redirect", "fast")?;
        app.must(Order::Stream(socket, 4 * MIB, 100_000))?;
        ensure!(sidecar.verdict("sk_msg", "redirect", "fast")? > before, "{}", sidecar.verdicts());
    }
    Ok(())
}

#[test]
fn fastpath_leaves_a_blocking_application_on_tcp() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    // The probe's own.
    let before = stage.redirected()?;
    let (socket, _) = stage.app.open(TO_V4)?;
    for _ in 0..8 {
        stage.app.must(Order::Echo(socket, 100_000))?;
    }
    let seen = || stage.sidecar.verdict("enrol", "tcp", "blocking").is_ok_and(|count| count > 0);
    ensure!(eventually(patient(PATIENCE), seen), "{}", stage.sidecar.verdicts());
    ensure!(stage.connections()? == 0 && stage.redirected()? == before, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Echo(socket, 100_000)).map(drop)
}

#[test]
fn fastpath_lets_go_of_an_application_that_begins_to_block() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    stage.app.must(Order::Block(socket))?;
    let left = || stage.connections().is_ok_and(|connections| connections == 0);
    ensure!(eventually(patient(PATIENCE), left), "{}", stage.sidecar.verdicts());
    ensure!(stage.sidecar.verdict("enrol", "released", "released")? >= 1, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Echo(socket, 100_000))?;
    stage.app.must(Order::Finish(socket))?;
    ensure!(stage.app.order(Order::AwaitEnd(socket))?.outcome == "ok");
    Ok(())
}

/// 49
#[test]
fn fastpath_switched_off_under_load_loses_nothing_and_comes_back() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    stage.app.begin(Order::Stream(socket, u64::from(work(64)) * MIB, 20_000))?;
    let said = stage.command("off")?;
    ensure!(said.contains("\"on\": false"), "{said}");
    let answer = stage.app.answer(6 * PATIENCE)?;
    ensure!(answer.outcome == "ok", "{answer:?}");
    let left = || stage.connections().is_ok_and(|connections| connections == 0);
    ensure!(eventually(patient(PATIENCE), left), "{}", stage.sidecar.verdicts());
    let quiet = stage.redirected()?;
    stage.app.must(Order::Stream(socket, MIB, 20_000))?;
    ensure!(stage.redirected()? == quiet, "redirected while switched off");
    let said = stage.command("on")?;
    ensure!(said.contains("\"on\": true"), "{said}");
    stage.await_enrolled(socket)?;
    stage.app.must(Order::Stream(socket, MIB, 20_000))?;
    ensure!(stage.redirected()? > quiet, "{}", stage.sidecar.verdicts());
    Ok(())
}

/// 05, 06: whoever floods a receiver that does not read is held back, and nothing of it is lost.
#[test]
fn fastpath_holds_a_sender_back_whose_receiver_does_not_read() -> Result<()> {
    /// TCP's own buffers of both connections, and what the fast path and the proxy add.
    const MOST: u64 = 64 * MIB;
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let at = std::net::SocketAddr::new(ANY.ip(), 8090);
    stage.server.must(Order::Ignore(at, 8))?;
    for piece in [65_536, 1] {
        let (socket, _) = stage.app.open(std::net::SocketAddr::new(TO_V4.ip(), 8090))?;
        // Little enough for the proxy to take all of it though nobody reads.
        let before = stage.app.must(Order::Flood(socket, 33_000, 264_000))?.moved;
        stage.await_connections(1)?;
        let most = if piece == 1 { u64::from(work(200_000)) } else { MOST };
        let moved = stage.app.must(Order::Flood(socket, piece, most))?.moved - before;
        ensure!(piece == 1 || moved < MOST, "{moved} bytes were taken");
        let waits =
            stage.sidecar.verdict("sk_msg", "tcp", "full")? + stage.sidecar.verdict("sk_msg", "tcp", "order")?;
        ensure!(waits > 0, "{}", stage.sidecar.verdicts());
        stage.app.must(Order::Finish(socket))?;
        let drained = stage.server.must(Order::Drain)?.moved;
        let sent = stage.app.must(Order::Accepted)?.moved;
        ensure!(drained == sent, "{sent} bytes sent, {drained} received");
        stage.app.must(Order::Close(socket))?;
        stage.nothing_is_enrolled()?;
    }
    Ok(())
}

/// 20
#[test]
fn fastpath_with_full_maps_leaves_the_rest_on_tcp() -> Result<()> {
    let Some(mut stage) = Stage::with("acceleration: force\ncapture: { maps: { accelerated: 64 } }\n")? else {
        return Ok(());
    };
    const ROOM: u64 = 64;
    let sockets = (0..ROOM + 6).map(|_| stage.app.open(TO_V4).map(|(socket, _)| socket)).collect::<Result<Vec<_>>>()?;
    for socket in &sockets {
        stage.app.must(Order::Stream(*socket, ENOUGH, 20_000))?;
    }
    let left = || stage.sidecar.verdict("enrol", "tcp", "full").is_ok_and(|count| count > 0);
    ensure!(eventually(patient(PATIENCE), left), "{}", stage.sidecar.verdicts());
    ensure!(stage.sidecar.verdict("enrol", "tcp", "refused")? == 0, "{}", stage.sidecar.verdicts());
    let enrolled = stage.connections()?;
    ensure!((1..=ROOM).contains(&enrolled), "{enrolled} enrolled");
    for socket in &sockets {
        stage.app.must(Order::Stream(*socket, 10_000, 1000))?;
        stage.app.must(Order::Close(*socket))?;
    }
    stage.nothing_is_enrolled()
}

/// 19
#[test]
fn fastpath_leaves_what_another_program_owns_to_it() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let before = stage.redirected()?;
    let (socket, local) = stage.app.open(TO_V4)?;
    let is_it = |end: &_| harness::address(Socket::local_addr(end)).is_some_and(|own| own.port() == local.port());
    let owned = harness::sockets_of(stage.app.process().pid(), is_it)?;
    let _owner = bpf::own_messages_of(owned.first().context("the application's socket")?)?;
    stage.app.must(Order::Stream(socket, ENOUGH, 20_000))?;
    let busy = || stage.sidecar.verdict("enrol", "tcp", "busy").is_ok_and(|count| count > 0);
    ensure!(eventually(patient(PATIENCE), busy), "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Stream(socket, ENOUGH, 20_000))?;
    ensure!(stage.connections()? == 0 && stage.redirected()? == before, "{}", stage.sidecar.verdicts());
    Ok(())
}

/// 33
#[test]
fn fastpath_leaves_no_entry_behind_whichever_way_connections_end() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let before = stage.sidecar.verdict("enrol", "enrolled", "worth")?;
    for round in 0..3 {
        let sockets = (0..8).map(|_| stage.app.open(TO_V4).map(|(socket, _)| socket)).collect::<Result<Vec<_>>>()?;
        for socket in &sockets {
            stage.app.must(Order::Stream(*socket, ENOUGH, 60_000))?;
        }
        stage.await_connections(sockets.len() as u64)?;
        for (index, socket) in sockets.into_iter().enumerate() {
            stage.app.must(Order::Stream(socket, 1000, 100))?;
            stage.app.must(if (index + round) % 2 == 0 { Order::Reset(socket) } else { Order::Close(socket) })?;
        }
        stage.nothing_is_enrolled()?;
    }
    // Neither short ones come onto it, nor what is sent in small pieces.
    let (socket, _) = stage.app.open(TO_V4)?;
    for _ in 0..ENOUGH / 2000 {
        // One at a time: in one go the kernel would put them together.
        stage.app.must(Order::Stream(socket, 2000, 2000))?;
    }
    let small = || stage.sidecar.verdict("enrol", "tcp", "small").is_ok_and(|count| count > 0);
    ensure!(eventually(patient(PATIENCE), small), "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Close(socket))?;
    // Ten thousand, in pieces that a slow machine does in the time that an order has.
    for _ in 0..10 {
        stage.app.must(Order::Churn(TO_V4, work(1000)))?;
    }
    let enrolled = stage.sidecar.verdict("enrol", "enrolled", "worth")? - before;
    ensure!(enrolled == 3 * 8, "{enrolled} were enrolled{}", stage.sidecar.verdicts());
    stage.nothing_is_enrolled()
}

/// 22: both pods, at once and in both directions.
#[test]
fn fastpath_of_two_pods_do_not_meet() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let other = Sidecar::start(&stage.world.server, "acceleration: force\n")?;
    other.fast_path_probed()?;
    let back = std::net::SocketAddr::new(stage.world.client.v4().into(), TO_V4.port());
    let _server = Puppet::serving(&stage.world.client, ANY)?;
    let mut app = Puppet::start(&stage.world.server)?;
    let (there, _) = stage.app.open(TO_V4)?;
    let (here, _) = app.open(back)?;
    for (app, socket) in [(&mut stage.app, there), (&mut app, here)] {
        app.must(Order::Stream(socket, ENOUGH, 20_000))?;
    }
    stage.await_connections(1)?;
    let both = || other.fast_path().is_ok_and(|status| status["connections"] == 1);
    ensure!(eventually(patient(PATIENCE), both), "{}", other.verdicts());
    let before = [stage.redirected()?, other.verdict("sk_msg", "redirect", "fast")?];
    for _ in 0..3 {
        stage.app.begin(Order::Stream(there, 4 * MIB, 30_000))?;
        app.begin(Order::Stream(here, 4 * MIB + 1, 40_000))?;
        for app in [&mut stage.app, &mut app] {
            let answer = app.answer(6 * PATIENCE)?;
            ensure!(answer.outcome == "ok", "{answer:?}");
        }
    }
    let after = [stage.redirected()?, other.verdict("sk_msg", "redirect", "fast")?];
    ensure!(after[0] > before[0] && after[1] > before[1], "{before:?}, {after:?}{}", other.verdicts());
    Ok(())
}

/// Sequence numbers of TCP begin anew after 4 GiB, and the order of redirected bytes hangs on them.
#[test]
fn fastpath_keeps_more_bytes_than_sequence_numbers_count_in_order_both_ways() -> Result<()> {
    /// What TCP counts goes by TCP: so much more than 4 GiB in all.
    const SLICES: u64 = 5;
    const SLICE: u64 = 1 << 30;
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let other = Sidecar::start(&stage.world.server, "acceleration: force\n")?;
    other.fast_path_probed()?;
    stage.server.must(Order::ServeEvents(EVENTS))?;
    let (socket, _) = stage.app.open(std::net::SocketAddr::new(TO_V4.ip(), EVENTS.port()))?;
    let redirected = |stage: &Stage| anyhow::Ok([stage.redirected()?, other.verdict("sk_msg", "redirect", "fast")?]);
    for slice in 0..SLICES {
        stage.command("off")?;
        command(&stage.world.server, "off")?;
        stage.app.begin(Order::Stream(socket, SLICE, 128 * 1024))?;
        let answer = stage.app.answer(6 * PATIENCE)?;
        ensure!(answer.outcome == "ok", "slice {slice}: {answer:?}");
        stage.command("on")?;
        command(&stage.world.server, "on")?;
        stage.await_enrolled(socket)?;
        let there = || other.fast_path().is_ok_and(|status| status["connections"] == 1);
        ensure!(eventually(patient(PATIENCE), there), "{}", other.verdicts());
        let before = redirected(&stage)?;
        stage.app.must(Order::Edges(socket, 200, 20_000))?;
        let after = redirected(&stage)?;
        let past = [after[0] - before[0], after[1] - before[1]];
        ensure!(past.iter().all(|messages| *messages > 150), "slice {slice}: {past:?} of 200 went past TCP");
    }
    Ok(())
}

/// 13: what was redirected and not relayed is lost with the proxy, and the application is told by a reset, never by an end.
#[test]
fn fastpath_of_a_killed_sidecar_resets_its_streams() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    stage.sidecar.signal(Signal::SIGSTOP)?;
    stage.app.must(Order::Flood(socket, 1000, 100_000))?;
    stage.sidecar.kill()?;
    let end = stage.app.order(Order::AwaitEnd(socket))?.outcome;
    ensure!(end == "ECONNRESET", "{end}");
    Ok(())
}

#[test]
fn fastpath_is_off_by_default_and_says_how_to_have_it() -> Result<()> {
    let stage = Stage::started(World::new()?, "{}\n")?;
    let status = stage.sidecar.fast_path()?;
    ensure!(status["on"] == false && status["connections"] == 0, "{status}");
    let refused = stage.command("on").expect_err("switched on without maps");
    ensure!(format!("{refused:#}").contains("acceleration: auto"), "{refused:#}");
    let id = bpf::map_entries(stage.sidecar.process.pid(), "SENDERS");
    ensure!(id.map_or(true, |entries| entries == 0));
    Ok(())
}
