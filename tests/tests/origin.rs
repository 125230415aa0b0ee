//! Where a captured connection meant to go is known or the connection fails: it never goes anywhere else. The numbers
//! are those of the fault table in the project's notes.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4, tcp},
    harness::{PATIENCE, Puppet, Sidecar, SocketField, Spawn, World, bpf, eventually},
};

/// What an application sees of a connection that is reset while it writes and waits.
const RESET: [&str; 2] = ["ECONNRESET", "EPIPE"];

fn last_client(server: &mut Puppet) -> Result<Option<SocketAddr>> {
    Ok(server.accepted()?.last().copied())
}

/// 21
#[test]
fn a_connection_to_the_proxy_that_was_not_captured_is_reset_and_counted() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    // Only from beside the sidecar can its port be reached without being captured.
    let mut beside = Puppet::of(world.client.spawn_beside_sidecar(Puppet::command()?)?);
    for ip in ["10.77.0.1", "127.0.0.1", "fd77::1"] {
        let at = SocketAddr::new(ip.parse::<IpAddr>()?, 15001);
        ensure!(beside.end_of(at)? == "ECONNRESET", "{ip}");
    }
    let told = || sidecar.closed("no_original_dst").is_ok_and(|count| count == 3);
    ensure!(eventually(PATIENCE, told), "{} counted as no_original_dst", sidecar.closed("no_original_dst")?);
    Ok(())
}

/// 21: notes stay in the map while handshakes hang, because the stopped sidecar's queue is full.
#[test]
fn a_connection_that_finds_no_room_for_its_destination_is_reset_and_counted() -> Result<()> {
    let world = World::new()?;
    world.client.sysctl("net/core/somaxconn", "2")?;
    let config = "capture: { maps: { flows: 1 }, heartbeat_max_age: 60s }";
    let sidecar = Sidecar::start(&world.client, config)?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    app.visit(TO_V4)?;
    sidecar.signal(nix::sys::signal::Signal::SIGSTOP)?;
    let mut sockets = Vec::new();
    for _ in 0..10 {
        let socket = app.make(TO_V4)?;
        app.must(Order::Begin(socket, TO_V4))?;
        sockets.push(socket);
    }
    let hanging = || world.client.socket_table(SocketField::RemotePort(15001), "02").map(|sockets| sockets.len());
    ensure!(eventually(PATIENCE, || hanging().is_ok_and(|count| count >= 2)), "{} handshakes hang", hanging()?);
    ensure!(bpf::map_entries(sidecar.process.pid(), "FLOWS")? == 1);
    sidecar.signal(nix::sys::signal::Signal::SIGCONT)?;
    let mut lost = 0;
    for socket in &sockets {
        match app.order(Order::Echo(*socket, 1000))?.outcome.as_str() {
            "ok" => {}
            outcome if RESET.contains(&outcome) => lost += 1,
            outcome => anyhow::bail!("a connection ended with {outcome}{}", sidecar.process.output()),
        }
    }
    ensure!(lost >= 1 && sidecar.verdict("sockops", "note", "flows_full")? == lost, "{lost} lost");
    let told = || sidecar.closed("no_original_dst").is_ok_and(|count| count == lost);
    ensure!(eventually(PATIENCE, told), "{lost} lost, {} counted", sidecar.closed("no_original_dst")?);
    let arrived = server.accepted()?.len() as u64;
    ensure!(arrived == 1 + sockets.len() as u64 - lost, "{arrived} arrived, {lost} lost");
    for socket in sockets {
        app.must(Order::Close(socket))?;
    }
    app.visit(TO_V4)?;
    ensure!(bpf::map_entries(sidecar.process.pid(), "FLOWS")? == 0, "a note stays behind");
    ensure!(eventually(PATIENCE, || sidecar.live().is_ok_and(|live| live == 0)), "{}", sidecar.connections()?);
    Ok(())
}

/// 21, the other way: the note tells the application who its client is, and nobody can take its place.
#[test]
fn an_application_never_takes_the_proxy_for_its_client() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.server, "capture: { maps: { flows: 1 } }")?;
    let full = SocketAddr::new(ANY.ip(), 9090);
    let mut server = Puppet::serving(&world.server, ANY)?;
    server.must(Order::Ignore(full, 0))?;
    let mut client = Puppet::start(&world.client)?;
    // The first fill the application's queue, the notes of the others wait.
    for _ in 0..4 {
        client.open(SocketAddr::new(TO_V4.ip(), full.port()))?;
    }
    let waits = || bpf::map_entries(sidecar.process.pid(), "PRESENTED_FLOWS").is_ok_and(|count| count >= 2);
    ensure!(eventually(PATIENCE, waits), "no handshake with the application hangs");
    client.visit(TO_V4)?;
    let seen = server.accepted()?;
    ensure!(seen.iter().all(|peer| peer.ip().to_canonical() == world.client.v4()), "the application saw {seen:?}");
    ensure!(seen.len() == 1 && sidecar.verdict("sockops", "note", "flows_full")? == 0);
    Ok(())
}

/// 23
#[test]
fn a_process_outside_the_pods_cgroup_goes_direct() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let outside = Spawn { netns: Some(world.client.netns()), ..Spawn::default() }.start(Puppet::command()?)?;
    let local = Puppet::of(outside).visit(TO_V4)?;
    ensure!(last_client(&mut server)?.map(|client| client.port()) == Some(local.port()));
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 0);
    Ok(())
}

/// 23: a socket belongs to the cgroup in which it was made.
#[test]
fn a_socket_from_before_its_process_entered_the_pod_goes_direct_and_later_ones_do_not() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let outside = Spawn { netns: Some(world.client.netns()), ..Spawn::default() }.start(Puppet::command()?)?;
    let mut app = Puppet::of(outside);
    let before = app.make(TO_V4)?;
    app.process().move_to(world.client.app_cgroup())?;
    let local = app.must(Order::Connect(before, TO_V4))?.local;
    app.echo(before)?;
    ensure!(last_client(&mut server)?.map(|client| client.port()) == local.map(|local| local.port()), "not direct");
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 0);
    app.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1, "a socket made in the pod is not captured");
    app.echo(before)
}

/// 23
#[test]
fn a_socket_that_came_from_outside_goes_direct() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let made_outside = world.client.netns().run(|| tcp(TO_V4))??;
    let given = app.adopt(&world.client, &made_outside)?;
    let local = app.must(Order::Connect(given, TO_V4))?.local;
    app.echo(given)?;
    ensure!(last_client(&mut server)?.map(|client| client.port()) == local.map(|local| local.port()), "not direct");
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 0);
    app.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1);
    Ok(())
}

/// 23
#[test]
fn a_socket_from_before_the_capture_is_captured_when_it_connects() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let (connected, unconnected) = (app.open(TO_V4)?.0, app.make(TO_V4)?);
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let local = app.must(Order::Connect(unconnected, TO_V4))?.local;
    app.echo(unconnected)?;
    ensure!(last_client(&mut server)?.map(|client| client.port()) != local.map(|local| local.port()), "direct");
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1);
    app.echo(connected)
}
