//! `cargo xtask test`: every test, and one summary line.

mod step;
mod tally;

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

pub(crate) use tally::Tally;

use crate::{
    build, fuzz, process,
    setup::{self, Group},
};

/// Arguments of `test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the QEMU kernels out
    #[arg(long)]
    pub(crate) fast: bool,
    /// Run only tests whose name contains one of these; leaves the QEMU kernels out
    #[arg(last = true)]
    pub(crate) filters: Vec<String>,
}

/// How long each fuzz target runs among the tests; `cargo xtask fuzz` is for longer.
const FUZZ_SECONDS: u32 = 5;

/// Runs every test; the last line says how many passed and failed.
pub(crate) fn run(args: Args) -> Result<()> {
    let mut tally = Tally::default();
    all(&args, &mut tally);
    tally.conclude()
}

/// Runs every step, each whatever became of those before it, unless it cannot be done without them.
pub(crate) fn all(args: &Args, tally: &mut Tally) {
    let kernels = !args.fast && args.filters.is_empty();
    let mut groups = vec![Group::Toolchain, Group::Tests, Group::Fuzz];
    if kernels {
        groups.push(Group::Vm);
    }
    tally.require("setup", || setup::ensure(&groups));
    tally.step("unit tests", |tally| unit(&args.filters, tally));
    if args.filters.is_empty() {
        tally.step("fuzzing", |tally| fuzz::each(FUZZ_SECONDS, &[], tally));
    }
    let binary = tally.require("build", build::sidecar);
    tally.step("integration tests", |tally| integration(built(&binary)?, &args.filters, tally));
    if kernels {
        tally.step("QEMU kernels", |tally| {
            built(&binary)?;
            virtual_machines(tally)
        });
    }
}

fn built(binary: &Option<std::path::PathBuf>) -> Result<&Path> {
    binary.as_deref().context("not run: the sidecar was not built")
}

/// Tests that need nothing but the code.
fn unit(filters: &[String], tally: &mut Tally) -> Result<()> {
    let mut run = |targets: &[&str]| {
        let mut test = of_workspace();
        test.args(targets).arg("--").args(filters);
        step::counted(&mut test, tally)
    };
    let (code, docs) = (run(&["--lib", "--bins"]), run(&["--doc"]));
    code.and(docs)
}

/// Tests on real namespaces and cgroups, of the release build.
fn integration(binary: &Path, filters: &[String], tally: &mut Tally) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("they load eBPF, which takes root: sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask test");
    }
    let mut test = of_workspace();
    for name in process::targets_in(&process::root().join("tests/tests"))? {
        test.args(["--test", &name]);
    }
    test.env("SIDECAR_BIN", binary).arg("--").args(filters);
    step::counted(&mut test, tally)
}

/// Of the whole workspace, whatever part of it is run: for fewer packages cargo would compile much of what they use again, with fewer
/// features.
fn of_workspace() -> Command {
    let mut test = process::cargo();
    test.args(["test", "--workspace", "--no-fail-fast"]);
    test
}

/// The integration tests inside QEMU, as far as a kernel decides their outcome: `cargo xtask vm`, in a process of its own so that its
/// verdict lines can be counted.
fn virtual_machines(tally: &mut Tally) -> Result<()> {
    let xtask = std::env::current_exe().context("cannot find this program")?;
    let mut vm = Command::new(xtask);
    step::counted(vm.args(["vm", "--decisive"]).current_dir(process::root()), tally)
}
