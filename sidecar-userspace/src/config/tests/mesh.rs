//! Identity, modes of mutual TLS, known workloads and rules.

use super::*;

const FILES: &str = "identity: { files: { cert: /c, key: /k, roots: /r } }\n";

#[test]
fn each_source_of_identity_is_read_whole() {
    let files = IdentityFiles { cert: "/c".into(), key: "/k".into(), roots: "/r".into(), crl: None };
    let id = "spiffe://td/ns/a/sa/b";
    let ca = |lifetime| Authority { directory: "/ca".into(), id: id.parse().unwrap(), lifetime };
    let hour = Duration::from_secs(3600);
    for (content, expected) in [
        (FILES.to_owned(), Identity { files: Some(files), ..Identity::default() }),
        (
            "identity: { workload_api: 'unix:///run/a.sock' }".into(),
            Identity { workload_api: Some("/run/a.sock".into()), ..Identity::default() },
        ),
        (
            format!("identity: {{ ca: {{ directory: /ca, id: '{id}' }} }}"),
            Identity { ca: Some(ca(hour)), ..Identity::default() },
        ),
        (
            format!("identity: {{ ca: {{ directory: /ca, id: '{id}', lifetime: 2s }} }}"),
            Identity { ca: Some(ca(Duration::from_secs(2))), ..Identity::default() },
        ),
        ("identity: { files: { cert: null, key: null } }".into(), Identity::default()),
    ] {
        let loaded = load_file(&content).unwrap_or_else(|faults| panic!("{content}: {faults}"));
        assert_eq!(loaded.config.identity, expected, "{content}");
        assert_eq!(load_file(loaded.to_yaml()).unwrap().config.identity, expected, "{content}");
    }
}

#[test]
fn an_identity_in_part_or_from_two_sources_is_reported_with_both_keys() {
    for (content, expected) in [
        (
            "identity:\n  files:\n    key: /k\n",
            vec!["f:3:10: `identity.files` is given in part; set `identity.files.cert`, `identity.files.roots` too"],
        ),
        (
            "identity:\n  files: { crl: /l, cert: /c, roots: /r }\n",
            vec!["f:2:27: `identity.files` is given in part; set `identity.files.key` too"],
        ),
        (
            "identity:\n  ca: { lifetime: 2h }\n",
            vec!["f:2:19: `identity.ca` is given in part; set `identity.ca.directory`, `identity.ca.id` too"],
        ),
        (
            "identity:\n  workload_api: unix:///s\n  files: { cert: /c, key: /k, roots: /r }\n",
            vec![
                "f:2:17: identity.workload_api: `identity.files.cert` (f:3:18) is a source of identity already; leave one \
                 of them out",
            ],
        ),
        (
            "identity:\n  workload_api: /s\n  ca: { id: td/a, directory: ca }\n",
            vec![
                "f:2:17: identity.workload_api: `/s` is not allowed; expected a unix socket, such as \
                 `unix:///run/spire/agent.sock`; did you mean `unix:///s`?",
                "f:3:13: identity.ca.id: `td/a` is no identity: a SPIFFE ID begins with `spiffe://`",
                "f:3:30: identity.ca.directory: `ca` is not allowed; expected an absolute path",
            ],
        ),
    ] {
        assert_eq!(faults_of(content), expected, "{content}");
    }
}

#[test]
fn strict_without_an_identity_is_reported_at_the_key_that_demands_it() {
    let end = "needs an identity; set `identity.files`, `identity.workload_api` or `identity.ca`";
    for (content, places) in [
        ("mtls:\n  mode: strict\n", vec!["f:2:9: mtls.mode"]),
        ("mtls: { mode: strict, outbound: { mode: disable } }", vec!["f:1:15: mtls.mode"]),
        ("mtls: { mode: strict, outbound: { mode: disable }, inbound: { mode: permissive } }", vec![]),
        ("mtls:\n  outbound: { mode: strict, ports: { 80: disable } }\n", vec!["f:2:21: mtls.outbound.mode"]),
        (
            "mtls:\n  inbound: { ports: { 80: strict }, cidrs: { 10.0.0.0/8: strict } }\n",
            vec!["f:2:21: mtls.inbound.ports", "f:2:44: mtls.inbound.cidrs"],
        ),
    ] {
        let expected: Vec<String> = places.iter().map(|place| format!("{place}: `strict` {end}")).collect();
        assert_eq!(faults_of(content), expected, "{content}");
        assert_eq!(faults_of(format!("{FILES}{content}")), Vec::<String>::new(), "{content}");
    }
}

