//! The harness itself: what it makes works, and nothing of it stays.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    cases::net::{ANY, TO_V4, TO_V6},
    harness::{Cgroup, Metrics, PATIENCE, Puppet, Spawn, World, bpf, sweep},
};

#[test]
fn two_pods_reach_each_other_and_themselves() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut client = Puppet::start(&world.client)?;
    let local = client.visit(TO_V4)?;
    client.visit(TO_V6)?;
    let accepted = server.accepted()?;
    ensure!(accepted.len() == 2 && accepted[0].port() == local.port(), "{accepted:?}");
    ensure!(bpf::attached_programs(&world.client)? == 0);
    Ok(())
}

#[test]
fn applications_are_in_their_pods_cgroup_and_namespace() -> Result<()> {
    let world = World::new()?;
    let seen = world.client.run("sh", ["-c", "grep ^0: /proc/self/cgroup; readlink /proc/self/ns/net"])?;
    let path = world.client.app_cgroup().strip_prefix(Cgroup::mount()?)?.display().to_string();
    ensure!(seen.lines().next().is_some_and(|line| line.ends_with(&path)), "{seen} {path}");
    ensure!(seen.lines().nth(1) != fs::read_link("/proc/self/ns/net")?.to_str());
    Ok(())
}

#[test]
fn a_world_is_removed_with_its_processes_also_after_a_panic() -> Result<()> {
    let world = World::new()?;
    let (cgroup, files) = (world.client.cgroup().to_owned(), world.client.directory().to_owned());
    let mut command = Command::new("sh");
    // One that the harness does not know.
    command.args(["-c", "sleep 1000 & echo $!; wait"]);
    let process = world.client.spawn(command)?;
    let orphan = process.out.wait_for(PATIENCE, |lines| lines.first().cloned()).context("no process id")?;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _world = world;
        // Without the hook, which would print this as if it were a failure.
        std::panic::resume_unwind(Box::new("a failed test"));
    }));
    ensure!(outcome.is_err() && !cgroup.exists() && !files.exists());
    ensure!(!fs::exists(format!("/proc/{orphan}/exe"))? || fs::read_link(format!("/proc/{orphan}/exe")).is_err());
    Ok(())
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() -> Result<()> {
    let mut gone = Command::new("true").spawn()?;
    gone.wait()?;
    let mount = Cgroup::mount()?;
    let name = format!("sidecar-test-{}-0", gone.id());
    let (left, files) = (mount.join(&name), Path::new("/tmp").join(&name));
    fs::create_dir_all(left.join("client/app"))?;
    fs::create_dir_all(files.join("client"))?;
    let mut command = Command::new("sleep");
    command.arg("1000");
    let mut sleeper = Spawn { cgroup: Some(&left.join("client/app")), ..Spawn::default() }.start(command)?;
    sweep(&mount);
    ensure!(!left.exists() && !files.exists());
    sleeper.wait(PATIENCE)?;
    Ok(())
}

#[test]
fn a_failing_application_is_reported_with_what_it_said() -> Result<()> {
    let world = World::new()?;
    let failed = world.client.run("sh", ["-c", "echo to stdout; echo to stderr >&2; exit 3"]);
    let message = format!("{:#}", failed.err().context("it succeeded")?);
    for part in ["to stdout", "to stderr", "exit status: 3"] {
        ensure!(message.contains(part), "{message}");
    }
    Ok(())
}

#[test]
fn a_foreign_program_is_seen_and_lets_connections_pass() -> Result<()> {
    for shared in [true, false] {
        let world = World::new()?;
        bpf::attach_foreign_connect4(world.client.cgroup(), shared)?;
        ensure!(bpf::attached_programs(&world.client)? == 1);
        let _server = Puppet::serving(&world.server, ANY)?;
        Puppet::start(&world.client)?.visit(TO_V4)?;
    }
    Ok(())
}

#[test]
fn samples_are_summed_by_their_labels() -> Result<()> {
    let text = "# TYPE a counter\na{x=\"1\",y=\"with \\\"quotes\\\", }\"} 2\na{x=\"1\"} 3\na{x=\"2\"} 10\nb 1.5e3\n";
    let metrics = Metrics::parse(text)?;
    ensure!(metrics.sum("a", &[("x", "1")]) == 5.0);
    ensure!(metrics.sum("a", &[("y", "with \"quotes\", }")]) == 2.0);
    ensure!(metrics.sum("b", &[]) == 1500.0 && metrics.sum("c", &[]) == 0.0);
    Ok(())
}
