//! Clients and servers that never block, some time after they began: what is slow to be worth it has become so.

use super::{
    figure::Figure,
    measure::{Cpu, Round, STREAM_LIMIT},
    mode::Mode,
};
use crate::load::{bulk, serve};
use anyhow::Result;

/// Seconds before the measured span.
const WARM_UP: &str = "1.5";

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

const CASES: [Case; 7] = [
    case!("64", "1", "64", Event64x1P50, Event64x1Cpu, Event64x1CpuAll, Event64x1Past),
    case!("4096", "1", "4096", Event4096x1P50, Event4096x1Cpu, Event4096x1CpuAll, Event4096x1Past),
    case!("65536", "1", "65536", Event65536x1P50, Event65536x1Cpu, Event65536x1CpuAll, Event65536x1Past),
    case!("1024", "64", "1024", Event1024x64P50, Event1024x64Cpu, Event1024x64CpuAll, Event1024x64Past),
    case!("1024", "1000", "1024", Event1024x1000P50, Event1024x1000Cpu, Event1024x1000CpuAll, Event1024x1000Past),
    // A connection that has become worth it is let go when its messages are small, within half a second; those of 4 KiB stay.
    case!("64", "1", "65536", Turned64P50, Turned64Cpu, Turned64CpuAll, Turned64Past),
    case!("4096", "1", "65536", Turned4096P50, Turned4096Cpu, Turned4096CpuAll, Turned4096Past),
];

impl Round<'_> {
    /// Measures them all.
    pub(super) fn event_loops(&mut self) -> Result<()> {
        for case in &CASES {
            let before = self.rig.past_tcp()?;
            let args = ["round-trip", "--connections", case.connections, "--bytes", case.bytes, "--warm-up", WARM_UP];
            let report = self.latencies(&[&args[..], &["--warm-up-bytes", case.before]].concat())?;
            let (used, operations) = (Cpu::of(&report.cpu_us)?, report.operations as f64);
            self.add(case.p50, report.p50_us);
            self.add_proxies(case.cpu, used.proxies / operations);
            self.add(case.cpu_all, used.pods / operations);
            // Of the requests before the span too, which are not counted as operations.
            self.add_past(case.past, (self.rig.past_tcp()? - before) / operations);
        }
        use Figure::{
            EventBulk, EventBulkCpuAll, EventBulkDown, EventBulkDownCpuAll, EventBulkDownPast, EventBulkPast,
        };
        self.stream(serve::SINK, &[], [EventBulk, EventBulkCpuAll, EventBulkPast])?;
        self.stream(serve::SOURCE, &["--down"], [EventBulkDown, EventBulkDownCpuAll, EventBulkDownPast])?;
        self.rig.prove_fast_path()
    }

    /// As fast as it goes.
    fn stream(&mut self, port: u16, way: &[&str], [speed, cpu_all, past]: [Figure; 3]) -> Result<()> {
        let before = self.rig.past_tcp()?;
        let (bytes, gigabytes) = (self.extent.bytes.to_string(), self.extent.bytes as f64 / 1e9);
        let args = [&["bulk", "--bytes", &bytes, "--non-blocking"], way].concat();
        let report: bulk::Report = self.client(port, &args, STREAM_LIMIT)?;
        self.add(speed, gigabytes / report.seconds);
        self.add(cpu_all, Cpu::of(&report.cpu_us)?.pods / 1e6 / gigabytes);
        self.add_past(past, (self.rig.past_tcp()? - before) / gigabytes);
        Ok(())
    }

    /// Without the fast path it is none.
    fn add_past(&mut self, figure: Figure, messages: f64) {
        if self.mode == Mode::SidecarFast {
            self.add(figure, messages);
        }
    }
}
