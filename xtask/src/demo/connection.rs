//! One connection, looked at from every side.

use super::{
    nginx,
    stage::{self, Side, Stage},
    story::Story,
};
use crate::world::{CLIENT, SERVER, sidecar, wait};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// How long a record may take from the end of its connection to the log.
const RECORD_LIMIT: Duration = Duration::from_secs(2);

/// curl asks nginx while no sidecar runs.
pub(super) fn direct(stage: &mut Stage<'_>, story: &mut Story) -> Result<()> {
    let seen = stage.nginx.lines()?.len();
    let answer = ask(story, stage)?;
    let line = stage.nginx_line(seen)?;
    let held = answer.trim_end() == nginx::BODY && stage::names_client(&line);
    story.check(held, "where no sidecar runs the pods talk to each other directly");
    Ok(())
}

/// curl asks nginx with a sidecar on both sides.
pub(super) fn captured(stage: &mut Stage<'_>, story: &mut Story) -> Result<()> {
    story.chapter("One request");
    let seen = stage.nginx.lines()?.len();
    let answer = ask(story, stage)?;
    story.check(answer.trim_end() == nginx::BODY, "the request is answered as without sidecars");

    recorded(story, &mut stage.client, "outbound")?;
    let peer = recorded(story, &mut stage.server, "inbound")?;

    let line = stage.nginx_line(seen)?;
    story.say("access log of nginx:");
    story.show(&line);
    // On the wire the client pod is its sidecar's connection; nginx must see exactly that, across its own sidecar.
    let held = stage::names_client(&line) && peer.is_some_and(|peer| line.starts_with(&format!("client={peer} ")));
    story.check(held, format!("nginx sees the real client, {CLIENT}, and not its own sidecar"));
    Ok(())
}

/// The access record of the request in one sidecar; gives the address of who opened the connection.
fn recorded(story: &mut Story, side: &mut Side<'_>, direction: &str) -> Result<Option<SocketAddr>> {
    let pod = &side.pod.name;
    let line = logged(side, direction)?;
    story.say(format!("access log of the {pod} pod's sidecar:"));
    story.show(&line);
    let record = serde_json::from_str(&line).with_context(|| format!("an access log line is not JSON: {line}"))?;
    let claim = format!("captured in the {pod} pod ({direction}) with its original addresses: {}", LOG.route(&record));
    story.check(LOG.between_the_pods(&record), claim);
    Ok(address(&record, LOG.client))
}

/// A download that lasts, found in both sidecars' tables of live connections.
pub(super) fn alive(stage: &mut Stage<'_>, story: &mut Story) -> Result<()> {
    story.chapter("A connection while it lives");
    let url = format!("http://{SERVER}:{}{}", nginx::PORT, nginx::LARGE);
    story.say(format!("client$ curl --limit-rate 1M {url}"));
    let download = stage.start_curl("curl-slow", &["--limit-rate", "1M", "--output", "/dev/null", &url])?;
    for (side, direction) in [(&stage.client, "outbound"), (&stage.server, "inbound")] {
        let pod = side.pod;
        let found = wait::until(RECORD_LIMIT, "a live connection", || live(side, direction));
        let row = found.with_context(|| format!("GET /connections of the {} pod's sidecar", pod.name))?;
        story.say(format!("GET /connections at the {} pod's sidecar:", pod.name));
        story.show(&row.to_string());
        story.check(
            TABLE.between_the_pods(&row),
            format!("the {} pod's sidecar shows it: {}", pod.name, TABLE.route(&row)),
        );
    }
    drop(download);
    Ok(())
}

fn ask(story: &Story, stage: &Stage<'_>) -> Result<String> {
    let url = format!("http://{SERVER}:{}/", nginx::PORT);
    story.say(format!("client$ curl {url}"));
    let answer = stage.curl("curl", &[&url])?;
    story.show(&answer);
    Ok(answer)
}

/// The sidecar's record of a connection to nginx.
fn logged(side: &mut Side<'_>, direction: &str) -> Result<String> {
    let wanted = |line: &str| {
        serde_json::from_str::<Value>(line).is_ok_and(|record| {
            record["direction"] == direction
                && address(&record, LOG.destination).is_some_and(|to| to.port() == nginx::PORT)
        })
    };
    side.process()?.line(0, RECORD_LIMIT, "a record of the request in its access log", wanted)
}

fn live(side: &Side<'_>, direction: &str) -> Result<Option<Value>> {
    let table: Value = serde_json::from_str(&sidecar::connections(side.pod)?).context("/connections is not JSON")?;
    // An array, or an object that holds it.
    let rows = table.as_array().or_else(|| table.get("connections")?.as_array());
    let rows = rows.with_context(|| format!("/connections holds no list: {table}"))?;
    // It is in the table from its accept on; its destination is known a moment later.
    Ok(rows.iter().find(|row| row["direction"] == direction && row[TABLE.destination].is_string()).cloned())
}

/// How a record names who opened the connection, and where it was meant to go.
struct Names {
    client: &'static str,
    destination: &'static str,
}

/// In the access log.
const LOG: Names = Names { client: "src.addr", destination: "dst.addr" };
/// In the table of live connections.
const TABLE: Names = Names { client: "client", destination: "original_destination" };

impl Names {
    /// Whether the record names the two pods and nginx's port: no loopback address, no port of a sidecar.
    fn between_the_pods(&self, record: &Value) -> bool {
        address(record, self.client).is_some_and(|client| client.ip() == IpAddr::from(CLIENT))
            && address(record, self.destination) == Some(SocketAddr::from((SERVER, nginx::PORT)))
    }

    fn route(&self, record: &Value) -> String {
        let name = |key| record[key].as_str().unwrap_or("unknown").to_owned();
        format!("{} → {}", name(self.client), name(self.destination))
    }
}

fn address(record: &Value, key: &str) -> Option<SocketAddr> {
    let address: SocketAddr = record[key].as_str()?.parse().ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}
