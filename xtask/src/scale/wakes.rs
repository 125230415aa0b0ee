//! What wakes a sidecar: how often each of its threads runs, and for how long.

use crate::world::cgroup;
use anyhow::{Context, Result};
use std::{collections::BTreeMap, fs, path::Path};

/// Of all threads of one name: voluntary switches (it slept, and was woken) and CPU time in seconds.
#[derive(Clone, Copy, Default)]
struct Woken {
    times: f64,
    cpu: f64,
}

/// By thread; the supervisor's is called as the program is, and the worker's main thread is marked.
pub(super) struct Wakes(BTreeMap<String, Woken>);

impl Wakes {
    /// Of the processes of these cgroups, until now.
    pub(super) fn read(places: &[&Path]) -> Result<Self> {
        let mut wakes = BTreeMap::new();
        for place in places {
            for pid in cgroup::members(place)? {
                process(pid, &mut wakes)?;
            }
        }
        Ok(Self(wakes))
    }

    /// A line for each kind of thread, for each of so many sidecars, since `before`.
    pub(super) fn since(&self, before: &Self, sidecars: usize, seconds: f64) -> String {
        let each = 1.0 / sidecars as f64 / seconds;
        let lines = self.0.iter().map(|(name, now)| {
            let first = before.0.get(name).copied().unwrap_or_default();
            let (times, cpu) = ((now.times - first.times) * each, (now.cpu - first.cpu) * each * 100.0);
            format!("  {name:18} {times:6.2} times a second, {cpu:.4} % of a core")
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn process(pid: u32, wakes: &mut BTreeMap<String, Woken>) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let tasks = format!("/proc/{pid}/task");
    // The worker is the child of the supervisor: the parent is in the same cgroup.
    let parent = read(Path::new(&format!("/proc/{pid}/status")))?;
    let supervisor = value(&parent, "PPid:") == Some(f64::from(std::process::id()));
    for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))?.flatten() {
        let folder = task.path();
        let (status, times) = (read(&folder.join("status"))?, read(&folder.join("schedstat"))?);
        let name = status.lines().find_map(|line| line.strip_prefix("Name:")).unwrap_or_default().trim();
        let main = task.file_name().to_str() == Some(&pid.to_string());
        let name = match (supervisor, main) {
            (true, true) => "supervisor".to_owned(),
            (false, true) => "worker, main".to_owned(),
            (_, false) => name.to_owned(),
        };
        let woken = wakes.entry(name).or_default();
        woken.times += value(&status, "voluntary_ctxt_switches:").context("a task without a count of its switches")?;
        // Nanoseconds on a CPU come first (Documentation/scheduler/sched-stats.rst).
        let ran = times.split(' ').next().and_then(|ran| ran.parse::<f64>().ok());
        woken.cpu += ran.context("a task without its time on a CPU")? / 1e9;
    }
    Ok(())
}

fn value(status: &str, name: &str) -> Option<f64> {
    status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
