//! Denials that a client without an identity passes by.

use super::{Action, Config, Mode, Modes, Rule, Source};

impl Source {
    /// Whether it describes nobody without an identity.
    fn asks_for_identity(&self) -> bool {
        !self.principals.is_empty() || !self.namespaces.is_empty()
    }
}

impl Rule {
    /// Whether it matches nobody without an identity.
    fn asks_for_identity(&self) -> bool {
        !self.from.is_empty() && self.from.iter().all(Source::asks_for_identity)
    }

    fn selects(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

impl Modes {
    /// Whether mutual TLS is a must for all connections to `port`; `None`: to any port.
    fn all_strict(&self, port: Option<u16>) -> bool {
        let strict = |mode: &Mode| *mode == Mode::Strict;
        let of_port = port.and_then(|port| self.ports.iter().find(|(of, _)| *of == port));
        if let Some((_, mode)) = of_port {
            return strict(mode);
        }
        let rest = strict(&self.mode) && self.cidrs.iter().all(|(_, mode)| strict(mode));
        rest && (port.is_some() || self.ports.iter().all(|(_, mode)| strict(mode)))
    }
}

impl Config {
    /// Rules that deny identities where plaintext is taken, and so can be passed by without an identity; for people.
    pub fn denials_past_plaintext(&self) -> Vec<String> {
        let denials = self.authorization.iter().filter(|rule| {
            rule.action == Action::Deny && !rule.dry_run && rule.from.iter().any(Source::asks_for_identity)
        });
        denials.filter_map(|rule| self.passed_by(rule)).collect()
    }

    fn passed_by(&self, rule: &Rule) -> Option<String> {
        let ports: Vec<_> =
            if rule.ports.is_empty() { vec![None] } else { rule.ports.iter().copied().map(Some).collect() };
        let open = |port| !self.mtls.inbound.all_strict(port) && !self.only_identities(port);
        let port = ports.into_iter().find(|port| open(*port))?;
        let of = port.map_or_else(|| "every port".to_owned(), |port| format!("port {port}"));
        let Rule { name, place, .. } = rule;
        Some(format!(
            "authorization: rule `{name}` ({place}) denies by identity, and mtls.inbound is not `strict` for {of}: whom it \
             denies gets in in plaintext, without an identity; set that mode to `strict`, or allow identities only"
        ))
    }

    /// Whether the allow rules let nobody in without an identity; `None`: at any port.
    fn only_identities(&self, port: Option<u16>) -> bool {
        let allows = |rule: &&Rule| rule.action == Action::Allow && !rule.dry_run;
        let mut of_port =
            self.authorization.iter().filter(allows).filter(|rule| port.is_none_or(|port| rule.selects(port)));
        let defaults = |rule: &Rule| port.is_some() || rule.ports.is_empty();
        let closes = of_port.clone().any(defaults);
        closes && of_port.all(Rule::asks_for_identity)
    }
}
