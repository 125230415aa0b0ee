//! A sidecar and its application in real containers: podman and crun, cgroup v2, namespaces of their own.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    cases::net::{ANY, TO_V4},
    harness::{Cgroup, PATIENCE, Process, Puppet, Sidecar, Spawn, World, eventually, patient},
};

/// A container's root: nothing but places for what is mounted, the machine's programs and libraries among it.
fn root(world: &World, name: &str) -> Result<PathBuf> {
    let root = world.client.directory().join(format!("root-{name}"));
    for directory in ["proc", "sys", "dev", "etc", "run", "tmp", "usr", "host/cgroup", "test"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for directory in ["bin", "sbin", "lib", "lib64"] {
        symlink(Path::new("usr").join(directory), root.join(directory))?;
    }
    Ok(root)
}

/// Podman's command line, but for its verb, in a mount namespace with cgroup v2 at its usual place: on a hybrid host crun
/// would use the older version.
fn podman(world: &World) -> Command {
    let mut command = Command::new("unshare");
    let script = "[ -e /sys/fs/cgroup/cgroup.procs ] || mount -t cgroup2 none /sys/fs/cgroup; exec podman \"$@\"";
    command.args(["--mount", "sh", "-ec", script, "podman"]);
    let own = world.client.directory().join("podman");
    for (flag, folder) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        command.arg(flag).arg(own.join(folder));
    }
    command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
    command
}

/// Runs `program` in a container of its own in the client's pod, until it ends: cgroup, PID and mount namespace are the
/// container's, the network namespace is the pod's.
fn contain(world: &World, name: &str, more: &[&str], program: &Command) -> Result<Process> {
    let pod = &world.client;
    let parent = Path::new("/").join(pod.cgroup().strip_prefix(Cgroup::mount()?)?);
    let binary = Path::new(program.get_program());
    let inside = Path::new("/test").join(binary.file_name().context("a program without a name")?);
    let mut command = podman(world);
    command.args(["run", "--interactive", "--rm", "--pids-limit=-1", "--privileged", "--name", name]);
    // Limits that podman would raise need CAP_SYS_RESOURCE, which a machine for tests need not have.
    command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
    command.arg("--cgroup-parent").arg(parent).arg("--network").arg(format!("ns:{}", pod.netns().path().display()));
    command.args(["--volume", "/usr:/usr:ro", "--volume"]).arg(format!("{}:{}:ro", binary.display(), inside.display()));
    command.args(more).arg("--rootfs").arg(root(world, name)?).arg(inside).args(program.get_args());
    Spawn::default().start(command)
}

/// What makes the host's cgroups visible in a container.
const HOST: [&str; 2] = ["--volume", "/sys/fs/cgroup:/host/cgroup:ro"];

fn sidecar(world: &World, config: &str, more: &[&str]) -> Result<Process> {
    let mut command = Sidecar::program()?;
    command.arg("run");
    for assignment in config.split_whitespace() {
        command.args(["--set", assignment]);
    }
    contain(world, "sidecar", more, &command)
}

fn ready(world: &World, sidecar: &Process) -> Result<()> {
    let ready =
        eventually(2 * PATIENCE, || world.client.get(15021, "/healthz/ready").is_ok_and(|answer| answer.status == 200));
    ensure!(ready, "not ready{}", sidecar.output());
    Ok(())
}

fn captured(world: &World) -> Result<u64> {
    let metrics = world.client.get(15020, "/metrics")?.body;
    let line =
        metrics.lines().find(|line| line.contains("hook=\"connect\",verdict=\"capture\"")).context("no such metric")?;
    Ok(line.rsplit(' ').next().context("no value")?.parse()?)
}

#[test]
fn podman_a_sidecar_in_a_container_captures_another_and_ends_with_it() -> Result<()> {
    for (config, told) in
        [("proxy.drain_deadline=10m", true), ("proxy.drain_deadline=10m lifecycle.exit_with_application=true", false)]
    {
        let world = World::new()?;
        let _server = Puppet::serving(&world.server, ANY)?;
        let mut sidecar = sidecar(&world, config, &HOST)?;
        ready(&world, &sidecar)?;
        let mut app = Puppet::of(contain(&world, "app", &[], &Puppet::command()?)?);
        app.visit(TO_V4).with_context(|| sidecar.output())?;
        ensure!(captured(&world)? == 1, "not captured{}", sidecar.output());
        let below_mount = world.client.cgroup().strip_prefix(Cgroup::mount()?)?.to_owned();
        let found = format!("pod_cgroup=/host/cgroup/{}", below_mount.display());
        ensure!(sidecar.err.text().contains(&found), "no {found}{}", sidecar.output());
        if told {
            sidecar.signal(Signal::SIGTERM)?;
            let drains =
                sidecar.err.wait_for(PATIENCE, |lines| lines.iter().find(|line| line.contains("draining")).cloned());
            // The application's one process counts; conmon, which watches each container, does not.
            ensure!(drains.is_some_and(|line| line.contains("applications=1")), "{}", sidecar.output());
            app.visit(TO_V4).context("while it drains")?;
            ensure!(captured(&world)? == 2, "not captured while it drains");
        }
        let start = Instant::now();
        app.leave()?;
        let status = sidecar.wait(PATIENCE)?;
        ensure!(status.code() == Some(0), "{config}: {status}{}", sidecar.output());
        // Podman itself takes most of it.
        ensure!(start.elapsed() < patient(Duration::from_secs(5)), "{config}: it took {:?}", start.elapsed());
    }
    Ok(())
}

#[test]
fn podman_a_container_that_sees_only_itself_says_what_to_mount() -> Result<()> {
    let world = World::new()?;
    let mut sidecar = sidecar(&world, "", &[])?;
    let status = sidecar.wait(2 * PATIENCE)?;
    let said = sidecar.err.text();
    ensure!(status.code() == Some(1), "{status}: {said}");
    for part in ["above what is mounted at /sys/fs/cgroup", "-v /sys/fs/cgroup:/host/cgroup:ro"] {
        ensure!(said.contains(part), "no {part} in: {said}");
    }
    Ok(())
}
