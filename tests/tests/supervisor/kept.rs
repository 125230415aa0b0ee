//! What the next worker has from the one before.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use sidecar_tests::harness::{PATIENCE, Sidecar, eventually};

use super::stage::{killed, stage, successor};

#[test]
fn the_next_worker_has_the_rules_that_were_in_force_whatever_the_file_says() -> Result<()> {
    let stage = stage()?;
    let pod = &stage.world.client;
    let rule = |name: &str| format!("authorization:\n- {{ name: {name}, action: deny, ports: [9] }}\n");
    let sidecar = Sidecar::start(pod, &rule("first"))?;
    let in_force = || -> Result<(f64, String)> {
        let dump: serde_json::Value = serde_json::from_str(&pod.get(15000, "/config_dump")?.body)?;
        let name = dump["authorization"][0]["name"].as_str().context("no rule")?.to_owned();
        Ok((sidecar.metrics()?.sum("sidecar_config_generation", &[]), name))
    };
    let becomes = |generation: f64, name: &str| -> Result<()> {
        let expected = (generation, name.to_owned());
        let is = eventually(PATIENCE, || in_force().is_ok_and(|now| now == expected));
        ensure!(is, "{:?}, not {expected:?}{}", in_force()?, sidecar.process.output());
        Ok(())
    };
    let write = |config: &str| fs::write(pod.directory().join("sidecar.yaml"), config);
    becomes(1.0, "first")?;
    // Nobody has asked for this one to be read.
    write("proxy: { workers: none }\n")?;
    killed(&sidecar)?;
    becomes(1.0, "first")?;
    write(&rule("second"))?;
    sidecar.signal(Signal::SIGHUP)?;
    becomes(2.0, "second")?;
    killed(&sidecar)?;
    becomes(2.0, "second")?;
    write("authorization: nonsense\n")?;
    sidecar.signal(Signal::SIGHUP)?;
    let told = || sidecar.process.err.text().contains("the one before stays in force");
    ensure!(eventually(PATIENCE, told), "{}", sidecar.process.output());
    killed(&sidecar)?;
    becomes(2.0, "second")?;
    fs::remove_file(pod.directory().join("sidecar.yaml"))?;
    sidecar.signal(Signal::SIGHUP)?;
    let failed = || sidecar.metrics().is_ok_and(|now| now.sum("sidecar_config_last_reload_success", &[]) == 0.0);
    ensure!(eventually(PATIENCE, failed), "{}", sidecar.process.output());
    becomes(2.0, "second")
}

/// The supervisor reads it, on a thread of its own.
#[test]
fn a_configuration_that_is_as_deep_as_may_be_is_refused_at_reload_and_nothing_has_changed() -> Result<()> {
    let stage = stage()?;
    let pod = &stage.world.client;
    let sidecar = Sidecar::start(pod, "{}\n")?;
    let processes = sidecar.pids();
    let deep = format!("authorization: {}{}\n", "[".repeat(15), "]".repeat(15));
    fs::write(pod.directory().join("sidecar.yaml"), deep)?;
    sidecar.signal(Signal::SIGHUP)?;
    let told = || sidecar.process.err.text().contains("the one before stays in force");
    ensure!(eventually(PATIENCE, told) && sidecar.pids() == processes, "{}", sidecar.process.output());
    Ok(())
}

/// A volume that does not answer.
#[test]
fn a_configuration_whose_reading_hangs_keeps_nobody_from_one_that_can_be_read() -> Result<()> {
    let stage = stage()?;
    let pod = &stage.world.client;
    let file = pod.directory().join("sidecar.yaml");
    let sidecar = Sidecar::start(pod, "{}")?;
    fs::remove_file(&file)?;
    mkfifo(&file, Mode::S_IRWXU)?;
    sidecar.signal(Signal::SIGHUP)?;
    let supervisor = sidecar.process.pid();
    let reads = || {
        let threads = fs::read_dir(format!("/proc/{supervisor}/task")).into_iter().flatten().flatten();
        let mut names = threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
        names.any(|name| name == "configuration\n")
    };
    ensure!(eventually(PATIENCE, reads), "nobody reads it{}", sidecar.process.output());
    fs::remove_file(&file)?;
    fs::write(&file, "authorization:\n- { name: late, action: deny, ports: [9] }\n")?;
    let in_force = || {
        let dump = pod.get(15000, "/config_dump").map(|answer| answer.body);
        sidecar.signal(Signal::SIGHUP).is_ok() && dump.is_ok_and(|dump| dump.contains("late"))
    };
    ensure!(eventually(PATIENCE, in_force), "it is not in force{}", sidecar.process.output());
    Ok(())
}

