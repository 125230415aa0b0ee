//! The end of the supervisor, in order and not, and what its worker makes of it.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::TO_V4,
    harness::{PATIENCE, Puppet, Sidecar, Wedge, bpf, eventually},
};

use super::stage::{Stage, killed, stage};

#[test]
fn a_worker_whose_supervisor_dies_lets_its_streams_end_and_the_next_sidecar_starts_meanwhile() -> Result<()> {
    let mut stage = stage()?;
    let mut sidecar = Sidecar::start(&stage.world.client, "proxy: { drain_deadline: 1m }")?;
    let (stream, _) = stage.app.open(TO_V4)?;
    stage.app.echo(stream)?;
    let worker = sidecar.worker()?;
    kill(sidecar.process.pid(), Signal::SIGKILL)?;
    sidecar.process.wait(PATIENCE)?;
    ensure!(bpf::attached_programs(&stage.world.client)? == 0, "programs outlive their supervisor");
    ensure!(stage.goes_direct()?, "a connection came to a worker without a supervisor");
    stage.app.echo(stream).context("a stream from before")?;
    let next = Sidecar::start(&stage.world.client, "{}")?;
    ensure!(!stage.goes_direct()?, "the next sidecar does not capture");
    stage.app.echo(stream).context("a stream from before the next sidecar")?;
    let complaints = sidecar.process.err.text().matches("accept failed").count();
    ensure!(complaints == 0, "it accepts what is not to come{}", sidecar.process.output());
    stage.app.must(Order::Close(stream))?;
    ensure!(eventually(PATIENCE, || has_ended(worker)), "the worker stays although it has nothing to do");
    ensure!(next.is_ready());
    Ok(())
}

#[test]
fn a_worker_that_hangs_does_not_keep_the_ports_when_its_supervisor_dies() -> Result<()> {
    let stage = stage()?;
    let mut sidecar = Sidecar::start(&stage.world.client, "proxy: { drain_deadline: 100ms, hung_after: 10m }")?;
    let worker = sidecar.worker()?;
    let _wedge = Wedge::of_main_thread(worker)?;
    kill(sidecar.process.pid(), Signal::SIGKILL)?;
    sidecar.process.wait(PATIENCE)?;
    ensure!(eventually(PATIENCE, || has_ended(worker)), "a worker that hangs stays without a supervisor");
    Sidecar::start(&stage.world.client, "{}").map(drop)
}

#[test]
fn the_next_sidecar_names_the_stopped_worker_that_keeps_the_ports() -> Result<()> {
    let stage = stage()?;
    let mut sidecar = Sidecar::start(&stage.world.client, "{}")?;
    let worker = sidecar.worker()?;
    kill(worker, Signal::SIGSTOP)?;
    kill(sidecar.process.pid(), Signal::SIGKILL)?;
    sidecar.process.wait(PATIENCE)?;
    let mut next = Sidecar::spawn(&stage.world.client, "{}")?;
    ensure!(!next.process.wait(PATIENCE)?.success());
    let (said, expected) = (next.process.err.text(), format!("has it: {worker} (sidecar, stopped"));
    ensure!(said.contains(&expected), "no {expected} in {said}");
    kill(worker, Signal::SIGCONT)?;
    ensure!(eventually(PATIENCE, || has_ended(worker)), "the worker goes on without a supervisor");
    Ok(())
}

#[test]
fn a_closed_pod_stays_closed_when_the_supervisor_dies() -> Result<()> {
    let mut stage = stage()?;
    let config = "{ capture: { on_failure: closed, heartbeat_max_age: 300ms }, proxy: { drain_deadline: 100ms } }";
    let mut sidecar = Sidecar::start(&stage.world.client, config)?;
    ensure!(!stage.goes_direct()?);
    kill(sidecar.process.pid(), Signal::SIGKILL)?;
    sidecar.process.wait(PATIENCE)?;
    let refused = || stage.app.try_open(TO_V4).is_ok_and(|(_, answer)| answer.outcome == "ECONNREFUSED");
    ensure!(eventually(PATIENCE, refused), "a pod without a sidecar is open");
    Ok(())
}

