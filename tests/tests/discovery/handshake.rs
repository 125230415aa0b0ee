//! What the two ends say and hear, and who does not.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sidecar::net::{Transports, mesh_offer, mesh_peer};
use sidecar_tests::{
    cases::net::{ANY, TO_V4, TO_V6},
    harness::{PATIENCE, Puppet, Sidecar, Wire, World, address, bpf, sockets_of},
};

use super::{
    BOTH,
    answer::answer_with,
    dial::{Beside, accepted_from},
    experiments, on_wire,
};

#[test]
fn both_ends_learn_what_the_other_speaks_and_only_the_handshake_says_it() -> Result<()> {
    let world = World::new()?;
    let (client, server) = (Sidecar::start(&world.client, "{}")?, Sidecar::start(&world.server, "{}")?);
    let _app = Puppet::serving(&world.server, ANY)?;
    answer_with(&server, BOTH)?;
    let mut beside = Beside::start(&world.client)?;
    let mut wire = Wire::tap(world.server.netns())?;
    for (nth, to) in [(1, TO_V4), (2, TO_V6)] {
        wire.forget()?;
        let dialled = beside.dial(to, Transports::NATIVE)?;
        ensure!(mesh_peer(&dialled.socket)? == Some(BOTH), "{to}: {:?}", mesh_peer(&dialled.socket)?);
        let accepted = accepted_from(&server, dialled.local)?;
        ensure!(mesh_peer(&accepted)? == Some(Transports::NATIVE), "{to}: {:?}", mesh_peer(&accepted)?);
        beside.end(dialled, accepted)?;

        let segments = wire.segments()?;
        let leg_says = segments.iter().filter(|s| s.loopback).any(|s| !s.experiments().is_empty());
        ensure!(!leg_says && experiments(segments).len() == 2, "{segments:#?}");
        let segments: Vec<_> = segments.iter().filter(|s| !s.loopback).collect();
        let syn: Vec<_> = segments.iter().filter(|s| s.is_syn() && s.to == to).collect();
        let syn_ack: Vec<_> = segments.iter().filter(|s| s.is_syn_ack() && s.from == to).collect();
        ensure!(syn.len() == 1 && syn_ack.len() == 1, "{segments:#?}");
        ensure!(syn[0].experiments() == [on_wire(1)] && syn_ack[0].experiments() == [on_wire(3)], "{segments:#?}");
        // At the end, padded to whole words.
        ensure!(syn[0].options.ends_with(&[254, 5, b'S', b'C', 1, 1, 1, 1]), "{:?}", syn[0]);
        let data = segments.iter().filter(|s| !s.payload.is_empty()).count();
        ensure!(data >= 2, "nothing was said afterwards: {segments:#?}");

        for (sidecar, reason) in [(&client, "offered"), (&client, "seen"), (&server, "asked"), (&server, "answered")] {
            let count = sidecar.verdict("sockops", "mesh", reason)?;
            ensure!(count == nth, "{reason} counted {count} times");
        }
    }
    Ok(())
}

#[test]
fn an_end_without_sidecar_is_not_known_and_hears_nothing() -> Result<()> {
    let world = World::new()?;
    let mut app = Puppet::serving(&world.server, ANY)?;
    let client = Sidecar::start(&world.client, "{}")?;
    let mut beside = Beside::start(&world.client)?;
    let mut wire = Wire::tap(world.server.netns())?;
    for to in [TO_V4, TO_V6] {
        wire.forget()?;
        let dialled = beside.dial(to, BOTH)?;
        ensure!(mesh_peer(&dialled.socket)?.is_none(), "{to}");
        ensure!(experiments(wire.segments()?) == [on_wire(3)], "{:#?}", wire.segments()?);
    }
    ensure!(client.verdict("sockops", "mesh", "offered")? == 2 && client.verdict("sockops", "mesh", "seen")? == 0);
    drop((client, beside));

    let server = Sidecar::start(&world.server, "{}")?;
    answer_with(&server, BOTH)?;
    let mut stranger = Puppet::start(&world.client)?;
    for to in [TO_V4, TO_V6] {
        wire.forget()?;
        let (handle, local) = stranger.open(to)?;
        stranger.echo(handle)?;
        let accepted = accepted_from(&server, local)?;
        ensure!(mesh_peer(&accepted)?.is_none(), "{to}");
        ensure!(experiments(wire.segments()?).is_empty(), "{:#?}", wire.segments()?);
    }
    ensure!(server.verdict("sockops", "mesh", "asked")? == 0 && server.verdict("sockops", "mesh", "answered")? == 0);
    ensure!(app.accepted()?.len() == 4);
    Ok(())
}

