//! What the configuration says about who may connect.

use std::fmt;

use super::{Cidr, Place};

/// What a rule does with a connection that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It may go on, unless a deny rule matches.
    Allow,
    /// It is refused.
    Deny,
}

impl Action {
    /// The word for it in configurations and answers.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// A rule: it matches a connection that one of `from` describes and that goes to one of `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Shown where the rule decides.
    pub name: String,
    /// Allow or deny.
    pub action: Action,
    /// What it would decide is only counted and logged.
    pub dry_run: bool,
    /// Who; empty: anyone, with or without an identity.
    pub from: Vec<Source>,
    /// The application's ports; empty: every one.
    pub ports: Vec<u16>,
    /// Where it stands.
    pub place: RulePlace,
}

/// Where a rule stands, for people. Shown as `file:line`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RulePlace {
    /// The configuration file, or the variable or flag that gave it; empty: none.
    pub file: String,
    /// Its line, counted from 1; 0: it has none.
    pub line: usize,
}

impl RulePlace {
    pub(super) fn of(place: &Place) -> Self {
        match place {
            Place::Line { file, line, .. } => {
                Self { file: Place::File(file.clone()).to_string(), line: usize::try_from(*line).unwrap_or_default() }
            }
            other => Self { file: other.to_string(), line: 0 },
        }
    }
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.file.as_str(), self.line) {
            ("", _) => f.write_str("nowhere"),
            (file, 0) => f.write_str(file),
            (file, line) => write!(f, "{file}:{line}"),
        }
    }
}

/// Who connects: everything that is given must hold, and of each list one entry.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Source {
    /// Identities: whole SPIFFE IDs, `*` at either end stands for anything.
    pub principals: Vec<String>,
    /// Namespaces of identities.
    pub namespaces: Vec<String>,
    /// Networks of the client's address.
    pub cidrs: Vec<Cidr>,
}
