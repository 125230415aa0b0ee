//! The fast path of this sidecar, and what is told of it.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value as Json, json};

use crate::{
    config::Acceleration,
    redirect::{
        Capture,
        fast_path::{FastPath, Status, traps},
    },
    telemetry::Telemetry,
};

/// Starts it if the configuration asks for it. After the sidecar serves: it takes its time on a thread of its own.
pub(super) fn begin(acceleration: Acceleration, capture: &Arc<Mutex<Capture>>, telemetry: &Telemetry) -> FastPath {
    let parts = capture.lock().unwrap_or_else(PoisonError::into_inner).fast_path();
    let path = match parts {
        None => FastPath::off(),
        Some(parts) => {
            let connections = telemetry.clone();
            FastPath::start(acceleration, parts, move || connections.connections().len())
        }
    };
    export(telemetry, path.clone());
    path
}

fn export(telemetry: &Telemetry, path: FastPath) {
    telemetry.add_source(Box::new(move || {
        let (on, report) = path.figures();
        metrics::gauge!("sidecar_fast_path_on").set(f64::from(u8::from(on)));
        let Some(report) = report else { return };
        for trap in traps() {
            let sprung = report.sprung.iter().any(|name| name == trap);
            metrics::gauge!("sidecar_fast_path_trap", "trap" => trap).set(f64::from(u8::from(sprung)));
        }
    }));
}

/// What the admin interface tells.
pub(super) fn to_json(status: &Status) -> Json {
    json!({
        "on": status.on,
        "why": status.why,
        "connections": status.connections,
        "redirects": status.report.as_ref().map(|report| report.redirects),
        "sprung": status.report.as_ref().map(|report| report.sprung.clone()),
    })
}
