mod security;

use std::{
    io,
    sync::{Arc, Mutex, mpsc},
    time::Instant,
};

use super::*;
use crate::addr::{OrigDst, UpstreamLocal};

/// A log that tests can read.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn config(access_log: config::AccessLog) -> config::Telemetry {
    config::Telemetry {
        metrics: "127.0.0.1:0".parse().unwrap(),
        health: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        admin_socket: None,
        access_log,
        log_level: "info".into(),
        log_format: config::LogFormat::Text,
        bpf_log: false,
    }
}

fn pod() -> config::Pod {
    config::Pod { cgroup: None, netns: None, workload: "shop".into(), namespace: "trade".into() }
}

fn quiet() -> Telemetry {
    Telemetry::start(&config(config::AccessLog::Off), &pod()).unwrap()
}

fn logging_to(output: impl io::Write + Send + 'static) -> Telemetry {
    Telemetry::with_output(&config(config::AccessLog::Text), &pod(), output).unwrap()
}

fn accepted(telemetry: &Telemetry, direction: Direction) -> ConnectionRecord {
    telemetry.accepted_at(direction, ClientAddr("10.0.0.9:40000".parse().unwrap()), Instant::now())
}

fn connected(telemetry: &Telemetry, direction: Direction) -> ConnectionRecord {
    let mut record = accepted(telemetry, direction);
    record.addressed(OrigDst("10.0.0.1:80".parse().unwrap()));
    record.connected(UpstreamLocal("10.0.0.2:50000".parse().unwrap()));
    record
}

/// The value of the one series of `family` whose labels include all of `labels`.
fn value(metrics: &str, family: &str, labels: &[&str]) -> f64 {
    let mut found = metrics.lines().filter(|line| {
        line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    let line = found.next().unwrap_or_else(|| panic!("no {family} with {labels:?} in\n{metrics}"));
    assert!(found.next().is_none(), "several {family} with {labels:?}");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn istio_counts_what_the_client_sent_as_received_at_both_reporters() {
    let telemetry = quiet();
    for (direction, reporter, near, far) in [
        (Direction::Outbound, "source", "source", "destination"),
        (Direction::Inbound, "destination", "destination", "source"),
    ] {
        let record = connected(&telemetry, direction);
        record.traffic().add_from_downstream(100);
        record.traffic().add_from_upstream(7);
        record.finish(CloseReason::Completed);
        let metrics = telemetry.render_metrics();
        let reporter = format!("reporter=\"{reporter}\"");
        let known = format!("{near}_workload=\"shop\"");
        let namespace = format!("{near}_workload_namespace=\"trade\"");
        let unknown = format!("{far}_workload=\"unknown\"");
        let carried: &[&str] = &[&reporter, &known, &namespace, &unknown, "response_flags=\"-\""];
        assert_eq!(value(&metrics, "istio_tcp_received_bytes_total", carried), 100.0);
        assert_eq!(value(&metrics, "istio_tcp_sent_bytes_total", carried), 7.0);
        assert_eq!(value(&metrics, "istio_tcp_connections_opened_total", carried), 1.0);
        assert_eq!(value(&metrics, "istio_tcp_connections_closed_total", carried), 1.0);
        let direction = format!("direction=\"{}\"", direction.label());
        assert_eq!(value(&metrics, "sidecar_bytes_total", &[&direction, "flow=\"from_downstream\""]), 100.0);
        assert_eq!(value(&metrics, "sidecar_bytes_total", &[&direction, "flow=\"from_upstream\""]), 7.0);
        assert_eq!(value(&metrics, "sidecar_connections", &[&direction]), 0.0);
        assert_eq!(value(&metrics, "sidecar_connect_seconds_count", &[&direction]), 1.0);
        assert_eq!(value(&metrics, "sidecar_connect_seconds_bucket", &[&direction, "le=\"10\""]), 1.0);
    }
}

#[test]
fn every_end_is_counted_by_its_reason_and_failures_by_istios_flag() {
    let telemetry = quiet();
    for (reason, flag) in [
        (CloseReason::ConnectRefused, Some("CONNECT")),
        (CloseReason::ConnectTimeout, Some("CONNECT")),
        (CloseReason::OwnPort, Some("DENY")),
        (CloseReason::HandshakeFailed, Some("TLS_FAILURE")),
        (CloseReason::UpstreamReset, None),
    ] {
        let before = telemetry.render_metrics();
        accepted(&telemetry, Direction::Inbound).finish(reason);
        let after = telemetry.render_metrics();
        let grew = |family: &str, labels: &[&str]| value(&after, family, labels) - value(&before, family, labels);
        let label = format!("reason=\"{}\"", reason.label());
        assert_eq!(grew("sidecar_connections_closed_total", &["direction=\"inbound\"", &label]), 1.0);
        let flags = format!("response_flags=\"{}\"", flag.unwrap_or("-"));
        assert_eq!(grew("istio_tcp_connections_closed_total", &["reporter=\"destination\"", &flags]), 1.0);
        if flag.is_some() {
            assert_eq!(grew("istio_tcp_connections_failed_total", &["reporter=\"destination\"", &flags]), 1.0);
        }
    }
}

#[test]
fn an_open_connection_shows_its_bytes_on_every_scrape_and_each_byte_once() {
    let telemetry = quiet();
    let record = connected(&telemetry, Direction::Outbound);
    let sent = |telemetry: &Telemetry| {
        value(&telemetry.render_metrics(), "sidecar_bytes_total", &["outbound", "from_downstream"])
    };
    record.traffic().add_from_downstream(5);
    assert_eq!(sent(&telemetry), 5.0);
    assert_eq!(sent(&telemetry), 5.0);
    record.traffic().add_from_downstream(6);
    assert_eq!(sent(&telemetry), 11.0);
    assert_eq!(value(&telemetry.render_metrics(), "sidecar_connections", &["outbound"]), 1.0);
    record.traffic().add_from_downstream(1);
    record.finish(CloseReason::Completed);
    assert_eq!(sent(&telemetry), 12.0);
}

#[test]
fn scrapes_that_race_with_traffic_count_each_byte_once() {
    let telemetry = quiet();
    let record = connected(&telemetry, Direction::Outbound);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..50).for_each(|_| drop(telemetry.render_metrics())));
        }
        (0..20_000).for_each(|_| record.traffic().add_from_upstream(3));
    });
    record.finish(CloseReason::Completed);
    let metrics = telemetry.render_metrics();
    assert_eq!(value(&metrics, "sidecar_bytes_total", &["outbound", "from_upstream"]), 60_000.0);
}

