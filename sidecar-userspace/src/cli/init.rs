//! `sidecar init`: what needs privileges is done once, for sidecars that have none.

use std::process::ExitCode;

use super::{
    answer::{DONE, FAILED, fail, say},
    config::SourceArgs,
};
use crate::{
    config::Config,
    pod::Pod,
    redirect::{self, Pinned, Step},
    telemetry,
};

/// Arguments of `sidecar init`.
#[derive(Clone, Debug, clap::Args)]
pub struct InitArgs {
    /// The configuration of the sidecar that is to come.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Die in the middle, as a crash would have it, to see that it is repaired.
    #[arg(long, value_enum, hide = true)]
    stop_after: Option<Step>,
}

/// Loads, attaches and pins, and says where.
pub fn run(args: &InitArgs, config: &Config) -> ExitCode {
    // It ends with the process.
    let _log = match telemetry::log::init(&config.telemetry) {
        Ok(log) => log,
        Err(error) => return fail(error, FAILED),
    };
    for way in config.ways_past_strict() {
        tracing::warn!("{way}");
    }
    let pinned = Pod::enter(&config.pod)
        .map_err(redirect::Error::from)
        .and_then(|pod| redirect::init(&pod, config, args.stop_after));
    match pinned {
        Ok(Pinned { directory, kept: false }) => {
            say(&format!("attached, and pinned in {}\n", directory.display()), DONE, FAILED)
        }
        Ok(Pinned { directory, kept: true }) => {
            say(&format!("attached already, brought up to date in {}\n", directory.display()), DONE, FAILED)
        }
        Err(error) => fail(error, FAILED),
    }
}
