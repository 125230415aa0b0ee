//! What is said about a wrong configuration.

use std::os::unix::ffi::OsStringExt;

use super::*;

#[test]
fn keys_that_do_not_exist_are_reported_with_what_was_meant() {
    for (content, expected) in [
        ("capture:\n  on_fail: open\n", "f:2:3: unknown key `capture.on_fail`; did you mean `on_failure`?"),
        ("proxi:\n  workers: 1\n", "f:1:1: unknown key `proxi`; did you mean `proxy`?"),
        ("on_failure: open\n", "f:1:1: unknown key `on_failure`; did you mean `capture.on_failure`?"),
        (
            "capture.on_failure: open\n",
            "f:1:1: unknown key `capture.on_failure`; sections are nested; write `on_failure:` below `capture`",
        ),
        (
            "x: 1\n",
            "f:1:1: unknown key `x`; expected one of `pod`, `capture`, `proxy`, `acceleration`, `identity`, `mtls`, `authorization`, `lifecycle`, `telemetry`",
        ),
        (
            "1: 2\n",
            "f:1:1: unknown key `1`; expected one of `pod`, `capture`, `proxy`, `acceleration`, `identity`, `mtls`, `authorization`, `lifecycle`, `telemetry`",
        ),
        (
            "capture:\n  maps: { x: &x 1 }\n",
            "f:2:11: unknown key `capture.maps.x`; expected one of `flows`, `listeners`, `accelerated`",
        ),
        ("proxy:\n  workers: 1\n  workers: 2\n", "f:3:3: duplicate key `proxy.workers`; it was given before at f:2:3"),
        ("proxy: {workers: 1}\nproxy: 1\n", "f:2:1: duplicate key `proxy`; it was given before at f:1:1"),
        (
            "capture:\n  maps: [1]\n",
            "f:2:9: `capture.maps` is a section, not a value; set a key in it: `flows`, `listeners`, `accelerated`",
        ),
        ("- capture\n", "f:1:1: expected sections such as `capture:`, found a list"),
        ("capture\n", "f:1:1: expected sections such as `capture:`, found a single value"),
    ] {
        assert_eq!(faults_of(content), [expected], "{content}");
    }
}

#[test]
fn values_that_are_not_allowed_are_reported_with_what_is() {
    const LEVELS: &str = "expected `off`, `error`, `warn`, `info`, `debug` or `trace`, or `target=level` pairs \
                          separated by commas";
    const ADDRESS: &str = "expected an IP address and a port, such as `0.0.0.0:15020` or `[::]:15020`";
    for (section, value, column, expected) in [
        (
            "capture",
            "on_failure: close",
            15,
            "`close` is not allowed; expected one of `open`, `closed`; did you mean `closed`?",
        ),
        (
            "capture",
            "on_failure: Open",
            15,
            "`Open` is not allowed; expected one of `open`, `closed`; did you mean `open`?",
        ),
        ("capture", "on_failure: 7", 15, "`7` is not allowed; expected one of `open`, `closed`"),
        ("capture", "on_failure:", 13, "there is no value; leave the whole key out for its default"),
        ("capture", "on_failure: [open]", 15, "expected a single value, found a list"),
        ("capture", "on_failure: {}", 15, "expected a single value, found a mapping"),
        (
            "capture",
            "heartbeat_max_age: 10",
            22,
            "`10` is not allowed; expected a time from 100ms to 1m with its unit (`ms`, `s`, `m`, `h`, `d`, `y`)",
        ),
        (
            "capture",
            "heartbeat_max_age: 99ms",
            22,
            "`99ms` is not allowed; expected a time from 100ms to 1m with its unit (`ms`, `s`, `m`, `h`, `d`, `y`)",
        ),
        (
            "proxy",
            "idle_timeout: 31d",
            17,
            "`31d` is not allowed; expected a time from 100ms to 30d with its unit (`ms`, `s`, `m`, `h`, `d`, `y`), or 0 for no limit",
        ),
        (
            "proxy",
            "max_buffer: 256KB",
            15,
            "`256KB` is not allowed; expected a size from 4KiB to 64MiB with its unit (`B`, `KiB`, `MiB`, `GiB`)",
        ),
        ("proxy", "workers: 0", 12, "`0` is not allowed; expected a whole number from 1 to 1024"),
        ("proxy", "workers: 1.5", 12, "`1.5` is not allowed; expected a whole number from 1 to 1024"),
        ("proxy", "workers: 0x10", 12, "`0x10` is not allowed; expected a whole number from 1 to 1024"),
        ("telemetry", "bpf_log: yes", 12, "`yes` is not allowed; expected `true` or `false`; did you mean `true`?"),
        (
            "telemetry",
            "access_log: jsn",
            15,
            "`jsn` is not allowed; expected one of `off`, `text`, `json`; did you mean `json`?",
        ),
        (
            "telemetry",
            "metrics: 127.0.0.1:0",
            12,
            "`127.0.0.1:0` is not allowed; expected a port from 1 to 65535, such as `0.0.0.0:15020` or `[::]:15020`",
        ),
        ("telemetry", "metrics: localhost:15020", 12, &format!("`localhost:15020` is not allowed; {ADDRESS}")),
        (
            "telemetry",
            "admin: 0.0.0.0:15000",
            10,
            "`0.0.0.0:15000` can be reached from outside; expected a loopback address, such as `127.0.0.1:15000` or `[::1]:15000`",
        ),
        ("telemetry", "log_level: debgu", 14, &format!("`debgu` is no level; {LEVELS}; did you mean `debug`?")),
        ("telemetry", "log_level: a=loud", 14, &format!("`a=loud` is no filter; {LEVELS}")),
        ("pod", "cgroup: pod-x", 11, "`pod-x` is not allowed; expected an absolute path"),
        ("pod", "workload: ''", 13, "`` is not allowed; expected a name of 1 to 253 bytes without control characters"),
        (
            "pod",
            r#"workload: "a\nb""#,
            13,
            r"`a\nb` is not allowed; expected a name of 1 to 253 bytes without control characters",
        ),
    ] {
        let key = value.split_once(':').unwrap().0;
        let expected = format!("f:2:{column}: {section}.{key}: {expected}");
        assert_eq!(faults_of(format!("{section}:\n  {value}\n")), [expected], "{value}");
    }
}

