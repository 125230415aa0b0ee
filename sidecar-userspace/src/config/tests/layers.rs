//! Which value wins, and what is shown of it.

use super::{
    full::{FULL, full},
    *,
};

#[test]
fn defaults_are_those_that_are_documented() {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(2);
    let documented = format!(
        "\
pod:
  cgroup: null
  netns: null
  workload: unknown
  namespace: unknown
capture:
  outbound:
    enabled: true
    port: 15001
    exclude_ports: []
    exclude_cidrs: [169.254.169.254/32]
  inbound:
    enabled: true
    port: 15006
    exclude_ports: []
  on_failure: open
  heartbeat_max_age: 1s
  maps:
    flows: 16384
    listeners: 4096
    accelerated: 16384
proxy:
  workers: {workers}
  connect_timeout: 10s
  idle_timeout: 1h
  max_connections: 65536
  max_connecting: 4096
  max_buffer: 128KiB
  socket_buffer: null
  keepalive: 3m
  drain_deadline: 5s
  hung_after: 3s
  user: null
  proxy_protocol_ports: []
acceleration: \"off\"
identity:
  files:
    cert: null
    key: null
    roots: null
    crl: null
  workload_api: null
  ca:
    directory: null
    id: null
    lifetime: 1h
mtls:
  mode: permissive
  outbound:
    mode: permissive
    ports: {{}}
    cidrs: {{}}
  inbound:
    mode: permissive
    ports: {{}}
    cidrs: {{}}
  post_quantum: false
  handshake_timeout: 10s
  max_handshakes: 1024
  spare:
    per_destination: 8
    idle: 30s
  hbone_port: 15008
  workloads: []
authorization: []
lifecycle:
  exit_with_application: false
telemetry:
  metrics: \"[::]:15020\"
  health: \"[::]:15021\"
  admin: \"127.0.0.1:15000\"
  admin_socket: null
  access_log: text
  log_level: info
  log_format: text
  bpf_log: false
"
    );
    assert_eq!(load(&Sources::default()).unwrap().to_yaml(), documented);
    assert_eq!(load_file(&documented).unwrap().config, Config::default());
}

#[test]
fn files_that_say_nothing_give_the_defaults() {
    for content in [
        "",
        "\n",
        "# nothing\n",
        "---\n",
        "\u{feff}",
        "{}",
        "null",
        "capture:\n",
        "capture:\n  outbound:\n    # port: 1\n",
    ] {
        let loaded = load_file(content).unwrap_or_else(|faults| panic!("{content:?}: {faults}"));
        assert_eq!(loaded.config, Config::default(), "{content:?}");
    }
}

#[test]
fn every_key_is_read() {
    let loaded = load_file(FULL).unwrap();
    let expected = full();
    assert_eq!(without_places(&loaded.config), expected);
    for key in KEYS {
        assert!(matches!(loaded.origin(key.path), Place::Line { .. }), "{}", key.path);
    }
    for shown in [loaded.to_yaml(), loaded.to_yaml_with_origins(), loaded.to_json().to_string()] {
        assert_eq!(without_places(&load_file(&shown).unwrap().config), expected, "{shown}");
    }
}

