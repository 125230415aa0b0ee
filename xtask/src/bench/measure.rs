//! One mode in one round.

use super::{
    Extent,
    figure::{Figure, Group},
    mode::Mode,
    rig::{GRACE, Kit, Rig, time_told},
    samples::Samples,
};
use crate::{
    interrupt,
    load::{READY, bulk, latency, now_us, probe::Path as Way, serve},
    world::{World, memory::Memory, pod::Place, wait},
};
use anyhow::Result;
use nix::sys::signal::Signal;
use std::time::Duration;

/// A stream slower than this is not worth waiting for.
pub(super) const STREAM_LIMIT: Duration = Duration::from_secs(120);
/// How long a proxy may take to stop: more than the sidecar's drain deadline.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// A proxy that has just started, or taken connections, frees and allocates for a moment.
const SETTLE: Duration = Duration::from_millis(300);

/// Connections whose memory is measured.
const HELD: u32 = 1000;

/// Sets the mode up and measures these groups. What fails is noted, the rest goes on.
pub(super) fn all(
    samples: &mut Samples,
    kit: &Kit,
    world: &World,
    mode: Mode,
    groups: &[Group],
    extent: Extent,
) -> Result<()> {
    let mut round = Round { rig: Rig::set(kit, world, mode)?, samples, mode, extent };
    let start = round.rig.start()?;
    if groups.contains(&Group::Lifecycle) && mode.has(Group::Lifecycle) {
        start.into_iter().for_each(|start| round.add(Figure::Start, start));
    }
    // Memory first: what a heap has grown to under load, it keeps. Lifecycle last: it ends the proxies.
    for group in [Group::Memory, Group::RoundTrip, Group::Connect, Group::Bulk, Group::Lifecycle] {
        if !groups.contains(&group) || !mode.has(group) {
            continue;
        }
        let measured = match group {
            Group::Memory => round.memory(),
            Group::RoundTrip => round.round_trips(),
            Group::Connect => round.connects(),
            Group::Bulk => round.streams(),
            // Of all modes at once: `event_loops`.
            Group::FastPath => Ok(()),
            Group::Lifecycle => round.stop(),
        };
        if let Err(err) = measured {
            interrupt::check()?;
            // A proxy that has died says more than the client that noticed.
            let err = round.rig.check().err().unwrap_or(err);
            round.samples.fail(mode, &err.context(group.name()));
        }
    }
    Ok(())
}

/// What is measured of one mode in one round.
struct Round<'a> {
    rig: Rig<'a>,
    samples: &'a mut Samples,
    mode: Mode,
    extent: Extent,
}

/// CPU microseconds of the proxies, and of both pods with their applications.
pub(super) struct Cpu {
    pub(super) proxies: f64,
    pub(super) pods: f64,
}

impl Cpu {
    /// In the order of [`Rig::cgroups`].
    pub(super) fn of(cgroups: &[u64]) -> Result<Self> {
        let [proxy_client, proxy_server, client, server] = *cgroups else {
            anyhow::bail!("a client has measured {} cgroups instead of 4", cgroups.len())
        };
        Ok(Self { proxies: (proxy_client + proxy_server) as f64, pods: (client + server) as f64 })
    }
}

