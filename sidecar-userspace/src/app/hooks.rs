//! What the HTTP endpoints tell: they know no type of the proxy, only these closures.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{acceleration, reload::InForce};
use crate::{
    admin::Hooks,
    lifecycle::readiness::{Readiness, Unready},
    redirect::{Capture, Heartbeat, Origin, Subflows, Uncaptured, fast_path::FastPath},
    telemetry::{Telemetry, log::LogControl},
};

pub(super) fn hooks(
    readiness: Readiness,
    heartbeat: Heartbeat,
    telemetry: &Telemetry,
    log: LogControl,
    in_force: InForce,
    fast_path: FastPath,
) -> Hooks {
    let live_heartbeat = heartbeat.clone();
    let (for_connections, for_metrics, log_again) = (telemetry.clone(), telemetry.clone(), log.clone());
    let fast_path_again = fast_path.clone();
    let max_age = in_force.get().config.capture.heartbeat_max_age;
    Hooks {
        ready: Arc::new(move || unready(&readiness, &heartbeat, max_age)),
        live: Arc::new(move || stale(&live_heartbeat, max_age.max(HOPELESS))),
        config_dump: Arc::new(move || in_force.get().to_json()),
        connections: Arc::new(move || {
            serde_json::to_value(for_connections.connections().snapshot()).unwrap_or(serde_json::Value::Null)
        }),
        metrics: Arc::new(move || for_metrics.render_metrics()),
        fast_path: Arc::new(move || acceleration::to_json(&fast_path.status())),
        switch_fast_path: Arc::new(move |on| fast_path_again.switch(on)),
        log_level: Arc::new(move || log.current()),
        set_log_level: Arc::new(move |directives| log_again.set(directives).map_err(|error| error.to_string())),
    }
}

/// A worker that hangs for longer will not come back: whoever asks for liveness may start the sidecar anew.
const HOPELESS: Duration = Duration::from_secs(30);

/// The same judgement as the kernel's: a worker that does not beat makes the sidecar unready.
fn unready(readiness: &Readiness, heartbeat: &Heartbeat, max_age: Duration) -> Vec<Unready> {
    let mut unready = readiness.unready();
    unready.extend(stale(heartbeat, max_age));
    unready
}

fn stale(heartbeat: &Heartbeat, limit: Duration) -> Vec<Unready> {
    let age = Duration::from_nanos(heartbeat.age());
    if age <= limit {
        return Vec::new();
    }
    vec![Unready { name: "workers", reason: format!("a worker has given no sign of life for {age:.1?}") }]
}

/// What the sidecar does without because the kernel lacks it.
pub(super) fn export_fallbacks(telemetry: &Telemetry, subflows: &Subflows) {
    let without = f64::from(u8::from(*subflows != Subflows::Told));
    telemetry.add_source(Box::new(move || metrics::gauge!("sidecar_fallback", "mode" => "mptcp_as_tcp").set(without)));
}

/// What runs past the sidecar.
pub(super) fn export_uncaptured(telemetry: &Telemetry, uncaptured: Uncaptured) {
    telemetry.add_source(Box::new(move || {
        for origin in Origin::ALL {
            let (open, seen) = (uncaptured.open(origin), uncaptured.seen(origin));
            metrics::gauge!("sidecar_uncaptured_connections", "origin" => origin.label()).set(open as f64);
            metrics::counter!("sidecar_uncaptured_connections_total", "origin" => origin.label()).absolute(seen);
        }
    }));
}

/// The kernel side's counters, and whether it discovers other sidecars, join every rendering of the metrics.
pub(super) fn export_counters(telemetry: &Telemetry, capture: &Arc<Mutex<Capture>>) {
    // Weak: the metrics must not keep the programs attached.
    let capture = Arc::downgrade(capture);
    telemetry.add_source(Box::new(move || {
        let Some(capture) = capture.upgrade() else { return };
        let capture = capture.lock().unwrap_or_else(PoisonError::into_inner);
        let without = f64::from(u8::from(!capture.discovers()));
        metrics::gauge!("sidecar_fallback", "mode" => "no_discovery").set(without);
        let counted = capture.counters().all();
        drop(capture);
        match counted {
            Ok(counters) => {
                for (counter, value) in counters {
                    let (hook, verdict, reason) = counter.labels();
                    metrics::counter!("sidecar_verdicts_total", "hook" => hook, "verdict" => verdict, "reason" => reason)
                        .absolute(value);
                }
            }
            Err(error) => tracing::warn!(%error, "the kernel side's counters cannot be read"),
        }
    }));
}
