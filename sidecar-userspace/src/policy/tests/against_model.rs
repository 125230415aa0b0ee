//! The compiled rules against the sentence that describes them.

use proptest::{collection::vec, prelude::*, sample::select, sample::subsequence};

use super::*;

/// As the standard says it, without a thought for speed: the verdict of these rules.
fn naive(rules: &[&Rule], request: &Request<'_>) -> Verdict {
    let selected: Vec<&&Rule> =
        rules.iter().filter(|rule| rule.ports.is_empty() || rule.ports.contains(&request.port)).collect();
    let of = |action| selected.iter().filter(move |rule| rule.action == action);
    if of(Action::Deny).any(|rule| naive_match(rule, request)) {
        return Verdict::Deny;
    }
    match of(Action::Allow).count() == 0 || of(Action::Allow).any(|rule| naive_match(rule, request)) {
        true => Verdict::Allow,
        false => Verdict::Deny,
    }
}

fn naive_match(rule: &Rule, request: &Request<'_>) -> bool {
    let source = |source: &Source| {
        let principal = source
            .principals
            .iter()
            .any(|pattern| request.principal.is_some_and(|id| glob(pattern.as_bytes(), id.as_str().as_bytes())));
        let namespace = source.namespaces.iter().any(|ns| request.principal.and_then(|id| id.namespace()) == Some(ns));
        let cidr = source.cidrs.iter().any(|cidr| cidr.contains(request.client));
        (source.principals.is_empty() || principal)
            && (source.namespaces.is_empty() || namespace)
            && (source.cidrs.is_empty() || cidr)
    };
    rule.from.is_empty() || rule.from.iter().any(source)
}

/// `*` anywhere stands for anything.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skipped| glob(rest, &text[skipped..])),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && glob(rest, text)),
    }
}

const IDS: [&str; 4] = ["spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/bb", "spiffe://ud/ns/b/sa/b", "spiffe://td/vm/a"];

fn some_of(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    subsequence(texts, 0..=texts.len().min(2)).prop_map(|texts| strings(&texts))
}

fn any_source() -> impl Strategy<Value = Source> {
    let principals = some_of(&["*", "*/sa/b", "spiffe://td/*", "*/a/*", "*b", "spiffe://td/ns/a/sa/b", "spiffe://*"]);
    let cidrs = some_of(&["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "::/0"]);
    (principals, some_of(&["a", "b"]), cidrs).prop_map(|(principals, namespaces, cidrs)| Source {
        principals,
        namespaces,
        cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let ports = subsequence(vec![81, 80, 79], 0..=3);
    (any::<bool>(), any::<bool>(), vec(any_source(), 0..3), ports).prop_map(|(allow, dry_run, from, ports)| Rule {
        name: "r".into(),
        action: if allow { Action::Allow } else { Action::Deny },
        dry_run,
        from,
        ports,
        place: RulePlace::default(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn compiled_rules_decide_as_the_sentence_that_describes_them(
        rules in vec(any_rule(), 0..6),
        client in select(vec!["10.0.0.1", "10.1.0.1", "192.0.2.1", "fd00::1", "::ffff:10.1.0.1"]),
        id in prop::option::of(select(IDS.to_vec())),
        port in 79..82_u16,
    ) {
        let id: Option<SpiffeId> = id.map(|id| id.parse().unwrap());
        let request = Request { client: client.parse().unwrap(), principal: id.as_ref(), port };
        let decision = Policy::new(&rules).decide(&request);
        let enforced: Vec<&Rule> = rules.iter().filter(|rule| !rule.dry_run).collect();
        prop_assert_eq!(decision.verdict, naive(&enforced, &request));
        let all: Vec<&Rule> = rules.iter().collect();
        let other = decision.dry_run.map_or(decision.verdict, |other| other.verdict);
        prop_assert_eq!(other, naive(&all, &request));
        // What is said to have decided is in force, about this port, and of the right kind.
        let holds = match &decision.by {
            Why::Rule(rule) => {
                naive_match(rule, &request) && (rule.action == Action::Deny) == (decision.verdict == Verdict::Deny)
            }
            Why::NoneAllows(rule) => rule.action == Action::Allow && decision.verdict == Verdict::Deny,
            Why::NoRule => decision.verdict == Verdict::Allow,
        };
        prop_assert!(holds, "{:?}", decision.by);
        if let Some(rule) = decision.by.rule() {
            prop_assert!(!rule.dry_run && (rule.ports.is_empty() || rule.ports.contains(&port)));
        }
    }
}
