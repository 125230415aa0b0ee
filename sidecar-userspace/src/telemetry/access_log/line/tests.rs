use std::time::{Duration, Instant, UNIX_EPOCH};

use super::*;
use crate::{
    addr::{ClientAddr, OrigDst, UpstreamLocal},
    telemetry::{
        CloseReason,
        live::{Live, Upstream},
    },
};

fn ended(direction: Direction, reason: CloseReason) -> Ended {
    let mut live = Live::new(7, direction, ClientAddr("10.0.0.9:40000".parse().unwrap()), Instant::now());
    live.accepted_at = UNIX_EPOCH + Duration::from_millis(1_795_553_069_001);
    let _ = live.destination.set(OrigDst("[2001:db8::1]:443".parse().unwrap()));
    live.traffic.add_from_downstream(100);
    live.traffic.add_from_upstream(7);
    if reason.flags() == ResponseFlags::None {
        let local = UpstreamLocal("10.0.0.2:50000".parse().unwrap());
        let _ = live.upstream.set(Upstream { local, took: Duration::from_micros(1500) });
    }
    Ended { live: live.into(), reason, after: Duration::from_millis(2500) }
}

fn own(workload: &str) -> Own {
    Own { workload: workload.into(), namespace: "trade".into() }
}

fn written(format: Format, ended: &Ended, own: &Own) -> String {
    let mut line = Vec::new();
    format(&mut line, ended, own);
    String::from_utf8(line).unwrap()
}

#[test]
fn a_text_line_has_ztunnels_names_and_shows_bytes_as_the_pod_sees_them() {
    assert_eq!(
        written(text, &ended(Direction::Outbound, CloseReason::Completed), &own("shop")),
        "time=2026-11-24T20:44:31.501Z level=info scope=access message=\"connection complete\" \
         src.addr=10.0.0.9:40000 src.workload=shop src.namespace=trade dst.addr=[2001:db8::1]:443 \
         direction=outbound bytes_sent=100 bytes_recv=7 duration=2500ms reason=completed response_flags=- \
         connection_id=7 original_dst=[2001:db8::1]:443 upstream_local=10.0.0.2:50000 connect_us=1500 \
         start_time=2026-11-24T20:44:29.001Z\n"
    );
    let inbound = written(text, &ended(Direction::Inbound, CloseReason::ConnectRefused), &own("shop"));
    assert!(inbound.contains(" bytes_sent=7 bytes_recv=100 "), "{inbound}");
    assert!(inbound.contains(" dst.addr=[2001:db8::1]:443 dst.workload=shop dst.namespace=trade "), "{inbound}");
    assert!(inbound.contains(" level=error ") && inbound.contains(" response_flags=CONNECT "), "{inbound}");
    assert!(inbound.contains(" upstream_local=- start_time="), "{inbound}");
}

#[test]
fn a_json_line_says_the_same() {
    let line = written(json, &ended(Direction::Outbound, CloseReason::Completed), &own("shop"));
    assert!(line.ends_with("}\n") && line.lines().count() == 1);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    for (name, expected) in [
        ("time", serde_json::json!("2026-11-24T20:44:31.501Z")),
        ("src.addr", serde_json::json!("10.0.0.9:40000")),
        ("dst.addr", serde_json::json!("[2001:db8::1]:443")),
        ("direction", serde_json::json!("outbound")),
        ("bytes_sent", serde_json::json!(100)),
        ("bytes_recv", serde_json::json!(7)),
        ("duration", serde_json::json!("2500ms")),
        ("reason", serde_json::json!("completed")),
        ("connection_id", serde_json::json!(7)),
        ("start_time", serde_json::json!("2026-11-24T20:44:29.001Z")),
    ] {
        assert_eq!(value[name], expected, "{name}");
    }
    let refused = written(json, &ended(Direction::Inbound, CloseReason::ConnectRefused), &own("shop"));
    let refused: serde_json::Value = serde_json::from_str(&refused).unwrap();
    assert_eq!(refused["upstream_local"], serde_json::Value::Null);
    assert_eq!(refused["level"], "error");
}

#[test]
fn a_name_cannot_forge_a_field_or_a_line() {
    let ended = ended(Direction::Outbound, CloseReason::Completed);
    for name in ["a b", "x reason=forged", "two\nlines", "quote\"d", "back\\slash", "", "k=v", "\u{1b}[31m", "münchen"]
    {
        let line = written(text, &ended, &own(name));
        assert_eq!(line.lines().count(), 1, "{line:?}");
        let quoted = serde_json::to_string(name).unwrap();
        assert!(line.contains(&format!(" src.workload={quoted} src.namespace=")), "{line}");
        let object: serde_json::Value = serde_json::from_str(&written(json, &ended, &own(name))).unwrap();
        assert_eq!(object["src.workload"], name);
    }
}
