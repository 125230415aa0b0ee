//! What somebody wants upgraded, and what became of it.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// A new worker that does not serve after this time never will.
pub const MOST_PATIENCE: Duration = Duration::from_secs(3600);

/// What `sidecar upgrade` asks for, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The new binary, as the sidecar sees the file; `None`: the one that lies where that of the sidecar lay.
    pub binary: Option<PathBuf>,
    /// How long its worker may take until it serves, [`MOST_PATIENCE`] at most.
    pub patience: Duration,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What became of it.
    pub result: Done,
    /// Why not.
    pub reason: Option<String>,
    /// Process id of the sidecar, before and after.
    pub process: u32,
    /// Versions of the binary before and of the new one, as far as that is known.
    pub before: String,
    /// As above.
    pub after: Option<String>,
    /// What was done, and the microseconds that each took.
    pub steps: Vec<(String, u64)>,
    /// Connections that the worker before still carries, and for how long at most.
    pub draining: Option<(u64, Duration)>,
}

/// What became of an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// The new binary runs.
    Upgraded,
    /// Nothing has changed.
    Refused,
    /// The new binary could not take over; the one before has gone on.
    RolledBack,
}

impl Outcome {
    /// Of an upgrade that begins now.
    pub(super) fn begin(before: String) -> Self {
        Self {
            result: Done::Refused,
            reason: None,
            process: std::process::id(),
            before,
            after: None,
            steps: Vec::new(),
            draining: None,
        }
    }
}