#[test]
fn a_sidecar_that_was_not_told_to_neither_offers_nor_answers() -> Result<()> {
    let world = World::new()?;
    let (client, server) = (Sidecar::start(&world.client, "{}")?, Sidecar::start(&world.server, "{}")?);
    let _app = Puppet::serving(&world.server, ANY)?;
    let mut wires = [Wire::tap(world.client.netns())?, Wire::tap(world.server.netns())?];
    let mut app = Puppet::start(&world.client)?;
    app.visit(TO_V4)?;
    app.visit(TO_V6)?;
    ensure!(client.verdict("connect", "capture", "captured")? == 2);
    for wire in &mut wires {
        ensure!(experiments(wire.segments()?).is_empty(), "{:#?}", wire.segments()?);
    }
    // One that offers to one that does not answer, and what was answered can be taken back.
    let mut beside = Beside::start(&world.client)?;
    ensure!(mesh_peer(&beside.dial(TO_V4, BOTH)?.socket)?.is_none());
    answer_with(&server, Transports::HBONE)?;
    ensure!(mesh_peer(&beside.dial(TO_V4, BOTH)?.socket)? == Some(Transports::HBONE));
    answer_with(&server, Transports::NONE)?;
    ensure!(mesh_peer(&beside.dial(TO_V4, BOTH)?.socket)?.is_none());
    Ok(())
}

#[test]
fn no_socket_of_an_application_carries_it() -> Result<()> {
    let world = World::new()?;
    let client = Sidecar::start(&world.client, "capture: { outbound: { exclude_ports: [9090] } }")?;
    let server = Sidecar::start(&world.server, "capture: { inbound: { exclude_ports: [9191] } }")?;
    answer_with(&server, BOTH)?;
    let direct = |port| SocketAddr::new(TO_V4.ip(), port);
    let mut listener = Puppet::serving(&world.server, ANY)?;
    listener.serve(SocketAddr::new(ANY.ip(), 9090))?;
    listener.serve(SocketAddr::new(ANY.ip(), 9191))?;
    let mut wires = [Wire::tap(world.client.netns())?, Wire::tap(world.server.netns())?];

    // An application cannot ask for it, and its legs to the proxy and its direct connections say nothing.
    let mut app = Puppet::start(&world.client)?;
    let handle = app.make(TO_V4)?;
    let sockets = sockets_of(app.process().pid(), |socket| address(socket.peer_addr()).is_none())?;
    ensure!(sockets.len() == 1 && mesh_offer(&sockets[0], BOTH).is_err(), "{sockets:?}");
    drop(sockets);
    app.must(sidecar_tests::agent::puppet::Order::Close(handle))?;
    app.visit(TO_V4)?;
    app.visit(direct(9090))?;
    ensure!(client.verdict("connect", "capture", "captured")? == 1);
    ensure!(client.verdict("connect", "bypass", "excluded_port")? == 1);
    for wire in &mut wires {
        let segments = wire.segments()?;
        ensure!(experiments(segments).is_empty(), "{segments:#?}");
        ensure!(segments.iter().any(|s| s.loopback && s.is_syn()), "no leg was seen");
    }

    // A proxy's offer that reaches the application directly gets the application's own answer.
    let mut beside = Beside::start(&world.client)?;
    let dialled = beside.dial(direct(9191), BOTH)?;
    ensure!(mesh_peer(&dialled.socket)?.is_none());
    ensure!(server.verdict("sk_lookup", "bypass", "excluded_port")? == 1);
    ensure!(experiments(wires[1].segments()?) == [on_wire(3)], "{:#?}", wires[1].segments()?);

    // The leg from the proxy to the application says nothing, although the connection before it did.
    wires[1].forget()?;
    let dialled = beside.dial(TO_V4, BOTH)?;
    ensure!(mesh_peer(&dialled.socket)? == Some(BOTH));
    let segments = wires[1].segments()?;
    ensure!(segments.iter().any(|s| s.loopback && s.is_syn()), "no leg was seen");
    let loopback: Vec<_> = segments.iter().filter(|s| s.loopback).cloned().collect();
    ensure!(experiments(&loopback).is_empty(), "{loopback:#?}");
    Ok(())
}

#[test]
fn a_header_without_room_goes_without_it_and_is_counted() -> Result<()> {
    let world = World::new()?;
    // A usual SYN leaves 20 bytes; the 4 that are left then are not enough.
    bpf::attach_option_hog(world.client.sidecar_cgroup())?;
    let client = Sidecar::start(&world.client, "{}")?;
    let _app = Puppet::serving(&world.server, ANY)?;
    let mut wire = Wire::tap(world.server.netns())?;
    let dialled = Beside::start(&world.client)?.dial(TO_V4, BOTH)?;
    ensure!(mesh_peer(&dialled.socket)?.is_none());
    ensure!(experiments(wire.segments()?).is_empty(), "{:#?}", wire.segments()?);
    ensure!(client.verdict("sockops", "mesh", "no_room")? == 1 && client.verdict("sockops", "mesh", "offered")? == 0);
    Ok(())
}

#[test]
fn the_check_says_whether_others_can_be_discovered() -> Result<()> {
    let world = World::new()?;
    let mut command = Sidecar::program()?;
    command.arg("check");
    let report = world.client.spawn_beside_sidecar(command)?.finish(PATIENCE)?;
    let says = |line: &str| line.contains("mesh discovery") && line.contains("by a TCP option");
    ensure!(report.lines().any(says), "{report}");
    Ok(())
}
