//! `cargo xtask run`: the freshly built sidecar in the place of this process.

use std::{ffi::OsString, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use crate::build;

/// Arguments of `run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments of `sidecar run`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Builds the sidecar and becomes it.
pub(crate) fn run(args: Args) -> Result<()> {
    let binary = build::sidecar()?;
    let error = Command::new(&binary).arg("run").args(args.args).exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}