#[test]
fn a_direction_without_a_mode_takes_the_one_of_both_and_says_so() {
    let file = TestFile::new(format!("{FILES}mtls:\n  mode: strict\n  inbound: {{ mode: disable }}\n"));
    let from_file = Sources { file: Some(file.0.clone()), ..Sources::default() };
    let loaded = load(&from_file).unwrap();
    assert_eq!((loaded.config.mtls.outbound.mode, loaded.config.mtls.inbound.mode), (Mode::Strict, Mode::Disable));
    assert_eq!(loaded.origin("mtls.outbound.mode"), loaded.origin("mtls.mode"));
    assert_eq!(loaded.origin("mtls.outbound.mode").to_string(), format!("{}:3:9", file.0.display()));
    let env = pairs(&[("SIDECAR_MTLS_MODE", "permissive")]);
    let loaded = load(&Sources { env, ..from_file }).unwrap();
    assert_eq!((loaded.config.mtls.outbound.mode, loaded.config.mtls.inbound.mode), (Mode::Permissive, Mode::Disable));
}

#[test]
fn modes_by_port_and_network_are_judged_entry_by_entry() {
    const MODES: &str = "expected one of `disable`, `permissive`, `strict`";
    let faults = faults_of(
        "\
mtls:
  outbound:
    ports:
      0: disable
      80: off
      443: disable
      0443: disable
    cidrs: { 10.0.0.1/8: disable, ::/0: strickt }
  inbound:
    ports: [80]
    cidrs:
",
    );
    assert_eq!(
        faults,
        [
            "f:4:7: mtls.outbound.ports: `0` is not allowed; expected a whole number from 1 to 65535".to_owned(),
            format!("f:5:11: mtls.outbound.ports: `off` is not allowed; {MODES}"),
            "f:7:7: mtls.outbound.ports: `0443` is given twice".into(),
            "f:8:14: mtls.outbound.cidrs: `10.0.0.1/8`: the address has bits outside of the network; did you mean \
             `10.0.0.0/8`?"
                .into(),
            format!("f:8:41: mtls.outbound.cidrs: `strickt` is not allowed; {MODES}; did you mean `strict`?"),
            "f:10:12: mtls.inbound.ports: expected a mapping, found a list".into(),
            "f:11:10: mtls.inbound.cidrs: there is no value; write `{}` for an empty mapping".into(),
        ]
    );
}

#[test]
fn known_workloads_that_say_nothing_or_contradict_each_other_are_refused() {
    for (entries, expected) in [
        (
            "- { addresses: [10.0.0.1/32] }",
            "f:3:5: mtls.workloads: nothing is said about these addresses; set `identity`, `transport` or both",
        ),
        ("- { transport: native }", "f:3:5: mtls.workloads: `addresses` is missing"),
        (
            "- { addresses: [], transport: native }",
            "f:3:18: mtls.workloads: `addresses`: the list is empty; name at least one, or leave it out where anything goes",
        ),
        (
            "- { addresses: [10.0.0.1/32], identity: spiffe://td/a, transport: plaintext }",
            "f:3:5: mtls.workloads: `transport: plaintext` proves no identity; leave `identity` out",
        ),
        (
            "- { addresses: [10.0.0.1/32], transport: hbone }\n  - { addresses: [10.0.0.1/32], transport: native }",
            "f:4:5: mtls.workloads: `10.0.0.1/32` belongs to the workload at f:3:5 already",
        ),
        (
            "- { addresses: [10.0.0.1/32], transport: hbon }",
            "f:3:44: mtls.workloads: `transport`: `hbon` is not allowed; expected one of `native`, `hbone`, `plaintext`; did \
             you mean `hbone`?",
        ),
        (
            "- { addresses: [10.0.0.1/32], transpot: hbone, identity: spiffe://td/a }",
            "f:3:33: mtls.workloads: unknown field `transpot`; did you mean `transport`?",
        ),
        (
            "- 10.0.0.1/32",
            "f:3:5: mtls.workloads: expected a mapping of `addresses`, `identity`, `transport`, found a single value",
        ),
    ] {
        assert_eq!(faults_of(format!("mtls:\n  workloads:\n  {entries}\n")), [expected], "{entries}");
    }
}

