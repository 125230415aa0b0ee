//! What supervisor and worker tell each other.

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Error;

/// Version of the language. Supervisor and worker are one binary, but for the time in which a new binary takes the place of
/// another: then both speak this version. To be raised with every change of a message.
pub const VERSION: u8 = 3;

/// Bytes of a message at most. A reason for not being ready, with the kernel's words in it, fits.
pub(super) const LONGEST: usize = 16 * 1024;

/// What the supervisor tells the worker.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Order {
    /// Serve. Comes first, once, with the descriptors that [`Start`] names.
    Start(Start),
    /// Answer with [`Report::Pong`] of the same number.
    Ping(u64),
    /// Whether something that the supervisor sees to holds.
    Condition {
        /// What.
        condition: Condition,
        /// Why it does not hold; `None`: it holds.
        unready: Option<String>,
    },
    /// Here is the configuration as it is now, in a descriptor, and its number. Answered by [`Report::Reloaded`].
    Reload(u64),
    /// It could not be read.
    ReloadFailed,
    /// Figures are on the board in this descriptor from now on.
    Board,
    /// Another worker serves: take nothing more, let what is open end, and end. The capture goes on. Answered by
    /// [`Report::Open`], now and as often as it is worth telling.
    HandOver {
        /// Time until the deadline.
        left: Duration,
    },
    /// Let what is open end, and end.
    Drain {
        /// What asked for it: a signal, a command, the end of the application.
        why: String,
        /// Time until the deadline: a worker that takes the place of one that died has what that one left.
        left: Duration,
    },
    /// End at once.
    End {
        /// The signal that asked for it.
        signal: String,
    },
}

/// A condition of readiness that the supervisor sees to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The programs are effective.
    Programs,
    /// The kernel side knows the pod's addresses.
    Addresses,
}

/// How to serve. The descriptors that come with it, in this order: the board, the eBPF maps `HEARTBEAT`, `COUNTERS` and `MIXED`,
/// the configuration, the outbound and the inbound listener, those of metrics, health, admin and the admin socket; then, if there
/// are, the listener for tunnels and the configuration whose rules are in force.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Numbers of CPUs that `COUNTERS` has room for.
    pub cpus: u32,
    /// There is a listener for tunnels.
    pub tunnels: bool,
    /// There is a newer configuration, whose rules are in force.
    pub reloaded: bool,
    /// Configurations put in force so far.
    pub generation: u64,
    /// The configuration had a fault when it was last read.
    pub reload_failed: bool,
    /// `CLOCK_MONOTONIC` in nanoseconds when this start began.
    pub began: u64,
    /// Workers before this one.
    pub predecessors: u64,
    /// Another worker serves until this one does: so there is time to wait for an identity.
    pub successor: bool,
    /// Process id of the supervisor, which is the sidecar's for everybody else.
    pub supervisor: u32,
    /// Log directives that somebody has set while the sidecar ran; `None`: those of the configuration.
    pub log_level: Option<String>,
}

impl Start {
    /// Descriptors that come always.
    pub const ALWAYS: usize = 11;

    /// Descriptors that must come with it.
    pub fn descriptors(&self) -> usize {
        Self::ALWAYS + usize::from(self.tunnels) + usize::from(self.reloaded)
    }
}

/// What the worker tells the supervisor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Report {
    /// Everything is there to carry connections.
    Serving,
    /// It cannot serve.
    Failed(String),
    /// The answer to [`Order::Ping`].
    Pong(u64),
    /// The configuration of that [`Order::Reload`] is in force, or has a fault and is not.
    Reloaded {
        /// Its number.
        offer: u64,
        /// Whether it is.
        in_force: bool,
    },
    /// Connections that are open after [`Order::HandOver`]; nothing more is taken.
    Open(u64),
    /// Somebody has set the log directives.
    LogLevel(String),
    /// Somebody asks for the end: begin to drain.
    Drain,
    /// No connection of this kind is to come any more.
    Withdraw(Withdrawn),
    /// Somebody asks how the fast path stands, and may want it on or off. What became of that is on the board, and then the number of
    /// the question, of which each worker has its own.
    FastPath {
        /// On or off.
        wanted: Option<bool>,
        /// Its number.
        number: u64,
    },
}

/// Connections that are not to come any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Withdrawn {
    /// Those that others open to the application.
    Inbound,
    /// All.
    Everything,
}

/// A message as bytes.
pub(super) fn encode(message: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, message).map_err(|error| Error::Malformed(error.to_string()))?;
    if bytes.len() > LONGEST {
        return Err(Error::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// A message from bytes.
pub(super) fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, Error> {
    match bytes.split_first() {
        None => Err(Error::Malformed("it is empty".to_owned())),
        Some((&VERSION, rest)) => serde_json::from_slice(rest).map_err(|error| Error::Malformed(error.to_string())),
        Some((other, _)) => Err(Error::Version(*other)),
    }
}
