//! Whether a rule is about a connection.

use std::sync::Arc;

use crate::{
    config::{Cidr, Rule, Source},
    id::SpiffeId,
};

use super::Request;

/// A rule, taken apart once.
#[derive(Debug)]
pub(super) struct Matcher {
    rule: Arc<Rule>,
    /// In order; empty: every port.
    ports: Box<[u16]>,
    /// Empty: anyone.
    from: Box<[Who]>,
}

impl Matcher {
    pub(super) fn new(rule: &Rule) -> Self {
        let mut ports = rule.ports.clone();
        ports.sort_unstable();
        Self { rule: Arc::new(rule.clone()), ports: ports.into(), from: rule.from.iter().map(Who::new).collect() }
    }

    pub(super) fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    /// Whether it is about this port.
    pub(super) fn selects(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.binary_search(&port).is_ok()
    }

    /// Whether it is about who connects.
    pub(super) fn matches(&self, request: &Request<'_>) -> bool {
        self.from.is_empty() || self.from.iter().any(|who| who.matches(request))
    }
}

/// Who connects: everything that is given must hold.
#[derive(Debug)]
struct Who {
    principals: Box<[Pattern]>,
    namespaces: Box<[String]>,
    cidrs: Box<[Cidr]>,
}

impl Who {
    fn new(source: &Source) -> Self {
        Self {
            principals: source.principals.iter().map(|text| Pattern::new(text)).collect(),
            namespaces: source.namespaces.clone().into(),
            cidrs: source.cidrs.clone().into(),
        }
    }

    fn matches(&self, request: &Request<'_>) -> bool {
        let id = request.principal;
        let one_of = |ids: &[Pattern]| id.is_some_and(|id| ids.iter().any(|pattern| pattern.matches(id.as_str())));
        let within = |namespaces: &[String]| {
            let namespace = id.and_then(SpiffeId::namespace);
            namespace.is_some_and(|namespace| namespaces.iter().any(|allowed| allowed == namespace))
        };
        (self.principals.is_empty() || one_of(&self.principals))
            && (self.namespaces.is_empty() || within(&self.namespaces))
            && (self.cidrs.is_empty() || self.cidrs.iter().any(|cidr| cidr.contains(request.client)))
    }
}

/// A text in which `*` at either end stands for anything, nothing included.
#[derive(Debug)]
enum Pattern {
    Whole(Box<str>),
    Beginning(Box<str>),
    End(Box<str>),
    Within(Box<str>),
}

impl Pattern {
    fn new(text: &str) -> Self {
        let (open_start, text) = text.strip_prefix('*').map_or((false, text), |rest| (true, rest));
        let (open_end, text) = text.strip_suffix('*').map_or((false, text), |rest| (true, rest));
        match (open_start, open_end) {
            (false, false) => Self::Whole(text.into()),
            (false, true) => Self::Beginning(text.into()),
            (true, false) => Self::End(text.into()),
            (true, true) => Self::Within(text.into()),
        }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Whole(whole) => **whole == *text,
            Self::Beginning(beginning) => text.starts_with(&**beginning),
            Self::End(end) => text.ends_with(&**end),
            Self::Within(part) => text.contains(&**part),
        }
    }
}
