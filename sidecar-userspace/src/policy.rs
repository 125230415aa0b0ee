//! Who may connect to the application: rules on what is known of a connection before its first byte moves.
//!
//! [`Policy`] decides and has no effects. [`Permits`] remembers what it allowed, so that new rules also reach the
//! connections that are open.
//!
//! # Order
//! A deny rule that matches refuses. Otherwise an allow rule that matches lets through. Otherwise, if an allow rule selects
//! the port, whoever else comes is refused; if none does, everyone may connect. This is the order of Istio's
//! AuthorizationPolicy, with the port as what an allow rule applies to.

mod matching;
mod permits;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr, sync::Arc};

use crate::{
    config::{Action, Rule},
    id::SpiffeId,
};

use matching::Matcher;
pub use permits::{Permit, Permits, Refused};

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The address that it comes from.
    pub client: IpAddr,
    /// The identity that its other end has proved; `None`: none.
    pub principal: Option<&'a SpiffeId>,
    /// The application's port.
    pub port: u16,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It may go on.
    Allow,
    /// It is refused.
    Deny,
}

impl Verdict {
    /// The word in labels and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// What decided. Cheap to clone. Displayed as a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// This rule matched.
    Rule(Arc<Rule>),
    /// No rule matched, and no allow rule selects the port.
    NoRule,
    /// Allow rules select the port, this one first, and none matched.
    NoneAllows(Arc<Rule>),
}

impl Why {
    /// The rule that decided, or that made refusal the default.
    pub fn rule(&self) -> Option<&Rule> {
        match self {
            Self::Rule(rule) | Self::NoneAllows(rule) => Some(rule),
            Self::NoRule => None,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => {
                write!(f, "{} rule `{}` ({})", rule.action.label(), rule.name, rule.place)
            }
            Self::NoRule => f.write_str("no rule"),
            Self::NoneAllows(rule) => {
                let Rule { name, place, .. } = &**rule;
                write!(f, "default deny: allow rules exist for this port, `{name}` ({place}) first, and none matched")
            }
        }
    }
}

/// A verdict and what led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What becomes of the connection.
    pub verdict: Verdict,
    /// What decided.
    pub by: Why,
}

/// What was decided, and what would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the connection.
    pub verdict: Verdict,
    /// What decided.
    pub by: Why,
    /// What would become of it if the dry-run rules were in force, all of them; `None`: the same.
    pub dry_run: Option<Outcome>,
}

/// Rules, compiled.
#[derive(Debug, Default)]
pub struct Policy {
    rules: Box<[Matcher]>,
}

impl Policy {
    /// Compiles rules.
    pub fn new(rules: &[Rule]) -> Self {
        Self { rules: rules.iter().map(Matcher::new).collect() }
    }

    /// The rules, in their order.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|matcher| &**matcher.rule())
    }

    /// Decides on a connection. Takes no lock, allocates nothing, and looks at each value of each rule at most once.
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let (mut enforced, mut with_dry_run) = (Tally::default(), Tally::default());
        for matcher in self.rules.iter().filter(|matcher| matcher.selects(request.port)) {
            let matches = matcher.matches(request);
            with_dry_run.add(matcher.rule(), matches);
            if !matcher.rule().dry_run {
                enforced.add(matcher.rule(), matches);
            }
        }
        let Outcome { verdict, by } = enforced.outcome();
        let dry_run = Some(with_dry_run.outcome()).filter(|other| other.verdict != verdict);
        Decision { verdict, by, dry_run }
    }
}

/// The rules that select a connection's port, as far as they matter: of each sort the first.
#[derive(Default)]
struct Tally<'p> {
    denies: Option<&'p Arc<Rule>>,
    allows: Option<&'p Arc<Rule>>,
    would_allow: Option<&'p Arc<Rule>>,
}

impl<'p> Tally<'p> {
    fn add(&mut self, rule: &'p Arc<Rule>, matches: bool) {
        let first = match (rule.action, matches) {
            (Action::Deny, true) => &mut self.denies,
            (Action::Deny, false) => return,
            (Action::Allow, true) => &mut self.allows,
            (Action::Allow, false) => &mut self.would_allow,
        };
        first.get_or_insert(rule);
    }

    fn outcome(&self) -> Outcome {
        let (verdict, by) = match (self.denies, self.allows, self.would_allow) {
            (Some(rule), _, _) => (Verdict::Deny, Why::Rule(Arc::clone(rule))),
            (None, Some(rule), _) => (Verdict::Allow, Why::Rule(Arc::clone(rule))),
            (None, None, Some(rule)) => (Verdict::Deny, Why::NoneAllows(Arc::clone(rule))),
            (None, None, None) => (Verdict::Allow, Why::NoRule),
        };
        Outcome { verdict, by }
    }
}