#[test]
fn what_is_shown_of_each_key_can_be_given_as_variable_and_as_flag() {
    let loaded = load_file(FULL).unwrap();
    let shown = loaded.to_json_with_origins();
    let text = |path: &str| match &shown[path]["value"] {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let env = KEYS.iter().map(|key| (key.variable().into(), text(key.path).into())).collect();
    let overrides = KEYS.iter().map(|key| format!("{}={}", key.path, text(key.path))).collect();
    let from_env = load(&Sources { env, ..Sources::default() }).unwrap();
    let from_flags = load(&Sources { overrides, ..Sources::default() }).unwrap();
    assert_eq!(without_places(&from_env.config), full());
    assert_eq!(without_places(&from_flags.config), full());
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = TestFile::new("proxy:\n  workers: 3\n");
    let name = file.0.display();
    for (with_file, env, flags, workers, origin) in [
        (true, &[][..], &[][..], 3, format!("{name}:2:12")),
        (true, &[("SIDECAR_PROXY_WORKERS", "4")], &[], 4, "SIDECAR_PROXY_WORKERS".into()),
        (true, &[("SIDECAR_PROXY_WORKERS", "4")], &["proxy.workers=5"], 5, "--set proxy.workers".into()),
        (false, &[("SIDECAR_PROXY_WORKERS", "4")], &[], 4, "SIDECAR_PROXY_WORKERS".into()),
        (false, &[], &["proxy.workers=5", "proxy.workers=6"], 6, "--set proxy.workers".into()),
    ] {
        let file = with_file.then(|| file.0.clone());
        let loaded = load(&Sources { file, env: pairs(env), overrides: strings(flags), ..Sources::default() }).unwrap();
        assert_eq!(loaded.config.proxy.workers, workers, "{origin}");
        assert_eq!(loaded.origin("proxy.workers").to_string(), origin);
        assert_eq!(loaded.to_json_with_origins()["proxy.workers"]["origin"], origin);
        assert_eq!(loaded.to_json_with_origins()["proxy.keepalive"]["origin"], "default");
        assert!(loaded.to_yaml_with_origins().contains(&format!("# {origin}\n")), "{origin}");
    }
}

#[test]
fn variables_of_other_programs_and_of_services_are_passed_over() {
    let env = pairs(&[
        ("PATH", "/bin"),
        ("SIDECAR", "x"),
        ("SIDECAR_SERVICE_HOST", "10.0.0.1"),
        ("SIDECAR_SERVICE_PORT_HTTP_METRICS", "80"),
        ("SIDECAR_PORT", "tcp://10.0.0.1:80"),
        ("SIDECAR_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("SIDECAR_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("SIDECAR_CAPTURE_OUTBOUND_PORT", "tcp://10.0.0.1:80"),
    ]);
    assert_eq!(load(&Sources { env, ..Sources::default() }).unwrap().config, Config::default());
}

#[test]
fn aliases_and_merge_keys_are_expanded() {
    let loaded = load_file(
        "proxy:\n  connect_timeout: &limit 7s\n  drain_deadline: *limit\n\
         capture:\n  inbound: &both { exclude_ports: [22] }\n  outbound: { <<: *both, port: 9 }\n",
    )
    .unwrap();
    assert_eq!(loaded.config.proxy.drain_deadline, Duration::from_secs(7));
    assert_eq!(loaded.config.capture.outbound.exclude_ports, [22]);
}

#[test]
fn the_schema_knows_every_key_and_nothing_else() {
    fn leaves(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        let Some(properties) = schema["properties"].as_object() else {
            assert!(schema["description"].is_string(), "{path}");
            assert!(schema.get("default").is_some() || path == "proxy.workers", "{path}");
            return found.push(path.to_owned());
        };
        assert_eq!(schema["additionalProperties"], false, "{path}");
        assert!(path.is_empty() || schema["description"].is_string(), "{path}");
        for (name, below) in properties {
            leaves(below, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
        }
    }
    let mut found = Vec::new();
    leaves(&schema(), "", &mut found);
    let mut paths: Vec<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    found.sort();
    paths.sort();
    assert_eq!(found, paths);
}

#[test]
fn a_snapshot_is_the_configuration_as_it_was_read() {
    let file = TestFile::new("proxy:\n  workers: 3\n");
    let sources = Sources {
        file: Some(file.0.clone()),
        env: pairs(&[("SIDECAR_PROXY_MAX_CONNECTIONS", "4"), ("SECRET", "x")]),
        overrides: strings(&["proxy.max_connecting=5"]),
        ..Sources::default()
    };
    let first = load(&sources).unwrap();
    let bytes = first.snapshot().to_bytes();
    assert!(!String::from_utf8_lossy(&bytes).contains("SECRET"));
    fs::write(&file.0, "proxy:\n  workers: 7\n  max_buffer: soon\n").unwrap();
    let passed_on = Snapshot::from_bytes(&bytes).unwrap().load().unwrap();
    assert_eq!(passed_on.config, first.config);
    for key in ["proxy.workers", "proxy.max_connections", "proxy.max_connecting", "proxy.keepalive"] {
        assert_eq!(passed_on.origin(key), first.origin(key), "{key}");
    }
    let faults = first.snapshot().read_again().unwrap().load().unwrap_err().to_string();
    assert!(faults.starts_with(&format!("{}:3:15: ", file.0.display())), "{faults}");
    fs::remove_file(&file.0).unwrap();
    assert!(first.snapshot().read_again().is_err());
    assert!(Snapshot::from_bytes(b"{}").is_err());
}
