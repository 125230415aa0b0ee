//! Supervisor and worker: the one has the fast path, the other the sockets at which it ends.

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sidecar_tests::{
    agent::puppet::Order,
    harness::{PATIENCE, Sidecar, eventually, patient},
};

use super::{MIB, stage::Stage};

/// Kills the worker and waits until the next one answers.
fn replaced(sidecar: &Sidecar) -> Result<Pid> {
    let dead = sidecar.worker()?;
    kill(dead, Signal::SIGKILL)?;
    let mut next = None;
    eventually(patient(PATIENCE), || {
        next = sidecar.worker().ok().filter(|worker| *worker != dead);
        next.is_some() && sidecar.fast_path().is_ok()
    });
    next.with_context(|| format!("no other worker{}", sidecar.process.output()))
}

/// 13: what was redirected and not relayed is lost with the worker, and the application is told by a reset, never by an end.
#[test]
fn fastpath_of_a_dead_worker_resets_its_streams_leaves_nothing_and_goes_on_with_the_next() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    for _ in 0..3 {
        let socket = stage.enrolled()?;
        kill(stage.sidecar.worker()?, Signal::SIGSTOP)?;
        stage.app.must(Order::Flood(socket, 1000, 100_000))?;
        replaced(&stage.sidecar)?;
        let end = stage.app.order(Order::AwaitEnd(socket))?.outcome;
        ensure!(end == "ECONNRESET", "{end}{}", stage.sidecar.process.output());
        // The application's own end leaves when the application closes it.
        stage.app.must(Order::Close(socket))?;
        stage.nothing_is_enrolled()?;
    }
    let socket = stage.enrolled()?;
    let before = stage.redirected()?;
    stage.app.must(Order::Stream(socket, 4 * MIB, 20_000))?;
    ensure!(stage.redirected()? > before, "{}", stage.sidecar.verdicts());
    stage.app.must(Order::Close(socket))?;
    stage.nothing_is_enrolled()
}

#[test]
fn fastpath_switched_off_stays_off_for_the_next_worker() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    stage.command("off")?;
    replaced(&stage.sidecar)?;
    let status = stage.sidecar.fast_path()?;
    ensure!(status["on"] == false && status["why"].as_str().is_some_and(|why| why.contains("by hand")), "{status}");
    let said = stage.command("on")?;
    ensure!(said.contains("\"on\": true"), "{said}");
    stage.enrolled().map(drop)
}

/// The supervisor's maps live as long as the sockets in them: the worker, which drains, reads what still comes past TCP.
#[test]
fn fastpath_loses_nothing_when_the_supervisor_alone_dies() -> Result<()> {
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    let worker = stage.sidecar.worker()?;
    stage.sidecar.process.signal(Signal::SIGKILL)?;
    stage.sidecar.process.wait(PATIENCE)?;
    for piece in [1000, 100_000] {
        stage.app.must(Order::Stream(socket, 4 * MIB, piece))?;
    }
    stage.app.must(Order::Finish(socket))?;
    let end = stage.app.order(Order::AwaitEnd(socket))?.outcome;
    ensure!(end == "ok", "{end}");
    let gone = || kill(worker, None).is_err();
    ensure!(eventually(patient(PATIENCE), gone), "the worker has nothing left to do and lives");
    Ok(())
}