#[test]
fn rules_that_could_mean_something_else_are_refused() {
    // A caret stands before what is at fault.
    for (rule, expected) in [
        ("^name: a", "`action` is missing"),
        ("^action: allow", "`name` is missing"),
        (
            "name: a, action: ^alow",
            "`action`: `alow` is not allowed; expected one of `allow`, `deny`; did you mean `allow`?",
        ),
        ("name: a, action: deny, ^port: [1]", "unknown field `port`; did you mean `ports`?"),
        ("name: a, action: deny, ^action: allow", "duplicate field `action`; it was given before at f:2:14"),
        (
            "name: a, action: deny, ^when: x",
            "unknown field `when`; expected one of `name`, `action`, `dry_run`, `from`, `ports`",
        ),
        (
            "name: a, action: allow, from: ^[]",
            "`from`: the list is empty; name at least one, or leave it out where anything goes",
        ),
        (
            "name: a, action: allow, ports: ^[]",
            "`ports`: the list is empty; name at least one, or leave it out where anything goes",
        ),
        ("name: a, action: allow, from: [^{}]", "`from`: nothing is said about who; leave `from` out for anyone"),
        (
            "name: a, action: allow, from: [{ principals: ^[] }]",
            "`from`: `principals`: the list is empty; name at least one, or leave it out where anything goes",
        ),
        (
            "name: a, action: allow, from: [{ principals: [^td/ns/a/sa/b] }]",
            "`from`: `principals`: `td/ns/a/sa/b` is no identity: a SPIFFE ID begins with `spiffe://`",
        ),
        (
            "name: a, action: allow, from: [{ principals: [^td/*] }]",
            "`from`: `principals`: `td/*` is not allowed; an identity begins with `spiffe://`, and this matches none",
        ),
        (
            "name: a, action: allow, from: [{ principals: [^'spiffe://td/*/sa/b'] }]",
            "`from`: `principals`: `spiffe://td/*/sa/b` is no identity: the path may hold letters, digits, `.`, `-` and `_` between single slashes only, without `.` and `..`",
        ),
        (
            "name: a, action: allow, from: [{ principals: [^'*a*b*'] }]",
            "`from`: `principals`: `*a*b*` is not allowed; `*` may stand at the beginning and at the end only",
        ),
        (
            "name: a, action: allow, from: [{ principals: [^'**'] }]",
            "`from`: `principals`: `**` is not allowed; did you mean `*`?",
        ),
        (
            "name: a, action: allow, from: [{ namespaces: [^'a*'] }]",
            "`from`: `namespaces`: `a*` is not allowed; expected the name of a namespace, without `*`",
        ),
        (
            "name: a, action: allow, from: [{ cidrs: [^10.0.0.1] }]",
            "`from`: `cidrs`: `10.0.0.1`: an address without a prefix length; did you mean `10.0.0.1/32`?",
        ),
        ("name: a, action: allow, ports: [^0]", "`ports`: `0` is not allowed; expected a whole number from 1 to 65535"),
    ] {
        let line = format!("- {{ {rule} }}");
        // That of the whole rule is its brace.
        let at = line.find('^').unwrap_or_default();
        let column = if rule.starts_with('^') { 3 } else { at + 1 };
        let faults = faults_of(format!("authorization:\n{}\n", line.replace('^', "")));
        assert_eq!(faults, [format!("f:2:{column}: authorization: {expected}")], "{rule}");
    }
    assert_eq!(
        faults_of("authorization:\n- { name: a, action: deny }\n- { name: a, action: allow }\n"),
        ["f:3:3: authorization: `a` is the name of the rule at f:2:3 already"]
    );
    assert_eq!(faults_of("authorization: { name: a }\n"), ["f:1:16: authorization: expected a list, found a mapping"]);
}

#[test]
fn a_rule_knows_where_it_stands() {
    let file = TestFile::new("authorization:\n- name: a\n  action: deny\n-\n  { name: b, action: deny }\n");
    let loaded = load(&Sources { file: Some(file.0.clone()), ..Sources::default() }).unwrap();
    let places: Vec<String> = loaded.config.authorization.iter().map(|rule| rule.place.to_string()).collect();
    assert_eq!(places, [format!("{}:2", file.0.display()), format!("{}:5", file.0.display())]);
    let env = pairs(&[("SIDECAR_AUTHORIZATION", "[{name: a, action: deny}]")]);
    let loaded = load(&Sources { env, ..Sources::default() }).unwrap();
    assert_eq!(loaded.config.authorization[0].place.to_string(), "SIDECAR_AUTHORIZATION");
}

