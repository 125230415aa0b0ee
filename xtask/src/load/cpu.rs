//! CPU time of cgroups over exactly the span that a client measures.

use crate::world::cgroup;
use anyhow::Result;
use std::{path::PathBuf, time::Duration};

/// Which cgroups to read.
#[derive(clap::Args)]
pub(crate) struct Cgroups {
    /// A cgroup whose CPU time is measured as well
    #[arg(long = "cpu", value_name = "CGROUP")]
    cgroups: Vec<PathBuf>,
}

/// The readings at the beginning of a span.
pub(super) struct Meter<'a> {
    cgroups: &'a [PathBuf],
    before: Vec<Duration>,
}

impl<'a> Meter<'a> {
    /// The span begins.
    pub(super) fn begin(args: &'a Cgroups) -> Result<Self> {
        Ok(Self { cgroups: &args.cgroups, before: read(&args.cgroups)? })
    }

    /// The span ends: microseconds used by each cgroup.
    pub(super) fn end(self) -> Result<Vec<u64>> {
        let after = read(self.cgroups)?;
        Ok(after.iter().zip(&self.before).map(|(after, before)| (*after - *before).as_micros() as u64).collect())
    }
}

fn read(cgroups: &[PathBuf]) -> Result<Vec<Duration>> {
    cgroups.iter().map(|path| cgroup::cpu(path)).collect()
}
