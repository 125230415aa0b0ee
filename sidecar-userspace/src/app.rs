//! The worker process: everything that carries connections, on listeners and figures that its supervisor lends it, and without
//! any privilege.

mod acceleration;
mod confine;
mod control;
mod drain;
mod hooks;
mod inherited;
mod orders;
mod orphan;
mod reload;
mod start;
mod trust;

use std::{io, process::ExitCode};

use crate::{admin, config::Faults, control as language, sandbox, telemetry};

/// Why the worker cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there to tell it what to do.
    #[error("`sidecar worker` is started by `sidecar run`, which tells it what to do: {0}")]
    Alone(#[source] language::Error),
    /// The supervisor says something else than it should.
    #[error("the supervisor says what is not understood: {0}; please report")]
    Misunderstood(String),
    /// Memory of the supervisor's cannot be seen.
    #[error("memory of the supervisor's cannot be mapped ({what}): {source}")]
    Memory {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The configuration that the supervisor took has a fault.
    #[error("the configuration: {0}; please report, for the supervisor found no fault in it")]
    Configuration(Faults),
    /// The sidecar's own log cannot be set up.
    #[error(transparent)]
    Log(#[from] telemetry::log::Error),
    /// Metrics or access log cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// Privileges cannot be given up.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The HTTP endpoints cannot be served.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// The kernel gives no thread or reactor.
    #[error("{what}: {source}{}", room_hint(.source))]
    Runtime {
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Serves what the supervisor at the other end of standard input says, until it says otherwise or is gone.
///
/// # Errors
/// Nobody is at the other end. Anything else is told to the supervisor, which tells it to people.
pub fn run() -> Result<ExitCode, Error> {
    let channel = inherited::channel()?;
    match control::run(&channel) {
        Ok(code) => Ok(code),
        // It has gone before there was anything to do: then it has said why.
        Err(Error::Alone(language::Error::Gone)) => Ok(ExitCode::FAILURE),
        Err(error) => {
            let told = channel.send(&language::Report::Failed(error.to_string()), &[]);
            told.map_err(Error::Alone).map(|()| ExitCode::FAILURE)
        }
    }
}

/// A thread that has no room for its stack is told from one too many by nobody: pthread_create(3) says EAGAIN for both.
fn room_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM) => {
            "; raise the pod's pids limit, or what it may have of memory (memory.max, ulimit -v), or lower proxy.workers"
        }
        _ => "",
    }
}
