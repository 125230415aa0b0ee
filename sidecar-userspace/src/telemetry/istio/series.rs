//! The totals of one peer, and the text of their labels.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    config::Pod,
    id::SpiffeId,
    telemetry::{Direction, ResponseFlags},
};

/// What Istio writes where a label has no value.
const UNKNOWN: &str = "unknown";

/// The totals of the connections with one peer.
#[derive(Default)]
pub(crate) struct Series {
    /// All labels but `response_flags`, as they stand between the braces.
    labels: String,
    own: Option<SpiffeId>,
    opened: AtomicU64,
    closed: [AtomicU64; ResponseFlags::ALL.len()],
    sent: AtomicU64,
    received: AtomicU64,
}

/// One of the families.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// The total for connections that ended with these flags; `None`: there is no such series.
    value: fn(&Series, ResponseFlags) -> Option<u64>,
}

/// All of them.
pub(super) const FAMILIES: [Family; 5] = [
    Family {
        name: "istio_tcp_connections_opened_total",
        help: "Connections accepted, counted when their security is known.",
        value: |series, flags| carried(flags, &series.opened),
    },
    Family {
        name: "istio_tcp_connections_closed_total",
        help: "Connections ended.",
        value: |series, flags| Some(load(&series.closed[flags as usize])),
    },
    Family {
        name: "istio_tcp_connections_failed_total",
        help: "Connections that were not carried, or no longer.",
        value: |series, flags| (flags != ResponseFlags::None).then(|| load(&series.closed[flags as usize])),
    },
    Family {
        name: "istio_tcp_sent_bytes_total",
        help: "Bytes that servers answered (both reporters).",
        value: |series, flags| carried(flags, &series.sent),
    },
    Family {
        name: "istio_tcp_received_bytes_total",
        help: "Bytes that clients sent (both reporters).",
        value: |series, flags| carried(flags, &series.received),
    },
];

/// Totals that grow before it is known how a connection ends have one series, without flags.
fn carried(flags: ResponseFlags, total: &AtomicU64) -> Option<u64> {
    (flags == ResponseFlags::None).then(|| load(total))
}

fn load(total: &AtomicU64) -> u64 {
    total.load(Ordering::Relaxed)
}

impl Series {
    pub(super) fn new(labels: &Labels<'_>) -> Self {
        Self { labels: labels.text(), own: labels.own.cloned(), ..Self::default() }
    }

    /// The identity that this sidecar showed to the peer.
    pub(crate) fn own(&self) -> Option<&SpiffeId> {
        self.own.as_ref()
    }

    /// A connection was opened.
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes were delivered: what the client sent, what the server answered.
    pub(crate) fn moved(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// A connection ended.
    pub(crate) fn closed(&self, flags: ResponseFlags) {
        self.closed[flags as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a connection that was opened has not ended.
    pub(super) fn is_open(&self) -> bool {
        self.closed.iter().map(load).sum::<u64>() != load(&self.opened)
    }

    /// Appends this peer's lines of `family`, `zeros` included or not.
    pub(super) fn render(&self, family: &Family, zeros: bool, text: &mut String) {
        for flags in ResponseFlags::ALL {
            let Some(value) = (family.value)(self, flags) else { continue };
            if value > 0 || zeros {
                // Writing to a string cannot fail.
                let _ =
                    writeln!(text, "{}{{{},response_flags=\"{}\"}} {value}", family.name, self.labels, flags.label());
            }
        }
    }
}

/// What is known of both ends of a connection.
pub(super) struct Labels<'a> {
    pub(super) direction: Direction,
    pub(super) pod: &'a Pod,
    /// The identity that this sidecar showed.
    pub(super) own: Option<&'a SpiffeId>,
    /// Who the other end has proved to be; `None`: nobody, there was no mutual TLS.
    pub(super) principal: Option<&'a str>,
    /// The other end's namespace, where its identity tells it.
    pub(super) namespace: Option<&'a str>,
}

/// One end, as the labels know it.
struct End<'a> {
    workload: &'a str,
    namespace: &'a str,
    principal: &'a str,
}

impl Labels<'_> {
    /// The whole label set of Istio's TCP families but `response_flags`. Istio's canonical service falls back to the
    /// workload's name, and so does this one. An identity names a service account and no workload: that of the other end
    /// stays unknown.
    fn text(&self) -> String {
        let near = End {
            workload: &self.pod.workload,
            namespace: &self.pod.namespace,
            principal: self.own.map_or(UNKNOWN, SpiffeId::as_str),
        };
        let far = End {
            workload: UNKNOWN,
            namespace: self.namespace.unwrap_or(UNKNOWN),
            principal: self.principal.unwrap_or(UNKNOWN),
        };
        let (source, destination) = match self.direction {
            Direction::Inbound => (far, near),
            Direction::Outbound => (near, far),
        };
        let policy = if self.principal.is_some() { "mutual_tls" } else { UNKNOWN };
        let labels = [
            ("reporter", self.direction.reporter()),
            ("source_workload", source.workload),
            ("source_canonical_service", source.workload),
            ("source_canonical_revision", UNKNOWN),
            ("source_workload_namespace", source.namespace),
            ("source_principal", source.principal),
            ("source_app", UNKNOWN),
            ("source_version", UNKNOWN),
            ("source_cluster", UNKNOWN),
            ("destination_service", UNKNOWN),
            ("destination_service_name", UNKNOWN),
            ("destination_service_namespace", UNKNOWN),
            ("destination_workload", destination.workload),
            ("destination_canonical_service", destination.workload),
            ("destination_canonical_revision", UNKNOWN),
            ("destination_workload_namespace", destination.namespace),
            ("destination_principal", destination.principal),
            ("destination_app", UNKNOWN),
            ("destination_version", UNKNOWN),
            ("destination_cluster", UNKNOWN),
            ("request_protocol", "tcp"),
            ("connection_security_policy", policy),
        ];
        labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).join(",")
    }
}

/// A label's value between its quotes: the text format escapes backslash, quote and line feed.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}
