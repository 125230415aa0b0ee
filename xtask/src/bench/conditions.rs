//! Under which conditions the figures hold.

use super::{
    Extent, envoy, event_loops,
    rig::{self, Kit},
};
use crate::process;
use anyhow::{Context, Result};
use std::{collections::BTreeMap, fs, process::Command, thread};

/// Names and values, for the table and the file.
pub(super) struct Conditions {
    /// When the run began, in UTC, fit for a file name.
    pub(super) date: String,
    /// Everything else.
    pub(super) facts: BTreeMap<&'static str, String>,
}

impl Conditions {
    /// Reads them before the first round.
    pub(super) fn read(extent: &Extent, kit: &Kit) -> Result<Self> {
        let date = said(Command::new("date").args(["--utc", "+%Y-%m-%dT%H-%M-%SZ"]))?;
        let mut facts = BTreeMap::from([
            ("kernel", read("/proc/sys/kernel/osrelease")?),
            ("cpu", cpu_model()?),
            ("cores", thread::available_parallelism().context("count the cores")?.to_string()),
            ("load average at the start", read("/proc/loadavg")?),
            ("rounds", extent.rounds.to_string()),
            ("seconds per span of requests", extent.seconds.to_string()),
            ("bytes per stream", extent.bytes.to_string()),
            ("bytes per stream of an event loop", event_loops::STREAM.to_owned()),
            ("pods", rig::pods()),
        ]);
        // A checkout without history is no reason not to measure.
        if let Ok(commit) =
            said(Command::new("git").current_dir(process::root()).args(["describe", "--always", "--dirty"]))
        {
            facts.insert("commit", commit);
        }
        if let Some(sidecar) = &kit.sidecar {
            facts.insert("sidecar", said(Command::new(sidecar).arg("--version"))?);
        }
        if let Ok((_, iptables)) = &kit.envoy {
            facts.insert("envoy", format!("{}, {}", envoy::VERSION, iptables.name()));
        }
        Ok(Self { date, facts })
    }
}

fn said(command: &mut Command) -> Result<String> {
    Ok(process::output(command)?.trim().to_owned())
}

fn read(path: &str) -> Result<String> {
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

fn cpu_model() -> Result<String> {
    let info = read("/proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(model.map_or_else(|| "unknown".to_owned(), |(_, model)| model.to_owned()))
}
