//! Workers that hang, those that only seem to, and those that somebody has moved.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::TO_V4,
    harness::{PATIENCE, Sidecar, Wedge, eventually, patient},
};

use super::stage::{restarts, stage, successor};

#[test]
fn a_worker_that_hangs_is_killed_and_replaced() -> Result<()> {
    let hung_after = patient(Duration::from_millis(600));
    let config = format!("proxy: {{ hung_after: {}ms, workers: 2 }}", hung_after.as_millis());
    type Hang = fn(Pid) -> Result<Option<Wedge>>;
    let hangs: [(&str, Hang); 3] = [
        ("stopped", |worker| {
            kill(worker, Signal::SIGSTOP)?;
            Ok(None)
        }),
        ("its main thread", |worker| Wedge::of_main_thread(worker).map(Some)),
        ("a thread that carries", |worker| Wedge::new(worker, "worker-1").map(Some)),
    ];
    for (what, hang) in hangs {
        let mut stage = stage()?;
        let sidecar = Sidecar::start(&stage.world.client, &config)?;
        let (stream, _) = stage.app.open(TO_V4)?;
        stage.app.echo(stream)?;
        let worker = sidecar.worker()?;
        let wedge = hang(worker)?;
        let told = || sidecar.process.err.text().contains("the worker hangs");
        ensure!(eventually(patient(PATIENCE), told), "{what}: nobody notices{}", sidecar.process.output());
        if wedge.is_some() {
            // It waits for the end of the worker that it killed, and for that it has nothing to do.
            let before = wakes(&sidecar)?;
            std::thread::sleep(hung_after);
            let often = wakes(&sidecar)? - before;
            ensure!(often < 100, "{what}: the supervisor woke {often} times in {hung_after:?}");
        }
        // The end of a thread that is traced is its tracer's to see first.
        drop(wedge);
        successor(&sidecar, worker).context(what)?;
        ensure!(stage.app.order(Order::AwaitEnd(stream))?.outcome == "ECONNRESET", "{what}");
        let captures = || stage.goes_direct().is_ok_and(|direct| !direct);
        ensure!(eventually(PATIENCE, captures), "{what}: it does not capture any more{}", sidecar.process.output());
        ensure!(restarts(&sidecar, "hung")? == 1, "{what}");
    }
    Ok(())
}

/// How often the supervisor has waited so far.
fn wakes(sidecar: &Sidecar) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.process.pid()))?;
    let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(waits.context("a status without waits")?.trim().parse()?)
}

#[test]
fn a_worker_that_is_moved_into_the_applications_cgroup_is_replaced() -> Result<()> {
    let mut stage = stage()?;
    let pod = &stage.world.client;
    let sidecar = Sidecar::start(pod, "{}")?;
    let worker = sidecar.worker()?;
    fs::write(pod.app_cgroup().join("cgroup.procs"), worker.to_string())?;
    let next = successor(&sidecar, worker)?;
    let members = fs::read_to_string(pod.sidecar_cgroup().join("cgroup.procs"))?;
    ensure!(members.lines().any(|member| member == next.to_string()), "{next} is not among {members}");
    let captures = || stage.goes_direct().is_ok_and(|direct| !direct);
    ensure!(eventually(PATIENCE, captures), "it does not capture any more{}", sidecar.process.output());
    ensure!(sidecar.process.err.text().contains("has moved the worker"), "{}", sidecar.process.output());
    ensure!(restarts(&sidecar, "moved")? == 1 && restarts(&sidecar, "killed")? == 0);
    Ok(())
}

#[test]
fn a_supervisor_that_stood_still_with_its_worker_does_not_take_it_for_hung() -> Result<()> {
    let mut stage = stage()?;
    let hung_after = patient(Duration::from_millis(600));
    let sidecar = Sidecar::start(
        &stage.world.client,
        &format!(
            "{{ capture: {{ heartbeat_max_age: 300ms }}, proxy: {{ hung_after: {}ms }} }}",
            hung_after.as_millis()
        ),
    )?;
    let (stream, _) = stage.app.open(TO_V4)?;
    stage.app.echo(stream)?;
    sidecar.signal(Signal::SIGSTOP)?;
    // Time is what would make it hang: there is nothing to wait for.
    std::thread::sleep(hung_after * 2);
    sidecar.signal(Signal::SIGCONT)?;
    std::thread::sleep(hung_after);
    stage.app.echo(stream)?;
    ensure!(restarts(&sidecar, "hung")? == 0);
    Ok(())
}
