//! Connections that cannot be what the configuration asks for go nowhere, and nothing of them is said in plaintext.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{TO_V4, TO_V6},
    harness::{Authority, PATIENCE, Segment, Sidecar, TRUST_DOMAIN, Wire, patient, spiffe_id},
};

use super::{
    STRICT,
    stage::{End, Stage, closed, failures},
};

/// Whether what an application sent is on the wire.
fn leaks(segments: &[Segment]) -> bool {
    segments.iter().any(|segment| !segment.loopback && segment.payload.windows(16).any(|bytes| bytes == [b'x'; 16]))
}

/// The connection of an application that speaks at once ends in a reset, unheard by the server.
fn refused(stage: &mut Stage, to: SocketAddr) -> Result<()> {
    let heard = stage.service.accepted()?.len();
    let end = stage.end_of(to)?;
    // The reset may come before the last byte is written.
    ensure!(end == "ECONNRESET" || end == "EPIPE", "{to}: {end}{}", stage.logs());
    ensure!(stage.service.accepted()?.len() == heard, "{to}: the application heard of it{}", stage.logs());
    Ok(())
}

#[test]
fn a_strict_server_refuses_plaintext_before_its_application_hears_of_it() -> Result<()> {
    let mut stage = Stage::new(End::Bare, End::Known(STRICT))?;
    refused(&mut stage, TO_V4)?;
    refused(&mut stage, TO_V6)?;
    closed(stage.server()?, "plaintext_refused", 2)?;
    ensure!(failures(stage.server()?, "server", Some("plaintext"))? == 2.0);
    Ok(())
}

#[test]
fn a_strict_server_waits_for_a_silent_client_only_as_long_as_a_handshake_may_take() -> Result<()> {
    let limit = patient(Duration::from_millis(300)).as_millis();
    let config = format!("mtls: {{ mode: strict, handshake_timeout: {limit}ms }}\n");
    let mut stage = Stage::new(End::Bare, End::Known(&config))?;
    let (silent, _) = stage.app.open(TO_V4)?;
    stage.ends_in_a_reset(silent)?;
    closed(stage.server()?, "handshake_failed", 1)?;
    ensure!(failures(stage.server()?, "server", Some("timeout"))? == 1.0);
    ensure!(stage.service.accepted()?.is_empty(), "the application heard of it");
    Ok(())
}

#[test]
fn a_strict_client_says_nothing_to_a_server_without_a_sidecar() -> Result<()> {
    let mut stage = Stage::new(End::Known(STRICT), End::Bare)?;
    let mut wire = Wire::tap(stage.world.server.netns())?;
    for to in [TO_V4, TO_V6] {
        let end = stage.end_of(to)?;
        ensure!(end == "ECONNRESET" || end == "EPIPE", "{to}: {end}{}", stage.logs());
    }
    closed(stage.client()?, "handshake_failed", 2)?;
    ensure!(failures(stage.client()?, "client", None)? == 2.0);
    let segments = wire.segments()?;
    ensure!(segments.iter().any(|segment| segment.payload.first() == Some(&22)), "no ClientHello: {segments:#?}");
    ensure!(!leaks(segments), "{segments:#?}");
    Ok(())
}

#[test]
fn strict_without_an_identity_carries_nothing() -> Result<()> {
    let stage = Stage::without_sidecars()?;
    // Without a source of identity it does not start at all.
    let mut sidecar = Sidecar::spawn(&stage.world.client, STRICT)?;
    ensure!(!sidecar.process.wait(PATIENCE)?.success());
    let told = sidecar.process.output();
    ensure!(told.contains("identity") && told.contains("strict"), "{told}");
    drop(sidecar);

    // With one that yields none it is not ready, and no connection leaves or arrives.
    for name in ["client", "server"] {
        let mut stage = Stage::without_sidecars()?;
        let config = stage.authority.issue(&stage.world.client, "client")? + STRICT;
        let pod = if name == "client" { stage.world.client.clone() } else { stage.world.server.clone() };
        let missing = config.replace("cert.pem", "none.pem");
        let sidecar = Sidecar::spawn(&pod, &missing)?;
        let attached = |lines: &[String]| lines.iter().any(|line| line.contains("attached ")).then_some(());
        sidecar.process.err.wait_for(PATIENCE, attached).with_context(|| sidecar.process.output())?;
        refused(&mut stage, TO_V4)?;
        ensure!(!sidecar.is_ready(), "ready without an identity");
        closed(&sidecar, "not_encryptable", 1).context(name)?;
    }
    Ok(())
}

