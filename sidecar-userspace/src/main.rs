//! The `sidecar` command.

use std::process::ExitCode;

use clap::Parser;
use sidecar::{
    cli::{self, Arguments},
    lifecycle::startup,
};

fn main() -> ExitCode {
    startup::begin();
    cli::run(&Arguments::parse())
}