#[test]
fn a_dropped_record_is_an_aborted_connection() {
    let telemetry = quiet();
    drop(connected(&telemetry, Direction::Inbound));
    assert!(telemetry.connections().is_empty());
    let metrics = telemetry.render_metrics();
    assert_eq!(value(&metrics, "sidecar_connections_closed_total", &["inbound", "\"aborted\""]), 1.0);
}

#[test]
fn sources_are_asked_at_every_scrape() {
    let telemetry = quiet();
    telemetry.add_source(Box::new(|| {
        metrics::counter!("sidecar_verdicts_total", "hook" => "connect", "verdict" => "capture", "reason" => "captured")
            .absolute(41);
    }));
    let labels = ["hook=\"connect\"", "verdict=\"capture\"", "reason=\"captured\""];
    assert_eq!(value(&telemetry.render_metrics(), "sidecar_verdicts_total", &labels), 41.0);
}

#[test]
fn the_text_is_what_prometheus_reads() {
    let telemetry = quiet();
    drop(connected(&telemetry, Direction::Inbound));
    let metrics = telemetry.render_metrics();
    for line in metrics.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(!series.contains('{') || series.ends_with('}'), "{line}");
    }
    assert!(metrics.contains("# TYPE sidecar_connect_seconds histogram"));
    assert!(metrics.contains("# TYPE process_cpu_seconds_total counter"));
    assert_eq!(value(&metrics, "sidecar_build_info", &[concat!("version=\"", env!("CARGO_PKG_VERSION"))]), 1.0);
}

#[test]
fn the_table_shows_how_far_each_connection_has_come() {
    let telemetry = quiet();
    let _first = accepted(&telemetry, Direction::Inbound);
    let mut second = accepted(&telemetry, Direction::Outbound);
    second.addressed(OrigDst("[2001:db8::1]:443".parse().unwrap()));
    let third = connected(&telemetry, Direction::Outbound);
    third.traffic().add_from_upstream(9);
    let rows = telemetry.connections().snapshot();
    let states: Vec<_> = rows.iter().map(|row| row.state).collect();
    assert_eq!(states, [ConnectionState::Accepted, ConnectionState::Connecting, ConnectionState::Connected]);
    let json = serde_json::to_value(&rows[2]).unwrap();
    assert_eq!(json["direction"], "outbound");
    assert_eq!(json["state"], "connected");
    assert_eq!(json["client"], "10.0.0.9:40000");
    assert_eq!(json["original_destination"], "10.0.0.1:80");
    assert_eq!(json["upstream_local"], "10.0.0.2:50000");
    assert_eq!(json["bytes_from_upstream"], 9);
    assert_eq!(rows[1].original_destination.unwrap().to_string(), "[2001:db8::1]:443");
    telemetry.connections().close_all(CloseReason::DrainDeadline);
    assert!(telemetry.connections().snapshot().iter().all(|row| row.state == ConnectionState::Closing));
}

