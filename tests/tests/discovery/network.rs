//! What is between the two ends: it may take the option out, drop what carries it, or choose the other end.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use sidecar::net::{Transports, mesh_peer};
use sidecar_tests::{
    cases::net::{ANY, PORT, SERVER_V4, TO_V4, TO_V6},
    harness::{NetNs, PATIENCE, Puppet, Sidecar, Spawn, Wire, World, patient},
};

use super::{
    BOTH,
    answer::answer_with,
    dial::{Beside, accepted_from},
    experiments, on_wire,
};

/// Runs `iptables` and `ip6tables` in `netns`.
fn filter(netns: &NetNs, rule: &str) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        run(netns, program, rule)?;
    }
    Ok(())
}

fn run(netns: &NetNs, program: &str, arguments: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments.split(' '));
    Spawn { netns: Some(netns), ..Spawn::default() }.start(command)?.finish(PATIENCE).map(drop)
}

#[test]
fn an_option_that_is_taken_out_on_the_way_means_not_known() -> Result<()> {
    const STRIP: &str = "PREROUTING -p tcp -j TCPOPTSTRIP --strip-options 254";
    let world = World::new()?;
    let (_client, server) = (Sidecar::start(&world.client, "{}")?, Sidecar::start(&world.server, "{}")?);
    let _app = Puppet::serving(&world.server, ANY)?;
    answer_with(&server, BOTH)?;
    let mut beside = Beside::start(&world.client)?;
    let mut wire = Wire::tap(world.client.netns())?;

    filter(world.server.netns(), &format!("-t mangle -A {STRIP}"))?;
    for to in [TO_V4, TO_V6] {
        wire.forget()?;
        let dialled = beside.dial(to, BOTH)?;
        ensure!(mesh_peer(&dialled.socket)?.is_none(), "{to}: out of the SYN");
        ensure!(mesh_peer(&accepted_from(&server, dialled.local)?)?.is_none(), "{to}: out of the SYN");
        ensure!(experiments(wire.segments()?) == [on_wire(3)], "{:#?}", wire.segments()?);
    }

    filter(world.server.netns(), &format!("-t mangle -D {STRIP}"))?;
    filter(world.client.netns(), &format!("-t mangle -A {STRIP}"))?;
    for to in [TO_V4, TO_V6] {
        let dialled = beside.dial(to, Transports::NATIVE)?;
        ensure!(mesh_peer(&dialled.socket)?.is_none(), "{to}: out of the SYN-ACK");
        let heard = mesh_peer(&accepted_from(&server, dialled.local)?)?;
        ensure!(heard == Some(Transports::NATIVE), "{to}: {heard:?}");
    }
    Ok(())
}

#[test]
fn a_network_that_drops_the_option_gets_a_plain_syn_in_the_end() -> Result<()> {
    let world = World::new()?;
    let _client = Sidecar::start(&world.client, "{}")?;
    let _app = Puppet::serving(&world.server, ANY)?;
    filter(world.server.netns(), "-t mangle -A PREROUTING -p tcp --tcp-option 254 -j DROP")?;
    let mut wire = Wire::tap(world.server.netns())?;
    let dialled = Beside::start(&world.client)?.dial(TO_V4, BOTH)?;
    ensure!(mesh_peer(&dialled.socket)?.is_none());
    let limit = patient(Duration::from_secs(1));
    wire.wait_longer_for(limit, "plain SYN", |s| s.is_syn() && s.experiments().is_empty())?;
    let said: Vec<_> = wire.segments()?.iter().filter(|s| s.is_syn()).map(|s| s.experiments().len()).collect();
    ensure!(said == [1, 1, 1, 0], "{said:?}");
    Ok(())
}

