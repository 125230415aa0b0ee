//! The `sidecar` command.

use std::process::ExitCode;

use clap::Parser;
use sidecar::cli::{self, Arguments};

fn main() -> ExitCode {
    cli::run(&Arguments::parse())
}