#[test]
fn a_peer_of_another_authority_is_refused_whatever_it_calls_its_trust_domain() -> Result<()> {
    for (trust_domain, reason) in [(TRUST_DOMAIN, "unknown_issuer"), ("other.example", "wrong_trust_domain")] {
        let mut stage = Stage::new(End::Bare, End::Known(STRICT))?;
        let other = Authority::named(&stage.world, "other", trust_domain)?;
        let config = other.issue(&stage.world.client, "client")? + STRICT;
        stage.start_client(&config)?;
        let mut wire = Wire::tap(stage.world.server.netns())?;
        refused(&mut stage, TO_V4).with_context(|| trust_domain.to_owned())?;
        refused(&mut stage, TO_V6).with_context(|| trust_domain.to_owned())?;
        ensure!(!leaks(wire.segments()?), "{trust_domain}: {:#?}", wire.segments()?);
        // The client is the first to see a certificate: it says no, and the server is told.
        for (sidecar, role) in [(stage.client()?, "client"), (stage.server()?, "server")] {
            closed(sidecar, "handshake_failed", 2)?;
            ensure!(failures(sidecar, role, None)? == 2.0, "{role}: {}", sidecar.process.output());
        }
        ensure!(failures(stage.client()?, "client", Some(reason))? == 2.0, "{}", stage.logs());
        ensure!(failures(stage.server()?, "server", Some("peer_alert"))? == 2.0, "{}", stage.logs());
    }
    Ok(())
}

#[test]
fn a_client_of_another_authority_that_believes_the_server_is_refused_by_it() -> Result<()> {
    let mut stage = Stage::new(End::Bare, End::Known(STRICT))?;
    let other = Authority::named(&stage.world, "other", TRUST_DOMAIN)?;
    let config = other.issue(&stage.world.client, "client")? + STRICT;
    let both = stage.world.client.directory().join("both.pem");
    let roots = [stage.authority.directory(), other.directory()].map(|ca| fs::read_to_string(ca.join("roots.pem")));
    let [first, second] = roots;
    fs::write(&both, first? + &second?)?;
    let here = stage.world.client.directory().join("identity/roots.pem");
    stage.start_client(&config.replace(&*here.to_string_lossy(), &both.to_string_lossy()))?;
    let mut wire = Wire::tap(stage.world.server.netns())?;
    refused(&mut stage, TO_V4)?;
    refused(&mut stage, TO_V6)?;
    ensure!(!leaks(wire.segments()?), "{:#?}", wire.segments()?);
    closed(stage.server()?, "handshake_failed", 2)?;
    ensure!(failures(stage.server()?, "server", Some("unknown_issuer"))? == 2.0, "{}", stage.logs());
    Ok(())
}

#[test]
fn a_destination_that_is_another_workload_than_expected_hears_nothing() -> Result<()> {
    let config = format!(
        "mtls:\n  mode: strict\n  workloads:\n\
         \x20 - {{ addresses: [10.77.0.2/32], identity: \"{}\" }}\n\
         \x20 - {{ addresses: [\"fd77::2/128\"], identity: \"{}\" }}\n",
        spiffe_id("other"),
        spiffe_id("server")
    );
    let mut stage = Stage::new(End::Known(&config), End::Known(STRICT))?;
    let mut wire = Wire::tap(stage.world.server.netns())?;
    refused(&mut stage, TO_V4)?;
    ensure!(!leaks(wire.segments()?), "{:#?}", wire.segments()?);
    closed(stage.client()?, "wrong_peer", 1)?;
    ensure!(failures(stage.client()?, "client", Some("wrong_peer"))? == 1.0);
    let (right, _) = stage.app.open(TO_V6)?;
    stage.app.echo(right)?;
    stage.app.must(Order::Close(right)).map(drop)
}
