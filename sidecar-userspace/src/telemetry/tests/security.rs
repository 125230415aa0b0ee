//! Whether each connection was encrypted, to whom, and if not, why not.

use super::*;
use crate::config::Transport;

const OWN: &str = "spiffe://td/ns/trade/sa/shop";
const PEER: &str = "spiffe://td/ns/far/sa/web";

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn mutual_tls(peer: &str) -> Security {
    Security::MutualTls { peer: id(peer), transport: Transport::Native }
}

fn named(telemetry: Telemetry) -> Telemetry {
    telemetry.own_identity(Some(id(OWN)));
    telemetry
}

/// The labels of Istio's series of connections between these two.
fn principals(direction: Direction, own: &str, peer: &str) -> [String; 2] {
    let (near, far) = match direction {
        Direction::Outbound => ("source", "destination"),
        Direction::Inbound => ("destination", "source"),
    };
    [format!("{near}_principal=\"{own}\""), format!("{far}_principal=\"{peer}\"")]
}

#[test]
fn a_connection_with_mutual_tls_is_counted_under_both_principals() {
    let telemetry = named(quiet());
    for (direction, far) in [(Direction::Outbound, "destination"), (Direction::Inbound, "source")] {
        let mut record = connected(&telemetry, direction);
        record.secured(mutual_tls(PEER));
        record.traffic().add_from_downstream(100);
        record.finish(CloseReason::Completed);
        let metrics = telemetry.render_metrics();
        let [own, peer] = principals(direction, OWN, PEER);
        let namespace = format!("{far}_workload_namespace=\"far\"");
        let workload = format!("{far}_workload=\"unknown\"");
        let policy = "connection_security_policy=\"mutual_tls\"";
        let reporter = format!("reporter=\"{}\"", direction.reporter());
        let labels: &[&str] = &[&reporter, &own, &peer, &namespace, &workload, policy, "response_flags=\"-\""];
        assert_eq!(value(&metrics, "istio_tcp_connections_opened_total", labels), 1.0);
        assert_eq!(value(&metrics, "istio_tcp_connections_closed_total", labels), 1.0);
        assert_eq!(value(&metrics, "istio_tcp_received_bytes_total", labels), 100.0);
        let nobody = principals(direction, "unknown", "unknown");
        let plain: &[&str] = &[&reporter, &nobody[0], &nobody[1], "policy=\"unknown\"", "response_flags=\"-\""];
        assert_eq!(value(&metrics, "istio_tcp_connections_opened_total", plain), 0.0);
        assert_eq!(value(&metrics, "istio_tcp_received_bytes_total", plain), 0.0);
        let by_direction = format!("direction=\"{}\"", direction.label());
        let encrypted = [by_direction.as_str(), "security=\"mutual_tls\"", "reason=\"-\""];
        assert_eq!(value(&metrics, "sidecar_connections_security_total", &encrypted), 1.0);
    }
}

#[test]
fn a_connection_in_plaintext_is_counted_and_told_with_its_reason() {
    let output = Captured::default();
    let telemetry = named(logging_to(output.clone()));
    for reason in NotEncrypted::ALL {
        let mut record = connected(&telemetry, Direction::Inbound);
        record.secured(Security::Plaintext(reason));
        let row = telemetry.connections().snapshot().pop().unwrap();
        assert_eq!((row.security, row.not_encrypted), (Some("plaintext"), Some(reason.label())));
        assert_eq!((row.src_identity, row.dst_identity, row.transport), (None, None, None));
        record.finish(CloseReason::Completed);
        let labels = ["direction=\"inbound\"", "security=\"plaintext\"", &format!("reason=\"{}\"", reason.label())];
        assert_eq!(value(&telemetry.render_metrics(), "sidecar_connections_security_total", &labels), 1.0);
        assert!(telemetry.flush(Duration::from_secs(10)));
        let line = output.text().lines().last().unwrap().to_owned();
        assert!(line.ends_with(&format!(" security=plaintext not_encrypted={}", reason.label())), "{line}");
        assert!(!line.contains("identity="), "{line}");
    }
}

