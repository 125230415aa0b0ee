//! The metric families, and the handles on them that connections use.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};

use crate::{config::Pod, id::SpiffeId};

use super::{
    CloseReason, Direction, NotEncrypted, Security,
    access_log::LostLines,
    istio::{self, Peers},
    limit,
    live::Live,
    mtls,
};

const SECURITY_TOTAL: &str = "sidecar_connections_security_total";

/// Name of the histogram of connect times; the exporter needs it for its bucket bounds.
pub(super) const CONNECT_SECONDS: &str = "sidecar_connect_seconds";

/// Where metrics come from, for the exporter.
pub(super) const METADATA: Metadata<'static> = Metadata::new("sidecar", Level::INFO, None);

/// Handles on every series that a connection moves. All series exist from the start, at zero.
pub(super) struct Families {
    inbound: Series,
    outbound: Series,
    lost: LostLines,
    log_lost: Counter,
}

/// The series of one direction.
struct Series {
    peers: Peers,
    open_now: Gauge,
    encrypted: Counter,
    not_encrypted: [Counter; NotEncrypted::ALL.len()],
    reasons: [Counter; CloseReason::ALL.len()],
    from_downstream: Counter,
    from_upstream: Counter,
    connect: Histogram,
}

impl Families {
    /// Registers and describes all families of connections.
    pub(super) fn register(recorder: &dyn Recorder, pod: &Pod) -> Self {
        describe(recorder);
        let build = vec![
            Label::from_static_parts("version", env!("CARGO_PKG_VERSION")),
            Label::from_static_parts("git", option_env!("SIDECAR_GIT_COMMIT").unwrap_or("unknown")),
        ];
        recorder.register_gauge(&Key::from_parts("sidecar_build_info", build), &METADATA).set(1.0);
        let lost = |reason| {
            counter(recorder, "sidecar_access_log_dropped_total", vec![Label::from_static_parts("reason", reason)])
        };
        Self {
            inbound: Series::register(recorder, Direction::Inbound, pod),
            outbound: Series::register(recorder, Direction::Outbound, pod),
            lost: LostLines { queue_full: lost("queue_full"), write_failed: lost("write_failed") },
            log_lost: counter(recorder, "sidecar_log_dropped_total", Vec::new()),
        }
    }

    /// Where the access log counts the lines that it lost.
    pub(super) fn lost_lines(&self) -> LostLines {
        self.lost.clone()
    }

    /// Lines of the own log lost since the process started.
    pub(super) fn log_lost(&self, lines: u64) {
        self.log_lost.absolute(lines);
    }

    /// A connection was accepted.
    pub(super) fn accepted(&self, direction: Direction) {
        self.series(direction).open_now.increment(1.0);
    }

    /// It is known what protects a connection: `own` is the identity that this sidecar showed. Returns the series of its
    /// peer, if that proved who it is.
    pub(super) fn secured(
        &self,
        direction: Direction,
        security: &Security,
        own: Option<&SpiffeId>,
    ) -> Option<Arc<istio::Series>> {
        let series = self.series(direction);
        match security {
            Security::Plaintext(reason) => {
                series.not_encrypted[*reason as usize].increment(1);
                series.peers.unknown().opened();
                None
            }
            Security::MutualTls { peer, .. } => {
                series.encrypted.increment(1);
                Some(series.peers.opened(own, peer, Instant::now()))
            }
        }
    }

    /// A connection reached its destination after `elapsed`.
    pub(super) fn connected(&self, direction: Direction, elapsed: Duration) {
        self.series(direction).connect.record(elapsed.as_secs_f64());
    }

    /// Adds the bytes that `live` has moved since it was last flushed.
    pub(super) fn flush(&self, live: &Live) {
        let (from_downstream, from_upstream) = live.unflushed();
        if (from_downstream, from_upstream) == (0, 0) {
            return;
        }
        let series = self.series(live.direction);
        series.from_downstream.increment(from_downstream);
        series.from_upstream.increment(from_upstream);
        self.istio(live).moved(from_downstream, from_upstream);
    }

    /// `live` ended.
    pub(super) fn closed(&self, live: &Live, reason: CloseReason) {
        self.flush(live);
        let series = self.series(live.direction);
        series.open_now.decrement(1.0);
        series.reasons[reason as usize].increment(1);
        if live.secured.get().is_none() {
            // It ended before anybody could know: it still was opened.
            series.peers.unknown().opened();
        }
        self.istio(live).closed(reason.flags());
    }

