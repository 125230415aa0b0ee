//! The table of keys: the only place that knows which keys exist, what they mean and which values they allow.
//!
//! Files, environment and flags are read by it; `config show` and `config schema` are printed from it. Default values
//! are those of [`super::Config::default`].

use std::time::Duration;

use serde_json::Value as Json;

use super::{
    Acceleration, AccessLog, LogFormat, Mode, OnFailure,
    document::Node,
    draft::Draft,
    kind::{Choice, Kind, List, Number, Optional, PORT, Refusal, Switch},
    names::{Id, UnixUri},
    rules::RulesKind,
    structured::{Keyed, Structured},
    units::{Limit, Size, Time},
    values::{AbsolutePath, Listen, LogFilter, Name, Network, PortOrNone, UserAndGroup},
    workloads::WorkloadsKind,
};

/// One key.
pub(super) struct Key {
    /// Sections and name, joined by dots.
    pub(super) path: &'static str,
    /// What it means, for people.
    pub(super) doc: &'static str,
    /// Its value within a configuration.
    pub(super) setting: &'static dyn Setting,
}

impl Key {
    /// The environment variable that sets it.
    pub(super) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.path.replace('.', "_").to_uppercase())
    }

    /// The path without its sections.
    pub(super) fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }
}

/// What the name of every variable of ours begins with.
pub(super) const VARIABLE_PREFIX: &str = "SIDECAR_";

