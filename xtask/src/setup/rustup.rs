//! Components of the running toolchain, from rustup.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// rustup has no limit of its own where its server cannot be reached.
const LIMIT_SECONDS: &str = "120";

pub(super) fn has_rustfmt() -> Result<bool> {
    Ok(process::find("cargo-fmt").is_some() && works("rustfmt"))
}

pub(super) fn has_clippy() -> Result<bool> {
    Ok(process::find("cargo-clippy").is_some() && works("clippy-driver"))
}

pub(super) fn add_rustfmt() -> Result<()> {
    add("rustfmt")
}

pub(super) fn add_clippy() -> Result<()> {
    add("clippy")
}

/// Adds a component to the running toolchain, within a time limit.
///
/// # Errors
/// When there is no rustup, or it fails, or takes too long.
pub(super) fn add(component: &str) -> Result<()> {
    if process::find("rustup").is_none() {
        bail!("there is no rustup on PATH to add the component {component} with");
    }
    let mut rustup = Command::new("timeout");
    // In the foreground, so that Ctrl-C reaches rustup too.
    rustup.args(["--foreground", "--kill-after=5", LIMIT_SECONDS, "rustup", "component", "add", component]);
    process::run(&mut rustup).with_context(|| format!("rustup did not add {component} (it has {LIMIT_SECONDS} s)"))
}

/// rustup leaves a proxy on PATH for components that are not installed; only running it tells.
fn works(program: &str) -> bool {
    process::output(Command::new(program).arg("--version")).is_ok()
}