impl Round<'_> {
    fn add(&mut self, figure: Figure, value: f64) {
        self.samples.add(figure, self.mode, value);
    }

    /// The CPU time of proxies means something only where there are any.
    fn add_proxies(&mut self, figure: Figure, value: f64) {
        if self.mode != Mode::Direct {
            self.add(figure, value);
        }
    }

    fn latencies(&self, args: &[&str]) -> Result<latency::Report> {
        self.rig.latencies(args, self.extent.seconds)
    }

    fn round_trips(&mut self) -> Result<()> {
        use Figure::{
            RoundTrip1Cpu, RoundTrip1CpuAll, RoundTrip1P50, RoundTrip1P99, RoundTrip64Cpu, RoundTrip64CpuAll,
            RoundTrip64P50, RoundTrip64P99, RoundTrip64Rate, RoundTrip1000Cpu, RoundTrip1000P50, RoundTrip1000P99,
            RoundTrip1000Rate,
        };
        let table = [
            ("1", RoundTrip1P50, RoundTrip1P99, RoundTrip1Cpu, None, Some(RoundTrip1CpuAll)),
            ("64", RoundTrip64P50, RoundTrip64P99, RoundTrip64Cpu, Some(RoundTrip64Rate), Some(RoundTrip64CpuAll)),
            ("1000", RoundTrip1000P50, RoundTrip1000P99, RoundTrip1000Cpu, Some(RoundTrip1000Rate), None),
        ];
        for (connections, p50, p99, cpu, rate, cpu_all) in table {
            let report = self.latencies(&["round-trip", "--connections", connections])?;
            let (used, operations) = (Cpu::of(&report.cpu_us)?, report.operations as f64);
            self.add(p50, report.p50_us);
            self.add(p99, report.p99_us);
            self.add_proxies(cpu, used.proxies / operations);
            rate.into_iter().for_each(|rate| self.add(rate, operations / report.seconds));
            cpu_all.into_iter().for_each(|all| self.add(all, used.pods / operations));
        }
        Ok(())
    }

    fn connects(&mut self) -> Result<()> {
        let alone = self.latencies(&["connect", "--clients", "1"])?;
        let (used, operations) = (Cpu::of(&alone.cpu_us)?, alone.operations as f64);
        self.add(Figure::ConnectP50, alone.p50_us);
        self.add(Figure::ConnectP99, alone.p99_us);
        self.add_proxies(Figure::ConnectCpu, used.proxies / operations);
        self.add(Figure::ConnectCpuAll, used.pods / operations);
        if self.mode.shakes_hands_each_time() {
            self.add(Figure::Handshakes, operations / (used.proxies / 1e6));
        }
        let many = self.latencies(&["connect", "--clients", "8"])?;
        self.add(Figure::ConnectRate, many.operations as f64 / many.seconds);
        Ok(())
    }

    fn streams(&mut self) -> Result<()> {
        use Figure::{BulkDown, BulkDownCpu, BulkDownCpuAll, BulkUp, BulkUpCpu, BulkUpCpuAll};
        let (bytes, gigabytes) = (self.extent.bytes.to_string(), self.extent.bytes as f64 / 1e9);
        let up = ["bulk", "--bytes", &bytes];
        let down = ["bulk", "--bytes", &bytes, "--down"];
        for (port, args, speed, cpu, cpu_all) in [
            (serve::SINK, &up[..], BulkUp, BulkUpCpu, BulkUpCpuAll),
            (serve::SOURCE, &down[..], BulkDown, BulkDownCpu, BulkDownCpuAll),
        ] {
            let report: bulk::Report = self.rig.client(port, args, STREAM_LIMIT)?;
            let used = Cpu::of(&report.cpu_us)?;
            self.add(speed, gigabytes / report.seconds);
            self.add_proxies(cpu, used.proxies / 1e6 / gigabytes);
            self.add(cpu_all, used.pods / 1e6 / gigabytes);
        }
        Ok(())
    }

    fn memory(&mut self) -> Result<()> {
        if self.rig.client.is_none() {
            return Ok(());
        }
        let proxy = self.rig.world.client.container(Place::Sidecar).path();
        wait::pause(SETTLE)?;
        let idle = Memory::of_cgroup(proxy)?;
        let both_idle = self.rig.anonymous()?;
        self.add(Figure::IdleAnonymous, idle.anonymous / 1e6);
        self.add(Figure::IdlePss, idle.pss / 1e6);
        let mut holder = self.rig.start_client("holder", serve::ECHO, &["hold", "--connections", &HELD.to_string()])?;
        holder.line(0, GRACE, "its connections", |line| line == READY)?;
        wait::pause(SETTLE)?;
        let held = Memory::of_cgroup(proxy)?;
        let both = self.rig.anonymous()?;
        self.add(Figure::ConnectionAnonymous, (held.anonymous - idle.anonymous) / 1e3 / f64::from(HELD));
        self.add(Figure::ConnectionAnonymousBoth, (both - both_idle) / 1e3 / f64::from(HELD));
        self.add(Figure::ConnectionPss, (held.pss - idle.pss) / 1e3 / f64::from(HELD));
        drop(holder);
        // Their ends are not part of what is measured next.
        wait::pause(SETTLE)
    }

    /// SIGTERM to one proxy, kill -9 to the other.
    fn stop(&mut self) -> Result<()> {
        let polite = self.rig.server.take().or_else(|| self.rig.client.take());
        if let Some(mut proxy) = polite {
            let (_, took) = proxy.end(Signal::SIGTERM, STOP_LIMIT)?;
            self.add(Figure::Stop, took.as_secs_f64() * 1000.0);
        }
        // Envoy's connections are refused until someone removes the rules: there is nothing to wait for.
        if self.mode.is_sidecar()
            && let Some(mut proxy) = self.rig.client.take()
        {
            let mut probe = self.rig.probe("probe-kill", Way::Direct)?;
            let kill = now_us();
            proxy.signal(Signal::SIGKILL)?;
            let direct = wait::until(STOP_LIMIT, "a direct connection", || time_told(&mut probe))?;
            self.add(Figure::KillToDirect, direct.saturating_sub(kill) as f64 / 1000.0);
            proxy.wait(STOP_LIMIT)?;
        }
        Ok(())
    }
}