#[test]
fn a_workload_name_cannot_forge_a_series() {
    let workload = "a\"} 1\nforged{x=\"\\".to_owned();
    let telemetry = Telemetry::start(&config(config::AccessLog::Off), &config::Pod { workload, ..pod() }).unwrap();
    let metrics = telemetry.render_metrics();
    assert!(metrics.contains(r#"destination_workload="a\"} 1\nforged{x=\"\\","#), "{metrics}");
    assert!(!metrics.lines().any(|line| line.starts_with("forged")));
}

#[tokio::test]
async fn a_connection_is_told_once_and_the_first_reason_stays() {
    let telemetry = quiet();
    let record = Arc::new(connected(&telemetry, Direction::Inbound));
    let waiting = tokio::spawn({
        let record = Arc::clone(&record);
        async move { record.told_to_close().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    telemetry.connections().close_all(CloseReason::DrainDeadline);
    telemetry.connections().close_all(CloseReason::IdleTimeout);
    assert_eq!(waiting.await.unwrap(), CloseReason::DrainDeadline);
    assert_eq!(record.told_to_close().await, CloseReason::DrainDeadline);
}

#[tokio::test]
async fn an_idle_connection_ends_and_a_moving_one_does_not() {
    let limit = Duration::from_millis(80);
    let telemetry = quiet();
    let (idle, moving) = (connected(&telemetry, Direction::Inbound), connected(&telemetry, Direction::Inbound));
    idle.traffic().add_from_downstream(1);
    let start = Instant::now();
    let sweeper = async {
        loop {
            moving.traffic().add_from_upstream(1);
            let next = telemetry.connections().sweep_idle(limit);
            tokio::time::sleep(next).await;
        }
    };
    tokio::select! {
        reason = idle.told_to_close() => assert_eq!(reason, CloseReason::IdleTimeout),
        reason = moving.told_to_close() => panic!("the moving connection was told to close: {reason:?}"),
        () = sweeper => {}
    }
    assert!(start.elapsed() >= limit);
}

#[tokio::test]
async fn waiting_for_the_table_ends_when_it_changes() {
    let telemetry = quiet();
    telemetry.connections().empty().await;
    let waiting = tokio::spawn({
        let telemetry = telemetry.clone();
        async move {
            telemetry.connections().not_empty().await;
            telemetry.connections().empty().await;
        }
    });
    tokio::task::yield_now().await;
    let (first, second) = (accepted(&telemetry, Direction::Inbound), accepted(&telemetry, Direction::Outbound));
    tokio::task::yield_now().await;
    first.finish(CloseReason::Completed);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert_eq!(telemetry.connections().len(), 1);
    second.finish(CloseReason::Completed);
    waiting.await.unwrap();
}

#[test]
fn each_connection_is_one_line_and_flushing_waits_for_it() {
    let output = Captured::default();
    let telemetry = logging_to(output.clone());
    for _ in 0..3000 {
        connected(&telemetry, Direction::Outbound).finish(CloseReason::Completed);
    }
    assert!(telemetry.flush(Duration::from_secs(10)));
    assert_eq!(output.text().lines().count(), 3000);
    accepted(&telemetry, Direction::Inbound).finish(CloseReason::NoOriginalDst);
    drop(telemetry);
    assert!(output.text().lines().last().unwrap().contains(" reason=no_original_dst response_flags=DENY "));
}

/// Blocks in its first write until the other end of the channel is gone.
struct Stuck(mpsc::Receiver<()>);

impl io::Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_nobody_reads_costs_lines_and_no_time() {
    let (release, blocked) = mpsc::channel();
    let telemetry = logging_to(Stuck(blocked));
    let ended = 20_000;
    let start = Instant::now();
    for _ in 0..ended {
        accepted(&telemetry, Direction::Inbound).finish(CloseReason::Completed);
    }
    assert!(!telemetry.flush(Duration::from_millis(1)));
    assert!(start.elapsed() < Duration::from_secs(5));
    let metrics = telemetry.render_metrics();
    let dropped = value(&metrics, "sidecar_access_log_dropped_total", &["queue_full"]);
    assert!(dropped > 0.0 && dropped < f64::from(ended), "{dropped}");
    drop(release);
}

#[test]
fn a_broken_output_is_counted() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let telemetry = logging_to(writer);
    accepted(&telemetry, Direction::Inbound).finish(CloseReason::Completed);
    assert!(telemetry.flush(Duration::from_secs(10)));
    let metrics = telemetry.render_metrics();
    assert_eq!(value(&metrics, "sidecar_access_log_dropped_total", &["write_failed"]), 1.0);
}
