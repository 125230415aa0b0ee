//! Connections that no program of the sidecar sees are seen in the kernel's socket table. The numbers are those of the fault
//! table in the project's notes.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, PORT, TO_V4, TO_V6, tcp},
    harness::{PATIENCE, Puppet, Sidecar, Spawn, World, eventually, patient},
};

const OTHER: &str = "other_cgroup";
const OLDER: &str = "older";

/// Two readings of the table, which are five seconds apart, and more.
fn soon(holds: impl FnMut() -> bool) -> bool {
    eventually(patient(Duration::from_secs(12)), holds)
}

fn open(sidecar: &Sidecar, origin: &str) -> Result<u64> {
    Ok(sidecar.metrics()?.sum("sidecar_uncaptured_connections", &[("origin", origin)]) as u64)
}

fn seen(sidecar: &Sidecar, origin: &str) -> Result<u64> {
    Ok(sidecar.metrics()?.sum("sidecar_uncaptured_connections_total", &[("origin", origin)]) as u64)
}

/// A process in the pod's network namespace, but not in its cgroup.
fn stranger(world: &World) -> Result<Puppet> {
    let place = Spawn { netns: Some(world.client.netns()), ..Spawn::default() };
    Ok(Puppet::of(place.start(Puppet::command()?)?))
}

/// 23
#[test]
fn a_connection_from_outside_the_pods_cgroup_is_counted() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let (mut app, mut stranger) = (Puppet::serving(&world.client, ANY)?, stranger(&world)?);
    // Carried, or inside the pod: none of these is to be counted.
    for to in [TO_V4, TO_V6] {
        app.open(to)?;
        let own = SocketAddr::new(if to.is_ipv4() { world.client.v4().into() } else { world.client.v6().into() }, PORT);
        for inside in [own, SocketAddr::new("127.0.0.1".parse()?, PORT), SocketAddr::new("::1".parse()?, PORT)] {
            app.open(inside)?;
            stranger.open(inside)?;
        }
    }
    let sockets = [stranger.open(TO_V4)?, stranger.open(TO_V6)?];
    for (socket, local) in sockets {
        stranger.echo(socket)?;
        let direct = server.accepted()?.iter().any(|peer| peer.port() == local.port());
        ensure!(direct, "{local} does not go direct");
    }
    ensure!(soon(|| open(&sidecar, OTHER).is_ok_and(|open| open == 2)), "{} are open", open(&sidecar, OTHER)?);
    let told = || sidecar.process.err.text().contains("made outside the pod's cgroup");
    ensure!(eventually(PATIENCE, told), "{}", sidecar.process.output());

    stranger.must(Order::Close(sockets[0].0))?;
    ensure!(soon(|| open(&sidecar, OTHER).is_ok_and(|open| open == 1)), "{} are open", open(&sidecar, OTHER)?);
    stranger.open(TO_V4)?;
    ensure!(soon(|| seen(&sidecar, OTHER).is_ok_and(|seen| seen == 3)), "{} were seen", seen(&sidecar, OTHER)?);
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 2, "{}", sidecar.verdicts());
    ensure!(seen(&sidecar, OLDER)? == 0);
    Ok(())
}

/// 23
#[test]
fn a_socket_from_outside_that_was_passed_to_the_application_is_counted() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    // Made by the test, which is in no pod's cgroup.
    let made = world.client.netns().run(|| tcp(TO_V4))??;
    let socket = app.adopt(&world.client, &made)?;
    drop(made);
    let local = app.must(Order::Connect(socket, TO_V4))?.local.map(|local| local.port());
    app.echo(socket)?;
    let peer = server.accepted()?.last().map(SocketAddr::port);
    ensure!(peer == local, "not direct: from {local:?}, and the server saw {peer:?}");
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 0, "{}", sidecar.verdicts());
    ensure!(soon(|| seen(&sidecar, OTHER).is_ok_and(|seen| seen == 1)), "{} were seen", seen(&sidecar, OTHER)?);
    Ok(())
}

/// 23
#[test]
fn a_connection_that_is_older_than_the_capture_is_counted() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let (old, _) = app.open(TO_V4)?;
    let unused = app.make(TO_V4)?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    ensure!(open(&sidecar, OLDER)? == 1 && seen(&sidecar, OLDER)? == 1, "{}", sidecar.process.output());
    // A socket that was only made before connects through the sidecar.
    app.must(Order::Connect(unused, TO_V4))?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1, "{}", sidecar.verdicts());
    app.echo(old)?;
    app.must(Order::Close(old))?;
    ensure!(soon(|| open(&sidecar, OLDER).is_ok_and(|open| open == 0)), "{} are open", open(&sidecar, OLDER)?);
    ensure!(seen(&sidecar, OLDER)? == 1 && seen(&sidecar, OTHER)? == 0);
    Ok(())
}
