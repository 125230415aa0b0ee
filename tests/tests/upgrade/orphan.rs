//! A supervisor that dies while a new binary gets ready.

use std::fs;

use anyhow::{Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sidecar_tests::harness::{Authority, PATIENCE, Sidecar, World, children, eventually, patient};

use super::{LONG, command};

/// A worker that has got everything, and watches its supervisor.
fn is_worker(process: &Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return false };
    let name = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    threads.flatten().any(|thread| name(thread) == "orphan\n")
}

/// The worker of a new binary may wait for its identity without end, and has every listener by then.
#[test]
fn a_supervisor_that_is_killed_while_a_new_worker_waits_for_an_identity_leaves_no_port_taken() -> Result<()> {
    let world = World::new()?;
    let pod = &world.client;
    let config = Authority::new(&world)?.issue(pod, "client")? + LONG;
    let sidecar = Sidecar::start(pod, &config)?;
    let (identity, aside) = (pod.directory().join("identity"), pod.directory().join("aside"));
    fs::rename(&identity, &aside)?;
    let _asks = pod.spawn_beside_sidecar(command(pod, &[])?)?;
    let supervisor = sidecar.process.pid();
    let both = || children(supervisor).iter().filter(|child| is_worker(child)).count() == 2;
    ensure!(eventually(patient(PATIENCE), both), "no second worker{}", sidecar.process.output());
    kill(supervisor, Signal::SIGKILL)?;
    fs::rename(&aside, &identity)?;
    Sidecar::start(pod, &config)?;
    Ok(())
}
