//! `cargo xtask ci`: what continuous integration runs.

use anyhow::Result;

use crate::{
    test::{self, Tally},
    tidy,
};

/// Arguments of `ci`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the QEMU kernels out
    #[arg(long)]
    fast: bool,
}

/// Tidy, then test, each whatever became of the other; one summary line counts both.
pub(crate) fn run(args: Args) -> Result<()> {
    let mut tally = Tally::default();
    tidy::all(&mut tally);
    test::all(&test::Args { fast: args.fast, filters: Vec::new() }, &mut tally);
    tally.conclude()
}
