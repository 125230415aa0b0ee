//! Workers that die.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::{
    libc,
    sys::signal::{Signal, kill},
};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4},
    harness::{Authority, PATIENCE, Puppet, Sidecar, World, eventually, patient},
};

use super::stage::{killed, restarts, stage, successor};

#[test]
fn a_dead_worker_resets_its_streams_and_connections_wait_for_the_next() -> Result<()> {
    let mut stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.client, "{}")?;
    let supervisor = sidecar.process.pid();
    for number in 1..=3 {
        let (stream, _) = stage.app.open(TO_V4)?;
        stage.app.echo(stream)?;
        let worker = sidecar.worker()?;
        kill(worker, Signal::SIGKILL)?;
        let start = Instant::now();
        let end = stage.app.order(Order::AwaitEnd(stream))?;
        ensure!(end.outcome == "ECONNRESET", "a stream of a dead worker ended with {end:?}");
        // At once: whether there is a worker by now or not.
        ensure!(!stage.goes_direct()?, "a connection went direct{}", sidecar.process.output());
        ensure!(start.elapsed() < patient(Duration::from_secs(1)), "it took {:?}", start.elapsed());
        ensure!(successor(&sidecar, worker)? != worker && sidecar.process.pid() == supervisor);
        ensure!(restarts(&sidecar, "killed")? == number);
    }
    ensure!(eventually(PATIENCE, || sidecar.is_ready()), "not ready{}", sidecar.process.output());
    ensure!(restarts(&sidecar, "exited")? == 0 && restarts(&sidecar, "hung")? == 0);
    Ok(())
}

#[test]
fn a_server_whose_sidecar_loses_its_worker_serves_whoever_waits() -> Result<()> {
    let mut stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.server, "{}")?;
    stage.app.visit(TO_V4)?;
    for _ in 0..3 {
        kill(sidecar.worker()?, Signal::SIGKILL)?;
        stage.app.visit(TO_V4)?;
    }
    ensure!(sidecar.verdict("sk_lookup", "capture", "steered")? == 4, "{}", sidecar.verdicts());
    Ok(())
}

#[test]
fn a_worker_that_a_real_time_signal_ends_has_a_successor() -> Result<()> {
    let mut stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.client, "{}")?;
    let worker = sidecar.worker()?;
    // SAFETY: kill(2) takes no pointers.
    ensure!(unsafe { libc::kill(worker.as_raw(), libc::SIGRTMIN() + 3) } == 0);
    successor(&sidecar, worker)?;
    ensure!(!stage.goes_direct()?, "a connection went direct{}", sidecar.process.output());
    ensure!(restarts(&sidecar, "killed")? == 1);
    Ok(())
}

/// Whoever ignores SIGCHLD hands that on to what it starts.
#[test]
fn a_worker_that_dies_has_a_successor_also_where_the_sidecar_was_started_with_its_childrens_ends_ignored() -> Result<()>
{
    let mut stage = stage()?;
    let mut sidecar = Sidecar::spawn_through(&stage.world.client, "{}", "env", &["--ignore-signal=CHLD"])?;
    sidecar.wait_until_ready(patient(PATIENCE))?;
    killed(&sidecar)?;
    ensure!(!stage.goes_direct()?, "a connection went direct{}", sidecar.process.output());
    ensure!(restarts(&sidecar, "killed")? == 1);
    Ok(())
}

#[test]
fn a_worker_that_keeps_dying_is_told_of_once_and_its_end_does_not_end_the_sidecar() -> Result<()> {
    let mut stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.client, "{}")?;
    for _ in 0..7 {
        killed(&sidecar)?;
    }
    let serves = || stage.goes_direct().is_ok_and(|direct| !direct);
    ensure!(eventually(PATIENCE, serves), "it does not capture any more{}", sidecar.process.output());
    ensure!(restarts(&sidecar, "killed")? == 7);
    let lines = sidecar.process.err.lines();
    let told = lines.iter().filter(|line| line.contains("keeps ending")).count();
    ensure!(told == 1, "told {told} times{}", sidecar.process.output());
    Ok(())
}

#[test]
fn a_strict_pair_speaks_no_plaintext_while_its_workers_die() -> Result<()> {
    let world = World::new()?;
    let authority = Authority::new(&world)?;
    let client = Sidecar::start(
        &world.client,
        &format!("{}mtls: {{ mode: strict }}\n", authority.issue(&world.client, "web")?),
    )?;
    let server =
        Sidecar::start(&world.server, &format!("{}mtls: {{ mode: strict }}\n", authority.issue(&world.server, "db")?))?;
    let _serving = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    app.visit(TO_V4)?;
    for sidecar in [&client, &server] {
        killed(sidecar)?;
        let passes = || app.visit(TO_V4).is_ok();
        ensure!(eventually(PATIENCE, passes), "nothing passes{}", sidecar.process.output());
    }
    for sidecar in [&client, &server] {
        let plaintext = sidecar.metrics()?.sum("sidecar_connections_security_total", &[("security", "plaintext")]);
        ensure!(plaintext == 0.0, "{plaintext} in plaintext");
    }
    Ok(())
}
