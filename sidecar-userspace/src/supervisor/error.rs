//! Why the sidecar cannot run.

use std::io;

use super::holders;
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
    #[error("{key}: cannot listen on {address}: {source}{}", port_hint(.source, .address))]
    Listen {
        /// The configuration key that names the port.
        key: &'static str,
        /// The address.
        address: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The admin socket is not to be had.
    #[error("telemetry.admin_socket: {error}{hint}", error = .0, hint = path_hint(.0))]
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
    /// A new binary does not do what it has to.
    #[error("taking over panicked; please report")]
    Panicked,
    /// After an upgrade the capture does not hold.
    #[error("the programs were put in their places and are not effective: {0}")]
    NotEffective(String),
    /// What the binary before has left cannot be used.
    #[error("the configuration in force: {0}")]
    Configuration(crate::config::Faults),
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

    /// A port or the admin socket is another process's.
    pub(super) fn is_of_another(&self) -> bool {
        match self {
            Self::Listen { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            Self::AdminSocket(error) => matches!(error, admin::socket::Error::InUse { .. }),
            _ => false,
        }
    }
}

fn path_hint(error: &admin::socket::Error) -> &'static str {
    match error {
        admin::socket::Error::Call { .. } => {
            "; set it to a path that can be written (in a container with a read-only root: on an emptyDir)"
        }
        admin::socket::Error::InUse { .. } | admin::socket::Error::NotASocket { .. } => "",
    }
}

fn port_hint(error: &io::Error, address: &str) -> String {
    let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
    let holders = || port.map(holders::of).unwrap_or_default().join(", ");
    match error.kind() {
        io::ErrorKind::AddrInUse => match holders() {
            unseen if unseen.is_empty() => {
                "; another process in the pod's network namespace has it (`ss -tlnp` names it)".to_owned()
            }
            holders => format!("; another process in the pod's network namespace has it: {holders}"),
        },
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE".to_owned(),
        _ => String::new(),
    }
}
