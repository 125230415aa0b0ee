//! When `sidecar init` leaves everything as it is, and says why.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
    process::{Command, ExitStatus},
};

use anyhow::{Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use sidecar_tests::{
    cases::net::{ANY, TO_V4},
    harness::{BPF_FS, PATIENCE, Pod, Process, Puppet, Sidecar, World, bpf},
};

use super::{OPEN, command, init, powerless, run_init, started, stores};

/// `sidecar init` with the capabilities that it needs and `more`, through setpriv with these arguments.
fn confined_init(pod: &Pod, more: &str, args: &[&str]) -> Result<(ExitStatus, Process)> {
    let capabilities = format!("-all,+bpf,+perfmon,+net_admin{more}");
    let sets = ["bounding-set", "inh-caps", "ambient-caps"].map(|set| format!("--{set}={capabilities}"));
    let init = command(pod, "init", OPEN, &[])?;
    let mut confined = Command::new("setpriv");
    confined.args(sets).args(args).arg(init.get_program()).args(init.get_args());
    Sidecar::unconfigured(&mut confined);
    let mut process = pod.spawn_beside_sidecar(confined)?;
    Ok((process.wait(PATIENCE)?, process))
}

#[test]
fn init_and_a_second_sidecar_are_refused_while_one_runs() -> Result<()> {
    let world = World::new()?;
    init(&world.client, OPEN)?;
    let sidecar = started(powerless(&world.client, OPEN)?)?;
    let (status, process) = run_init(&world.client, OPEN, &[])?;
    let message = process.err.text();
    let owner = sidecar.process.pid().to_string();
    ensure!(status.code() == Some(1) && message.contains("another sidecar serves the pod"), "{status}: {message}");
    ensure!(message.contains(&owner), "{owner} is not named: {message}");
    ensure!(sidecar.is_ready());
    Ok(())
}

/// An init that died before it settled, and one that is about to: only the lock tells them apart.
#[test]
fn a_store_that_an_init_is_at_work_at_is_left_to_it() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    run_init(&world.client, OPEN, &["--stop-after", "mark"])?;
    let (before, attached) = (stores(&world.client)?, bpf::attached_programs(&world.client)?);
    let [unsettled] = &before[..] else { bail!("{before:?}") };
    ensure!(unsettled.display().to_string().ends_with("-new"), "{before:?}");
    let opened = world.client.mounts().run(|| fs::File::open(unsettled))??;
    let at_work = Flock::lock(opened, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
    let (status, process) = run_init(&world.client, OPEN, &[])?;
    let message = process.err.text();
    ensure!(status.code() == Some(1) && message.contains("-new is in use"), "{status}: {message}");
    ensure!(stores(&world.client)? == before, "{:?}", stores(&world.client)?);
    ensure!(bpf::attached_programs(&world.client)? == attached, "it was detached");
    drop(at_work);
    init(&world.client, OPEN)?;
    let _sidecar = started(powerless(&world.client, OPEN)?)?;
    app.visit(TO_V4).map(drop)
}

/// The kernel tells the names of programs to CAP_SYS_ADMIN only.
#[test]
fn init_without_sight_of_names_is_refused_beside_a_sidecar_that_pins_nothing() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let sidecar = Sidecar::start(&world.client, OPEN)?;
    let attached = bpf::attached_programs(&world.client)?;
    let (status, confined) = confined_init(&world.client, "", &[])?;
    let message = confined.err.text();
    ensure!(status.code() == Some(1) && message.contains("capture.outbound.port: port 15001"), "{status}: {message}");
    ensure!(bpf::attached_programs(&world.client)? == attached, "it attached its own beside");
    app.visit(TO_V4)?;
    ensure!(sidecar.is_ready());
    Ok(())
}

#[test]
fn what_another_user_made_is_named_and_not_used() -> Result<()> {
    const STRANGER: u32 = 4242;
    let world = World::new()?;
    let root = Path::new(BPF_FS).join("sidecar");
    let owned = |path: &Path, owner: u32| world.client.mounts().run(|| chown(path, Some(owner), None));
    world.client.mounts().run(|| fs::create_dir(&root))??;
    owned(&root, STRANGER)??;
    let refused = |part: &str| -> Result<()> {
        let (status, process) = run_init(&world.client, OPEN, &[])?;
        let message = process.err.text();
        for part in ["belongs to user 4242", part] {
            ensure!(status.code() == Some(1) && message.contains(part), "{status}: {message}");
        }
        Ok(())
    };
    refused("chown 0 /sys/fs/bpf/sidecar")?;
    // It needs no pins.
    drop(Sidecar::start(&world.client, OPEN)?);
    world.client.mounts().run(|| fs::remove_dir(&root))??;
    init(&world.client, OPEN)?;
    let mode = world.client.mounts().run(|| fs::metadata(&root))??.mode() & 0o7777;
    ensure!(mode == 0o1777, "sidecars of other users have no place in {mode:o}");
    let made = stores(&world.client)?;
    let [store] = &made[..] else { bail!("{made:?}") };
    owned(store, STRANGER)??;
    refused("rm -r")?;
    ensure!(stores(&world.client)? == made, "{:?}", stores(&world.client)?);
    // What is root's is for all.
    let user = [format!("--reuid={STRANGER}"), format!("--regid={STRANGER}"), "--clear-groups".to_owned()];
    let (status, other) = confined_init(&world.server, ",+dac_read_search", &user.each_ref().map(String::as_str))?;
    ensure!(status.success() && stores(&world.client)?.len() == 2, "{status}{}", other.output());
    Ok(())
}
