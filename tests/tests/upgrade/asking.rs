//! How a test asks for an upgrade.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use sidecar_tests::harness::{PATIENCE, Pod, Sidecar, Spawn, patient};

/// An executable file that is no build of ours.
pub(super) fn script(pod: &Pod, name: &str, text: &str) -> Result<String> {
    let (draft, path) = (pod.directory().join("draft"), pod.directory().join(name));
    fs::write(&draft, text)?;
    // Another process writes what is to be executed: one that is forked here meanwhile would hold it open for writing.
    let mut install = Command::new("install");
    install.args(["-m", "755"]).args([&draft, &path]);
    Spawn::default().start(install)?.finish(PATIENCE)?;
    Ok(path.to_str().context("a path of words")?.to_owned())
}

pub(super) fn command(pod: &Pod, args: &[&str]) -> Result<Command> {
    let mut command = Sidecar::program()?;
    command.arg("upgrade").args(args);
    if !args.contains(&"--timeout") {
        command.arg("--timeout").arg(takeover_limit().as_secs().to_string());
    }
    command.arg("--config").arg(pod.directory().join("sidecar.yaml"));
    Ok(command)
}

/// What a new binary gets by default, and more on a slow machine.
fn takeover_limit() -> Duration {
    patient(Duration::from_secs(30))
}

/// Upgrades the sidecar of this pod; what the command says.
pub(super) fn upgrade(pod: &Pod, args: &[&str]) -> Result<String> {
    pod.spawn_beside_sidecar(command(pod, args)?)?.finish(2 * takeover_limit())
}

/// An upgrade that fails; why.
pub(super) fn refused(pod: &Pod, args: &[&str]) -> Result<String> {
    let mut process = pod.spawn_beside_sidecar(command(pod, args)?)?;
    let status = process.wait(2 * takeover_limit())?;
    ensure!(status.code() == Some(1), "{status}{}", process.output());
    Ok(process.err.text())
}
