//! What was seen, in words.

use crate::{load::answer::Asked, world::memory::Memory};
use anyhow::{Context, Result};
use std::{fs, time::Duration};

/// The reach, per sidecar: anonymous memory and proportional set size in MB, idle CPU in per cent of a core.
const ANONYMOUS: f64 = 6.0;
const PSS: f64 = 12.0;
const IDLE: f64 = 0.05;

/// Median, 99th percentile and the highest.
pub(super) fn spread(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 - 1.0) * share).round() as usize).copied().unwrap_or(0.0);
    format!("median {:.2}, p99 {:.2}, highest {:.2}", at(0.5), at(0.99), at(1.0))
}

/// Prints what came of questions; whether all were answered as they should be.
pub(super) fn asked(what: &str, all: &[(usize, Asked)], span: Duration) -> bool {
    let sum = |of: fn(&Asked) -> u32| all.iter().map(|(_, asked)| of(asked)).sum::<u32>();
    let (answered, failed, wrong) = (sum(|a| a.answered), sum(|a| a.failed), sum(|a| a.wrong));
    let most = |of: fn(&Asked) -> f64| all.iter().map(|(_, asked)| of(asked)).fold(0.0, f64::max);
    println!(
        "{what}: {answered} answered in {:.1} s, {failed} failed, {wrong} answered by somebody else; slowest {:.0} ms, longest gap {:.0} ms",
        span.as_secs_f64(),
        most(|a| a.slowest),
        most(|a| a.gap)
    );
    let faults = all.iter().filter_map(|(number, asked)| Some((number, asked.fault.as_ref()?)));
    faults.take(3).for_each(|(number, fault)| println!("  pod-{number}: {fault}"));
    failed == 0 && wrong == 0
}

/// Prints who was disturbed: of whom a question failed.
pub(super) fn disturbed(hit: &[(usize, Asked)], spared: &[(usize, Asked)]) {
    let failed = |all: &[(usize, Asked)]| all.iter().filter(|(_, asked)| asked.failed + asked.wrong > 0).count();
    println!(
        "disturbed: {} of {} pods whose neighbour's sidecar it was, and {} of {} others",
        failed(hit),
        hit.len(),
        failed(spared),
        spared.len()
    );
}

/// Prints what a sidecar takes, and whether that is within reach.
pub(super) fn resources(memory: &[Memory], maps: &[f64], mut idle: Vec<f64>) {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let line = |what: &str, values: &mut [f64], unit: &str, reach: Option<f64>| {
        let mean = mean(values);
        let verdict =
            reach.map(|most| format!("; {} at most {most} {unit}", if mean <= most { "ok:" } else { "MISSED:" }));
        println!("{what}, {unit} each: mean {mean:.3}, {}{}", spread(values), verdict.unwrap_or_default());
    };
    let of = |field: fn(&Memory) -> f64| memory.iter().map(|memory| field(memory) / 1e6).collect::<Vec<_>>();
    line("anonymous memory", &mut of(|memory| memory.anonymous), "MB", Some(ANONYMOUS));
    line("proportional set size", &mut of(|memory| memory.pss), "MB", Some(PSS));
    line("the kernel's memory of its maps", &mut maps.iter().map(|bytes| bytes / 1e6).collect::<Vec<_>>(), "MB", None);
    line("CPU while idle", &mut idle, "% of a core", Some(IDLE));
}

/// Memory of the whole machine, in kB.
pub(super) struct Kernel {
    available: f64,
    slab: f64,
    percpu: f64,
}

impl Kernel {
    pub(super) fn read() -> Result<Self> {
        let path = "/proc/meminfo";
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok());
            value.with_context(|| format!("{path} has no line {name}"))
        };
        Ok(Self { available: field("MemAvailable:")?, slab: field("Slab:")?, percpu: field("Percpu:")? })
    }

    /// What all sidecars together have taken since `before`.
    pub(super) fn since(&self, before: &Self, pods: usize) -> String {
        let each = |less: f64, more: f64| (more - less) / 1e3 / pods as f64;
        format!(
            "the whole machine, MB for each sidecar: {:.2} of available memory, of it slab {:.2}, per-CPU {:.2}",
            each(self.available, before.available),
            each(before.slab, self.slab),
            each(before.percpu, self.percpu)
        )
    }
}
