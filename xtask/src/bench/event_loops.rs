//! Clients and servers that never block, some time after they began: what is slow to be worth it has become so.
//!
//! What is compared differs by hundredths, and the machine's speed by more from one second to the next. So all modes are set up at
//! once, and each figure is measured in one after the other before the next figure is.

use super::{
    Extent,
    figure::Figure,
    measure::{Cpu, STREAM_LIMIT},
    mode::Mode,
    rig::{Kit, Rig},
    samples::Samples,
};
use crate::{
    interrupt,
    load::{bulk, serve},
    world::World,
};
use anyhow::{Context, Result};

/// Seconds before the measured span.
const WARM_UP: &str = "1.5";
/// A stream must be much longer than it takes to find out whether it is worth it.
pub(super) const STREAM: &str = "3000000000";
/// How often each figure is measured in each mode in one round.
const TURNS: usize = 2;

/// Requests of one kind, and the figures that they give.
struct Case {
    bytes: &'static str,
    connections: &'static str,
    /// What was sent before.
    before: &'static str,
    p50: Figure,
    cpu: Figure,
    cpu_all: Figure,
    past: Figure,
}

macro_rules! case {
    ($bytes:literal, $connections:literal, $before:literal, $p50:ident, $cpu:ident, $cpu_all:ident, $past:ident) => {
        Case {
            bytes: $bytes,
            connections: $connections,
            before: $before,
            p50: Figure::$p50,
            cpu: Figure::$cpu,
            cpu_all: Figure::$cpu_all,
            past: Figure::$past,
        }
    };
}

const CASES: [Case; 8] = [
    case!("64", "1", "64", Event64x1P50, Event64x1Cpu, Event64x1CpuAll, Event64x1Past),
    case!("4096", "1", "4096", Event4096x1P50, Event4096x1Cpu, Event4096x1CpuAll, Event4096x1Past),
    case!("65536", "1", "65536", Event65536x1P50, Event65536x1Cpu, Event65536x1CpuAll, Event65536x1Past),
    case!("65536", "64", "65536", Event65536x64P50, Event65536x64Cpu, Event65536x64CpuAll, Event65536x64Past),
    case!("1024", "64", "1024", Event1024x64P50, Event1024x64Cpu, Event1024x64CpuAll, Event1024x64Past),
    case!("1024", "1000", "1024", Event1024x1000P50, Event1024x1000Cpu, Event1024x1000CpuAll, Event1024x1000Past),
    // A connection that has become worth it is let go when its messages are small, within half a second; those of 4 KiB stay.
    case!("64", "1", "65536", Turned64P50, Turned64Cpu, Turned64CpuAll, Turned64Past),
    case!("4096", "1", "65536", Turned4096P50, Turned4096Cpu, Turned4096CpuAll, Turned4096Past),
];

/// What one mode gave in one turn.
type Measured = Vec<(Figure, f64)>;

/// Sets these modes up and measures them all in one round. What cannot be set up is left out; what fails later ends the round, for what
/// is compared has as many values.
pub(super) fn side_by_side(samples: &mut Samples, kit: &Kit, modes: &[Mode], extent: Extent) -> Result<()> {
    let mut worlds = vec![];
    for mode in modes {
        let world = World::new(&format!("bench-{}", mode.name()));
        worlds.push((*mode, world.inspect_err(|err| samples.fail(*mode, err))?));
    }
    let mut rigs = vec![];
    for (mode, world) in &worlds {
        match Rig::set(kit, world, *mode).and_then(|mut rig| rig.start().map(|_| rig)) {
            Ok(rig) => rigs.push(rig),
            Err(err) => samples.fail(*mode, &err),
        }
        interrupt::check()?;
    }
    for case in &CASES {
        in_turns(samples, &mut rigs, |rig| requests(rig, case, extent))?;
    }
    for way in [Way::UP, Way::DOWN] {
        in_turns(samples, &mut rigs, |rig| stream(rig, &way))?;
    }
    rigs.iter().try_for_each(|rig| rig.prove_fast_path().inspect_err(|err| samples.fail(rig.mode, err)))
}

/// There and back through the modes, so that each is as often before its neighbour as after it.
fn in_turns(samples: &mut Samples, rigs: &mut [Rig<'_>], measure: impl Fn(&Rig<'_>) -> Result<Measured>) -> Result<()> {
    for _ in 0..TURNS {
        let mut all = vec![];
        for rig in &mut *rigs {
            let measured = measure(rig).or_else(|err| {
                interrupt::check()?;
                // A proxy that has died says more than the client that noticed.
                Err(rig.check().err().unwrap_or(err))
            });
            all.push((rig.mode, measured.inspect_err(|err| samples.fail(rig.mode, err))?));
        }
        for (mode, figures) in all {
            figures.into_iter().for_each(|(figure, value)| samples.add(figure, mode, value));
        }
        rigs.reverse();
    }
    Ok(())
}

fn requests(rig: &Rig<'_>, case: &Case, extent: Extent) -> Result<Measured> {
    let before = rig.past_tcp()?;
    let args = ["round-trip", "--connections", case.connections, "--bytes", case.bytes, "--warm-up", WARM_UP];
    let report = rig.latencies(&[&args[..], &["--warm-up-bytes", case.before]].concat(), extent.seconds)?;
    let (used, operations) = (Cpu::of(&report.cpu_us)?, report.operations as f64);
    // Of the requests before the span too, which are not counted as operations.
    let past = past(rig, before, operations)?.map(|past| (case.past, past));
    let figures =
        [(case.p50, report.p50_us), (case.cpu, used.proxies / operations), (case.cpu_all, used.pods / operations)];
    Ok(figures.into_iter().chain(past).collect())
}

/// A stream, and the figures that it gives.
struct Way {
    port: u16,
    args: &'static [&'static str],
    speed: Figure,
    cpu_all: Figure,
    past: Figure,
}

impl Way {
    const UP: Self = Self {
        port: serve::SINK,
        args: &["bulk", "--bytes", STREAM, "--non-blocking"],
        speed: Figure::EventBulk,
        cpu_all: Figure::EventBulkCpuAll,
        past: Figure::EventBulkPast,
    };
    const DOWN: Self = Self {
        port: serve::SOURCE,
        args: &["bulk", "--bytes", STREAM, "--non-blocking", "--down"],
        speed: Figure::EventBulkDown,
        cpu_all: Figure::EventBulkDownCpuAll,
        past: Figure::EventBulkDownPast,
    };
}

/// As fast as it goes.
fn stream(rig: &Rig<'_>, way: &Way) -> Result<Measured> {
    let gigabytes = STREAM.parse::<f64>().context("a number of bytes")? / 1e9;
    let before = rig.past_tcp()?;
    let report: bulk::Report = rig.client(way.port, way.args, STREAM_LIMIT)?;
    let cpu = Cpu::of(&report.cpu_us)?.pods / 1e6 / gigabytes;
    let past = past(rig, before, gigabytes)?.map(|past| (way.past, past));
    Ok([(way.speed, gigabytes / report.seconds), (way.cpu_all, cpu)].into_iter().chain(past).collect())
}

/// Messages that went past TCP since `before`, for each of so many.
fn past(rig: &Rig<'_>, before: Option<f64>, of: f64) -> Result<Option<f64>> {
    Ok(before.zip(rig.past_tcp()?).map(|(before, now)| (now - before) / of))
}
