//! `cargo xtask fuzz`: random bytes against what reads bytes of strangers.
//!
//! The targets in tests/fuzz are laid out as cargo-fuzz wants them; this verb needs neither it nor a nightly compiler. LLVM's
//! own fuzzer finds its way by the code that its inputs reach; assertions and overflow checks are on.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    process,
    setup::{self, Group},
    test::Tally,
};

/// Arguments of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only these targets (names in tests/fuzz/fuzz_targets)
    targets: Vec<String>,
}

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Coverage as LLVM's fuzzer reads it (clang's SanitizerCoverage).
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table";

/// Builds the targets and runs each.
pub(crate) fn run(args: Args) -> Result<()> {
    setup::ensure(&[Group::Fuzz])?;
    let mut tally = Tally::default();
    each(args.seconds, &args.targets, &mut tally)?;
    tally.conclude()
}

/// Builds the targets and runs each, or those that are named, for so long. A target counts as a test.
pub(crate) fn each(seconds: u32, wanted: &[String], tally: &mut Tally) -> Result<()> {
    let folder = process::root().join("tests/fuzz");
    let output = process::root().join("target/fuzz");
    let mut build = process::cargo();
    build.current_dir(&folder).env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", &output);
    process::run(build.args(["build", "--locked", "--release", "--target", TRIPLE]))?;
    for target in targets(&folder)? {
        if !wanted.is_empty() && !wanted.contains(&target) {
            continue;
        }
        let found = output.join("found").join(&target);
        fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
        let mut fuzz = Command::new(output.join(TRIPLE).join("release").join(&target));
        fuzz.args([format!("-max_total_time={seconds}"), "-timeout=5".into()]);
        fuzz.arg(format!("-artifact_prefix={}/", found.display()));
        // What it says of its ways is of interest only when it has found something.
        let output = fuzz.output().with_context(|| format!("run {}", process::line(&fuzz)))?;
        tally.check(output.status.success());
        if output.status.success() {
            println!("fuzz {target} for {seconds} s ... ok");
        } else {
            println!("{}", String::from_utf8_lossy(&output.stderr));
            println!("fuzz {target} ... FAILED: {}; the input is in {}", output.status, found.display());
        }
    }
    Ok(())
}

fn targets(folder: &Path) -> Result<Vec<String>> {
    process::targets_in(&folder.join("fuzz_targets"))
}
