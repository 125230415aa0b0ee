//! The table of socket behaviours. Each is written once, for both ends, and run direct and through sidecars; what the
//! two ends see must be the same.

mod bytes;
mod close;
mod connect;
mod kinds;
mod names;
pub mod net;
mod options;
mod queue;
mod transfer;
mod urgent;

use anyhow::Result;

use crate::agent::Seen;

/// One end of a case.
pub type Play = fn(&mut Seen) -> Result<()>;

/// A socket behaviour.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// A fact, unique in the table.
    pub name: &'static str,
    /// The end that listens, in the server's pod.
    pub server: Play,
    /// The end that connects, in the client's pod.
    pub client: Play,
    /// Connections that the client's sidecar captures.
    pub captured: u64,
    /// Connections that the server's sidecar is handed.
    pub steered: u64,
    /// Another verdict of the client's sidecar on a connect: what, why, how often.
    pub other: Option<(&'static str, &'static str, u64)>,
    /// Where the observations cannot be equal.
    pub differs: &'static [Difference],
    /// What becomes of connections that are let pass, where mutual TLS is a must.
    pub in_strict: InStrict,
    /// Where it is not run, and why.
    pub barred: Option<(Barred, &'static str)>,
}

/// What becomes of connections that a sidecar lets pass, where mutual TLS is a must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InStrict {
    /// The same: they stay in the pod, or are no TCP.
    LetPass,
    /// They are captured.
    Captured,
    /// They are denied, which the application cannot tell from what the kernel does without a sidecar.
    Denied,
    /// They are refused, so that there is nothing to compare.
    Refused,
}

/// What a case cannot be run through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barred {
    /// Sidecars that speak mutual TLS and nothing else.
    MutualTls,
    /// Tunnels of HTTP/2.
    Tunnels,
}

/// An observation that cannot be the same with a sidecar on the client's side, by nature.
///
/// A sidecar on the server's side alone may make no difference.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// `client.…` or `server.…` and the observation's key.
    pub key: &'static str,
    /// What is seen instead: one of these.
    pub instead: &'static [&'static str],
    /// Why.
    pub why: &'static str,
}

/// A refusal that comes from the destination, and not from the sidecar.
const REFUSED_LATE: &[Difference] = &[
    Difference { key: "client.connect", instead: &["ok"], why: "the handshake is with the sidecar" },
    Difference {
        key: "client.read",
        instead: &["ECONNRESET"],
        why: "the refusal arrives after the handshake with the sidecar, as a reset",
    },
];

impl Case {
    /// A case with one connection that is captured on both sides and has no differences.
    pub const fn new(name: &'static str, server: Play, client: Play) -> Self {
        Self {
            name,
            server,
            client,
            captured: 1,
            steered: 1,
            other: None,
            differs: &[],
            in_strict: InStrict::LetPass,
            barred: None,
        }
    }

    /// With this many connections captured on the client's side and handed to the sidecar on the server's.
    pub const fn counts(self, captured: u64, steered: u64) -> Self {
        Self { captured, steered, ..self }
    }

    /// With this many connections that the client's sidecar lets pass for this reason and none captured, and this many
    /// handed to the server's sidecar.
    pub const fn bypassed(self, reason: &'static str, count: u64, steered: u64) -> Self {
        Self { captured: 0, steered, other: Some(("bypass", reason, count)), ..self }
    }

    /// With this many connections on top that the client's sidecar lets pass for this reason.
    pub const fn and_bypassed(self, reason: &'static str, count: u64) -> Self {
        Self { other: Some(("bypass", reason, count)), ..self }
    }

    /// With this where mutual TLS is a must.
    pub const fn in_strict(self, in_strict: InStrict) -> Self {
        Self { in_strict, ..self }
    }

    /// The case where mutual TLS is a must.
    pub fn strict(&self) -> Self {
        let count = self.other.map_or(0, |(_, _, count)| count);
        match self.in_strict {
            InStrict::Captured => Self { captured: self.captured + count, other: None, ..*self },
            InStrict::Denied => Self { other: self.other.map(|(_, reason, count)| ("deny", reason, count)), ..*self },
            InStrict::LetPass | InStrict::Refused => *self,
        }
    }

    /// With these differences.
    pub const fn differs(self, differs: &'static [Difference]) -> Self {
        Self { differs, ..self }
    }

    /// Not run there, for this reason.
    pub const fn not_through(self, barred: Barred, why: &'static str) -> Self {
        Self { barred: Some((barred, why)), ..self }
    }
}

/// The whole table.
pub fn all() -> impl Iterator<Item = &'static Case> {
    let groups = [
        names::CASES,
        connect::CASES,
        close::CASES,
        bytes::CASES,
        queue::CASES,
        urgent::CASES,
        options::CASES,
        transfer::CASES,
        kinds::CASES,
    ];
    groups.into_iter().flatten()
}

/// The case of this name.
pub fn find(name: &str) -> Option<&'static Case> {
    all().find(|case| case.name == name)
}