#[test]
fn behind_a_service_address_every_pod_is_known_by_its_own_answer() -> Result<()> {
    const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 88, 96, 1);
    let world = World::new()?;
    let (_client, server) = (Sidecar::start(&world.client, "{}")?, Sidecar::start(&world.server, "{}")?);
    let mut meshed = Puppet::serving(&world.server, ANY)?;
    answer_with(&server, BOTH)?;

    // A pod without a sidecar, on a link of its own.
    let third = NetNs::new()?;
    let script = format!(
        "link add eth1 type veth peer name eth0 netns {}\nlink set eth1 up\naddr add 10.78.0.1/24 dev eth1",
        third.path().display()
    );
    world.client.ip(&script)?;
    for arguments in
        ["link set lo up", "link set eth0 up", "addr add 10.78.0.3/24 dev eth0", "route add 10.77.0.1 via 10.78.0.1"]
    {
        run(&third, "ip", arguments)?;
    }
    let plain = Spawn { netns: Some(&third), ..Spawn::default() }.start(Puppet::command()?)?;
    let mut plain = Puppet::of(plain);
    plain.serve(ANY)?;

    let every_second = format!("-t nat -A OUTPUT -p tcp -d {SERVICE} -m statistic --mode nth --every 2 --packet 0");
    run(world.client.netns(), "iptables", &format!("{every_second} -j DNAT --to-destination {SERVER_V4}:{PORT}"))?;
    let rest = format!("-t nat -A OUTPUT -p tcp -d {SERVICE} -j DNAT --to-destination 10.78.0.3:{PORT}");
    run(world.client.netns(), "iptables", &rest)?;

    let mut beside = Beside::start(&world.client)?;
    let mut known = vec![];
    for _ in 0..6 {
        let before = (meshed.accepted()?.len(), plain.accepted()?.len());
        let dialled = beside.dial(SocketAddr::from((SERVICE, 80)), Transports::NATIVE)?;
        let peer = mesh_peer(&dialled.socket)?;
        let reached = (meshed.accepted()?.len() - before.0, plain.accepted()?.len() - before.1);
        match peer {
            Some(transports) => ensure!(reached == (1, 0) && transports == BOTH, "{transports:?}, but {reached:?}"),
            None => ensure!(reached == (0, 1), "not known, but {reached:?}"),
        }
        known.push(peer.is_some());
    }
    ensure!(known.iter().filter(|known| **known).count() == 3, "{known:?}");
    Ok(())
}

#[test]
fn a_server_that_defends_itself_with_syn_cookies_answers_but_does_not_remember() -> Result<()> {
    let world = World::new()?;
    // Always, not only when its queue is full.
    world.server.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let (_client, server) = (Sidecar::start(&world.client, "{}")?, Sidecar::start(&world.server, "{}")?);
    let _app = Puppet::serving(&world.server, ANY)?;
    answer_with(&server, BOTH)?;
    let mut beside = Beside::start(&world.client)?;
    for to in [TO_V4, TO_V6] {
        let dialled = beside.dial(to, Transports::NATIVE)?;
        ensure!(mesh_peer(&dialled.socket)? == Some(BOTH), "{to}");
        ensure!(mesh_peer(&accepted_from(&server, dialled.local)?)?.is_none(), "{to}");
    }
    Ok(())
}

#[test]
fn a_lost_syn_ack_is_sent_again_with_the_answer() -> Result<()> {
    let world = World::new()?;
    let (_client, server) = (Sidecar::start(&world.client, "{}")?, Sidecar::start(&world.server, "{}")?);
    let _app = Puppet::serving(&world.server, ANY)?;
    answer_with(&server, BOTH)?;
    let lose = "PREROUTING -p tcp --tcp-flags SYN,ACK SYN,ACK -m statistic --mode nth --every 100 --packet 0 -j DROP";
    run(world.client.netns(), "iptables", &format!("-t mangle -A {lose}"))?;
    let mut wire = Wire::tap(world.client.netns())?;
    let dialled = Beside::start(&world.client)?.dial(TO_V4, Transports::NATIVE)?;
    ensure!(mesh_peer(&dialled.socket)? == Some(BOTH));
    ensure!(mesh_peer(&accepted_from(&server, dialled.local)?)? == Some(Transports::NATIVE));
    let sent: Vec<_> = wire.segments()?.iter().filter(|s| s.is_syn_ack()).collect();
    ensure!(sent.len() >= 2 && sent.iter().all(|s| s.experiments() == [on_wire(3)]), "{sent:?}");
    Ok(())
}
