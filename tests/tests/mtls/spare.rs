//! Connections that are handshaked before they are needed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    cases::net::{TO_V4, TO_V6},
    harness::patient,
};

use super::{
    STRICT,
    stage::{End, Stage, becomes, closed},
};

/// With one thread, and so one store of them.
const ONE_WORKER: &str = "mtls: { mode: strict }\nproxy: { workers: 1 }\n";
const SPARE: &str = "sidecar_spare_connections_total";
const WAITING: &str = "sidecar_spare_connections_waiting";

/// Two connections to each family, and a third is ready for the next.
fn warmed_up(config: &str) -> Result<Stage> {
    let mut stage = Stage::new(End::Known(config), End::Known(STRICT))?;
    for to in [TO_V4, TO_V6] {
        stage.app.visit(to)?;
        stage.app.visit(to)?;
    }
    becomes(stage.client()?, SPARE, &[("result", "miss")], 4.0)?;
    becomes(stage.client()?, WAITING, &[("side", "client")], 2.0)?;
    becomes(stage.server()?, WAITING, &[("side", "server")], 2.0)?;
    Ok(stage)
}

#[test]
fn the_third_connection_finds_one_ready_of_which_the_server_has_not_heard() -> Result<()> {
    let mut stage = warmed_up(ONE_WORKER)?;
    ensure!(stage.service.accepted()?.len() == 4, "the application heard of those that wait");
    for (nth, to) in [(1.0, TO_V4), (2.0, TO_V6)] {
        let local = stage.app.visit(to)?;
        becomes(stage.client()?, SPARE, &[("result", "hit")], nth)?;
        let seen = stage.service.accepted()?.last().copied().context("nobody")?;
        ensure!((seen.ip().to_canonical(), seen.port()) == (local.ip(), local.port()), "{seen}, not {local}");
    }
    ensure!(stage.service.accepted()?.len() == 6);
    Ok(())
}

#[test]
fn ready_connections_die_with_the_servers_sidecar_and_the_next_makes_its_own() -> Result<()> {
    let mut stage = warmed_up(ONE_WORKER)?;
    let config = stage.authority.issue(&stage.world.server, "server")? + STRICT;
    stage.server_mut()?.kill()?;
    // The application is there, but no sidecar, and strict is closed: the kernel side refuses for it.
    let end = stage.end_of(TO_V4)?;
    ensure!(end == "ECONNRESET" || end == "EPIPE", "{end}");
    closed(stage.client()?, "connect_refused", 1)?;
    stage.start_server(&config)?;
    stage.app.visit(TO_V4).with_context(|| stage.logs())?;
    stage.app.visit(TO_V6).with_context(|| stage.logs())?;
    becomes(stage.client()?, SPARE, &[("result", "dead")], 2.0)?;
    becomes(stage.client()?, SPARE, &[("result", "hit")], 0.0)
}

#[test]
fn ready_connections_that_nobody_needs_are_closed() -> Result<()> {
    let idle = patient(Duration::from_millis(1500)).as_millis();
    let config = format!("mtls: {{ mode: strict, spare: {{ idle: {idle}ms }} }}\nproxy: {{ workers: 1 }}\n");
    let mut stage = warmed_up(&config)?;
    becomes(stage.client()?, SPARE, &[("result", "expired")], 2.0)?;
    becomes(stage.client()?, WAITING, &[("side", "client")], 0.0)?;
    becomes(stage.server()?, WAITING, &[("side", "server")], 0.0)?;
    ensure!(stage.service.accepted()?.len() == 4, "the application heard of those that waited");
    stage.app.visit(TO_V4)?;
    stage.app.visit(TO_V6).map(drop)
}
