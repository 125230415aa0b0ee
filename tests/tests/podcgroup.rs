//! How a sidecar finds its pod's cgroup from inside a container: in a cgroup namespace of its own, with mounts as runtimes make
//! them. The tables of layouts are beside the code (`sidecar-userspace/src/pod/tests`); here the kernel shows its own.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    cases::net::{ANY, TO_V4},
    harness::{Cgroup, PATIENCE, Puppet, Sidecar, World, bpf, eventually, patient},
};

/// A sidecar that is started as a container's first process is: by a shell in a cgroup namespace and a mount namespace of its
/// own. `$CGROUPS` is where cgroup v2 is mounted on this machine, `$HOST` an empty directory. It is `ready`, or has ended.
fn contained(world: &World, config: &str, before: &str, mounts: &str) -> Result<Sidecar> {
    let pod = &world.client;
    let host = pod.directory().join("host");
    fs::create_dir_all(&host)?;
    let (mount, host) = (Cgroup::mount()?, host.display().to_string());
    // The first shell is where the root of the namespace will be; the second sees it.
    let script = format!(
        "export CGROUPS={} HOST={host}\n{before}\nexec unshare --cgroup --mount sh -ec '{mounts}\nexec \"$0\" \"$@\"' \"$0\" \"$@\"",
        mount.display()
    );
    Sidecar::spawn_through(pod, config, "sh", &["-ec", &script])
}

/// The host's hierarchy at `$HOST`, and the container's own in its place. The kernel mounts no file system on itself.
const BOTH: &str = "mount --bind \"$CGROUPS\" \"$HOST\"; umount \"$CGROUPS\"; mount -t cgroup2 none \"$CGROUPS\"";
/// The container's own alone.
const OWN: &str = "umount \"$CGROUPS\"; mount -t cgroup2 none \"$CGROUPS\"";
/// The host's alone.
const HOST: &str = "mount --bind \"$CGROUPS\" \"$HOST\"; umount \"$CGROUPS\"";

/// It has found the pod: what an application of it opens is captured, and the log has the path.
fn captures(world: &World, sidecar: &mut Sidecar) -> Result<()> {
    sidecar.wait_until_ready(PATIENCE)?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    app.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1, "{}", sidecar.verdicts());
    let below_mount = world.client.cgroup().strip_prefix(Cgroup::mount()?)?.to_owned();
    let at = world.client.directory().join("host").join(below_mount);
    let told = sidecar.process.err.text();
    ensure!(told.contains(&format!("pod_cgroup={}", at.display())), "no {} in: {told}", at.display());
    ensure!(bpf::attached_programs(&world.client)? > 0, "nothing is attached to the pod");
    Ok(())
}

#[test]
fn a_namespace_of_its_own_and_the_hosts_mount_are_enough() -> Result<()> {
    for mounts in [BOTH, HOST] {
        let world = World::new()?;
        let mut sidecar = contained(&world, "{}", "", mounts)?;
        captures(&world, &mut sidecar).with_context(|| mounts.to_owned())?;
        // The pod is followed through that mount as well.
        sidecar.signal(Signal::SIGTERM)?;
        let status = sidecar.process.wait(PATIENCE)?;
        ensure!(status.code() == Some(0), "{status}{}", sidecar.process.output());
        ensure!(bpf::attached_programs(&world.client)? == 0, "{mounts}: something stays attached");
    }
    Ok(())
}

/// As crun has it: `libpod-….scope/container`, and the namespace's root there.
#[test]
fn a_cgroup_within_the_containers_own_is_not_taken_for_the_pods_child() -> Result<()> {
    let world = World::new()?;
    let container = world.client.cgroup().join(format!("libpod-{}.scope", "5".repeat(64)));
    let nested = container.join("container");
    fs::create_dir_all(&nested)?;
    let enter = format!("echo $$ > {}/cgroup.procs", nested.display());
    let mut sidecar = contained(&world, "{}", &enter, BOTH)?;
    captures(&world, &mut sidecar)?;
    // Whoever else runs in its container is no application.
    let mut command = std::process::Command::new("sleep");
    command.arg("1000");
    let beside = world.client.spawn(command)?;
    beside.move_to(&container)?;
    sidecar.signal(Signal::SIGTERM)?;
    let start = std::time::Instant::now();
    sidecar.process.wait(PATIENCE)?;
    ensure!(start.elapsed() < patient(Duration::from_secs(1)), "it waited for its own container");
    Ok(())
}

