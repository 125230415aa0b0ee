//! Memory of a proxy.

use anyhow::{Context, Result};
use std::fs;

/// In bytes.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    /// Resident anonymous memory: heap and stacks.
    pub(super) anonymous: f64,
    /// Proportional set size: what is shared counts in parts.
    pub(super) pss: f64,
}

impl Memory {
    /// Of these processes together now.
    pub(super) fn of(pids: &[u32]) -> Result<Self> {
        let sum = |file, name| pids.iter().map(|pid| field(*pid, file, name)).sum::<Result<f64>>();
        Ok(Self { anonymous: sum("status", "RssAnon:")?, pss: sum("smaps_rollup", "Pss:")? })
    }
}

/// A line such as `Pss:     1234 kB`.
fn field(pid: u32, file: &str, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    value.map(|kilobytes| kilobytes * 1024.0).with_context(|| format!("{path} has no line {name}"))
}
