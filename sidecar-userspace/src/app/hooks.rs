//! What the HTTP endpoints tell: they know no type of the proxy, only these closures.

use std::{sync::Arc, time::Duration};

use super::{acceleration::FastPath, drain::Switch, orders::Orders, reload::InForce};
use crate::{
    admin::Hooks,
    control::Report,
    lifecycle::{
        beats::Heartbeat,
        board::{BoardReader, Figure},
        counters::Counters,
        readiness::{Readiness, Unready},
        startup::Phase,
    },
    telemetry::{Telemetry, log::LogControl, process::Usage},
};

/// What an operator may move, and who is told of it.
pub(super) struct Levers {
    pub(super) switch: Switch,
    pub(super) fast_path: FastPath,
    pub(super) orders: Orders,
}

pub(super) fn hooks(
    readiness: Readiness,
    heartbeat: Heartbeat,
    telemetry: &Telemetry,
    log: LogControl,
    in_force: InForce,
    Levers { switch, fast_path, orders }: Levers,
) -> Hooks {
    let live_heartbeat = heartbeat.clone();
    let (for_connections, for_metrics, log_again) = (telemetry.clone(), telemetry.clone(), log.clone());
    let max_age = in_force.get().config.capture.heartbeat_max_age;
    Hooks {
        ready: Arc::new(move || unready(&readiness, &heartbeat, max_age)),
        live: Arc::new(move || stale(&live_heartbeat, max_age.max(HOPELESS))),
        config_dump: Arc::new(move || in_force.get().to_json()),
        connections: Arc::new(move || {
            serde_json::to_value(for_connections.connections().snapshot()).unwrap_or(serde_json::Value::Null)
        }),
        metrics: Arc::new(move || for_metrics.render_metrics()),
        drain_state: Arc::new({
            let switch = switch.clone();
            move || switch.to_json()
        }),
        drain: Arc::new({
            let orders = orders.clone();
            move || orders.report(&Report::Drain)
        }),
        fast_path: Arc::new({
            let fast_path = fast_path.clone();
            move || fast_path.to_json()
        }),
        switch_fast_path: Arc::new(move |on| fast_path.switch(on)),
        log_level: Arc::new(move || log.current()),
        set_log_level: Arc::new(move |directives| {
            log_again.set(directives).map_err(|error| error.to_string())?;
            // Its log is the same, and so are its words.
            orders.report(&Report::LogLevel(directives.to_owned()));
            Ok(())
        }),
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

/// What the supervisor knows joins every rendering of the metrics.
pub(super) fn export_board(telemetry: &Telemetry, board: BoardReader) {
    const RESTARTS: &str = "sidecar_worker_restarts_total";
    const UPGRADES: &str = "sidecar_upgrades_total";
    const STARTUP: &str = "sidecar_startup_seconds";
    const UNCAPTURED: &str = "sidecar_uncaptured_connections";
    const UNCAPTURED_TOTAL: &str = "sidecar_uncaptured_connections_total";
    telemetry.within(|| {
        metrics::describe_counter!(RESTARTS, "Worker processes that were started again, by why the one before ended.");
        metrics::describe_counter!(UPGRADES, "Upgrades in place that were asked for, by what became of them.");
        metrics::describe_gauge!(STARTUP, "Time that each part of the sidecar's start took.");
    });
    let supervisor = board.clone();
    telemetry.show_supervisor(Box::new(move || usage_of_supervisor(&supervisor)));
    telemetry.add_source(Box::new(move || {
        for (mode, figure) in [("mptcp_as_tcp", Figure::MptcpAsTcp), ("no_discovery", Figure::NoDiscovery)] {
            metrics::gauge!("sidecar_fallback", "mode" => mode).set(board.get(figure) as f64);
        }
        for (origin, open, seen) in [
            ("other_cgroup", Figure::OtherCgroupOpen, Figure::OtherCgroupSeen),
            ("older", Figure::OlderOpen, Figure::OlderSeen),
        ] {
            metrics::gauge!(UNCAPTURED, "origin" => origin).set(board.get(open) as f64);
            metrics::counter!(UNCAPTURED_TOTAL, "origin" => origin).absolute(board.get(seen));
        }
        for (result, figure) in [
            ("upgraded", Figure::UpgradesDone),
            ("refused", Figure::UpgradesRefused),
            ("rolled_back", Figure::UpgradesRolledBack),
        ] {
            metrics::counter!(UPGRADES, "result" => result).absolute(board.get(figure));
        }
        metrics::gauge!("sidecar_leaving_workers").set(board.get(Figure::LeavingWorkers) as f64);
        metrics::gauge!("sidecar_leaving_connections").set(board.get(Figure::LeavingConnections) as f64);
        for (reason, figure) in [
            ("exited", Figure::RestartsExited),
            ("killed", Figure::RestartsKilled),
            ("hung", Figure::RestartsHung),
            ("moved", Figure::RestartsMoved),
        ] {
            metrics::counter!(RESTARTS, "reason" => reason).absolute(board.get(figure));
        }
        for phase in Phase::ALL {
            metrics::gauge!(STARTUP, "phase" => phase.label()).set(phase.seconds(&board));
        }
    }));
}

/// What the supervisor has written of itself; it looks every ten seconds.
fn usage_of_supervisor(board: &BoardReader) -> Usage {
    let figure = |figure| Some(board.get(figure) as f64).filter(|value| *value > 0.0);
    Usage {
        // A start takes less than a tick of the clock sometimes.
        cpu: Some(board.get(Figure::SupervisorCpu) as f64 / 1e6),
        resident: figure(Figure::SupervisorResident),
        anonymous: figure(Figure::SupervisorAnonymous),
        threads: figure(Figure::SupervisorThreads),
        descriptors: figure(Figure::SupervisorDescriptors),
    }
}

/// The kernel side's counters join every rendering of the metrics.
pub(super) fn export_counters(telemetry: &Telemetry, counters: Counters) {
    telemetry.add_source(Box::new(move || {
        for (counter, value) in counters.all() {
            let (hook, verdict, reason) = counter.labels();
            metrics::counter!("sidecar_verdicts_total", "hook" => hook, "verdict" => verdict, "reason" => reason)
                .absolute(value);
        }
    }));
}
