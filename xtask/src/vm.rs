//! `cargo xtask vm`: the integration suite inside QEMU, on kernels other than this machine's.
//!
//! vm-tests/kernels.toml names the kernels. Each is fetched from Debian's archive, booted with the init in vm-tests,
//! and judged by what it says on its serial console. The guest's file system is this machine's own, read-only through
//! 9p below a tmpfs, so the suite finds every program it uses.

mod apt;
mod console;
mod initramfs;
mod kernels;
mod modules;
mod qemu;
mod series;
mod suite;

use crate::{interrupt, process};
use anyhow::{Context as _, bail};
use kernels::Kernels;
use qemu::Limits;
use series::{Ready, Series};
use std::fs;
use std::ops::AddAssign;
use std::path::PathBuf;
use std::time::Duration;
use suite::Suite;

/// Arguments of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kernels of vm-tests/kernels.toml; all of them if none is named
    kernels: Vec<String>,
    /// Arguments for every test binary: a part of the names of the tests to run, or `--skip` and such a part
    #[arg(last = true)]
    arguments: Vec<String>,
    /// Leave out the test binaries whose outcome no kernel decides
    #[arg(long, conflicts_with = "arguments")]
    decisive: bool,
    /// Show the console while it runs
    #[arg(long, short)]
    verbose: bool,
    /// Seconds a kernel may take from power-on to its verdict
    #[arg(long, default_value_t = 1800)]
    time_limit: u64,
    /// Seconds a kernel may be silent
    #[arg(long, default_value_t = 300)]
    silence_limit: u64,
}

/// The tests of one kernel or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Tests that passed.
    pub(crate) passed: usize,
    /// Tests that failed, and faults that are no test's: a hang, a kernel's warning, an undeclared skip.
    pub(crate) failed: usize,
    /// Tests that were skipped as kernels.toml allows.
    pub(crate) skipped: usize,
}

/// Runs the verb.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let totals = run_with(&args)?;
    if totals.failed > 0 {
        bail!("{} failed; {} passed; {} skipped", totals.failed, totals.passed, totals.skipped);
    }
    Ok(())
}

fn run_with(args: &Args) -> anyhow::Result<Totals> {
    let _caught = interrupt::catch()?;
    let kernels = Kernels::read(&args.kernels)?;
    let directory = target_directory().join("vm");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;

    let ready =
        kernels.kernels.iter().map(|kernel| Ready::new(kernel, &kernels.modules)).collect::<Result<Vec<_>, _>>()?;
    let limits =
        Limits { total: Duration::from_secs(args.time_limit), silence: Duration::from_secs(args.silence_limit) };
    let mut suite = Suite::build()?;
    let mut skipped: Vec<_> = kernels.leave_out.iter().map(|(test, reason)| (test.clone(), reason)).collect();
    if args.decisive {
        kernels.indifferent.iter().try_for_each(|(binary, reason)| {
            println!("left out all of {binary}: {reason}");
            suite.leave_out(binary)
        })?;
        skipped.extend(kernels.indifferent_layouts.iter().map(|(layout, reason)| (format!("::{layout}"), reason)));
    }
    let mut arguments = args.arguments.clone();
    for (test, reason) in skipped {
        println!("left out {test}: {reason}");
        arguments.extend(["--skip".to_owned(), test]);
    }
    let series = Series { suite, limits, arguments, verbose: args.verbose, directory };
    let accelerator = series.accelerator(ready.first().context("vm-tests/kernels.toml names no kernel")?)?;

    let mut totals = Totals::default();
    for kernel in &ready {
        totals += series.run(kernel, accelerator)?;
    }
    Ok(totals)
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Where cargo, which is started in the root directory, puts what it builds.
fn target_directory() -> PathBuf {
    process::root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
