//! A look at the pod's sockets that fails is not the end of the fast path.

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    harness::{PATIENCE, Sidecar, Spawn, eventually, patient},
};

use super::{MIB, stage::Stage};

/// Changes how many descriptors the running supervisor may have.
fn limit_descriptors(sidecar: &Sidecar, soft: u64) -> Result<()> {
    let mut command = std::process::Command::new("prlimit");
    command.args(["--pid", &sidecar.process.pid().to_string(), &format!("--nofile={soft}:")]);
    Spawn::default().start(command)?.finish(PATIENCE).map(drop)
}

fn failed_looks(sidecar: &Sidecar) -> Result<f64> {
    Ok(sidecar.metrics()?.sum("sidecar_fast_path_failed_looks_total", &[]))
}

/// The lowest number that a new descriptor of the supervisor gets.
fn next_descriptor(sidecar: &Sidecar) -> Result<u64> {
    let directory = format!("/proc/{}/fd", sidecar.process.pid());
    let entries = std::fs::read_dir(&directory).with_context(|| directory.clone())?;
    let open = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?)).collect::<Result<Vec<u64>>>()?;
    (0..).find(|number| !open.contains(number)).context("a number that is free")
}

/// An iterator is a descriptor: without one there is no look, and what is enrolled can no longer be let go.
#[test]
fn fastpath_that_has_no_descriptor_for_a_look_is_off_says_so_once_and_comes_back() -> Result<()> {
    const WORDS: &str = "every byte goes by TCP until a look";
    let Some(mut stage) = Stage::forced()? else { return Ok(()) };
    let socket = stage.enrolled()?;
    let mut least = u64::MAX;
    let off = || {
        // A look that is under way holds numbers that are free after it.
        let Ok(next) = next_descriptor(&stage.sidecar) else { return false };
        if next < least {
            least = next;
            limit_descriptors(&stage.sidecar, least).expect("prlimit(1) changes the limit of a process");
        }
        stage.sidecar.fast_path().is_ok_and(|status| {
            status["on"] == false && status["why"].as_str().is_some_and(|why| why.contains("until a look succeeds"))
        })
    };
    ensure!(eventually(patient(PATIENCE), off), "{}", stage.sidecar.fast_path()?);
    let quiet = stage.redirected()?;
    stage.app.must(Order::Stream(socket, 4 * MIB, 20_000))?;
    ensure!(stage.redirected()? == quiet, "redirected while looks fail");
    ensure!(
        eventually(patient(PATIENCE), || failed_looks(&stage.sidecar).is_ok_and(|count| count >= 3.0)),
        "it no longer looks"
    );
    let refused = stage.command("on").expect_err("switched on while looks fail");
    ensure!(format!("{refused:#}").contains("until a look at the pod's sockets succeeds"), "{refused:#}");
    limit_descriptors(&stage.sidecar, 1024)?;
    let on = || stage.sidecar.fast_path().is_ok_and(|status| status["on"] == true);
    ensure!(eventually(patient(PATIENCE), on), "{}", stage.sidecar.fast_path()?);
    stage.await_enrolled(socket)?;
    stage.app.must(Order::Stream(socket, 4 * MIB, 20_000))?;
    ensure!(stage.redirected()? > quiet, "{}", stage.sidecar.verdicts());
    let told = stage.sidecar.process.output().to_string();
    ensure!(told.matches(WORDS).count() == 1, "{told}");
    Ok(())
}