#[test]
fn without_the_hosts_mount_it_says_what_to_mount() -> Result<()> {
    let world = World::new()?;
    let mut sidecar = contained(&world, "{}", "", OWN)?;
    let status = sidecar.process.wait(PATIENCE)?;
    let said = sidecar.process.err.text();
    ensure!(status.code() == Some(1), "{status}: {said}");
    for part in ["above what is mounted at", "hostPath", "-v /sys/fs/cgroup:/host/cgroup:ro"] {
        ensure!(said.contains(part), "no {part} in: {said}");
    }
    ensure!(bpf::attached_programs(&world.client)? == 0);
    // The same words from the check, for whoever asks before.
    let mut check = contained_check(&world)?;
    let status = check.process.wait(PATIENCE)?;
    let report = check.process.out.text();
    let line = report.lines().find(|line| line.contains("pod cgroup")).context("no line about the pod's cgroup")?;
    ensure!(status.code() == Some(1) && line.starts_with("FAIL") && line.contains("hostPath"), "{report}");
    Ok(())
}

/// `sidecar check` in a container that sees only itself.
fn contained_check(world: &World) -> Result<Sidecar> {
    contained(world, "{}", "shift; set -- check \"$@\"", OWN)
}

#[test]
fn a_parent_that_holds_more_than_a_pod_is_refused() -> Result<()> {
    let world = World::new()?;
    let slice = world.client.cgroup().join("system.slice");
    let own = slice.join("sidecar.service");
    fs::create_dir_all(&own)?;
    let enter = format!("echo $$ > {}/cgroup.procs", own.display());
    let mut sidecar = contained(&world, "{}", &enter, BOTH)?;
    let status = sidecar.process.wait(PATIENCE)?;
    let said = sidecar.process.err.text();
    ensure!(status.code() == Some(1), "{status}: {said}");
    for part in ["system.slice", "holds more than one pod", "--cgroup-parent", "pod.cgroup"] {
        ensure!(said.contains(part), "no {part} in: {said}");
    }
    ensure!(bpf::attached_programs(&world.client)? == 0);
    Ok(())
}

/// By whichever mount the pod is named, the sidecar knows that it is in it, and does not move.
#[test]
fn a_configured_pod_may_be_named_by_the_hosts_mount() -> Result<()> {
    let world = World::new()?;
    let below_mount = world.client.cgroup().strip_prefix(Cgroup::mount()?)?.to_owned();
    let at = world.client.directory().join("host").join(below_mount);
    let mut sidecar = contained(&world, &format!("pod: {{ cgroup: {} }}", at.display()), "", BOTH)?;
    captures(&world, &mut sidecar)?;
    let own = fs::read_to_string(format!("/proc/{}/cgroup", sidecar.process.pid()))?;
    let name = world.client.sidecar_cgroup().strip_prefix(Cgroup::mount()?)?.to_owned();
    ensure!(own.lines().any(|line| line.strip_prefix("0::/").is_some_and(|path| Path::new(path) == name)), "{own}");
    Ok(())
}

#[test]
fn a_sidecar_that_is_moved_out_of_its_cgroup_says_so_and_is_not_ready() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    sidecar.process.move_to(world.client.app_cgroup())?;
    let noticed = || {
        let answer = world.client.get(15021, "/healthz/ready");
        answer.is_ok_and(|answer| answer.status == 503 && answer.body.contains("moved to another cgroup"))
    };
    ensure!(eventually(patient(Duration::from_secs(15)), noticed), "it does not notice{}", sidecar.process.output());
    sidecar.process.move_to(world.client.sidecar_cgroup())?;
    ensure!(eventually(patient(Duration::from_secs(15)), || sidecar.is_ready()), "{}", sidecar.process.output());
    Ok(())
}
