//! Every branch of a decision, the same decision made naively, and permits under replacement.

use super::*;
use crate::config::{RulePlace, Source};

mod against_model;
mod permits;

/// A rule from its name, action, sources and ports; `?` before the name: a dry run. Stands on line `line` of `f`.
fn rule(line: usize, name: &str, action: Action, from: Vec<Source>, ports: &[u16]) -> Rule {
    let place = RulePlace { file: "f".into(), line };
    let (dry_run, name) = name.strip_prefix('?').map_or((false, name), |name| (true, name));
    Rule { name: name.into(), action, dry_run, from, ports: ports.to_vec(), place }
}

fn allow(line: usize, name: &str, from: Vec<Source>, ports: &[u16]) -> Rule {
    rule(line, name, Action::Allow, from, ports)
}

fn deny(line: usize, name: &str, from: Vec<Source>, ports: &[u16]) -> Rule {
    rule(line, name, Action::Deny, from, ports)
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn principals(texts: &[&str]) -> Source {
    Source { principals: strings(texts), ..Source::default() }
}

fn namespaces(texts: &[&str]) -> Source {
    Source { namespaces: strings(texts), ..Source::default() }
}

fn cidrs(texts: &[&str]) -> Source {
    Source { cidrs: texts.iter().map(|text| text.parse().unwrap()).collect(), ..Source::default() }
}

fn decide(rules: &[Rule], client: &str, principal: Option<&str>, port: u16) -> Decision {
    let id: Option<SpiffeId> = principal.map(|id| id.parse().unwrap());
    Policy::new(rules).decide(&Request { client: client.parse().unwrap(), principal: id.as_ref(), port })
}

const WEB: &str = "spiffe://td/ns/shop/sa/web";

#[test]
fn each_branch_decides_and_names_what_decided() {
    use Verdict::{Allow, Deny};
    let web = || vec![principals(&[WEB])];
    let none_allows = |name, line| {
        format!("default deny: allow rules exist for this port, `{name}` (f:{line}) first, and none matched")
    };
    for (case, rules, verdict, by, dry_run) in [
        ("no rules", vec![], Allow, "no rule".to_owned(), None),
        ("a deny rule", vec![deny(1, "d", web(), &[])], Deny, "deny rule `d` (f:1)".into(), None),
        (
            "a deny rule of another",
            vec![deny(1, "d", vec![principals(&["*/sa/db"])], &[])],
            Allow,
            "no rule".into(),
            None,
        ),
        ("a deny rule of another port", vec![deny(1, "d", web(), &[81])], Allow, "no rule".into(), None),
        ("a deny rule of everyone", vec![deny(1, "d", vec![], &[80])], Deny, "deny rule `d` (f:1)".into(), None),
        ("an allow rule", vec![allow(1, "a", web(), &[])], Allow, "allow rule `a` (f:1)".into(), None),
        (
            "an allow rule of another",
            vec![allow(1, "a", vec![principals(&["*/sa/db"])], &[80])],
            Deny,
            none_allows("a", 1),
            None,
        ),
        ("an allow rule of another port", vec![allow(1, "a", web(), &[81])], Allow, "no rule".into(), None),
        ("an allow rule of everyone", vec![allow(1, "a", vec![], &[80])], Allow, "allow rule `a` (f:1)".into(), None),
        (
            "deny before allow, whatever the order",
            vec![allow(1, "a", web(), &[]), deny(2, "d", web(), &[])],
            Deny,
            "deny rule `d` (f:2)".into(),
            None,
        ),
        (
            "the first of two that match",
            vec![allow(1, "a", vec![cidrs(&["fd00::/8"])], &[]), allow(2, "b", web(), &[]), allow(3, "c", web(), &[])],
            Allow,
            "allow rule `b` (f:2)".into(),
            None,
        ),
        (
            "a dry run that would deny",
            vec![deny(1, "?d", web(), &[])],
            Allow,
            "no rule".into(),
            Some((Deny, "deny rule `d` (f:1)".to_owned())),
        ),
        (
            "a dry run that would deny another",
            vec![deny(1, "?d", vec![cidrs(&["fd00::/8"])], &[])],
            Allow,
            "no rule".into(),
            None,
        ),
        ("a dry run that allows what is allowed", vec![allow(1, "?a", web(), &[])], Allow, "no rule".into(), None),
        (
            "a dry run that would make denial the default",
            vec![allow(1, "?a", vec![principals(&["*/sa/db"])], &[80])],
            Allow,
            "no rule".into(),
            Some((Deny, none_allows("a", 1))),
        ),
        (
            "a dry run that would allow what nothing allows",
            vec![allow(1, "a", vec![principals(&["*/sa/db"])], &[80]), allow(2, "?b", web(), &[80])],
            Deny,
            none_allows("a", 1),
            Some((Allow, "allow rule `b` (f:2)".into())),
        ),
        (
            "a dry run cannot allow what is denied",
            vec![deny(1, "d", web(), &[]), allow(2, "?a", web(), &[])],
            Deny,
            "deny rule `d` (f:1)".into(),
            None,
        ),
        (
            "two dry runs are tried together",
            vec![allow(1, "?a", vec![principals(&["*/sa/db"])], &[80]), allow(2, "?b", web(), &[80])],
            Allow,
            "no rule".into(),
            None,
        ),
    ] {
        let decision = decide(&rules, "10.0.0.1", Some(WEB), 80);
        let other = decision.dry_run.map(|other| (other.verdict, other.by.to_string()));
        assert_eq!((decision.verdict, decision.by.to_string(), other), (verdict, by, dry_run), "{case}");
    }
}

#[test]
fn a_source_matches_when_everything_that_it_names_does() {
    let everything =
        || Source { namespaces: strings(&["shop"]), cidrs: cidrs(&["10.0.0.0/8"]).cidrs, ..principals(&["*/sa/web"]) };
    for (source, client, principal, matches) in [
        (principals(&[WEB]), "10.0.0.1", Some(WEB), true),
        (principals(&[WEB]), "10.0.0.1", None, false),
        (principals(&[WEB]), "10.0.0.1", Some("spiffe://td/ns/shop/sa/web2"), false),
        (principals(&["spiffe://td/ns/shop/*"]), "10.0.0.1", Some(WEB), true),
        (principals(&["spiffe://td/ns/sho/*"]), "10.0.0.1", Some(WEB), false),
        (principals(&["spiffe://td/ns/shop/sa/web*"]), "10.0.0.1", Some(WEB), true),
        (principals(&["*/sa/web"]), "10.0.0.1", Some(WEB), true),
        (principals(&["*/sa/we"]), "10.0.0.1", Some(WEB), false),
        (principals(&["*/ns/shop/*"]), "10.0.0.1", Some(WEB), true),
        (principals(&["*/ns/shops/*"]), "10.0.0.1", Some(WEB), false),
        (principals(&["*"]), "10.0.0.1", Some(WEB), true),
        (principals(&["*"]), "10.0.0.1", None, false),
        (principals(&["*/sa/db", WEB]), "10.0.0.1", Some(WEB), true),
        (namespaces(&["shop"]), "10.0.0.1", Some(WEB), true),
        (namespaces(&["sho", "shop2"]), "10.0.0.1", Some(WEB), false),
        (namespaces(&["shop"]), "10.0.0.1", Some("spiffe://td/vm/shop"), false),
        (namespaces(&["shop"]), "10.0.0.1", None, false),
        (cidrs(&["10.0.0.0/8"]), "10.0.0.1", None, true),
        (cidrs(&["10.0.0.0/8"]), "::ffff:10.0.0.1", None, true),
        (cidrs(&["10.0.0.0/8"]), "11.0.0.1", Some(WEB), false),
        (cidrs(&["0.0.0.0/0"]), "fd00::1", None, false),
        (cidrs(&["fd00::/8", "10.0.0.0/8"]), "10.0.0.1", None, true),
        (everything(), "10.0.0.1", Some(WEB), true),
        (everything(), "11.0.0.1", Some(WEB), false),
        (everything(), "10.0.0.1", Some("spiffe://td/ns/other/sa/web"), false),
        (everything(), "10.0.0.1", Some("spiffe://td/ns/shop/sa/db"), false),
        (everything(), "10.0.0.1", None, false),
    ] {
        let shown = format!("{source:?} {client} {principal:?}");
        let decision = decide(&[deny(1, "d", vec![source.clone()], &[])], client, principal, 80);
        assert_eq!(decision.verdict == Verdict::Deny, matches, "{shown}");
        // One of several sources is enough.
        let sources = vec![cidrs(&["192.0.2.0/24"]), source];
        let decision = decide(&[deny(1, "d", sources, &[])], client, principal, 80);
        assert_eq!(decision.verdict == Verdict::Deny, matches, "{shown}");
    }
}
