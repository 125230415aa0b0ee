//! The language of supervisor and worker: typed messages over a socket that keeps them apart (`SOCK_SEQPACKET`).
//!
//! Each message has a version and a bounded length, and either end takes nothing that it does not understand: the worker is
//! the one that strangers talk to, so the supervisor believes it no more than it must. Descriptors travel with messages.

mod channel;
mod message;

pub use channel::{Channel, Error};
pub use message::{Condition, Order, Report, Start, VERSION, Withdrawn};

/// The subcommand that is the worker. It finds its end of the channel as its standard input.
pub const COMMAND: &str = "worker";

#[cfg(test)]
mod tests;
