//! What connections may leave behind: of a sidecar, of a pod, and of the kernel.

use crate::world::{pod::Pod, process::Process, sidecar};
use anyhow::{Context, Result};
use std::{collections::BTreeMap, fs};

/// One figure, and by how much it may be above what it was.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    /// What it counts.
    pub(super) name: String,
    /// Its value.
    pub(super) value: u64,
    /// Growth that is no leak.
    pub(super) slack: u64,
}

/// Figures in a fixed order.
pub(super) type State = Vec<Figure>;

fn figure(name: impl Into<String>, value: u64, slack: u64) -> Figure {
    Figure { name: name.into(), value, slack }
}

/// Of one sidecar.
pub(super) fn of_sidecar(process: &Process, pod: &Pod) -> Result<State> {
    /// The allocator keeps what it had at the peak, and the peak is a matter of chance.
    const MEMORY: u64 = 4096;
    /// Sockets of the endpoints' clients.
    const DESCRIPTORS: u64 = 4;
    let (pid, name) = (process.pid(), &pod.name);
    let (mut memory, mut descriptors) = (0, 0);
    for pid in process.pids() {
        let status = read(&format!("/proc/{pid}/status"))?;
        let kib =
            status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
        memory += kib.unwrap_or(0_u64);
        descriptors += fs::read_dir(format!("/proc/{pid}/fd")).context("count open descriptors")?.count();
    }
    anyhow::ensure!(memory > 0, "no RssAnon");
    let metrics = sidecar::metrics(pod)?;
    let aborted = metrics.sum("sidecar_connections_closed_total", &[("reason", "aborted")]);
    Ok(vec![
        figure(format!("{name}: bytes of the maps of flows"), flow_bytes(pid)?, 0),
        figure(format!("{name}: connections in the sidecar's table"), connections(pod)?, 0),
        figure(
            format!("{name}: connections by the sidecar's gauge"),
            metrics.sum("sidecar_connections", &[]) as u64,
            0,
        ),
        figure(format!("{name}: relays that ended for no known reason"), aborted as u64, 0),
        figure(format!("{name}: open descriptors of the sidecar"), descriptors as u64, DESCRIPTORS),
        figure(format!("{name}: anonymous memory of the sidecar, KiB"), memory, MEMORY),
    ])
}

/// Connections that the sidecar carries now.
pub(super) fn connections(pod: &Pod) -> Result<u64> {
    let table: serde_json::Value =
        serde_json::from_str(&sidecar::connections(pod)?).context("its table is not JSON")?;
    let list = table.as_array().or_else(|| table.get("connections")?.as_array());
    Ok(list.context("no list of connections")?.len() as u64)
}

/// Of the TCP of one pod.
pub(super) fn of_pod(pod: &Pod) -> Result<State> {
    let sockets = Sockets::of(pod)?;
    Ok(vec![
        // The question itself may be one of them.
        figure(format!("{}: TCP sockets in use", pod.name), sockets.in_use, 2),
        figure(format!("{}: TCP sockets without an owner", pod.name), sockets.orphans, 0),
    ])
}

/// TCP sockets of a pod, by the kernel's count (`/proc/net/sockstat`).
pub(super) struct Sockets {
    in_use: u64,
    orphans: u64,
    /// In TIME_WAIT: gone by themselves after a minute.
    pub(super) time_wait: u64,
}

impl Sockets {
    /// Now.
    pub(super) fn of(pod: &Pod) -> Result<Self> {
        let text = pod.netns.enter(|| read("/proc/thread-self/net/sockstat"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("TCP: ")).context("sockstat has no line of TCP")?;
        let words: Vec<_> = line.split(' ').collect();
        let fields: BTreeMap<_, u64> =
            words.chunks_exact(2).filter_map(|pair| Some((pair[0], pair[1].parse().ok()?))).collect();
        let field = |name| fields.get(name).copied().with_context(|| format!("sockstat does not tell {name}"));
        Ok(Self { in_use: field("inuse")?, orphans: field("orphan")?, time_wait: field("tw")? })
    }
}

/// Of the kernel's memory, after so many connections. Other programs of the machine have their share in it, so that each
/// figure may grow: by far less than a leak of one object for every connection.
pub(super) fn of_kernel(connections: u64) -> Result<State> {
    give_back_empty_slabs();
    let objects = 200 + connections / 1000;
    // A quarter of the smallest thing that the sidecar has the kernel allocate for a connection, 64 bytes, in KiB; and a little
    // for everybody else.
    let memory = 2048 + connections * 16 / 1024;
    let mut state = Vec::new();
    if let Ok(text) = read("/proc/slabinfo") {
        for name in ["TCP", "TCPv6", "request_sock_TCP", "tw_sock_TCP"] {
            let active =
                text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split_whitespace().next());
            // A kernel may merge the caches of objects of one size.
            let Some(active) = active.and_then(|active| active.parse().ok()) else { continue };
            state.push(figure(format!("kernel: objects of slab {name}"), active, objects));
        }
    }
    let text = read("/proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kib = kib.context("/proc/meminfo has no SUnreclaim")?;
    state.push(figure("kernel: slab that cannot be reclaimed (notes of sockets in it), KiB", kib, memory));
    Ok(state)
}

/// The kernel keeps slabs that have become empty, and counts what a CPU keeps for itself as in use (mm/slub.c): of a peak that
/// is over much would remain. Without effect where the kernel has no such switch.
fn give_back_empty_slabs() {
    let Ok(caches) = fs::read_dir("/sys/kernel/slab") else { return };
    for cache in caches.flatten() {
        let _ = fs::write(cache.path().join("shrink"), "1");
    }
}

/// What the kernel accounts for the maps of this process whose key is a connection. They are hashes without preallocation:
/// an entry more is a few hundred bytes more, since Linux 6.4 (kernel/bpf/hashtab.c, `htab_map_mem_usage`).
fn flow_bytes(pid: u32) -> Result<u64> {
    /// `BPF_MAP_TYPE_HASH`.
    const HASH: u64 = 1;
    /// `FlowKey` of sidecar-common: a cookie and two endpoints.
    const KEY: u64 = 48;
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("list descriptors")? {
        // A descriptor may be closed while they are listed.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if field("map_type:") == Some(HASH) && field("key_size:") == Some(KEY) {
            maps.insert(field("map_id:"), field("memlock:").context("the kernel does not tell the size of a map")?);
        }
    }
    anyhow::ensure!(maps.len() == 2, "the sidecar has {} maps of flows instead of two", maps.len());
    Ok(maps.values().sum())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}