#[test]
fn two_configurations_in_a_row_are_not_taken_for_each_other() -> Result<()> {
    let stage = stage()?;
    let pod = &stage.world.client;
    let config = |name: &str| {
        format!("proxy: {{ hung_after: 10m }}\nauthorization:\n- {{ name: {name}, action: deny, ports: [9] }}\n")
    };
    let sidecar = Sidecar::start(pod, &config("first"))?;
    let is_in_force = |name: &str| -> Result<()> {
        let dump = || pod.get(15000, "/config_dump").map(|dump| dump.body).unwrap_or_default();
        ensure!(eventually(PATIENCE, || dump().contains(name)), "not {name}: {}{}", dump(), sidecar.process.output());
        Ok(())
    };
    // The supervisor has one in memory for each that was read and not answered.
    let offers = |text: &str, held: usize| -> Result<()> {
        fs::write(pod.directory().join("sidecar.yaml"), text)?;
        sidecar.signal(Signal::SIGHUP)?;
        let holds = || configurations(sidecar.process.pid()).is_ok_and(|found| found == held);
        ensure!(eventually(PATIENCE, holds), "{:?}", configurations(sidecar.process.pid()));
        Ok(())
    };
    let worker = sidecar.worker()?;
    kill(worker, Signal::SIGSTOP)?;
    offers(&config("second"), 2)?;
    offers("authorization: nonsense\n", 3)?;
    kill(worker, Signal::SIGCONT)?;
    let told = || sidecar.process.err.text().contains("the one before stays in force");
    ensure!(eventually(PATIENCE, told), "{}", sidecar.process.output());
    let failed = || sidecar.metrics().is_ok_and(|now| now.sum("sidecar_config_last_reload_success", &[]) == 0.0);
    for _ in 0..2 {
        is_in_force("second")?;
        ensure!(eventually(PATIENCE, failed), "a new worker says that the last one read had no fault");
        killed(&sidecar)?;
    }
    // What one worker did not answer is offered to the next.
    let worker = sidecar.worker()?;
    is_in_force("second")?;
    kill(worker, Signal::SIGSTOP)?;
    offers(&config("third"), 3)?;
    offers("authorization: nonsense\n", 4)?;
    kill(worker, Signal::SIGKILL)?;
    successor(&sidecar, worker)?;
    is_in_force("third")?;
    killed(&sidecar)?;
    is_in_force("third")
}

/// Configurations that a process holds in memory.
fn configurations(process: Pid) -> Result<usize> {
    let links = fs::read_dir(format!("/proc/{process}/fd"))?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(links.filter(|link| link.to_string_lossy().contains("sidecar-configuration")).count())
}

#[test]
fn what_somebody_wants_in_the_log_is_in_it_after_a_restart() -> Result<()> {
    let stage = stage()?;
    let pod = &stage.world.client;
    let sidecar = Sidecar::start(pod, "{}")?;
    let level = || -> Result<String> { Ok(pod.get(15000, "/logging")?.body) };
    let before = level()?;
    ensure!(before.contains("info"), "{before}");
    let mut curl = Command::new("curl");
    curl.args(["-s", "-XPOST", "http://127.0.0.1:15000/logging?level=warn"]);
    pod.spawn_beside_sidecar(curl)?.finish(PATIENCE)?;
    ensure!(level()?.contains("warn"));
    killed(&sidecar)?;
    ensure!(eventually(PATIENCE, || level().is_ok_and(|now| now.contains("warn"))), "{}", level()?);
    Ok(())
}
