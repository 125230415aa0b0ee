//! The command line.

mod answer;
pub mod ca;
pub mod check;
pub mod config;
pub mod drain;
pub mod fastpath;
pub mod init;
pub mod policy;
pub mod upgrade;
pub mod wait;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};

use crate::{app, config as configuration, control, supervisor};

/// A transparent networking sidecar.
#[derive(Debug, Parser)]
#[command(name = "sidecar", version, about, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Capture the pod's connections and carry them.
    Run(config::SourceArgs),
    /// Attach the capture to the pod and pin it there, for sidecars that have no right to, and end.
    Init(init::InitArgs),
    /// Wait until the sidecar of this pod carries connections.
    Wait(wait::WaitArgs),
    /// Carry connections for the supervisor at the other end of standard input.
    #[command(name = control::COMMAND, hide = true)]
    Worker,
    /// Tell whether this machine and pod offer what the sidecar needs, a line for each.
    Check(config::SourceArgs),
    /// Have the sidecar of this pod drain and end, as SIGTERM does, and wait for its end.
    Drain(drain::DrainArgs),
    /// Have a new binary take the place of the one that runs in this pod, and wait for the outcome.
    Upgrade(upgrade::UpgradeArgs),
    /// Tell what a running sidecar must know before this binary takes its place.
    #[command(name = supervisor::FACTS, hide = true)]
    HandoverFacts,
    /// Go on with what the binary before has left behind a descriptor.
    #[command(name = supervisor::TAKE_OVER, hide = true)]
    TakeOver {
        /// Its number.
        descriptor: i32,
        /// Fail at this program, as if the kernel refused it, to see that everything is given back; `take-over`: crash when all
        /// is done but the word that it is.
        #[arg(long, value_name = "PROGRAM")]
        refuse: Option<String>,
    },
    /// Have the supervisor go back to the binary before if the new one does not take over.
    #[command(name = supervisor::STAND_BY, hide = true)]
    StandBy {
        /// Milliseconds that it may take.
        patience: u64,
    },
    /// Make and use the embedded certificate authority.
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Check, show and describe the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Ask a running sidecar about its fast path, and switch it.
    #[command(subcommand)]
    Fastpath(fastpath::FastPathCommand),
    /// Ask the rules of a configuration who may connect.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
}

/// Does what the command line says.
pub fn run(arguments: &Arguments) -> ExitCode {
    match &arguments.command {
        Command::Run(sources) => with_config(sources, |loaded| {
            supervisor::run(loaded).unwrap_or_else(|error| answer::fail(error, answer::FAILED))
        }),
        Command::Init(arguments) => with_config(&arguments.sources, |loaded| init::run(arguments, &loaded.config)),
        Command::Wait(arguments) => with_config(&arguments.sources, |loaded| wait::run(arguments, &loaded.config)),
        Command::Worker => app::run().unwrap_or_else(|error| answer::fail(error, answer::FAILED)),
        Command::Check(sources) => with_config(sources, |loaded| check::run(&loaded.config)),
        Command::Drain(arguments) => with_config(&arguments.sources, |loaded| drain::run(arguments, &loaded.config)),
        Command::Upgrade(arguments) => {
            with_config(&arguments.sources, |loaded| upgrade::run(arguments, &loaded.config))
        }
        Command::HandoverFacts => upgrade::tell_facts(),
        Command::TakeOver { descriptor, refuse } => supervisor::take_over(*descriptor, refuse.clone())
            .unwrap_or_else(|error| answer::fail(error, answer::FAILED)),
        Command::StandBy { patience } => supervisor::stand_by(Duration::from_millis(*patience)),
        Command::Ca(command) => ca::run(command),
        Command::Config(command) => config::run(command),
        Command::Fastpath(command) => with_config(command.sources(), |loaded| fastpath::run(command, &loaded.config)),
        Command::Policy(command) => policy::run(command),
    }
}

fn with_config(sources: &config::SourceArgs, then: impl FnOnce(configuration::Loaded) -> ExitCode) -> ExitCode {
    match configuration::load(&sources.sources()) {
        Ok(loaded) => then(loaded),
        Err(faults) => answer::faulty(&faults),
    }
}
