//! The end of the supervisor, in order and not, and what its worker makes of it.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::TO_V4,
    harness::{PATIENCE, Puppet, Sidecar, bpf, eventually},
};

use super::stage::{killed, stage};

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
    stage.app.must(Order::Close(stream))?;
    let gone = || fs::read_to_string(format!("/proc/{worker}/stat")).map_or(true, |stat| stat.contains(") Z "));
    ensure!(eventually(PATIENCE, gone), "the worker stays although it has nothing to do");
    ensure!(next.is_ready());
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
fn sigterm_ends_it_in_order_while_it_has_no_worker() -> Result<()> {
    let mut stage = stage()?;
    for _ in 0..3 {
        let mut sidecar = Sidecar::start(&stage.world.client, "{}")?;
        // The second death is followed by a pause in which there is none.
        killed(&sidecar)?;
        kill(sidecar.worker()?, Signal::SIGKILL)?;
        sidecar.signal(Signal::SIGTERM)?;
        let status = sidecar.process.wait(PATIENCE)?;
        ensure!(status.code() == Some(0), "{status}{}", sidecar.process.output());
        ensure!(bpf::attached_programs(&stage.world.client)? == 0);
        ensure!(stage.goes_direct()?);
    }
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
