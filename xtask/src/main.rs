//! The project's own commands, run as `cargo xtask <verb>`.
//!
//! One file per verb. `xtask` never links the crates it builds: it must work before they do.

mod archive;
mod bench;
mod build;
mod churn;
mod ci;
mod demo;
mod fuzz;
mod interrupt;
mod lab;
mod load;
mod process;
mod random;
mod run;
mod scale;
mod scratch;
mod setup;
mod soak;
mod test;
mod tidy;
mod upgrades;
mod vm;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building, testing and the demo need; does nothing the second time
    Setup(setup::Args),
    /// Build the sidecar in release mode, the eBPF object included
    Build(build::Args),
    /// Build the sidecar and run `sidecar run` with the arguments given
    Run(run::Args),
    /// Show the sidecar at work on real software, in a minute
    Demo(demo::Args),
    /// Run every test: unit, integration on this kernel, and on the QEMU kernels what a kernel decides
    Test(test::Args),
    /// Run the integration tests inside QEMU on other kernels
    Vm(vm::Args),
    /// Measure the sidecar beside its alternatives
    Bench(bench::Args),
    /// Measure what other uses of sockmaps would win, on loopback, without a sidecar
    Lab(lab::Args),
    /// Churn connections through sidecars, and see that nothing is left behind
    Churn(churn::Args),
    /// Run many pods at once, each with its sidecar
    Scale(scale::Args),
    /// Do to two sidecars under load what can happen to them, and count every request
    Soak(soak::Args),
    /// Upgrade two sidecars under load again and again, and see that nobody notices
    Upgrades(upgrades::Args),
    /// Throw random bytes at what reads bytes of strangers
    Fuzz(fuzz::Args),
    /// Check formatting, lints and the rules of the house
    Tidy(tidy::Args),
    /// What continuous integration runs: tidy, then test
    Ci(ci::Args),
    /// Clients and servers that the demo and the bench run inside their pods
    #[command(hide = true)]
    Load(load::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(args),
        Verb::Build(args) => build::run(args),
        Verb::Run(args) => run::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Test(args) => test::run(args),
        Verb::Vm(args) => vm::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Lab(args) => lab::run(&args),
        Verb::Churn(args) => churn::run(args),
        Verb::Scale(args) => scale::run(args),
        Verb::Soak(args) => soak::run(args),
        Verb::Upgrades(args) => upgrades::run(args),
        Verb::Fuzz(args) => fuzz::run(args),
        Verb::Tidy(args) => tidy::run(args),
        Verb::Ci(args) => ci::run(args),
        Verb::Load(args) => load::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Reported>() => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A failure that has been shown already: only the exit code is left to say, so that a summary stays the last line.
#[derive(Debug)]
pub(crate) struct Reported;

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the failure is described above")
    }
}

impl std::error::Error for Reported {}
