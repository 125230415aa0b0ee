//! The configuration: what a running sidecar obeys, typed so that it cannot be wrong.
//!
//! Files, environment and flags are read by the submodules; what leaves this module is a [`Config`] in which every
//! value has been checked and every key that was not given has its default.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use authorization::{Action, Rule, RulePlace, Source};
pub use cidr::CidrError;
pub use fault::{Fault, Faults, Place, Problem};
pub use load::{Loaded, Sources, load};
pub use mtls::{Authority, Identity, IdentityFiles, Mode, Modes, Mtls, Spare, Transport, Workload};
pub use schema::schema;
pub use snapshot::Snapshot;
pub use units::time;

mod authorization;
mod checks;
mod cidr;
mod defaults;
mod denials;
mod document;
mod draft;
mod fault;
mod keys;
mod kind;
mod load;
mod memory;
mod mtls;
mod names;
mod rules;
mod schema;
mod show;
mod snapshot;
mod strict;
mod structured;
#[cfg(test)]
mod tests;
mod units;
mod values;
mod words;
mod workloads;

/// Everything a sidecar obeys. Each section is owned by the module that uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What is captured.
    pub pod: Pod,
    /// Which connections are captured, and what happens when the proxy cannot serve.
    pub capture: Capture,
    /// How the proxy treats the connections it carries.
    pub proxy: Proxy,
    /// Who this workload is, and how it proves it.
    pub identity: Identity,
    /// Where mutual TLS is asked for.
    pub mtls: Mtls,
    /// Who may connect to the application. Empty: everyone.
    pub authorization: Vec<Rule>,
    /// When the sidecar ends.
    pub lifecycle: Lifecycle,
    /// Metrics, health, admin and access log.
    pub telemetry: Telemetry,
}

impl Config {
    /// The port on which tunnels end. None without an identity: nobody could trust us.
    pub fn tunnel_port(&self) -> Option<u16> {
        self.mtls.hbone_port.filter(|_| self.identity.is_configured())
    }
}

/// The pod that is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The pod's cgroup v2 directory; `None`: the parent of the sidecar's own.
    pub cgroup: Option<PathBuf>,
    /// The pod's network namespace (a path such as `/run/netns/pod-x`); `None`: the sidecar's own.
    pub netns: Option<PathBuf>,
    /// Name shown in metrics and logs (`source_workload` / `destination_workload`); `unknown` when not given.
    pub workload: String,
    /// Kubernetes namespace shown in metrics and logs; `unknown` when not given.
    pub namespace: String,
}

/// Which connections are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Connections that the application opens.
    pub outbound: OutboundCapture,
    /// Connections that others open to the application.
    pub inbound: InboundCapture,
    /// What happens to connections while no live proxy can take them. Default open; closed where mutual TLS is strict for
    /// any connection.
    pub on_failure: OnFailure,
    /// The proxy counts as hung when its last heartbeat is older than this. Default 1 s, 100 ms to 60 s.
    pub heartbeat_max_age: Duration,
    /// Whether what applications send may go past TCP. Default off.
    pub acceleration: Acceleration,
    /// Sizes of the kernel maps.
    pub maps: MapSizes,
}

impl Capture {
    /// Room for connections on the fast path; without it for one, the least that the kernel takes.
    pub fn accelerated(&self) -> u32 {
        if self.acceleration == Acceleration::Off { 1 } else { self.maps.accelerated }
    }
}

/// Whether what applications send may go past TCP to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceleration {
    /// Never.
    Off,
    /// Where the probe finds nothing that an application could notice.
    Auto,
    /// Wherever the kernel can.
    Force,
}

/// Outbound capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundCapture {
    /// `false`: nothing outbound is captured. Default `true`.
    pub enabled: bool,
    /// Port of the outbound listener. Default 15001.
    pub port: u16,
    /// Destination ports that go direct.
    pub exclude_ports: Vec<u16>,
    /// Destination networks that go direct. Default `169.254.169.254/32` (cloud metadata).
    pub exclude_cidrs: Vec<Cidr>,
}

