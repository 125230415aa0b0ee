//! What is counted of handshakes and of handshaked connections that wait for their use.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Recorder};

use super::{Telemetry, families::METADATA};

/// Name of the histogram of handshake times; the exporter needs it for its bucket bounds.
pub(super) const HANDSHAKE_SECONDS: &str = "sidecar_tls_handshake_seconds";

/// Upper bounds of [`HANDSHAKE_SECONDS`]: from a resumed handshake on one machine to the default time limit.
pub(super) const HANDSHAKE_BUCKETS: [f64; 14] =
    [0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0];

pub(super) const HANDSHAKE_FAILURES: &str = "sidecar_tls_handshake_failures_total";
pub(super) const HANDSHAKES_IN_PROGRESS: &str = "sidecar_handshakes_in_progress";
pub(super) const SPARE_TOTAL: &str = "sidecar_spare_connections_total";

/// Not `sidecar_spare_connections`: OpenMetrics takes `_total` off and would find two families of one name.
pub(super) const SPARE_WAITING: &str = "sidecar_spare_connections_waiting";

/// Which side of TLS this sidecar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It began: outbound connections.
    Client,
    /// It was asked: inbound connections.
    Server,
}

impl Role {
    /// Both, in declaration order.
    const ALL: [Self; 2] = [Self::Client, Self::Server];

    /// The value of the `role` and `side` labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What the store of spare connections did for one connection of the application, or with a spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spare {
    /// A spare was there.
    Hit,
    /// None was there: the connection waited for its own handshake.
    Miss,
    /// One was closed unused, because it waited too long.
    Expired,
    /// One had been closed by the other side when it was wanted, or while it waited.
    Dead,
    /// A client's, which waited here for its use, was closed unused, because the rules do not let the client in.
    Unauthorized,
}

impl Spare {
    /// All of them, in declaration order.
    const ALL: [Self; 5] = [Self::Hit, Self::Miss, Self::Expired, Self::Dead, Self::Unauthorized];

    /// The value of the `result` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Expired => "expired",
            Self::Dead => "dead",
            Self::Unauthorized => "unauthorized",
        }
    }
}

/// One more in a gauge, until it is dropped.
#[must_use = "it is counted only as long as this lives"]
pub struct InProgress(Gauge);

impl InProgress {
    fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Handles on the series. All exist from the start, at zero.
pub(super) struct Mtls {
    /// By role, then: full, resumed.
    handshakes: [[Histogram; 2]; Role::ALL.len()],
    in_progress: [Gauge; Role::ALL.len()],
    waiting: [Gauge; Role::ALL.len()],
    spare: [Counter; Spare::ALL.len()],
}

impl Mtls {
    pub(super) fn register(recorder: &dyn Recorder) -> Self {
        let handshake = |role: Role, resumed| {
            let key = key(HANDSHAKE_SECONDS, &[("role", role.label()), ("resumed", resumed)]);
            recorder.register_histogram(&key, &METADATA)
        };
        let gauge = |name, label, role: Role| {
            let gauge = recorder.register_gauge(&key(name, &[(label, role.label())]), &METADATA);
            gauge.set(0.0);
            gauge
        };
        let spare = |result: Spare| {
            let counter = recorder.register_counter(&key(SPARE_TOTAL, &[("result", result.label())]), &METADATA);
            counter.increment(0);
            counter
        };
        Self {
            handshakes: Role::ALL.map(|role| ["false", "true"].map(|resumed| handshake(role, resumed))),
            in_progress: Role::ALL.map(|role| gauge(HANDSHAKES_IN_PROGRESS, "role", role)),
            waiting: Role::ALL.map(|role| gauge(SPARE_WAITING, "side", role)),
            spare: Spare::ALL.map(spare),
        }
    }
}

fn key(name: &'static str, labels: &[(&'static str, &'static str)]) -> Key {
    let labels: Vec<_> = labels.iter().map(|(name, value)| Label::from_static_parts(name, value)).collect();
    Key::from_parts(name, labels)
}

impl Telemetry {
    /// A handshake begins; it is under way until the guard is dropped.
    pub fn handshake_begins(&self, role: Role) -> InProgress {
        InProgress::new(&self.0.mtls.in_progress[role as usize])
    }

    /// A handshake succeeded after `elapsed`: a full one, or one that resumed an earlier session.
    pub fn handshake(&self, role: Role, resumed: bool, elapsed: Duration) {
        self.0.mtls.handshakes[role as usize][usize::from(resumed)].record(elapsed.as_secs_f64());
        self.sampled();
    }

    /// A handshake failed. `reason` is from a closed set.
    pub fn handshake_failed(&self, role: Role, reason: &'static str) {
        self.handshake_failures(role, reason).increment(1);
    }

    /// Shows the series of these reasons of [`Self::handshake_failed`] from now on, at zero: a rate never sees the first
    /// failure of a series that begins with it.
    pub fn expect_handshake_failures(&self, reasons: impl IntoIterator<Item = &'static str>) {
        for reason in reasons {
            for role in Role::ALL {
                self.handshake_failures(role, reason).increment(0);
            }
        }
    }

    fn handshake_failures(&self, role: Role, reason: &'static str) -> Counter {
        let key = key(HANDSHAKE_FAILURES, &[("role", role.label()), ("reason", reason)]);
        self.0.recorder.register_counter(&key, &METADATA)
    }

    /// What became of a spare connection, or that there was none.
    pub fn spare(&self, result: Spare) {
        self.0.mtls.spare[result as usize].increment(1);
    }

    /// A handshaked connection waits for its use, at the client, or for its header, at the server, until the guard is
    /// dropped.
    pub fn spare_waits(&self, side: Role) -> InProgress {
        InProgress::new(&self.0.mtls.waiting[side as usize])
    }
}
