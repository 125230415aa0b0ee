//! What each of the two processes has, and what the worker has not.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use sidecar_tests::harness::{PATIENCE, Sidecar, Spawn, bpf};

use super::stage::stage;

const NO_CAPABILITY: &str = "0000000000000000";

/// Memory of its own of a supervisor that does nothing but wait, in KiB; half a debug build's is what its relocations cost.
const LEAN: u64 = 3072;

#[test]
fn the_worker_has_no_privilege_and_nothing_of_the_kernel_side() -> Result<()> {
    let stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.client, "{}")?;
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let has = sidecar.worker_status(set)?;
        ensure!(has == NO_CAPABILITY, "{set} {has}");
    }
    ensure!(sidecar.worker_status("NoNewPrivs:")? == "1" && sidecar.worker_status("Seccomp:")? == "2");
    let worker = sidecar.worker()?;
    for task in fs::read_dir(format!("/proc/{worker}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let has = |line: &str| status.lines().any(|found| found.split_whitespace().collect::<String>() == line);
        ensure!(has(&format!("CapEff:{NO_CAPABILITY}")) && has("Seccomp:2"), "a thread has more: {status}");
    }
    for entry in fs::read_dir(format!("/proc/{worker}/fdinfo"))? {
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        ensure!(!["map_id:", "prog_id:", "link_id:"].iter().any(|of_bpf| info.contains(of_bpf)), "{info}");
    }
    Ok(())
}

#[test]
fn the_worker_is_another_user_if_the_configuration_names_one() -> Result<()> {
    let mut stage = stage()?;
    let mut sidecar = Sidecar::start(&stage.world.client, "proxy: { user: '1337:1338' }")?;
    ensure!(sidecar.worker_status("Uid:")? == "1337\t1337\t1337\t1337");
    ensure!(sidecar.worker_status("Gid:")? == "1338\t1338\t1338\t1338");
    ensure!(sidecar.worker_status("Groups:")?.is_empty());
    ensure!(!stage.goes_direct()?, "it does not capture");
    ensure!(sidecar.metrics()?.sum("process_open_fds", &[]) > 0.0, "it cannot read its own figures");
    sidecar.kill()?;
    for (missing, named) in [("setuid", "CAP_SETUID"), ("kill", "CAP_KILL")] {
        let without = [format!("--bounding-set=-{missing}"), format!("--inh-caps=-{missing}")];
        let without = without.each_ref().map(String::as_str);
        let mut refused = Sidecar::spawn_through(&stage.world.client, "proxy: { user: '1337' }", "setpriv", &without)?;
        let status = refused.process.wait(PATIENCE)?;
        let said = refused.process.err.tail();
        ensure!(status.code() == Some(1) && said.contains("sidecar: proxy.user: ") && said.contains(named), "{said}");
    }
    ensure!(bpf::attached_programs(&stage.world.client)? == 0);
    Ok(())
}

/// Whether a process of the same user without capabilities, as an application may be, can look into the memory of another.
fn readable_without_capabilities(pid: Pid) -> Result<bool> {
    let none = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"];
    let output = Command::new("setpriv").args(none).arg("cat").arg(format!("/proc/{pid}/maps")).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() || said.contains("Permission denied"), "{said}");
    Ok(output.status.success() && !output.stdout.is_empty())
}

#[test]
fn the_workers_memory_is_closed_to_other_processes_of_its_user() -> Result<()> {
    let stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.client, "{}")?;
    let mut like_it = Command::new("setpriv");
    like_it.args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "sh", "-c", "echo ready; read end"]);
    let other = Spawn::default().start(like_it)?;
    ensure!(other.out.wait_for(PATIENCE, |lines| lines.iter().any(|line| line == "ready").then_some(())).is_some());
    ensure!(readable_without_capabilities(other.pid())?, "what is open to its user is not found open");
    ensure!(!readable_without_capabilities(sidecar.worker()?)?, "the worker can be looked into");
    Ok(())
}

#[test]
fn a_worker_that_nobody_supervises_says_so() -> Result<()> {
    let mut command = Sidecar::program()?;
    command.arg("worker");
    let mut alone = Spawn::default().start(command)?;
    let status = alone.wait(PATIENCE)?;
    let said = alone.err.text();
    ensure!(
        status.code() == Some(1) && said.contains("`sidecar worker` is started by `sidecar run`"),
        "{status}: {said}"
    );
    Ok(())
}

#[test]
fn the_supervisor_is_lean() -> Result<()> {
    let stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.client, "{}")?;
    let pid = sidecar.process.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let number = |key: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    if number("Threads:")? != 1 {
        bail!("it has more than one thread: {status}");
    }
    ensure!(number("RssAnon:")? < LEAN, "{} KiB", number("RssAnon:")?);
    Ok(())
}
