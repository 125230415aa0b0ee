//! The process that holds what must outlive a crash: listeners, programs, links and maps. It starts the worker, which carries
//! connections, and starts it again when it ends or hangs; what arrives meanwhile waits in the listeners' queues.
//!
//! It has one thread, and another for the fast path if that is configured, no reactor and no TLS, speaks with nobody but the
//! worker and the kernel, and needs every capability; the worker speaks with everybody, and has none. So it does what asks the
//! kernel's bpf(2) and nothing else: it keeps addresses, routes and listeners known to the kernel side, and sees that the
//! programs stay effective. Figures and the heartbeat cross through memory ([`crate::lifecycle`]), everything else as messages
//! ([`crate::control`]).

mod application;
mod caring;
mod child;
mod ending;
mod error;
mod hearing;
mod holders;
mod itself;
mod keeping;
mod listening;
mod pings;
mod reload;
mod restarts;
mod resume;
mod signals;
mod start;
mod turns;
mod upgrade;
mod waiting;
mod worker;

use std::process::ExitCode;

use crate::config::Loaded;

pub use error::Error;
pub use upgrade::{Done, FACTS, Facts, MOST_PATIENCE, Outcome, STAND_BY, TAKE_OVER, Wanted, ask, stand_by};

/// Runs until a signal or a failure that ends the sidecar.
///
/// # Errors
/// Anything without which it cannot serve.
pub fn run(loaded: Loaded) -> Result<ExitCode, Error> {
    start::start(loaded)?.run()
}

/// Goes on with what the binary that this process ran before has left behind a descriptor. `refused`: a program whose attachment is to
/// fail, as if the kernel refused it, or [`TAKE_OVER`] for a crash after all of them.
///
/// # Errors
/// It has left nothing, or it could not go on either.
pub fn take_over(descriptor: i32, refused: Option<String>) -> Result<ExitCode, Error> {
    upgrade::take_over(descriptor, refused)
}
