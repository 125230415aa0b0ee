//! Tunnels between two sidecars, seen from the applications, from the connection table and from the network.

#[path = "discovery/answer.rs"]
mod answer;
#[path = "hbone/envoy.rs"]
mod envoy;

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sidecar::net::Transports;
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, CLIENT_V4, CLIENT_V6, SERVER_V4, TO_V4, TO_V6},
    harness::{Authority, PATIENCE, Pod, Puppet, Sidecar, World, eventually, spiffe_id},
};

/// Two pods whose sidecars know each other.
struct Stage {
    app: Puppet,
    application: Puppet,
    client: Sidecar,
    server: Sidecar,
    world: World,
}

/// What the client's sidecar is told of the server: it speaks HBONE, and is this service account.
fn workloads(account: &str) -> String {
    let identity = spiffe_id(account);
    format!("{{ addresses: [10.77.0.2/32, \"fd77::2/128\"], identity: \"{identity}\", transport: hbone }}")
}

impl Stage {
    /// The server of the service account `account` where `server` is expected, with more configuration of the server's.
    fn new(account: &str, more: &str) -> Result<Self> {
        let world = World::new()?;
        let authority = Authority::new(&world)?;
        let issue = |pod: &Arc<Pod>, account| authority.issue(pod, account);
        let server = Sidecar::start(&world.server, &(issue(&world.server, account)? + more))?;
        let mtls = format!("mtls: {{ mode: strict, workloads: [{}] }}\n", workloads("server"));
        let client = Sidecar::start(&world.client, &(issue(&world.client, "client")? + &mtls))?;
        let (app, application) = (Puppet::start(&world.client)?, Puppet::serving(&world.server, ANY)?);
        Ok(Self { app, application, client, server, world })
    }

    fn logs(&self) -> String {
        format!("\nclient:{}\nserver:{}", self.client.process.output(), self.server.process.output())
    }

    /// Waits until both have counted so many ends for these reasons: the client's sidecar, the server's.
    fn ended(&self, client: &str, server: &str, count: u64) -> Result<()> {
        let closed = |sidecar: &Sidecar, reason| sidecar.closed(reason).is_ok_and(|seen| seen == count);
        let both = || closed(&self.client, client) && closed(&self.server, server);
        ensure!(eventually(PATIENCE, both), "no {count} of {client} and {server}{}", self.logs());
        Ok(())
    }
}

fn rows(sidecar: &Sidecar) -> Result<Vec<Value>> {
    sidecar.connections()?.as_array().cloned().context("no list of connections")
}

const STRICT: &str = "mtls: { mode: strict }\n";

#[test]
fn connections_go_through_tunnels_and_the_application_sees_its_real_client() -> Result<()> {
    let mut stage = Stage::new("server", STRICT)?;
    for (to, client) in [(TO_V4, CLIENT_V4.to_string()), (TO_V6, CLIENT_V6.to_string())] {
        let (socket, local) = stage.app.open(to)?;
        stage.app.echo(socket).with_context(|| stage.logs())?;
        let seen = *stage.application.accepted()?.last().context("nobody was accepted")?;
        let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
        ensure!(seen == local && seen.ip().to_string() == client, "the application saw {seen}, not {local}");
    }
    let expected = json!(["mutual_tls", "hbone", spiffe_id("client"), spiffe_id("server")]);
    for (sidecar, to) in [(&stage.client, "10.77.0.2:8080"), (&stage.server, "10.77.0.2:8080")] {
        let rows = rows(sidecar)?;
        ensure!(rows.len() == 2, "{rows:?}");
        for row in &rows {
            let said = json!([row["security"], row["transport"], row["src_identity"], row["dst_identity"]]);
            ensure!(said == expected, "{row}");
        }
        ensure!(rows.iter().any(|row| row["original_destination"] == to), "{rows:?}");
    }
    // Nothing came to the application's port from the network, and the port of tunnels is not captured.
    ensure!(stage.server.verdict("sk_lookup", "capture", "steered")? == 0, "{}", stage.server.verdicts());
    ensure!(stage.server.verdict("sk_lookup", "bypass", "own_port")? > 0, "{}", stage.server.verdicts());
    let handshakes = stage.client.metrics()?.sum("sidecar_tls_handshake_seconds_count", &[("role", "client")]);
    ensure!(handshakes >= 2.0, "{handshakes} handshakes");
    Ok(())
}

/// Another one that speaks HBONE and nothing else, as a ztunnel would if it wrote the option.
#[test]
fn a_server_that_says_in_the_tcp_handshake_that_it_speaks_hbone_alone_is_reached_through_tunnels() -> Result<()> {
    let world = World::new()?;
    let authority = Authority::new(&world)?;
    let server = Sidecar::start(&world.server, &(authority.issue(&world.server, "server")? + STRICT))?;
    // It knows of nobody, and plaintext would do.
    let client = Sidecar::start(&world.client, &authority.issue(&world.client, "client")?)?;
    let (mut app, _application) = (Puppet::start(&world.client)?, Puppet::serving(&world.server, ANY)?);
    for (transports, expected) in [(Transports::HBONE, "hbone"), (Transports::NATIVE, "native")] {
        answer::answer_with(&server, transports)?;
        for to in [TO_V4, TO_V6] {
            let (socket, _) = app.open(to)?;
            app.echo(socket).with_context(|| format!("{}{}", client.process.output(), server.process.output()))?;
            for sidecar in [&client, &server] {
                let rows = rows(sidecar)?;
                ensure!(rows.len() == 1 && rows[0]["transport"] == expected, "{to}: {rows:?}");
            }
            app.must(Order::Close(socket))?;
            let gone = || [&client, &server].iter().all(|sidecar| sidecar.live().is_ok_and(|live| live == 0));
            ensure!(eventually(PATIENCE, gone), "{to}: a connection stays");
        }
    }
    Ok(())
}

