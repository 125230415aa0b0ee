//! What one line says: ztunnel's field names, and the sidecar's own after them.

use std::{fmt, io::Write, net::SocketAddr};

use serde::ser::{SerializeMap, Serializer};

use crate::{
    id::SpiffeId,
    telemetry::{Direction, ResponseFlags, live::Live, timestamp::Rfc3339},
};

use super::{Ended, Own};

/// Appends one line, with its line end.
pub(super) type Format = fn(&mut Vec<u8>, &Ended, &Own);

/// The value of a field.
enum Value<'a> {
    Text(&'a str),
    Number(u64),
    /// Text made by `Display` that never needs escaping.
    Plain(&'a dyn fmt::Display),
    Address(Option<SocketAddr>),
}

/// `time=… level=info scope=access src.addr=…`: values with anything but printable ASCII, or with a space, quote,
/// backslash or equals sign, are quoted as JSON strings are. Fields without a value are left out.
pub(super) fn text(line: &mut Vec<u8>, ended: &Ended, own: &Own) {
    fields(ended, own, &mut |name, value| {
        let separator = if name == "time" { "" } else { " " };
        append(line, format_args!("{separator}{name}="));
        match value {
            Value::Text(text) => quoted(line, text),
            Value::Number(number) => append(line, format_args!("{number}")),
            Value::Plain(plain) => append(line, format_args!("{plain}")),
            Value::Address(address) => append(line, format_args!("{}", address.map_or("-".into(), |a| a.to_string()))),
        }
    });
    line.push(b'\n');
}

/// One flat JSON object; a missing address is `null`.
pub(super) fn json(line: &mut Vec<u8>, ended: &Ended, own: &Own) {
    let start = line.len();
    if let Err(error) = write_json(line, ended, own) {
        // Cannot happen with these types; a half-written line would spoil the next one as well.
        line.truncate(start);
        tracing::warn!(%error, "access log line not written");
        return;
    }
    line.push(b'\n');
}

fn write_json(line: &mut Vec<u8>, ended: &Ended, own: &Own) -> serde_json::Result<()> {
    let mut serializer = serde_json::Serializer::new(line);
    let mut map = serializer.serialize_map(None)?;
    let mut outcome = Ok(());
    fields(ended, own, &mut |name, value| {
        let entry = match value {
            Value::Text(text) => map.serialize_entry(name, text),
            Value::Number(number) => map.serialize_entry(name, &number),
            Value::Plain(plain) => map.serialize_entry(name, &plain.to_string()),
            Value::Address(address) => map.serialize_entry(name, &address),
        };
        if outcome.is_ok() {
            outcome = entry;
        }
    });
    outcome?;
    map.end()
}

/// All fields in order. `bytes_sent` is what the pod's own side sent, `bytes_recv` what it received: not flipped, unlike
/// Istio's metrics.
fn fields(ended: &Ended, own: &Own, field: &mut dyn FnMut(&'static str, Value<'_>)) {
    use Value::{Address, Number, Plain, Text};
    let live = &*ended.live;
    let flags = ended.reason.flags();
    let destination = live.destination.get().map(|dst| dst.0);
    let (from_downstream, from_upstream) = live.traffic.totals();
    let (sent, received) = match live.direction {
        Direction::Outbound => (from_downstream, from_upstream),
        Direction::Inbound => (from_upstream, from_downstream),
    };
    let (source, target) = live.identities();
    let end = live.accepted_at + ended.after;
    field("time", Plain(&Rfc3339(end)));
    field("level", Text(if flags == ResponseFlags::None { "info" } else { "error" }));
    field("scope", Text("access"));
    field("message", Text("connection complete"));
    field("src.addr", Address(Some(live.client.0)));
    end_of(live.direction == Direction::Outbound, &SOURCE, source, own, field);
    field("dst.addr", Address(destination));
    end_of(live.direction == Direction::Inbound, &DESTINATION, target, own, field);
    field("direction", Text(live.direction.label()));
    field("bytes_sent", Number(sent));
    field("bytes_recv", Number(received));
    field("duration", Plain(&format_args!("{}ms", ended.after.as_millis())));
    field("reason", Text(ended.reason.label()));
    field("response_flags", Text(flags.label()));
    field("connection_id", Number(live.id));
    field("original_dst", Address(destination));
    field("upstream_local", Address(live.upstream.get().map(|upstream| upstream.local.0)));
    if let Some(upstream) = live.upstream.get() {
        field("connect_us", Number(upstream.took.as_micros() as u64));
    }
    field("start_time", Plain(&Rfc3339(live.accepted_at)));
    security(live, field);
}

/// Names of the fields of one end: workload, namespace, identity.
type EndNames = [&'static str; 3];

const SOURCE: EndNames = ["src.workload", "src.namespace", "src.identity"];
const DESTINATION: EndNames = ["dst.workload", "dst.namespace", "dst.identity"];

/// What is known of one end: of this pod what it was told, of the other one what its identity says.
fn end_of(
    is_own: bool,
    [workload, namespace, identity]: &EndNames,
    id: Option<&SpiffeId>,
    own: &Own,
    field: &mut dyn FnMut(&'static str, Value<'_>),
) {
    if is_own {
        field(workload, Value::Text(&own.workload));
        field(namespace, Value::Text(&own.namespace));
    } else if let Some(of_peer) = id.and_then(SpiffeId::namespace) {
        field(namespace, Value::Text(of_peer));
    }
    if let Some(id) = id {
        field(identity, Value::Text(id.as_str()));
    }
}

/// What protected it; nothing of a connection that ended before that was decided.
fn security(live: &Live, field: &mut dyn FnMut(&'static str, Value<'_>)) {
    let Some(security) = live.secured.get().map(|secured| &secured.security) else { return };
    field("security", Value::Text(security.label()));
    if let Some(transport) = security.transport() {
        field("transport", Value::Text(transport));
    }
    if let Some(reason) = security.not_encrypted() {
        field("not_encrypted", Value::Text(reason.label()));
    }
}

/// Appends `text`, as a JSON string if it could be mistaken for anything else.
fn quoted(line: &mut Vec<u8>, text: &str) {
    let bare =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'='));
    if bare {
        line.extend_from_slice(text.as_bytes());
    } else {
        append(line, format_args!("{}", serde_json::Value::from(text)));
    }
}

/// Writing to a vector cannot fail.
fn append(line: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    let _ = line.write_fmt(text);
}

#[cfg(test)]
mod tests;