/// The key with this path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The names of the keys and sections directly in a section, each once and in order; `""` is the whole document.
pub(super) fn names_in(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for key in KEYS {
        let below = if section.is_empty() {
            Some(key.path)
        } else {
            key.path.strip_prefix(section).and_then(|rest| rest.strip_prefix('.'))
        };
        if let Some(name) = below.and_then(|below| below.split('.').next())
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

/// What a section is for.
pub(super) fn section_doc(path: &str) -> Option<&'static str> {
    SECTIONS.iter().find(|(section, _)| *section == path).map(|(_, doc)| *doc)
}

/// A value within a configuration, whatever its kind.
pub(super) trait Setting: Sync {
    /// Reads what was given into the configuration, or leaves it as it is.
    fn set(&self, draft: &mut Draft, given: &Node) -> Result<(), Vec<Refusal>>;

    /// The value as it is written in a file. It only reads; `&mut` because there is one accessor for both ways.
    fn show(&self, draft: &mut Draft) -> Json;

    /// JSON Schema of the value.
    fn schema(&self) -> Json;
}

/// A field of the configuration and the kind of its value.
struct Field<K: Kind> {
    kind: K,
    at: fn(&mut Draft) -> &mut K::Value,
}

impl<K: Kind> Setting for Field<K> {
    fn set(&self, draft: &mut Draft, given: &Node) -> Result<(), Vec<Refusal>> {
        *(self.at)(draft) = self.kind.read(given)?;
        Ok(())
    }

    fn show(&self, draft: &mut Draft) -> Json {
        self.kind.show((self.at)(draft))
    }

    fn schema(&self) -> Json {
        self.kind.schema()
    }
}

const fn key(path: &'static str, setting: &'static dyn Setting, doc: &'static str) -> Key {
    Key { path, doc, setting }
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn hours(count: u64) -> Duration {
    Duration::from_secs(3600 * count)
}

/// Whether connections are protected by mutual TLS.
const MODE: Choice<Mode> =
    Choice(&[("disable", Mode::Disable), ("permissive", Mode::Permissive), ("strict", Mode::Strict)]);

const SECTIONS: &[(&str, &str)] = &[
    ("pod", "The pod that is captured."),
    ("capture", "Which connections are captured, and what happens while the proxy cannot serve."),
    ("capture.outbound", "Connections that the application opens."),
    ("capture.inbound", "Connections that others open to the application."),
    ("capture.maps", "Entries of the kernel maps that can fill up."),
    ("proxy", "How the proxy treats the connections it carries."),
    ("identity", "Who this workload is, and how it proves it: from one source. Without one there is no mutual TLS."),
    ("identity.files", "Certificate, key and roots in PEM files that somebody renews."),
    ("identity.ca", "The embedded certificate authority."),
    ("mtls", "Where mutual TLS is asked for."),
    ("mtls.outbound", "Connections that the application opens."),
    ("mtls.inbound", "Connections that others open to the application."),
    ("mtls.spare", "Handshaked connections kept ready for the next connection to the same destination."),
    ("lifecycle", "When the sidecar ends."),
    ("telemetry", "Metrics, health, admin and logs."),
];

/// All keys, in the order in which they are shown. Keys of one section stand together.
#[rustfmt::skip] // A table: one key, one entry.
pub(super) static KEYS: &[Key] = &[
    key("pod.cgroup", &Field { kind: Optional(AbsolutePath), at: |c| &mut c.pod.cgroup },
        "Directory of the pod's cgroup v2; null: the parent of the sidecar's own cgroup."),
    key("pod.netns", &Field { kind: Optional(AbsolutePath), at: |c| &mut c.pod.netns },
        "Network namespace of the pod, such as `/run/netns/pod-x`; null: the sidecar's own."),
    key("pod.workload", &Field { kind: Name, at: |c| &mut c.pod.workload },
        "Name of the workload in metrics and logs."),
    key("pod.namespace", &Field { kind: Name, at: |c| &mut c.pod.namespace },
        "Kubernetes namespace in metrics and logs."),

    key("capture.outbound.enabled", &Field { kind: Switch, at: |c| &mut c.capture.outbound.enabled },
        "Whether connections that the application opens are captured."),
    key("capture.outbound.port", &Field { kind: PORT, at: |c| &mut c.capture.outbound.port },
        "Port of the outbound listener."),
    key("capture.outbound.exclude_ports", &Field { kind: List(PORT), at: |c| &mut c.capture.outbound.exclude_ports },
        "Destination ports that go direct."),
    key("capture.outbound.exclude_cidrs", &Field { kind: List(Network), at: |c| &mut c.capture.outbound.exclude_cidrs },
        "Destination networks that go direct. The default is the metadata service of clouds."),
    key("capture.inbound.enabled", &Field { kind: Switch, at: |c| &mut c.capture.inbound.enabled },
        "Whether connections to the application are captured."),
    key("capture.inbound.port", &Field { kind: PORT, at: |c| &mut c.capture.inbound.port },
        "Port of the inbound listener."),
    key("capture.inbound.exclude_ports", &Field { kind: List(PORT), at: |c| &mut c.capture.inbound.exclude_ports },
        "Ports of the application that stay direct."),
    key("capture.on_failure",
        &Field { kind: Choice(&[("open", OnFailure::Open), ("closed", OnFailure::Closed)]), at: |c| &mut c.capture.on_failure },
        "What happens to connections while no live proxy can take them: `open`, they go direct; `closed`, they fail at once. Where mtls is `strict` for any connection the default is `closed`."),
    key("capture.heartbeat_max_age",
        &Field { kind: Time { min: ms(100), max: ms(60_000) }, at: |c| &mut c.capture.heartbeat_max_age },
        "The proxy counts as hung when its last heartbeat is older than this."),
    key("capture.maps.flows", &Field { kind: Number { min: 1, max: 1 << 24 }, at: |c| &mut c.capture.maps.flows },
        "Connections between their SYN and the proxy's accept."),
    key("capture.maps.listeners", &Field { kind: Number { min: 1, max: 1 << 24 }, at: |c| &mut c.capture.maps.listeners },
        "Listening sockets of the application."),
    // The probe needs some of them at once.
    key("capture.maps.accelerated", &Field { kind: Number { min: 64, max: 1 << 24 }, at: |c| &mut c.capture.maps.accelerated },
        "Connections on the fast path; further ones stay on TCP."),

    key("proxy.workers", &Field { kind: Number { min: 1, max: 1024 }, at: |c| &mut c.proxy.workers },
        "Threads that carry connections. Default: the number of usable cores, at most 2."),
    key("proxy.connect_timeout", &Field { kind: Time { min: ms(10), max: hours(1) }, at: |c| &mut c.proxy.connect_timeout },
        "Time limit for reaching the destination."),
    key("proxy.idle_timeout",
        &Field { kind: Limit(Time { min: ms(100), max: hours(30 * 24) }), at: |c| &mut c.proxy.idle_timeout },
        "A connection on which no byte moved for this long is reset; 0: never."),
    key("proxy.max_connections", &Field { kind: Number { min: 1, max: 1 << 24 }, at: |c| &mut c.proxy.max_connections },
        "Connections carried at once in each direction; above it, or when descriptors get short, further ones wait in the kernel's queue."),
    key("proxy.max_connecting", &Field { kind: Number { min: 1, max: 1 << 24 }, at: |c| &mut c.proxy.max_connecting },
        "Outbound connections that are being dialled at once; above it further dials wait."),
    key("proxy.max_buffer", &Field { kind: Size { min: 4 << 10, max: 64 << 20 }, at: |c| &mut c.proxy.max_buffer },
        "Upper bound for the bytes kept per connection and direction when the receiver is slow."),
    key("proxy.socket_buffer",
        &Field { kind: Optional(Size { min: 16 << 10, max: 64 << 20 }), at: |c| &mut c.proxy.socket_buffer },
        "Kernel memory for each direction of each socket; it bounds what a memory limit must hold, and the speed over long distances. null: the kernel's own tuning."),
    // The kernel keeps TCP_KEEPIDLE in seconds, 32767 of them at most.
    key("proxy.keepalive", &Field { kind: Time { min: ms(1000), max: hours(9) }, at: |c| &mut c.proxy.keepalive },
        "TCP keep-alive on both legs: idle time before the first probe."),
    key("proxy.drain_deadline", &Field { kind: Time { min: ms(0), max: hours(24) }, at: |c| &mut c.proxy.drain_deadline },
        "After SIGTERM: time in which the application may go on to open connections, until its last process has ended, and open ones may end by themselves."),
    key("proxy.hung_after", &Field { kind: Time { min: ms(300), max: hours(1) }, at: |c| &mut c.proxy.hung_after },
        "A worker process that gives no sign of life for this long is killed, which resets its connections, and started again."),
    key("proxy.user", &Field { kind: Optional(UserAndGroup), at: |c| &mut c.proxy.user },
        "User and group of the worker process, such as `1337:1337` or `1337` for both; null: those of the sidecar. It must be able to read the files of `identity`."),
    key("proxy.proxy_protocol_ports", &Field { kind: List(PORT), at: |c| &mut c.proxy.proxy_protocol_ports },
        "Ports of the application that get a PROXY protocol v2 header before the first byte of each inbound connection."),

    key("acceleration",
        &Field {
            kind: Choice(&[("off", Acceleration::Off), ("auto", Acceleration::Auto), ("force", Acceleration::Force)]),
            at: |c| &mut c.capture.acceleration,
        },
        "The fast path, by which what applications send goes to the proxy past TCP: `off`; `auto`, where the kernel is found at the start to change nothing that an application could notice; `force`, wherever the kernel redirects."),

    key("identity.files.cert", &Field { kind: Optional(AbsolutePath), at: |c| &mut c.files.cert },
        "The workload's certificate, followed by those of its intermediate authorities."),
    key("identity.files.key", &Field { kind: Optional(AbsolutePath), at: |c| &mut c.files.key },
        "Its private key: PKCS #8, SEC 1 or PKCS #1."),
    key("identity.files.roots", &Field { kind: Optional(AbsolutePath), at: |c| &mut c.files.roots },
        "The trust domain's root certificates."),
    key("identity.files.crl", &Field { kind: Optional(AbsolutePath), at: |c| &mut c.files.crl },
        "Certificate revocation lists; null: none."),
    key("identity.workload_api", &Field { kind: Optional(UnixUri), at: |c| &mut c.identity.workload_api },
        "Socket of a SPIFFE Workload API, such as `unix:///run/spire/agent.sock`."),
    key("identity.ca.directory", &Field { kind: Optional(AbsolutePath), at: |c| &mut c.ca.directory },
        "Directory that `sidecar ca init` made."),
    key("identity.ca.id", &Field { kind: Optional(Id), at: |c| &mut c.ca.id },
        "The identity to issue, such as `spiffe://example.org/ns/shop/sa/web`."),
    key("identity.ca.lifetime", &Field { kind: Time { min: ms(1000), max: hours(30 * 24) }, at: |c| &mut c.ca.lifetime },
        "Lifetime of each certificate."),

    key("mtls.mode", &Field { kind: MODE, at: |c| &mut c.mtls.mode },
        "`disable`: never asked for, though taken from a client that was answered in the TCP handshake; `permissive`: where the other side can; `strict`: always. For a direction without a mode of its own."),
    key("mtls.outbound.mode", &Field { kind: MODE, at: |c| &mut c.mtls.outbound.mode },
        "Where nothing else is said. Default: `mtls.mode`."),
    key("mtls.outbound.ports", &Field { kind: Structured(Keyed(PORT, MODE)), at: |c| &mut c.mtls.outbound.ports },
        "Modes by destination port, such as `{443: disable}`; beats `cidrs`."),
    key("mtls.outbound.cidrs", &Field { kind: Structured(Keyed(Network, MODE)), at: |c| &mut c.mtls.outbound.cidrs },
        "Modes by destination network, such as `{10.0.0.0/8: strict}`; the longest prefix wins."),
    key("mtls.inbound.mode", &Field { kind: MODE, at: |c| &mut c.mtls.inbound.mode },
        "Where nothing else is said. Default: `mtls.mode`."),
    key("mtls.inbound.ports", &Field { kind: Structured(Keyed(PORT, MODE)), at: |c| &mut c.mtls.inbound.ports },
        "Modes by the application's port; beats `cidrs`."),
    key("mtls.inbound.cidrs", &Field { kind: Structured(Keyed(Network, MODE)), at: |c| &mut c.mtls.inbound.cidrs },
        "Modes by the client's network; the longest prefix wins."),
    key("mtls.post_quantum", &Field { kind: Switch, at: |c| &mut c.mtls.post_quantum },
        "Whether hybrid post-quantum key exchange (X25519MLKEM768) is offered first."),
    key("mtls.handshake_timeout", &Field { kind: Time { min: ms(10), max: hours(1) }, at: |c| &mut c.mtls.handshake_timeout },
        "Time limit for a handshake and for the header that follows it."),
    key("mtls.max_handshakes", &Field { kind: Number { min: 1, max: 1 << 24 }, at: |c| &mut c.mtls.max_handshakes },
        "Inbound handshakes that may be under way at once; further ones wait, and those that take longer than 1 s give way to them."),
    key("mtls.spare.per_destination", &Field { kind: Number { min: 0, max: 1024 }, at: |c| &mut c.mtls.spare.per_destination },
        "At most so many per destination and thread; 0: none."),
    key("mtls.spare.idle", &Field { kind: Time { min: ms(100), max: hours(1) }, at: |c| &mut c.mtls.spare.idle },
        "One that was not used for this long is closed."),
    key("mtls.hbone_port", &Field { kind: PortOrNone, at: |c| &mut c.mtls.hbone_port },
        "Port of the HBONE listener; 0: none."),
    key("mtls.workloads", &Field { kind: Structured(WorkloadsKind), at: |c| &mut c.mtls.workloads },
        "Destinations of which is known who they are and what they speak: `addresses`, and `identity`, `transport` or both."),

    key("authorization", &Field { kind: Structured(RulesKind), at: |c| &mut c.authorization },
        "Who may connect to the application: deny rules first; once an allow rule selects a port, nobody else may. Replaced on SIGHUP."),

    key("lifecycle.exit_with_application", &Field { kind: Switch, at: |c| &mut c.lifecycle.exit_with_application },
        "Whether the sidecar drains and exits with 0 when no process of the pod is left but its own, once there was one: for jobs."),

    key("telemetry.metrics", &Field { kind: Listen { loopback_only: false }, at: |c| &mut c.telemetry.metrics },
        "Address of the Prometheus endpoint (`/metrics`, `/stats/prometheus`)."),
    key("telemetry.health", &Field { kind: Listen { loopback_only: false }, at: |c| &mut c.telemetry.health },
        "Address of the health endpoint (`/healthz/ready`, `/healthz/live`)."),
    key("telemetry.admin", &Field { kind: Listen { loopback_only: true }, at: |c| &mut c.telemetry.admin },
        "Address of the admin endpoint; loopback only."),
    key("telemetry.admin_socket", &Field { kind: Optional(AbsolutePath), at: |c| &mut c.telemetry.admin_socket },
        "Unix socket of the admin endpoint; null: `/run/sidecar/<inode number of the network namespace>.sock`."),
    key("telemetry.access_log",
        &Field {
            kind: Choice(&[("off", AccessLog::Off), ("text", AccessLog::Text), ("json", AccessLog::Json)]),
            at: |c| &mut c.telemetry.access_log,
        },
        "Format of the access log on standard output, one line per connection."),
    key("telemetry.log_level", &Field { kind: LogFilter, at: |c| &mut c.telemetry.log_level },
        "Filter of the sidecar's own log on standard error, in `tracing`'s directive syntax."),
    key("telemetry.log_format",
        &Field { kind: Choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]), at: |c| &mut c.telemetry.log_format },
        "Format of the sidecar's own log."),
    key("telemetry.bpf_log", &Field { kind: Switch, at: |c| &mut c.telemetry.bpf_log },
        "Whether what the eBPF programs say is logged as well."),
];