#[test]
fn sigterm_drains_it_while_it_has_no_worker() -> Result<()> {
    let mut stage = stage()?;
    for _ in 0..3 {
        let mut sidecar = Sidecar::start(&stage.world.client, "proxy: { drain_deadline: 10m }")?;
        // The second death is followed by a pause in which there is none.
        killed(&sidecar)?;
        kill(sidecar.worker()?, Signal::SIGKILL)?;
        sidecar.signal(Signal::SIGTERM)?;
        ensure!(!stage.goes_direct()?, "a connection went direct{}", sidecar.process.output());
        // The application ends.
        stage.app = Puppet::start(&stage.world.server)?;
        ended_well(&mut sidecar, &stage)?;
        stage.app = Puppet::start(&stage.world.client)?;
        ensure!(stage.goes_direct()?);
    }
    Ok(())
}

#[test]
fn a_worker_that_dies_while_it_drains_has_a_successor_that_goes_on() -> Result<()> {
    let mut stage = stage()?;
    let mut sidecar = Sidecar::start(&stage.world.client, "proxy: { drain_deadline: 10m }")?;
    sidecar.signal(Signal::SIGTERM)?;
    ensure!(eventually(PATIENCE, || !sidecar.is_ready()), "it does not drain{}", sidecar.process.output());
    let left = || -> Result<f64> {
        let state: serde_json::Value = serde_json::from_str(&stage.world.client.get(15000, "/drain")?.body)?;
        ensure!(state["stage"] == "outbound", "{state}");
        state["seconds_left"].as_f64().context("no deadline")
    };
    let mut before = left()?;
    for _ in 0..2 {
        killed(&sidecar)?;
        ensure!(eventually(PATIENCE, || left().is_ok()), "{:?}{}", left(), sidecar.process.output());
        let now = left()?;
        ensure!(now < before, "the deadline has moved: {now} s left, before {before} s");
        before = now;
    }
    ensure!(!sidecar.is_ready(), "a sidecar that drains is ready");
    ensure!(!stage.goes_direct()?, "a connection went direct{}", sidecar.process.output());
    stage.app = Puppet::start(&stage.world.server)?;
    ended_well(&mut sidecar, &stage)
}

#[test]
fn the_drain_deadline_holds_whatever_becomes_of_the_worker() -> Result<()> {
    let stage = stage()?;
    let mut sidecar = Sidecar::start(&stage.world.client, "proxy: { drain_deadline: 2s }")?;
    sidecar.signal(Signal::SIGTERM)?;
    while !has_ended(sidecar.process.pid()) {
        // There may be none, or none any more.
        let _ = sidecar.worker().map(|worker| kill(worker, Signal::SIGKILL));
    }
    ended_well(&mut sidecar, &stage)
}

fn has_ended(process: Pid) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn ended_well(sidecar: &mut Sidecar, stage: &Stage) -> Result<()> {
    let status = sidecar.process.wait(PATIENCE)?;
    ensure!(status.code() == Some(0), "{status}{}", sidecar.process.output());
    ensure!(bpf::attached_programs(&stage.world.client)? == 0, "programs are still attached");
    Ok(())
}

#[test]
fn signals_for_everybody_drain_once() -> Result<()> {
    let mut stage = stage()?;
    let mut sidecar = Sidecar::start(&stage.world.client, "proxy: { drain_deadline: 1m }")?;
    let (stream, _) = stage.app.open(TO_V4)?;
    stage.app.echo(stream)?;
    // As a terminal or a service manager does it: both get it.
    for pid in sidecar.pids() {
        kill(pid, Signal::SIGTERM)?;
    }
    ensure!(eventually(PATIENCE, || !sidecar.is_ready()), "it does not drain{}", sidecar.process.output());
    stage.app.echo(stream).context("a stream while it drains")?;
    // The application ends, and its stream with it.
    stage.app = Puppet::start(&stage.world.server)?;
    let status = sidecar.process.wait(PATIENCE)?;
    ensure!(status.code() == Some(0), "{status}{}", sidecar.process.output());
    Ok(())
}
