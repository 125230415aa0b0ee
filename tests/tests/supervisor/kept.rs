//! What the next worker has from the one before.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::harness::{PATIENCE, Sidecar, eventually};

use super::stage::{killed, stage};

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