#[test]
fn log_and_table_name_both_ends_by_direction() {
    let output = Captured::default();
    let telemetry = named(logging_to(output.clone()));
    for (direction, source, target) in [(Direction::Outbound, OWN, PEER), (Direction::Inbound, PEER, OWN)] {
        let mut record = connected(&telemetry, direction);
        assert_eq!(telemetry.connections().snapshot()[0].security, None);
        record.secured(Security::MutualTls { peer: id(PEER), transport: Transport::Hbone });
        let row = serde_json::to_value(&telemetry.connections().snapshot()[0]).unwrap();
        assert_eq!((&row["security"], &row["transport"]), (&"mutual_tls".into(), &"hbone".into()));
        assert_eq!((&row["src_identity"], &row["dst_identity"]), (&source.into(), &target.into()));
        assert_eq!(row["not_encrypted"], serde_json::Value::Null);
        record.finish(CloseReason::Completed);
        assert!(telemetry.flush(Duration::from_secs(10)));
        let line = output.text().lines().last().unwrap().to_owned();
        assert!(line.contains(&format!(" src.identity={source} dst.addr=")), "{line}");
        assert!(line.contains(&format!(" dst.identity={target} direction=")), "{line}");
        assert!(line.contains(" src.namespace=") && line.contains(" dst.namespace="), "{line}");
        assert!(line.ends_with(" security=mutual_tls transport=hbone"), "{line}");
    }
}

#[test]
fn a_connection_is_opened_once_when_its_security_is_known_or_at_its_end() {
    let telemetry = quiet();
    let opened = |telemetry: &Telemetry, principal: &str| {
        let labels = ["reporter=\"destination\"", &format!("source_principal=\"{principal}\"")];
        value(&telemetry.render_metrics(), "istio_tcp_connections_opened_total", &labels)
    };
    let mut record = connected(&telemetry, Direction::Inbound);
    assert_eq!(opened(&telemetry, "unknown"), 0.0);
    record.secured(mutual_tls(PEER));
    record.secured(mutual_tls("spiffe://td/other"));
    record.secured(Security::Plaintext(NotEncrypted::Disabled));
    assert_eq!((opened(&telemetry, "unknown"), opened(&telemetry, PEER)), (0.0, 1.0));
    assert!(!telemetry.render_metrics().contains("spiffe://td/other"));
    record.finish(CloseReason::Completed);
    accepted(&telemetry, Direction::Inbound).finish(CloseReason::HandshakeFailed);
    assert_eq!((opened(&telemetry, "unknown"), opened(&telemetry, PEER)), (1.0, 1.0));
}

#[test]
fn a_new_own_identity_is_for_new_connections() {
    let telemetry = named(quiet());
    let mut before = connected(&telemetry, Direction::Outbound);
    before.secured(mutual_tls(PEER));
    telemetry.own_identity(Some(id("spiffe://td/renamed")));
    let mut after = connected(&telemetry, Direction::Outbound);
    after.secured(mutual_tls(PEER));
    telemetry.own_identity(None);
    let shown: Vec<_> = telemetry.connections().snapshot().into_iter().map(|row| row.src_identity.unwrap()).collect();
    assert_eq!(shown, [id(OWN), id("spiffe://td/renamed")]);
    let metrics = telemetry.render_metrics();
    for own in [OWN, "spiffe://td/renamed"] {
        let [own, peer] = principals(Direction::Outbound, own, PEER);
        assert_eq!(value(&metrics, "istio_tcp_connections_opened_total", &[&own, &peer]), 1.0);
    }
}

#[test]
fn every_new_end_has_its_flag_in_metrics_and_log() {
    let output = Captured::default();
    let telemetry = logging_to(output.clone());
    for (reason, flag, level) in [
        (CloseReason::HandshakeFailed, "TLS_FAILURE", "error"),
        (CloseReason::PlaintextRefused, "DENY", "error"),
        (CloseReason::NotEncryptable, "DENY", "error"),
        (CloseReason::WrongPeer, "IDENTITY_ERROR", "error"),
        (CloseReason::Unauthorized, "DENY", "error"),
        (CloseReason::NoLongerAuthorized, "DENY", "error"),
        (CloseReason::Revoked, "CERT_REVOKED", "error"),
        (CloseReason::Truncated, "-", "info"),
    ] {
        let peer = format!("spiffe://td/{}", reason.label());
        let mut record = connected(&telemetry, Direction::Inbound);
        record.secured(mutual_tls(&peer));
        record.finish(reason);
        let metrics = telemetry.render_metrics();
        let ended = ["direction=\"inbound\"", &format!("reason=\"{}\"", reason.label())];
        assert_eq!(value(&metrics, "sidecar_connections_closed_total", &ended), 1.0);
        let flags = format!("response_flags=\"{flag}\"");
        let labels = [peer.as_str(), &flags];
        assert_eq!(value(&metrics, "istio_tcp_connections_closed_total", &labels), 1.0);
        let failed = metrics.lines().any(|line| {
            line.starts_with("istio_tcp_connections_failed_total{") && labels.iter().all(|label| line.contains(label))
        });
        assert_eq!(failed, flag != "-", "{reason:?}");
        assert!(telemetry.flush(Duration::from_secs(10)));
        let line = output.text().lines().last().unwrap().to_owned();
        assert!(line.contains(&format!(" reason={} response_flags={flag} ", reason.label())), "{line}");
        assert!(line.contains(&format!(" level={level} ")), "{line}");
    }
}