#[test]
fn structured_values_of_variables_and_flags_are_yaml_on_one_line() {
    let overrides =
        strings(&["mtls.outbound.ports={443: disable, 80: [}", "mtls.inbound.ports={443: disabel}", "authorization=x"]);
    let faults = load(&Sources { overrides, ..Sources::default() }).unwrap_err().to_string();
    let lines: Vec<&str> = faults.lines().collect();
    assert_eq!(lines.len(), 3, "{faults}");
    assert_eq!(lines[0], "--set authorization: authorization: expected a list, found `x`");
    assert_eq!(
        lines[1],
        "--set mtls.inbound.ports: mtls.inbound.ports: `disabel` is not allowed; expected one of `disable`, `permissive`, \
         `strict`; did you mean `disable`?"
    );
    assert!(lines[2].starts_with("--set mtls.outbound.ports: mtls.outbound.ports: not valid YAML: "), "{faults}");
}

#[test]
fn what_changed_is_named_by_its_keys() {
    let one = load_file("proxy: { workers: 1 }\nauthorization: [{ name: a, action: deny }]\n").unwrap();
    let moved = load_file("# first\nproxy: { workers: 1 }\nauthorization: [{ name: a, action: deny }]\n").unwrap();
    let other = load_file("proxy: { workers: 2 }\nauthorization: [{ name: b, action: deny }]\n").unwrap();
    assert_eq!(one.changed(&moved), Vec::<&str>::new());
    assert_eq!(one.changed(&other), ["proxy.workers", "authorization"]);
}

#[test]
fn the_port_of_hbone_is_taken_only_where_there_is_an_identity() {
    let content = "telemetry: { health: '0.0.0.0:15008' }\n";
    assert_eq!(faults_of(content), Vec::<String>::new());
    assert_eq!(
        faults_of(format!("{FILES}{content}")),
        [
            "f:2:22: telemetry.health: port 15008 is already taken by `mtls.hbone_port` (default); every listener needs a \
          port of its own"
        ]
    );
    assert_eq!(faults_of(format!("{FILES}mtls: {{ hbone_port: 0 }}\n{content}")), Vec::<String>::new());
}

#[test]
fn where_mutual_tls_is_strict_the_default_is_to_fail_closed() {
    for (mtls, because) in [
        ("mtls: { mode: strict }", Some(("mtls.mode", "2:15"))),
        ("mtls: { inbound: { mode: strict } }", Some(("mtls.inbound.mode", "2:26"))),
        ("mtls: { outbound: { ports: { 80: strict } } }", Some(("mtls.outbound.ports", "2:28"))),
        ("mtls: { outbound: { ports: { 80: disable } } }", None),
        ("mtls: { mode: permissive }", None),
    ] {
        let loaded = load_file(format!("{FILES}{mtls}\n")).unwrap_or_else(|faults| panic!("{mtls}: {faults}"));
        let expected = if because.is_some() { OnFailure::Closed } else { OnFailure::Open };
        assert_eq!(loaded.config.capture.on_failure, expected, "{mtls}");
        let told = loaded.origin("capture.on_failure").to_string();
        let (starts, ends) = because.map_or(("default".into(), String::new()), |(key, place)| {
            (format!("default because of {key} (/"), format!(":{place})"))
        });
        assert!(told.starts_with(&starts) && told.ends_with(&ends), "{mtls}: {told}");
        assert!(
            loaded.config.ways_past_strict().is_empty() && loaded.config.stays_closed() == because.is_some(),
            "{mtls}"
        );
        assert_eq!(load_file(loaded.to_yaml()).unwrap().config, loaded.config, "{mtls}");
    }
}

#[test]
fn what_lets_plaintext_past_strict_mutual_tls_is_told_with_both_keys() {
    for (capture, keys) in [
        ("on_failure: open", vec!["capture.on_failure is `open`"]),
        ("outbound: { enabled: false }", vec!["capture.outbound.enabled"]),
        (
            "on_failure: open, inbound: { enabled: false }",
            vec!["capture.on_failure is `open`", "capture.inbound.enabled"],
        ),
    ] {
        let loaded = load_file(format!("{FILES}mtls: {{ mode: strict }}\ncapture: {{ {capture} }}\n")).unwrap();
        let ways = loaded.config.ways_past_strict();
        assert_eq!(ways.len(), keys.len(), "{capture}: {ways:?}");
        for (way, key) in ways.iter().zip(keys) {
            assert!(way.starts_with(key) && way.contains(" mtls"), "{way}");
        }
    }
}
