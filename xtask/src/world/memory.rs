//! Memory of processes.

use super::cgroup;
use anyhow::{Context, Result};
use std::{
    fs,
    iter::Sum,
    ops::Add,
    path::{Path, PathBuf},
};

/// In bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Resident anonymous memory: heap and stacks.
    pub(crate) anonymous: f64,
    /// Proportional set size: what is shared counts in parts.
    pub(crate) pss: f64,
}

impl Memory {
    /// Of this process now.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Ok(Self { anonymous: field(pid, "status", "RssAnon:")?, pss: field(pid, "smaps_rollup", "Pss:")? })
    }

    /// Of all processes of a cgroup now.
    pub(crate) fn of_cgroup(path: &Path) -> Result<Self> {
        cgroup::members(path)?.into_iter().map(Self::of).sum()
    }
}

impl Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { anonymous: self.anonymous + other.anonymous, pss: self.pss + other.pss }
    }
}

impl Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// What the machine still has to give, in bytes.
pub(crate) fn available() -> Result<u64> {
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    let kilobytes = line.and_then(|kilobytes| kilobytes.parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("{path} has no MemAvailable"))? * 1024)
}

/// Kernel memory of the maps that the processes of a cgroup hold, in bytes (`memlock` in /proc/PID/fdinfo,
/// kernel/bpf/syscall.c). Each map once, however many descriptors there are.
pub(crate) fn maps(path: &Path) -> Result<f64> {
    let mut maps = std::collections::BTreeMap::new();
    for pid in cgroup::members(path)? {
        let folder = PathBuf::from(format!("/proc/{pid}/fdinfo"));
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?.flatten() {
            // A descriptor may be closed by now.
            let Ok(text) = fs::read_to_string(entry.path()) else { continue };
            let value = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            if let (Some(id), Some(bytes)) = (value("map_id:"), value("memlock:")) {
                maps.insert(id, bytes);
            }
        }
    }
    Ok(maps.values().sum::<u64>() as f64)
}

/// A line such as `Pss:     1234 kB`.
fn field(pid: u32, file: &str, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    value.map(|kilobytes| kilobytes * 1024.0).with_context(|| format!("{path} has no line {name}"))
}
