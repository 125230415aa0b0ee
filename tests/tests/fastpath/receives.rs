//! What a connection pays that does not gain: the proxy asks the kernel for what an application has sent once for each message, and not
//! again to see whether more is there, but where both of a socket's queues may be filled; and small messages go by TCP.

use anyhow::{Result, ensure};
use sidecar_tests::{
    agent::puppet::{Handle, Order},
    cases::net::TO_V4,
    harness::{PATIENCE, Receives, Wedge, eventually, patient},
};

use super::{MIB, stage::Stage};

/// One exchange at a time.
const EXCHANGES: u32 = 100;
/// Too small to be enrolled for, and large enough to stay.
const BYTES: usize = 4000;

/// One thread carries all connections.
fn one_worker() -> Result<Option<Stage>> {
    Stage::with("acceleration: force\nproxy: { workers: 1 }\n")
}

/// What the thread that carries everything receives for exchanges on a connection.
fn exchanges(stage: &mut Stage, socket: Handle) -> Result<Receives> {
    let carrier = Wedge::new(stage.sidecar.worker()?, "worker-0")?;
    stage.app.begin(Order::Edges(socket, EXCHANGES, BYTES))?;
    let seen = carrier.receives(2 * u64::from(EXCHANGES) * BYTES as u64)?;
    let answer = stage.app.answer(6 * PATIENCE)?;
    ensure!(answer.outcome == "ok", "{answer:?}");
    Ok(seen)
}

/// A tenth would be noise; one for each exchange is what it was.
fn are_single(seen: Receives) -> Result<()> {
    ensure!(seen.full >= 2 * EXCHANGES && seen.empty < EXCHANGES / 10, "{seen:?}");
    Ok(())
}

#[test]
fn fastpath_costs_a_connection_that_is_not_enrolled_no_receive() -> Result<()> {
    let Some(mut stage) = one_worker()? else { return Ok(()) };
    let before = stage.redirected()?;
    let (socket, _) = stage.app.open(TO_V4)?;
    // More of it than makes a connection worth it.
    stage.app.must(Order::Edges(socket, 200, BYTES))?;
    let small = || stage.sidecar.verdict("enrol", "tcp", "small").is_ok_and(|count| count > 0);
    ensure!(eventually(patient(PATIENCE), small), "{}", stage.sidecar.verdicts());
    are_single(exchanges(&mut stage, socket)?)?;
    ensure!(stage.redirected()? == before && stage.connections()? == 0, "{}", stage.sidecar.verdicts());
    Ok(())
}

/// Also after what goes by TCP has met what does not, from one thread, which the kernel side can tell.
#[test]
fn fastpath_receives_what_is_redirected_once() -> Result<()> {
    let Some(mut stage) = one_worker()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    stage.app.must(Order::Stream(socket, 8 * MIB, 20_000))?;
    let mixed = stage.sidecar.verdict("sk_msg", "tcp", "full")? + stage.sidecar.verdict("sk_msg", "tcp", "order")?;
    ensure!(mixed > 0, "{}", stage.sidecar.verdicts());
    let before = stage.redirected()?;
    are_single(exchanges(&mut stage, socket)?)?;
    ensure!(stage.redirected()? - before >= u64::from(EXCHANGES), "{}", stage.sidecar.verdicts());
    Ok(())
}

/// It has nothing unread when it is let go, so that it is as if it had never been enrolled.
#[test]
fn fastpath_that_is_switched_off_costs_no_receive() -> Result<()> {
    let Some(mut stage) = one_worker()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    stage.app.must(Order::Stream(socket, MIB, 20_000))?;
    stage.command("off")?;
    stage.await_connections(0)?;
    are_single(exchanges(&mut stage, socket)?)
}

/// What a stopped worker has not read when its application goes over to blocking mode lies in both queues, and nobody counts.
#[test]
fn fastpath_lets_go_of_a_connection_with_something_unread_and_loses_nothing() -> Result<()> {
    const UNREAD: u64 = 20_000;
    let Some(mut stage) = one_worker()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    let carrier = Wedge::new(stage.sidecar.worker()?, "worker-0")?;
    let released = stage.sidecar.verdict("enrol", "released", "released")?;
    let before = stage.redirected()?;
    stage.app.must(Order::Flood(socket, 1000, UNREAD))?;
    ensure!(stage.redirected()? - before >= 20, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Block(socket))?;
    let let_go = || stage.sidecar.verdict("enrol", "released", "released").is_ok_and(|count| count > released);
    ensure!(eventually(patient(PATIENCE), let_go), "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Send(socket, UNREAD as usize))?;
    // And what the server sends back.
    carrier.receives(2 * 2 * UNREAD)?;
    stage.app.must(Order::Finish(socket))?;
    ensure!(stage.app.order(Order::AwaitEnd(socket))?.outcome == "ok");
    Ok(())
}

/// It is quicker by TCP then, and what it carried in better days does not bring it back at the next look; 64 MiB in large messages do.
#[test]
fn fastpath_lets_go_of_small_messages_and_takes_large_ones_back() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    let enrolled = |stage: &Stage| stage.sidecar.verdict("enrol", "enrolled", "worth");
    let small = |stage: &Stage| stage.sidecar.verdict("enrol", "tcp", "small");
    let before = enrolled(&stage)?;
    let left = eventually(patient(PATIENCE), || {
        stage.app.must(Order::Edges(socket, 100, 100)).is_ok() && stage.connections().is_ok_and(|count| count == 0)
    });
    ensure!(left && stage.sidecar.verdict("enrol", "released", "released")? >= 1, "{}", stage.sidecar.verdicts());
    let (quiet, seen) = (stage.redirected()?, small(&stage)?);
    let looked = eventually(patient(PATIENCE), || {
        stage.app.must(Order::Edges(socket, 200, 12_000)).is_ok() && small(&stage).is_ok_and(|count| count > seen)
    });
    ensure!(looked && enrolled(&stage)? == before && stage.redirected()? == quiet, "{}", stage.sidecar.verdicts());
    let back = eventually(patient(PATIENCE), || {
        stage.app.must(Order::Stream(socket, 4 * MIB, 128 * 1024)).is_ok()
            && stage.connections().is_ok_and(|count| count == 1)
    });
    ensure!(back, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Stream(socket, 4 * MIB, 20_000))?;
    ensure!(stage.redirected()? > quiet, "{}", stage.sidecar.verdicts());
    Ok(())
}
