//! Wiring and order: listeners before programs, programs before ready; and back at the end.

mod acceleration;
mod control;
mod hooks;
mod reload;
mod start;
mod trust;

use std::{io, process::ExitCode};

use crate::{admin, config::Loaded, pod, redirect, telemetry};

/// Why the sidecar cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sidecar's own log cannot be set up.
    #[error(transparent)]
    Log(#[from] telemetry::log::Error),
    /// Metrics or access log cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// The pod cannot be found or entered.
    #[error(transparent)]
    Pod(#[from] pod::Error),
    /// The capture cannot start.
    #[error(transparent)]
    Redirect(#[from] redirect::Error),
    /// A port is not to be had.
    #[error("{key}: cannot listen on {address}: {source}{}", port_hint(.source))]
    Listen {
        /// The configuration key that names the port.
        key: &'static str,
        /// The address.
        address: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The admin socket is not to be had.
    #[error(
        "telemetry.admin_socket: {0}; set it to a path that can be written (in a container with a read-only root: on an emptyDir)"
    )]
    AdminSocket(#[from] admin::socket::Error),
    /// The HTTP endpoints cannot be served.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The kernel gives no thread, reactor or signal.
    #[error("{what}: {source}")]
    Runtime {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn port_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process in the pod's network namespace has it (`ss -tlnp` names it)",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// Runs until a signal or a failure that ends the sidecar.
///
/// # Errors
/// Anything without which it cannot serve.
pub fn run(loaded: Loaded) -> Result<ExitCode, Error> {
    control::run(loaded)
}