#[test]
fn each_item_of_a_list_is_judged_at_its_own_place() {
    let faults = faults_of(
        "\
capture:
  outbound:
    exclude_ports: [80, 0, http]
    exclude_cidrs:
      - 10.0.0.0/8
      - 10.0.0.1/8
      - example
  inbound:
    exclude_ports: 80
",
    );
    assert_eq!(
        faults,
        [
            "f:3:25: capture.outbound.exclude_ports: `0` is not allowed; expected a whole number from 1 to 65535",
            "f:3:28: capture.outbound.exclude_ports: `http` is not allowed; expected a whole number from 1 to 65535",
            "f:6:9: capture.outbound.exclude_cidrs: `10.0.0.1/8`: the address has bits outside of the network; \
             did you mean `10.0.0.0/8`?",
            "f:7:9: capture.outbound.exclude_cidrs: `example`: not a network; write an address and a prefix length, \
             such as `10.0.0.0/8` or `fd00::/8`",
            "f:9:20: capture.inbound.exclude_ports: expected a list, found `80`",
        ]
    );
}

#[test]
fn two_listeners_on_one_port_are_reported_at_the_one_that_was_given_last() {
    let end = "every listener needs a port of its own";
    for (content, expected) in [
        (
            "telemetry:\n  metrics: 0.0.0.0:15001\n",
            vec![format!(
                "f:2:12: telemetry.metrics: port 15001 is already taken by `capture.outbound.port` (default); {end}"
            )],
        ),
        (
            "capture:\n  outbound: { port: 9 }\n  inbound: { port: 9 }\n",
            vec![format!(
                "f:3:20: capture.inbound.port: port 9 is already taken by `capture.outbound.port` (f:2:21); {end}"
            )],
        ),
        // The listener of a direction that is not captured is bound all the same.
        (
            "capture: { outbound: { enabled: false } }\ntelemetry:\n  metrics: 0.0.0.0:15001\n",
            vec![format!(
                "f:3:12: telemetry.metrics: port 15001 is already taken by `capture.outbound.port` (default); {end}"
            )],
        ),
        // What was refused has no port to collide with.
        (
            "telemetry:\n  metrics: 0.0.0.0:0\n  health: 0.0.0.0:15020\n",
            vec![
                "f:2:12: telemetry.metrics: `0.0.0.0:0` is not allowed; expected a port from 1 to 65535, such as \
                 `0.0.0.0:15020` or `[::]:15020`"
                    .to_owned(),
            ],
        ),
    ] {
        assert_eq!(faults_of(content), expected, "{content}");
    }
}