    /// Appends Istio's families in Prometheus' text format.
    pub(super) fn render_istio(&self, text: &mut String) {
        istio::render([&self.inbound.peers, &self.outbound.peers], Instant::now(), text);
    }

    /// The series of Istio's families that `live` belongs to.
    fn istio<'a>(&'a self, live: &'a Live) -> &'a istio::Series {
        let known = live.secured.get().and_then(|secured| secured.series.as_deref());
        known.unwrap_or_else(|| self.series(live.direction).peers.unknown())
    }

    fn series(&self, direction: Direction) -> &Series {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

impl Series {
    fn register(recorder: &dyn Recorder, direction: Direction, pod: &Pod) -> Self {
        let own =
            |name, labels: &[(&'static str, &'static str)]| counter(recorder, name, own_labels(direction, labels));
        let key = |name| Key::from_parts(name, own_labels(direction, &[]));
        let secured = |security, reason| own(SECURITY_TOTAL, &[("security", security), ("reason", reason)]);
        Self {
            peers: Peers::new(direction, pod),
            encrypted: secured("mutual_tls", "-"),
            not_encrypted: NotEncrypted::ALL.map(|reason| secured("plaintext", reason.label())),
            open_now: recorder.register_gauge(&key("sidecar_connections"), &METADATA),
            reasons: CloseReason::ALL
                .map(|reason| own("sidecar_connections_closed_total", &[("reason", reason.label())])),
            from_downstream: own("sidecar_bytes_total", &[("flow", "from_downstream")]),
            from_upstream: own("sidecar_bytes_total", &[("flow", "from_upstream")]),
            connect: recorder.register_histogram(&key(CONNECT_SECONDS), &METADATA),
        }
    }
}

fn counter(recorder: &dyn Recorder, name: &'static str, labels: Vec<Label>) -> Counter {
    let counter = recorder.register_counter(&Key::from_parts(name, labels), &METADATA);
    counter.increment(0);
    counter
}

fn own_labels(direction: Direction, more: &[(&'static str, &'static str)]) -> Vec<Label> {
    std::iter::once(&("direction", direction.label()))
        .chain(more)
        .map(|(key, value)| Label::from_static_parts(key, value))
        .collect()
}

fn describe(recorder: &dyn Recorder) {
    for (name, text) in [
        ("sidecar_connections_closed_total", "Connections ended, by reason."),
        (SECURITY_TOTAL, "Connections by what protects them, and if nothing does, why."),
        (mtls::HANDSHAKE_FAILURES, "TLS handshakes that failed, by side and reason."),
        (mtls::SPARE_TOTAL, "Spare connections by what became of them, and connections that found none."),
        ("sidecar_bytes_total", "Application bytes delivered, by the side that they came from."),
        ("sidecar_access_log_dropped_total", "Access log lines lost because standard output was not read or failed."),
        ("sidecar_log_dropped_total", "Lines of the sidecar's own log lost for the same reasons at standard error."),
        ("sidecar_accept_errors_total", "Accepts that failed, by what is short."),
        (
            limit::REACHED_TOTAL,
            "Times that a bound of the configuration was reached, and what became of who came then.",
        ),
        ("sidecar_connect_errors_total", "Dials that failed for a reason of this machine, by what is short."),
        ("sidecar_connection_limit_waits_total", "Times that the limit of open connections kept further ones waiting."),
        (
            "sidecar_uncaptured_connections_total",
            "Connections seen that run past the sidecar, unknown to its programs.",
        ),
        ("sidecar_verdicts_total", "What the eBPF programs decided, by hook, verdict and reason."),
    ] {
        recorder.describe_counter(name.into(), None, text.into());
    }
    for (name, text) in [
        ("sidecar_connections", "Connections open now."),
        (
            "sidecar_uncaptured_connections",
            "Connections open at the last look that run past the sidecar, unknown to its programs.",
        ),
        ("sidecar_fallback", "1: the kernel lacks something, and the sidecar does without it in this way."),
        ("sidecar_build_info", "Version and commit of this binary."),
        (mtls::HANDSHAKES_IN_PROGRESS, "TLS handshakes under way."),
        (mtls::SPARE_WAITING, "Handshaked connections that wait for their use (client) or their header (server)."),
    ] {
        recorder.describe_gauge(name.into(), None, text.into());
    }
    for (name, text) in [
        (CONNECT_SECONDS, "Time from knowing the destination to being connected to it."),
        (mtls::HANDSHAKE_SECONDS, "Time that successful TLS handshakes took."),
    ] {
        recorder.describe_histogram(name.into(), Some(Unit::Seconds), text.into());
    }
}
