//! What is on the wire between the two pods, and what the sidecars tell of it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use sidecar_tests::{
    agent::puppet::{GREETING, Order},
    cases::net::{ANY, TO_V4, TO_V6},
    harness::{PATIENCE, Sidecar, Wire, eventually, patient, spiffe_id},
};

use super::{
    STRICT,
    stage::{End, Stage, rows},
};

/// Where the server speaks first.
const GREETED: u16 = 8088;

/// What is to be expected of one family.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// Mutual TLS.
    Encrypted,
    /// Plaintext, and why by the client's and by the server's sidecar, where there is one.
    Plaintext(Option<&'static str>, Option<&'static str>),
}

use Expected::{Encrypted, Plaintext};

/// Some bytes of every request and answer of an echo.
fn echoed() -> Vec<u8> {
    (1..=32).collect()
}

/// The streams that went over the wire, by sender and receiver; retransmissions and all.
fn streams(wire: &mut Wire) -> Result<BTreeMap<(SocketAddr, SocketAddr), Vec<u8>>> {
    let mut streams = BTreeMap::<_, Vec<u8>>::new();
    for segment in wire.segments()?.iter().filter(|segment| !segment.loopback) {
        streams.entry((segment.from, segment.to)).or_default().extend(&segment.payload);
    }
    Ok(streams)
}

fn contains(stream: &[u8], wanted: &[u8]) -> bool {
    stream.windows(wanted.len()).any(|window| window == wanted)
}

/// Speaks with the server at `to`, first and second, and says the same of both what is on the wire and what is told.
fn converse(stage: &mut Stage, wire: &mut Wire, to: SocketAddr, expected: Expected) -> Result<()> {
    wire.forget()?;
    let greeted = SocketAddr::new(to.ip(), GREETED);
    let (first, _) = stage.app.open(to)?;
    stage.app.echo(first)?;
    let (second, _) = stage.app.open(greeted)?;
    let heard = stage.app.must(Order::Hear(second))?.took;
    ensure!(heard < patient(Duration::from_secs(1)), "a greeting took {heard:?}");
    stage.app.echo(second)?;

    let streams = streams(wire)?;
    let says = |client: bool, wanted: &[u8]| {
        let from = |(from, to): &&(SocketAddr, SocketAddr)| if client { to.port() } else { from.port() } < 10_000;
        streams.keys().filter(from).filter(|ends| contains(&streams[ends], wanted)).count()
    };
    let seen = [says(true, &echoed()), says(false, &echoed()), says(false, GREETING)];
    let plaintext = matches!(expected, Plaintext(..));
    ensure!(seen == if plaintext { [2, 2, 1] } else { [0; 3] }, "on the wire: {seen:?}");
    ensure!(streams.len() >= 4, "nothing was on the wire");

    let (client, server) = match expected {
        Encrypted => (None, None),
        Plaintext(client, server) => (client, server),
    };
    for (sidecar, not_encrypted) in [(stage.client(), client), (stage.server(), server)] {
        let Ok(sidecar) = sidecar else { continue };
        let rows = rows(sidecar)?;
        ensure!(rows.len() == 2, "{rows:?}");
        rows.iter().try_for_each(|row| told(row, not_encrypted))?;
    }
    stage.app.must(Order::Close(first))?;
    stage.app.must(Order::Close(second))?;
    for (sidecar, not_encrypted) in [(stage.client(), client), (stage.server(), server)] {
        let Ok(sidecar) = sidecar else { continue };
        ensure!(eventually(PATIENCE, || sidecar.live().is_ok_and(|live| live == 0)));
        logged(sidecar, to, not_encrypted)?;
    }
    Ok(())
}

/// A connection in the live table or the access log is told of as what it is.
fn told(row: &Value, not_encrypted: Option<&str>) -> Result<()> {
    match not_encrypted {
        Some(reason) => ensure!(row["security"] == "plaintext" && row["not_encrypted"] == reason, "{row}"),
        None => ensure!(row["security"] == "mutual_tls" && row["transport"] == "native", "{row}"),
    }
    for (end, account) in [("src", "client"), ("dst", "server")] {
        let [live, log] = [format!("{end}_identity"), format!("{end}.identity")];
        let said = row.get(&live).or_else(|| row.get(&log)).and_then(Value::as_str);
        let expected = not_encrypted.is_none().then(|| spiffe_id(account));
        ensure!(said == expected.as_deref(), "{end}: {said:?}: {row}");
    }
    Ok(())
}

/// Both connections to `to` are told of in the access log.
fn logged(sidecar: &Sidecar, to: SocketAddr, not_encrypted: Option<&str>) -> Result<()> {
    let is_to = |record: &Value| {
        let address = record["dst.addr"].as_str().and_then(|address| address.parse::<SocketAddr>().ok());
        address.is_some_and(|address| address.ip() == to.ip())
    };
    let records = sidecar.process.out.wait_for(PATIENCE, |lines| {
        let records = lines.iter().filter_map(|line| serde_json::from_str(line).ok());
        Some(records.filter(is_to).collect::<Vec<_>>()).filter(|records| records.len() == 2)
    });
    let records = records.with_context(|| format!("no two lines with {to}{}", sidecar.process.output()))?;
    records.iter().try_for_each(|record| told(record, not_encrypted))
}

