//! Anybody can write the option: it says what a client claims, and changes nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Result, ensure};
use sidecar::net::{Transports, mesh_peer};
use sidecar_tests::{
    cases::net::{ANY, PORT, SERVER_V4, TO_V4},
    harness::{ACK, PATIENCE, Puppet, SYN, Segment, Sidecar, Wire, World, eventually},
};

use super::{BOTH, answer::answer_with, dial::accepted_from, experiments, forge::Forger, on_wire};

/// In the network that the server routes to the client's pod; nobody has it.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 88, 1, 1);
const FIRST: u32 = 1_000;

#[test]
fn a_forged_option_gains_nothing_but_the_flag() -> Result<()> {
    let world = World::new()?;
    let server = Sidecar::start(&world.server, "{}")?;
    let mut app = Puppet::serving(&world.server, ANY)?;
    answer_with(&server, BOTH)?;
    let mut wire = Wire::tap(world.server.netns())?;
    let client = SocketAddrV4::new(NOBODY, 40_000);
    let forger = Forger::new(world.client.netns(), client, SocketAddrV4::new(SERVER_V4, PORT))?;
    forger.send(SYN, FIRST, 0, &on_wire(0xff), &[])?;
    let answer = wire.wait_for("SYN-ACK", |s| s.is_syn_ack() && s.to == SocketAddr::from(client))?;
    ensure!(answer.experiments() == [on_wire(3)], "{answer:?}");
    forger.send(ACK, FIRST + 1, answer.sequence + 1, &on_wire(0xff), b"hello")?;
    // It is carried like every other plaintext client.
    let echo = wire.wait_for("echo", |s| s.to == SocketAddr::from(client) && !s.payload.is_empty())?;
    ensure!(echo.payload == b"hello" && echo.experiments().is_empty(), "{echo:?}");
    ensure!(mesh_peer(&accepted_from(&server, client.into())?)? == Some(Transports::from_bits(0xff)));
    ensure!(app.accepted()?.last().map(|peer| peer.ip().to_canonical()) == Some(IpAddr::V4(NOBODY)));
    Ok(())
}

#[test]
fn malformed_options_say_nothing_and_are_answered_as_without_a_sidecar() -> Result<()> {
    const DIRECT: u16 = 9191;
    let world = World::new()?;
    let server = Sidecar::start(&world.server, "capture: { inbound: { exclude_ports: [9191] } }")?;
    let mut app = Puppet::serving(&world.server, ANY)?;
    app.serve(SocketAddr::new(ANY.ip(), DIRECT))?;
    answer_with(&server, BOTH)?;
    let mut wire = Wire::tap(world.server.netns())?;
    let table: &[(&str, &[u8], bool)] = &[
        ("no byte", &[254, 4, b'S', b'C'], false),
        ("no transport", &[254, 5, b'S', b'C', 0], false),
        ("another experiment", &[254, 5, b'C', b'S', 1], false),
        ("the other kind", &[253, 5, b'S', b'C', 1], false),
        ("half an identifier", &[254, 3, b'S', 1], false),
        ("longer than the header", &[254, 40, b'S', b'C', 1], false),
        ("length zero", &[254, 0, b'S', b'C', 1], false),
        ("after the end of options", &[0, 254, 5, b'S', b'C', 1], false),
        ("after others", &[1, 1, 2, 4, 5, 180, 254, 5, b'S', b'C', 1], true),
        ("longer, of a later version", &[254, 7, b'S', b'C', 1, 9, 9], true),
        ("whole", &[254, 5, b'S', b'C', 1], true),
    ];
    let clients: Vec<_> = (41_000..).take(table.len()).map(|port| SocketAddrV4::new(NOBODY, port)).collect();
    for (client, (_, options, _)) in clients.iter().zip(table) {
        for port in [PORT, DIRECT] {
            let forger = Forger::new(world.client.netns(), *client, SocketAddrV4::new(SERVER_V4, port))?;
            forger.send(SYN, FIRST, 0, options, &[])?;
        }
    }
    for (client, (name, _, heard)) in clients.iter().zip(table).rev() {
        let of = |s: &Segment, port| s.is_syn_ack() && s.from.port() == port && s.to == SocketAddr::from(*client);
        // A kernel may drop what is no list of options at all.
        let answered = |wire: &mut Wire, port| wire.segments().is_ok_and(|all| all.iter().any(|s| of(s, port)));
        let alike = eventually(PATIENCE, || {
            let captured = answered(&mut wire, PORT);
            captured == answered(&mut wire, DIRECT) && (captured || !heard)
        });
        ensure!(alike, "{name}: {:#?}", wire.segments()?);
        let direct: Vec<_> = wire.segments()?.iter().filter(|s| of(s, DIRECT)).cloned().collect();
        ensure!(experiments(&direct).is_empty(), "{name}: {direct:?}");
        let captured: Vec<_> = wire.segments()?.iter().filter(|s| of(s, PORT)).cloned().collect();
        let right = |s: &Segment| s.experiments() == if *heard { vec![on_wire(3)] } else { vec![] };
        ensure!(captured.iter().all(right), "{name}: {captured:?}");
    }
    ensure!(server.verdict("sockops", "mesh", "answered")? >= 3);
    // What stays half open keeps nobody out.
    Puppet::start(&world.client)?.visit(TO_V4)?;
    Ok(())
}