#[test]
fn all_faults_of_all_layers_come_at_once_and_in_order() {
    let file = TestFile::new("capture:\n  on_fail: open\n  maps: { flows: 0 }\nproxy:\n  worker: 1\ntelemetry: on\n");
    let mut env = pairs(&[
        ("SIDECAR_CAPTURE_ON_FAILURE", "maybe"),
        ("SIDECAR_CAPTURE_ONFAILURE", "open"),
        ("SIDECAR_LOG_LEVEL", "debug"),
        ("SIDECAR_XYZ", "1"),
    ]);
    env.push(("SIDECAR_POD_WORKLOAD".into(), OsString::from_vec(vec![0xff])));
    let overrides = strings(&[
        "capture.on_failure",
        "capture=open",
        "capture.outbound.exclude_ports=80,x",
        "capture.outbund.port=1",
        "=1",
    ]);
    let faults = load(&Sources { file: Some(file.0.clone()), env, overrides, text: None }).unwrap_err();
    let expected = "\
f:2:3: unknown key `capture.on_fail`; did you mean `on_failure`?
f:3:18: capture.maps.flows: `0` is not allowed; expected a whole number from 1 to 16777216
f:5:3: unknown key `proxy.worker`; did you mean `workers`?
f:6:12: `telemetry` is a section, not a value; set a key in it: `metrics`, `health`, `admin`, `admin_socket`, `access_log`, `log_level`, `log_format`, `bpf_log`
SIDECAR_CAPTURE_ONFAILURE: unknown variable; did you mean `SIDECAR_CAPTURE_ON_FAILURE`?
SIDECAR_CAPTURE_ON_FAILURE: capture.on_failure: `maybe` is not allowed; expected one of `open`, `closed`
SIDECAR_LOG_LEVEL: unknown variable; did you mean `SIDECAR_TELEMETRY_LOG_LEVEL`?
SIDECAR_POD_WORKLOAD: the variable is not UTF-8 text
SIDECAR_XYZ: unknown variable; `sidecar config schema` lists all
--set : unknown key ``; expected one of `pod`, `capture`, `proxy`, `acceleration`, `identity`, `mtls`, `authorization`, `lifecycle`, `telemetry`
--set capture: `capture` is a section, not a value; set a key in it: `outbound`, `inbound`, `on_failure`, `heartbeat_max_age`, `maps`
--set capture.on_failure: expected `--set KEY=VALUE`, such as `--set capture.on_failure=closed`
--set capture.outbound.exclude_ports: capture.outbound.exclude_ports: `x` is not allowed; expected a whole number from 1 to 65535
--set capture.outbund.port: unknown key `capture.outbund.port`; did you mean `capture.outbound.port`?";
    assert_eq!(faults.to_string().replace(&file.0.display().to_string(), "f"), expected);
}

#[test]
fn what_is_no_yaml_of_ours_gives_one_fault() {
    for (content, expected) in [
        ("capture:\n  outbound: {\n", "f:2:13: not valid YAML: unclosed bracket '{'"),
        (
            "capture:\n\ton_failure: open\n",
            "f:2:2: not valid YAML: tabs disallowed within this context (block indentation)",
        ),
        ("capture: 'open\n", "f:1:10: not valid YAML: unclosed quote"),
        ("a: *b\n", "f:1:4: not valid YAML: reference to unknown value"),
        ("? [a]\n: 1\n", "f:1:3: not valid YAML: expected string scalar"),
        ("a: 1\n---\nb: 1\n", "f:3:1: not valid YAML: only single YAML document expected but multiple found"),
    ] {
        assert_eq!(faults_of(content), [expected], "{content}");
    }
}

#[test]
fn files_that_cannot_be_read_say_why() {
    assert_eq!(
        faults_of(b"a: 1\nb: \xc3\xa4\xff\n"),
        ["f:2:5: the byte 0xff is not UTF-8 text; save the file as UTF-8"]
    );
    let directory = std::env::temp_dir();
    let missing = directory.join(format!("sidecar-config-{}-missing.yaml", std::process::id()));
    for (path, expected) in [
        (
            missing.clone(),
            format!(
                "{}: cannot read the configuration: No such file or directory (os error 2); check the path given with \
                 `--config`",
                missing.display()
            ),
        ),
        (directory.clone(), format!("{}: is a directory; name the configuration file in it", directory.display())),
        ("/dev/zero".into(), "/dev/zero: is larger than 1048576 bytes; is this the configuration file?".into()),
    ] {
        let faults = load(&Sources { file: Some(path), ..Sources::default() }).unwrap_err();
        assert_eq!(faults.to_string(), expected);
    }
}
