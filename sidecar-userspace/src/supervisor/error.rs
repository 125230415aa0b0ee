//! Why the sidecar cannot run.

use std::io;

use crate::{admin, control, pod, redirect, telemetry};

/// Why the sidecar cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sidecar's own log cannot be set up.
    #[error(transparent)]
    Log(#[from] telemetry::log::Error),
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
    /// The worker process cannot be started.
    #[error(
        "the worker process cannot be started: {0}; it is this binary, run again from /proc/self/exe: mount /proc, and allow a second process (pids limit)"
    )]
    Spawn(#[source] io::Error),
    /// The worker process says that it cannot serve.
    #[error("{0}")]
    Worker(String),
    /// The worker process ended before it served.
    #[error("the worker process ended before it served ({0}); its last words are above")]
    WorkerEnded(String),
    /// The worker process does not serve.
    #[error("the worker process does not serve after {0:?}; is the machine short of CPU?")]
    WorkerLate(std::time::Duration),
    /// The worker and this process do not understand each other.
    #[error("talking to the worker process: {0}")]
    Control(#[from] control::Error),
    /// The kernel gives no memory, descriptor or signal.
    #[error("{what}: {source}")]
    Runtime {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// What was asked for in vain.
    pub(super) fn runtime<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Runtime { what, source: source.into() }
    }
}

fn port_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process in the pod's network namespace has it (`ss -tlnp` names it)",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}