#[test]
fn ends_and_resets_travel_through_tunnels() -> Result<()> {
    let mut stage = Stage::new("server", STRICT)?;
    let (socket, _) = stage.app.open(TO_V4)?;
    stage.app.echo(socket)?;
    // The application answers what came before the end, and ends as well.
    stage.app.must(Order::Finish(socket))?;
    stage.app.must(Order::AwaitEnd(socket))?;
    stage.ended("completed", "completed", 1)?;
    let (socket, _) = stage.app.open(TO_V4)?;
    stage.app.echo(socket)?;
    stage.app.must(Order::Reset(socket))?;
    stage.ended("downstream_reset", "downstream_reset", 1)
}

#[test]
fn the_rules_of_the_server_decide_by_identity() -> Result<()> {
    let client = spiffe_id("client");
    let rules = format!("authorization:\n- {{ name: d, action: deny, from: [{{ principals: [\"{client}\"] }}] }}\n");
    let mut stage = Stage::new("server", &(STRICT.to_owned() + &rules))?;
    let end = stage.app.end_of(TO_V4)?;
    ensure!(end == "ECONNRESET", "{end}{}", stage.logs());
    stage.ended("unauthorized", "unauthorized", 1)?;
    let told = stage.client.process.output();
    ensure!(told.contains("the peer answered 401"), "{told}");
    ensure!(stage.application.accepted()?.is_empty(), "the application heard of it");
    Ok(())
}

#[test]
fn another_identity_than_the_expected_gets_nothing() -> Result<()> {
    let mut stage = Stage::new("other", STRICT)?;
    let end = stage.app.end_of(TO_V4)?;
    ensure!(end == "ECONNRESET", "{end}{}", stage.logs());
    let counted = || stage.client.closed("wrong_peer").is_ok_and(|count| count == 1);
    ensure!(eventually(PATIENCE, counted), "{}", stage.logs());
    let failed = stage.client.metrics()?.sum("sidecar_tls_handshake_failures_total", &[("reason", "wrong_peer")]);
    ensure!(failed == 1.0 && stage.application.accepted()?.is_empty(), "{failed}{}", stage.logs());
    Ok(())
}

/// What a client begins is taken, as with the native transport: it is never worse than the plaintext that was asked for.
#[test]
fn tunnels_are_taken_in_every_mode() -> Result<()> {
    for mode in ["disable", "permissive"] {
        let mut stage = Stage::new("server", &format!("mtls: {{ mode: {mode} }}\n"))?;
        stage.app.visit(TO_V4).with_context(|| stage.logs())?;
        stage.ended("completed", "completed", 1).with_context(|| mode.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_server_that_drains_keeps_its_tunnels_and_takes_no_more() -> Result<()> {
    let mut stage = Stage::new("server", &(STRICT.to_owned() + "proxy: { drain_deadline: 15s }\n"))?;
    let (live, _) = stage.app.open(TO_V4)?;
    stage.app.echo(live)?;
    stage.server.signal(Signal::SIGTERM)?;
    let refused = || {
        let connected = stage.world.client.netns().run(|| std::net::TcpStream::connect((SERVER_V4, 15008)));
        connected.is_ok_and(|tried| tried.is_err())
    };
    ensure!(eventually(PATIENCE, refused), "the port of tunnels is still open{}", stage.logs());
    stage.app.echo(live).context("a tunnel while draining")?;
    let end = stage.app.end_of(TO_V4)?;
    ensure!(end == "ECONNRESET", "{end}{}", stage.logs());
    stage.app.echo(live).context("a tunnel while draining")?;
    stage.app.must(Order::Close(live))?;
    // Its sidecar carries what it opens for as long as it lives.
    stage.application = Puppet::start(&stage.world.client)?;
    let status = stage.server.process.wait(PATIENCE)?;
    ensure!(status.code() == Some(0), "{status}{}", stage.logs());
    ensure!(stage.client.closed("connect_refused")? == 1, "{}", stage.logs());
    Ok(())
}

#[test]
fn without_an_identity_the_port_of_tunnels_is_the_applications() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.server, "{}")?;
    let at = SocketAddr::new(ANY.ip(), 15008);
    let _application = Puppet::serving(&world.server, at)?;
    let mut app = Puppet::start(&world.client)?;
    app.visit((SERVER_V4, 15008).into())?;
    ensure!(sidecar.verdict("sk_lookup", "capture", "steered")? == 1, "{}", sidecar.verdicts());
    Ok(())
}
