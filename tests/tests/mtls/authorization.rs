//! Rules that ask who the client is.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    cases::net::{TO_V4, TO_V6},
    harness::{patient, spiffe_id},
};

use super::{
    STRICT,
    stage::{End, Stage, becomes, closed},
};

/// Only this service account may connect.
fn only(account: &str) -> String {
    format!(
        "authorization:\n- {{ name: only, action: allow, from: [{{ principals: [\"{}\"] }}] }}\n",
        spiffe_id(account)
    )
}

#[test]
fn a_reload_that_no_longer_allows_the_identity_resets_its_open_connections() -> Result<()> {
    let mut stage = Stage::new(End::Known(STRICT), End::Known(&(only("client") + STRICT)))?;
    let mut open = Vec::new();
    for to in [TO_V4, TO_V6] {
        let (socket, _) = stage.app.open(to)?;
        stage.app.echo(socket)?;
        open.push(socket);
    }
    let heard = stage.service.accepted()?.len();
    let file = stage.world.server.directory().join("sidecar.yaml");
    fs::write(&file, fs::read_to_string(&file)?.replace(&only("client"), &only("somebody")))?;
    stage.server()?.signal(Signal::SIGHUP)?;
    for socket in open {
        stage.ends_in_a_reset(socket)?;
    }
    closed(stage.server()?, "no_longer_authorized", 2)?;
    // What comes now is refused before the application hears of it.
    let end = stage.end_of(TO_V4)?;
    ensure!(end == "ECONNRESET" || end == "EPIPE", "{end}");
    closed(stage.server()?, "unauthorized", 1)?;
    ensure!(stage.service.accepted()?.len() == heard, "the application heard of it");
    Ok(())
}

#[test]
fn a_connection_made_ready_by_a_client_that_is_not_let_in_counts_only_when_it_is_used() -> Result<()> {
    const SPARE: &str = "sidecar_spare_connections_total";
    let limit = patient(Duration::from_secs(2)).as_millis();
    let client = "mtls: { mode: strict }\nproxy: { workers: 1 }\n";
    let server = format!("mtls: {{ mode: strict, handshake_timeout: {limit}ms }}\n{}", only("somebody"));
    let mut stage = Stage::new(End::Known(client), End::Known(&server))?;
    for count in 1..=3 {
        let end = stage.end_of(TO_V4)?;
        ensure!(end == "ECONNRESET" || end == "EPIPE", "{end}");
        closed(stage.server()?, "unauthorized", count)?;
        // One is made ready by the second, and by the third that takes it.
        becomes(
            stage.client()?,
            "sidecar_spare_connections_waiting",
            &[("side", "client")],
            f64::from(u8::from(count > 1)),
        )?;
    }
    becomes(stage.client()?, SPARE, &[("result", "hit")], 1.0)?;
    becomes(stage.server()?, SPARE, &[("result", "unauthorized")], 1.0)?;
    ensure!(stage.server()?.closed("unauthorized")? == 3, "{}", stage.logs());
    let told = stage.server()?.process.out.lines();
    let complete = told.iter().filter(|line| line.contains("connection complete")).count();
    ensure!(complete == 3, "{complete} in the access log{}", stage.logs());
    ensure!(stage.service.accepted()?.is_empty(), "the application heard of it");
    Ok(())
}

#[test]
fn a_namespace_can_be_denied() -> Result<()> {
    let rule = |namespace| {
        format!("authorization:\n- {{ name: no, action: deny, from: [{{ namespaces: [{namespace}] }}] }}\n{STRICT}")
    };
    for (namespace, denied) in [("test", true), ("tes", false)] {
        let mut stage = Stage::new(End::Known(STRICT), End::Known(&rule(namespace)))?;
        for to in [TO_V4, TO_V6] {
            if denied {
                let end = stage.end_of(to)?;
                ensure!(end == "ECONNRESET" || end == "EPIPE", "{to}: {end}");
            } else {
                stage.app.visit(to)?;
            }
        }
        closed(stage.server()?, "unauthorized", if denied { 2 } else { 0 })?;
        ensure!(stage.service.accepted()?.is_empty() == denied);
    }
    Ok(())
}

#[test]
fn a_client_without_identity_is_denied_where_only_identities_are_allowed_and_permissive_changes_nothing() -> Result<()>
{
    let anyone = "authorization:\n- { name: known, action: allow, from: [{ principals: [\"*\"] }] }\n";
    let mut stage = Stage::new(End::Bare, End::Known(anyone))?;
    for (nth, to) in [(1, TO_V4), (2, TO_V6)] {
        let end = stage.end_of(to)?;
        ensure!(end == "ECONNRESET" || end == "EPIPE", "{to}: {end}");
        closed(stage.server()?, "unauthorized", nth)?;
    }
    ensure!(stage.service.accepted()?.is_empty(), "the application heard of it");
    let config = stage.authority.issue(&stage.world.client, "client")?;
    stage.start_client(&config)?;
    stage.app.visit(TO_V4)?;
    stage.app.visit(TO_V6).map(drop)
}
