//! Denials by identity where plaintext is taken.

use super::load_file;

const IDENTITY: &str = "identity: { files: { cert: /c, key: /k, roots: /r } }\n";

#[test]
fn a_denial_by_identity_is_warned_of_where_plaintext_passes_it_by() {
    const BY_ID: &str = "from: [{ principals: ['spiffe://td/ns/a/sa/b'] }]";
    const ALLOW_ALL: &str = "{ name: a, action: allow, from: [{ principals: ['*'] }] }";
    for (mtls, rules, of) in [
        ("mode: permissive", format!("{{ name: d, action: deny, {BY_ID} }}"), Some("for every port")),
        ("mode: disable", "{ name: d, action: deny, from: [{ namespaces: [a] }] }".into(), Some("for every port")),
        ("mode: permissive", format!("{{ name: d, action: deny, ports: [80, 81], {BY_ID} }}"), Some("for port 80:")),
        (
            "mode: permissive, inbound: { ports: { 80: strict } }",
            format!("{{ name: d, action: deny, ports: [80, 81], {BY_ID} }}"),
            Some("for port 81:"),
        ),
        (
            "mode: strict, inbound: { ports: { 81: permissive } }",
            format!("{{ name: d, action: deny, {BY_ID} }}"),
            Some("for every port"),
        ),
        (
            "mode: strict, inbound: { cidrs: { 10.0.0.0/8: permissive } }",
            format!("{{ name: d, action: deny, ports: [80], {BY_ID} }}"),
            Some("for port 80:"),
        ),
        // An allow rule that a client without an identity matches.
        (
            "mode: permissive",
            format!("{{ name: d, action: deny, {BY_ID} }}, {{ name: a, action: allow }}"),
            Some("for every port"),
        ),
        // Not in force, about addresses, or an allow rule.
        ("mode: permissive", format!("{{ name: d, action: deny, dry_run: true, {BY_ID} }}"), None),
        ("mode: permissive", "{ name: d, action: deny, from: [{ cidrs: [10.0.0.0/8] }] }".into(), None),
        ("mode: permissive", ALLOW_ALL.into(), None),
        // Whoever has no identity is kept out.
        ("mode: strict", format!("{{ name: d, action: deny, {BY_ID} }}"), None),
        (
            "mode: permissive, inbound: { ports: { 80: strict } }",
            format!("{{ name: d, action: deny, ports: [80], {BY_ID} }}"),
            None,
        ),
        ("mode: permissive", format!("{{ name: d, action: deny, {BY_ID} }}, {ALLOW_ALL}"), None),
    ] {
        let loaded = load_file(format!("{IDENTITY}mtls: {{ {mtls} }}\nauthorization: [{rules}]\n"));
        let told = loaded.unwrap_or_else(|faults| panic!("{mtls} {rules}: {faults}")).config.denials_past_plaintext();
        assert_eq!(told.len(), usize::from(of.is_some()), "{mtls} {rules}: {told:?}");
        for (told, of) in told.iter().zip(of) {
            assert!(told.contains("rule `d` (") && told.contains(of), "{told}");
        }
    }
}