/// One pair of sidecars, and what is expected by IPv4 and by IPv6.
fn between(client: End<'_>, server: End<'_>, expected: [Expected; 2]) -> Result<()> {
    let mut stage = Stage::new(client, server)?;
    stage.service.greet(SocketAddr::new(ANY.ip(), GREETED))?;
    let mut wire = Wire::tap(stage.world.server.netns())?;
    for (to, expected) in [TO_V4, TO_V6].into_iter().zip(expected) {
        let said = converse(&mut stage, &mut wire, to, expected);
        said.with_context(|| format!("{client:?} {server:?} {to}, expected {expected:?}{}", stage.logs()))?;
    }
    Ok(())
}

#[test]
fn not_one_byte_of_the_application_is_on_the_wire_between_two_strict_sidecars() -> Result<()> {
    between(End::Known(STRICT), End::Known(STRICT), [Encrypted; 2])
}

#[test]
fn not_one_byte_of_the_application_is_on_the_wire_between_two_permissive_sidecars() -> Result<()> {
    between(End::Known(""), End::Known(""), [Encrypted; 2])
}

#[test]
fn a_permissive_sidecar_speaks_plaintext_with_who_has_none_and_says_so() -> Result<()> {
    between(End::Known(""), End::Bare, [Plaintext(Some("peer_not_meshed"), None); 2])?;
    between(End::Bare, End::Known(""), [Plaintext(None, Some("peer_plaintext")); 2])
}

#[test]
fn disable_means_plaintext_outbound_and_whatever_a_sidecar_begins_inbound() -> Result<()> {
    const DISABLED: &str = "mtls: { mode: disable }\n";
    between(End::Known(DISABLED), End::Known(""), [Plaintext(Some("disabled"), Some("peer_plaintext")); 2])?;
    between(End::Known(""), End::Known(DISABLED), [Encrypted; 2])?;
    between(End::Bare, End::Known(DISABLED), [Plaintext(None, Some("disabled")); 2])
}

#[test]
fn the_mode_of_a_port_comes_before_that_of_a_network_and_that_before_the_directions() -> Result<()> {
    let only_v4 = "mtls: { mode: disable, outbound: { cidrs: { 10.77.0.0/16: strict } } }\n";
    between(End::Known(only_v4), End::Known(""), [Encrypted, Plaintext(Some("disabled"), Some("peer_plaintext"))])?;
    let neither_port = "mtls:\n  mode: strict\n  outbound:\n    cidrs: { 10.77.0.0/16: strict }\n    \
                        ports: { 8080: disable, 8088: disable }\n";
    between(End::Known(neither_port), End::Known(""), [Plaintext(Some("disabled"), Some("peer_plaintext")); 2])?;
    let open = "mtls:\n  mode: strict\n  inbound:\n    ports: { 8080: disable }\n    \
                cidrs: { 10.77.0.0/16: disable, \"fd77::/16\": disable }\n";
    between(End::Bare, End::Known(open), [Plaintext(None, Some("disabled")); 2])
}

#[test]
fn without_an_identity_permissive_is_plaintext_and_says_so() -> Result<()> {
    between(End::Anonymous(""), End::Known(""), [Plaintext(Some("no_identity"), Some("peer_plaintext")); 2])?;
    between(End::Known(""), End::Anonymous(""), [Plaintext(Some("peer_not_meshed"), Some("no_identity")); 2])
}

#[test]
fn the_application_sees_its_client_as_it_sees_itself_through_mutual_tls() -> Result<()> {
    for config in ["", STRICT] {
        let mut stage = Stage::new(End::Known(config), End::Known(config))?;
        let mut clients = Vec::new();
        // The later ones are carried by connections that were ready before.
        for _ in 0..4 {
            for to in [TO_V4, TO_V6] {
                clients.push(stage.app.visit(to)?);
            }
        }
        let seen = stage.service.accepted()?;
        let seen: Vec<_> = seen.iter().map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port())).collect();
        ensure!(seen == clients, "{seen:?}, not {clients:?}");
    }
    Ok(())
}

#[test]
fn what_the_application_says_first_leaves_with_the_header_and_the_end_of_the_handshake() -> Result<()> {
    let mut stage = Stage::new(End::Known(STRICT), End::Known(STRICT))?;
    let mut wire = Wire::tap(stage.world.client.netns())?;
    // While the server's sidecar stands still its kernel takes the connection, and the application says what it has to say.
    let worker = stage.server()?.worker()?;
    kill(worker, Signal::SIGSTOP)?;
    let (socket, _) = stage.app.open(TO_V4)?;
    stage.app.must(Order::Send(socket, 1000))?;
    kill(worker, Signal::SIGCONT)?;
    wire.wait_for("answer", |segment| {
        segment.loopback && segment.from.port() == 15_001 && !segment.payload.is_empty()
    })?;

    let flights = |wire: &mut Wire, to_server: bool| -> Result<usize> {
        let said = wire.segments()?.iter().filter(|segment| !segment.loopback && !segment.payload.is_empty());
        Ok(said.filter(|segment| (segment.to == TO_V4) == to_server).count())
    };
    // Hellos; certificate, header and request. Hellos and certificate; session ticket and answer.
    let seen = [flights(&mut wire, true)?, flights(&mut wire, false)?];
    ensure!(seen == [2, 2], "{seen:?}: {:#?}", wire.segments()?);
    Ok(())
}