#[tokio::test]
async fn a_record_born_late_keeps_its_accept_and_has_not_been_idle() {
    let output = Captured::default();
    let telemetry = logging_to(output.clone());
    let waited = Duration::from_secs(40);
    let client = ClientAddr("10.0.0.9:40000".parse().unwrap());
    assert!(telemetry.connections().is_empty());
    let record = telemetry.accepted_at(Direction::Inbound, client, Instant::now().checked_sub(waited).unwrap());
    let row = telemetry.connections().snapshot().pop().unwrap();
    assert!((40.0..60.0).contains(&row.age_seconds), "{}", row.age_seconds);
    let limit = Duration::from_millis(100);
    let start = Instant::now();
    let sweeper = async {
        loop {
            tokio::time::sleep(telemetry.connections().sweep_idle(limit)).await;
        }
    };
    tokio::select! {
        reason = record.told_to_close() => assert_eq!(reason, CloseReason::IdleTimeout),
        () = sweeper => {}
    }
    assert!(start.elapsed() >= limit);
    record.finish(CloseReason::IdleTimeout);
    assert!(telemetry.flush(Duration::from_secs(10)));
    let line = output.text();
    let (_, duration) = line.split_once(" duration=").unwrap();
    let millis: u64 = duration.split_once("ms ").unwrap().0.parse().unwrap();
    assert!((40_000..60_000).contains(&millis), "{line}");
}

#[test]
fn handshakes_and_spares_are_counted_and_shown_while_they_last() {
    let telemetry = quiet();
    telemetry.expect_handshake_failures(["expired"]);
    let figure = |family: &str, labels: &[&str]| value(&telemetry.render_metrics(), family, labels);
    assert_eq!(figure(mtls::HANDSHAKE_FAILURES, &["role=\"server\"", "reason=\"expired\""]), 0.0);
    telemetry.handshake_failed(Role::Server, "expired");
    assert_eq!(figure(mtls::HANDSHAKE_FAILURES, &["role=\"server\"", "reason=\"expired\""]), 1.0);
    assert_eq!(figure(mtls::HANDSHAKE_FAILURES, &["role=\"client\"", "reason=\"expired\""]), 0.0);

    telemetry.handshake(Role::Client, true, Duration::from_micros(700));
    let resumed: &[&str] = &["role=\"client\"", "resumed=\"true\""];
    assert_eq!(figure("sidecar_tls_handshake_seconds_count", resumed), 1.0);
    assert_eq!(figure("sidecar_tls_handshake_seconds_bucket", &[resumed, &["le=\"0.0005\""]].concat()), 0.0);
    assert_eq!(figure("sidecar_tls_handshake_seconds_bucket", &[resumed, &["le=\"0.001\""]].concat()), 1.0);
    assert_eq!(figure("sidecar_tls_handshake_seconds_count", &["role=\"client\"", "resumed=\"false\""]), 0.0);

    for (result, label) in [
        (Spare::Hit, "hit"),
        (Spare::Miss, "miss"),
        (Spare::Expired, "expired"),
        (Spare::Dead, "dead"),
        (Spare::Unauthorized, "unauthorized"),
    ] {
        telemetry.spare(result);
        assert_eq!(figure(mtls::SPARE_TOTAL, &[&format!("result=\"{label}\"")]), 1.0);
    }

    for role in [Role::Client, Role::Server] {
        let (as_role, as_side) = (format!("role=\"{}\"", role.label()), format!("side=\"{}\"", role.label()));
        let shown = || (figure(mtls::HANDSHAKES_IN_PROGRESS, &[&as_role]), figure(mtls::SPARE_WAITING, &[&as_side]));
        assert_eq!(shown(), (0.0, 0.0));
        let both = (telemetry.handshake_begins(role), telemetry.handshake_begins(role));
        let waiting = telemetry.spare_waits(role);
        assert_eq!(shown(), (2.0, 1.0));
        drop((both, waiting));
        assert_eq!(shown(), (0.0, 0.0));
    }
}