/// Inbound capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundCapture {
    /// `false`: nothing inbound is captured. Default `true`.
    pub enabled: bool,
    /// Port of the inbound listener. Default 15006.
    pub port: u16,
    /// Ports of the application that stay direct.
    pub exclude_ports: Vec<u16>,
}

/// What happens to connections while no live proxy can take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They go direct, counted.
    Open,
    /// They fail at once with a clear errno, counted.
    Closed,
}

/// Entries of the kernel maps that can fill up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Connections between their SYN and the proxy's accept. Default 16384.
    pub flows: u32,
    /// Listening sockets of the application. Default 4096.
    pub listeners: u32,
    /// Connections on the fast path; further ones stay on TCP. Default 16384.
    pub accelerated: u32,
}

/// How the proxy treats the connections it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Threads that carry connections. Default: the number of usable cores, at most 2.
    pub workers: usize,
    /// Time limit for reaching the destination. Default 10 s.
    pub connect_timeout: Duration,
    /// A connection on which no byte moved for this long is reset. `None` (key value 0): never. Default 1 h.
    pub idle_timeout: Option<Duration>,
    /// Connections carried at once in each direction; above it further ones wait in the kernel's queue. Default 65536.
    pub max_connections: usize,
    /// Outbound connections that are being dialled at once; above it further dials wait. Default 4096.
    pub max_connecting: usize,
    /// Upper bound for the bytes kept per connection and direction when the receiver is slow: with
    /// `max_connections` it bounds the memory of all. So many are received at once, too. Default 128 KiB.
    pub max_buffer: usize,
    /// Bytes of the kernel's memory for what waits in each direction of each of a connection's two sockets. `None`: the
    /// kernel's own tuning, up to `net.ipv4.tcp_rmem` and `tcp_wmem`. Default `None`.
    pub socket_buffer: Option<usize>,
    /// TCP keep-alive on both legs: idle time before the first probe. Default 180 s (`interval` 180 s, 9 probes).
    pub keepalive: Duration,
    /// Time that the application and its connections get to end by themselves after SIGTERM. Default 5 s.
    pub drain_deadline: Duration,
    /// A worker process that gives no sign of life for this long is killed and started again. Default 3 s.
    pub hung_after: Duration,
    /// Who the worker process runs as; `None`: as whom the sidecar was started. Default `None`.
    pub user: Option<User>,
    /// Ports of the application that get a PROXY protocol v2 header before the first byte of each inbound connection.
    pub proxy_protocol_ports: Vec<u16>,
}

/// When the sidecar ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// `true`: it ends when the application has: no process of the pod is left, and one was seen before. Default `false`.
    pub exit_with_application: bool,
}

/// A user and a group, by number: the names of the machine are not those of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// Metrics, health, admin and access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// Address of the Prometheus endpoint (`/metrics`, `/stats/prometheus`). Default `[::]:15020`.
    pub metrics: SocketAddr,
    /// Address of the health endpoint (`/healthz/ready`, `/healthz/live`). Default `[::]:15021`.
    pub health: SocketAddr,
    /// Address of the admin endpoint; loopback only. Default `127.0.0.1:15000`.
    pub admin: SocketAddr,
    /// Unix socket of the admin endpoint. Default: `/run/sidecar/<inode number of the network namespace>.sock`
    /// (written by the reader of the configuration as `None`; the application resolves it).
    pub admin_socket: Option<PathBuf>,
    /// Format of the access log on standard output. Default `text`.
    pub access_log: AccessLog,
    /// Filter of the sidecar's own log on standard error, in `tracing`'s directive syntax. Default `info`.
    pub log_level: String,
    /// Format of the sidecar's own log. Default `text`.
    pub log_format: LogFormat,
    /// Log what the eBPF programs say (aya-log) as well. Default `false`.
    pub bpf_log: bool,
}

/// Format of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// No access log.
    Off,
    /// One line of `key=value` pairs per connection.
    Text,
    /// One JSON object per line and connection.
    Json,
}

/// Format of the sidecar's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A network: address and prefix length. IPv4 stays IPv4 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// Any address of the network; host bits are zero.
    pub network: std::net::IpAddr,
    /// Leading bits that count: 0-32 for IPv4, 0-128 for IPv6.
    pub prefix: u8,
}
