//! One configuration that sets everything, as text and as values.

use super::*;

/// A file in which no key has its default, but for the sources of identity of which there can be one.
pub(super) const FULL: &str = "\
pod: { cgroup: /sys/fs/cgroup/pod-x, netns: /run/netns/pod-x, workload: 1.10, namespace: true }
capture:
  outbound: { enabled: false, port: 1001, exclude_ports: [80, 443], exclude_cidrs: [10.0.0.0/8, 'fd00::/8'] }
  inbound: { enabled: false, port: 1006, exclude_ports: [22] }
  on_failure: closed
  heartbeat_max_age: 250ms
  maps: { flows: 10, listeners: 20, accelerated: 100 }
proxy:
  workers: 3
  connect_timeout: 2s
  idle_timeout: 0
  max_connections: 5
  max_connecting: 4
  max_buffer: 64KiB
  socket_buffer: 32KiB
  keepalive: 1m
  drain_deadline: 0s
  hung_after: 7s
  user: '1337:1338'
  proxy_protocol_ports: [5432]
acceleration: auto
identity:
  files: { cert: /id/tls.crt, key: /id/tls.key, roots: /id/ca.crt, crl: /id/crl.pem }
  workload_api: null
  ca: { directory: null, id: null, lifetime: 1h }
mtls:
  mode: disable
  outbound: { mode: strict, ports: { 443: disable, 80: permissive }, cidrs: { fd00::/8: strict, 10.0.0.0/8: disable } }
  inbound: { mode: permissive, ports: { 22: disable }, cidrs: { ::/0: strict } }
  post_quantum: true
  handshake_timeout: 3s
  max_handshakes: 7
  spare: { per_destination: 0, idle: 5s }
  hbone_port: 0
  workloads:
    - { addresses: [10.0.0.7/32, 'fd00::7/128'], identity: spiffe://td.example/ns/shop/sa/web, transport: hbone }
    - { addresses: [10.0.1.0/24], transport: plaintext }
authorization:
  - name: no strangers
    action: deny
    dry_run: true
    from:
      - { principals: ['*/sa/x', spiffe://td.example/ns/a/*], namespaces: [a, b] }
      - { cidrs: [192.0.2.0/24] }
  - { name: web, action: allow, ports: [80, 443] }
lifecycle: { exit_with_application: true }
telemetry:
  metrics: 0.0.0.0:1020
  health: '[::1]:1021'
  admin: '[::1]:1000'
  admin_socket: /run/a.sock
  access_log: off
  log_level: sidecar=debug,warn
  log_format: json
  bpf_log: true
";

/// What [`FULL`] means.
pub(super) fn full() -> Config {
    Config {
        pod: Pod {
            cgroup: Some("/sys/fs/cgroup/pod-x".into()),
            netns: Some("/run/netns/pod-x".into()),
            workload: "1.10".into(),
            namespace: "true".into(),
        },
        capture: Capture {
            outbound: OutboundCapture {
                enabled: false,
                port: 1001,
                exclude_ports: vec![80, 443],
                exclude_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            },
            inbound: InboundCapture { enabled: false, port: 1006, exclude_ports: vec![22] },
            on_failure: OnFailure::Closed,
            heartbeat_max_age: Duration::from_millis(250),
            acceleration: Acceleration::Auto,
            maps: MapSizes { flows: 10, listeners: 20, accelerated: 100 },
        },
        proxy: Proxy {
            workers: 3,
            connect_timeout: Duration::from_secs(2),
            idle_timeout: None,
            max_connections: 5,
            max_connecting: 4,
            max_buffer: 65536,
            socket_buffer: Some(32768),
            keepalive: Duration::from_secs(60),
            drain_deadline: Duration::ZERO,
            hung_after: Duration::from_secs(7),
            user: Some(User { uid: 1337, gid: 1338 }),
            proxy_protocol_ports: vec![5432],
        },
        identity: Identity {
            files: Some(IdentityFiles {
                cert: "/id/tls.crt".into(),
                key: "/id/tls.key".into(),
                roots: "/id/ca.crt".into(),
                crl: Some("/id/crl.pem".into()),
            }),
            ..Identity::default()
        },
        mtls: full_mtls(),
        authorization: full_authorization(),
        lifecycle: Lifecycle { exit_with_application: true },
        telemetry: Telemetry {
            metrics: "0.0.0.0:1020".parse().unwrap(),
            health: "[::1]:1021".parse().unwrap(),
            admin: "[::1]:1000".parse().unwrap(),
            admin_socket: Some("/run/a.sock".into()),
            access_log: AccessLog::Off,
            log_level: "sidecar=debug,warn".into(),
            log_format: LogFormat::Json,
            bpf_log: true,
        },
    }
}

fn full_mtls() -> Mtls {
    let network = |text: &str| text.parse::<Cidr>().unwrap();
    Mtls {
        mode: Mode::Disable,
        outbound: Modes {
            mode: Mode::Strict,
            ports: vec![(80, Mode::Permissive), (443, Mode::Disable)],
            cidrs: vec![(network("10.0.0.0/8"), Mode::Disable), (network("fd00::/8"), Mode::Strict)],
        },
        inbound: Modes {
            mode: Mode::Permissive,
            ports: vec![(22, Mode::Disable)],
            cidrs: vec![(network("::/0"), Mode::Strict)],
        },
        post_quantum: true,
        handshake_timeout: Duration::from_secs(3),
        max_handshakes: 7,
        spare: Spare { per_destination: 0, idle: Duration::from_secs(5) },
        hbone_port: None,
        workloads: vec![
            Workload {
                addresses: vec![network("10.0.0.7/32"), network("fd00::7/128")],
                identity: Some("spiffe://td.example/ns/shop/sa/web".parse().unwrap()),
                transport: Some(Transport::Hbone),
            },
            Workload { addresses: vec![network("10.0.1.0/24")], identity: None, transport: Some(Transport::Plaintext) },
        ],
    }
}

/// The rules, as if they stood nowhere.
fn full_authorization() -> Vec<Rule> {
    vec![
        Rule {
            name: "no strangers".into(),
            action: Action::Deny,
            dry_run: true,
            from: vec![
                Source {
                    principals: strings(&["*/sa/x", "spiffe://td.example/ns/a/*"]),
                    namespaces: strings(&["a", "b"]),
                    cidrs: Vec::new(),
                },
                Source { cidrs: vec!["192.0.2.0/24".parse().unwrap()], ..Source::default() },
            ],
            ports: Vec::new(),
            place: RulePlace::default(),
        },
        Rule {
            name: "web".into(),
            action: Action::Allow,
            dry_run: false,
            from: Vec::new(),
            ports: vec![80, 443],
            place: RulePlace::default(),
        },
    ]
}
