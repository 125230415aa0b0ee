//! Which connections a sidecar takes, which it lets pass and which it refuses.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, PORT, TO_V4, TO_V6},
    harness::{Puppet, Sidecar, Spawn, Wedge, World, eventually, patient},
};

fn to(ip: &str, port: u16) -> Result<SocketAddr> {
    let ip: IpAddr = ip.parse().with_context(|| format!("{ip} is not an address"))?;
    Ok(SocketAddr::new(ip, port))
}

#[test]
fn own_ports_are_refused_by_every_address_that_reaches_them() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let mut app = Puppet::start(&world.client)?;
    let before = sidecar.verdict("connect", "deny", "own_port")?;
    let used = sidecar.cpu_time()?;
    let addresses = [
        "127.0.0.1",
        "127.0.0.9",
        "10.77.0.1",
        "0.0.0.0",
        "::1",
        "fd77::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:10.77.0.1",
    ];
    let ports = [15001, 15006, 15000];
    for ip in addresses {
        for port in ports {
            let (_, answer) = app.try_open(to(ip, port)?)?;
            ensure!(answer.outcome == "ECONNREFUSED", "{ip} {port}: {}", answer.outcome);
        }
    }
    let denied = sidecar.verdict("connect", "deny", "own_port")? - before;
    ensure!(denied == (addresses.len() * ports.len()) as u64, "{denied} denied");
    // A connection that came back to the proxy would keep it busy for good.
    ensure!(
        sidecar.cpu_time()? - used < patient(Duration::from_millis(500)),
        "the sidecar is busy: does a connection go in circles?"
    );
    Ok(())
}

#[test]
fn outsiders_cannot_reach_the_capture_ports() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.server, "{}")?;
    let mut outsider = Puppet::start(&world.client)?;
    for ip in ["10.77.0.2", "fd77::2"] {
        for port in [15001, 15006, 15000] {
            let (_, answer) = outsider.try_open(to(ip, port)?)?;
            ensure!(answer.outcome == "ECONNREFUSED", "{ip} {port}: {}", answer.outcome);
        }
        for port in [15020, 15021] {
            outsider.open(to(ip, port)?).with_context(|| format!("{ip}: others may ask for metrics and health"))?;
        }
    }
    ensure!(sidecar.verdict("sk_lookup", "deny", "own_port")? >= 4);
    ensure!(sidecar.verdict("sk_lookup", "bypass", "own_port")? >= 4);
    Ok(())
}

#[test]
fn another_pods_port_of_the_same_number_is_captured() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let at = to("10.77.0.2", 15001)?;
    let _server = Puppet::serving(&world.server, at)?;
    Puppet::start(&world.client)?.visit(at)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1);
    Ok(())
}

#[test]
fn excluded_destinations_go_direct() -> Result<()> {
    let world = World::new()?;
    for extra in ["10.88.5.1/32", "10.88.6.1/32", "169.254.169.254/32", "fd88::5/128"] {
        world.server.add_address(extra)?;
    }
    let config = "capture: { outbound: { exclude_ports: [8080], exclude_cidrs: [10.88.5.0/24, 'fd88::/64', 169.254.169.254/32] } }";
    let sidecar = Sidecar::start(&world.client, config)?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    server.serve(to("::", 9090)?)?;
    let mut app = Puppet::start(&world.client)?;
    let table = [
        ("10.77.0.2", PORT, "bypass", "excluded_port"),
        ("fd77::2", PORT, "bypass", "excluded_port"),
        ("10.88.5.1", 9090, "bypass", "excluded_cidr"),
        ("::ffff:10.88.5.1", 9090, "bypass", "excluded_cidr"),
        ("fd88::5", 9090, "bypass", "excluded_cidr"),
        ("169.254.169.254", 9090, "bypass", "excluded_cidr"),
        ("10.88.6.1", 9090, "capture", "captured"),
        ("10.77.0.2", 9090, "capture", "captured"),
        ("fd77::2", 9090, "capture", "captured"),
    ];
    for (ip, port, verdict, reason) in table {
        let before = sidecar.verdict("connect", verdict, reason)?;
        let local = app.visit(to(ip, port)?).with_context(|| format!("{ip} {port}"))?;
        let counted = sidecar.verdict("connect", verdict, reason)? - before;
        ensure!(counted == 1, "{ip} {port}: {reason} counted {counted} times");
        let seen = server.accepted()?.last().map(SocketAddr::port);
        let direct = seen == Some(local.port());
        ensure!(direct == (verdict == "bypass"), "{ip} {port}: the client has {local}, the server saw {seen:?}");
    }
    Ok(())
}

#[test]
fn the_metadata_address_is_excluded_by_default() -> Result<()> {
    let world = World::new()?;
    world.server.add_address("169.254.169.254/32")?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let _server = Puppet::serving(&world.server, ANY)?;
    Puppet::start(&world.client)?.visit(to("169.254.169.254", PORT)?)?;
    ensure!(sidecar.verdict("connect", "bypass", "excluded_cidr")? == 1);
    Ok(())
}

#[test]
fn excluded_inbound_ports_stay_direct() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.server, "capture: { inbound: { exclude_ports: [8080] } }")?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    server.serve(to("::", 9090)?)?;
    let mut client = Puppet::start(&world.client)?;
    client.visit(TO_V4)?;
    client.visit(to("10.77.0.2", 9090)?)?;
    ensure!(sidecar.verdict("sk_lookup", "bypass", "excluded_port")? == 1);
    ensure!(sidecar.verdict("sk_lookup", "capture", "steered")? == 1);
    Ok(())
}

#[test]
fn directions_can_be_switched_off() -> Result<()> {
    let world = World::new()?;
    let config = "capture: { outbound: { enabled: false }, inbound: { enabled: false } }";
    let (client, server) = (Sidecar::start(&world.client, config)?, Sidecar::start(&world.server, config)?);
    let _server = Puppet::serving(&world.server, ANY)?;
    Puppet::start(&world.client)?.visit(TO_V4)?;
    ensure!(client.verdict("connect", "bypass", "disabled")? == 1);
    ensure!(server.verdict("sk_lookup", "bypass", "disabled")? == 1);
    Ok(())
}

#[test]
fn a_port_is_captured_only_while_the_application_listens_on_it() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.server, "{}")?;
    let mut client = Puppet::start(&world.client)?;
    ensure!(client.try_open(TO_V4)?.1.outcome == "ECONNREFUSED");
    let server = Puppet::serving(&world.server, ANY)?;
    client.visit(TO_V4)?;
    drop(server);
    let refused = || client.try_open(TO_V4).is_ok_and(|(_, answer)| answer.outcome == "ECONNREFUSED");
    ensure!(
        eventually(patient(Duration::from_secs(2)), refused),
        "the port of an application that has gone is still open"
    );
    ensure!(sidecar.verdict("sk_lookup", "capture", "steered")? >= 1);
    ensure!(sidecar.verdict("sk_lookup", "bypass", "not_listened")? >= 2);
    Ok(())
}

/// The thread that reads the socket table stands still meanwhile: clients come sooner than it looks.
#[test]
fn a_listener_is_captured_for_the_families_that_it_serves_from_its_first_client_on() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.server, "{}")?;
    let mut client = Puppet::start(&world.client)?;
    let wedge = Wedge::of_main_thread(sidecar.process.pid())?;
    let mut server = Puppet::start(&world.server)?;
    server.must(Order::ServeV6Only(ANY))?;
    ensure!(client.try_open(TO_V4)?.1.outcome == "ECONNREFUSED");
    client.visit(TO_V6)?;
    drop(server);
    // What was known of the port was about another socket.
    let _server = Puppet::serving(&world.server, ANY)?;
    client.visit(TO_V4)?;
    client.visit(TO_V6)?;
    drop(wedge);
    let steered = sidecar.verdict("sk_lookup", "capture", "steered")?;
    ensure!(steered == 3, "{steered} steered{}", sidecar.verdicts());
    Ok(())
}

#[test]
fn a_destination_without_a_route_is_denied_with_the_kernels_errno_in_closed_mode() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "capture: { on_failure: closed }")?;
    let (_, answer) = Puppet::start(&world.client)?.try_open(to("198.51.100.1", 80)?)?;
    ensure!(answer.outcome == "ENETUNREACH", "{answer:?}");
    ensure!(sidecar.verdict("connect", "deny", "no_route")? == 1);
    Ok(())
}

#[test]
fn a_process_of_the_pod_in_another_namespace_is_left_alone() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let _client = Puppet::serving(&world.client, ANY)?;
    let elsewhere =
        Spawn { netns: Some(world.server.netns()), cgroup: Some(world.client.app_cgroup()), ..Spawn::default() };
    Puppet::of(elsewhere.start(Puppet::command()?)?).visit(to("10.77.0.1", PORT)?)?;
    ensure!(sidecar.verdict("connect", "bypass", "other_netns")? == 1);
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 0);
    Ok(())
}

#[test]
fn the_sidecars_own_cgroup_is_exempt() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut beside = Puppet::of(world.client.spawn_beside_sidecar(Puppet::command()?)?);
    let local = beside.visit(TO_V4)?;
    ensure!(server.accepted()?.last().map(SocketAddr::port) == Some(local.port()));
    // Its own probes count here as well.
    ensure!(sidecar.verdict("connect", "bypass", "proxy")? >= 1);
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 0);
    Ok(())
}

#[test]
fn both_ends_of_a_connection_in_one_pod_stay_direct_with_several_addresses() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    // Learnt while it runs.
    for extra in ["10.77.0.33/24", "fd77::33/64"] {
        world.client.add_address(extra)?;
    }
    let mut app = Puppet::serving(&world.client, ANY)?;
    for ip in ["10.77.0.1", "10.77.0.33", "fd77::1", "fd77::33"] {
        let own = || sidecar.verdict("connect", "bypass", "own_address").unwrap_or(0);
        let before = own();
        let known = eventually(patient(Duration::from_secs(2)), || {
            app.visit(SocketAddr::new(ip.parse().expect(ip), PORT)).is_ok() && own() > before
        });
        ensure!(known, "{ip} is not known as the pod's own");
    }
    Ok(())
}

/// A whole network may be local: the kernel then chooses the destination itself as source of the proxy's own leg, which no
/// list of addresses names.
#[test]
fn a_connection_to_a_local_network_is_steered_once() -> Result<()> {
    let world = World::new()?;
    world.server.ip("route add local 10.99.0.0/24 dev lo")?;
    world.client.ip("route add 10.99.0.0/24 via 10.77.0.2")?;
    let sidecar = Sidecar::start(&world.server, "{}")?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut client = Puppet::start(&world.client)?;
    let before = sidecar.verdict("sk_lookup", "capture", "steered")?;
    client.visit(to("10.99.0.7", PORT)?)?;
    let steered = sidecar.verdict("sk_lookup", "capture", "steered")? - before;
    ensure!(steered == 1, "{steered} times");
    Ok(())
}

#[test]
fn a_destination_that_the_routes_refuse_is_refused_as_without_a_sidecar() -> Result<()> {
    let world = World::new()?;
    world.client.ip("route add default via 10.77.0.2")?;
    for (kind, network) in
        [("unreachable", "10.66.0.0/16"), ("prohibit", "10.67.0.0/16"), ("blackhole", "10.68.0.0/16")]
    {
        world.client.ip(&format!("route add {kind} {network}"))?;
    }
    let destinations = ["10.66.0.1", "10.67.0.1", "10.68.0.1"];
    let mut app = Puppet::start(&world.client)?;
    let mut outcomes = || -> Result<Vec<String>> {
        destinations.iter().map(|ip| Ok(app.try_open(to(ip, PORT)?)?.1.outcome)).collect()
    };
    let direct = outcomes()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let with_sidecar = outcomes()?;
    ensure!(direct == with_sidecar && !direct.contains(&"ok".to_owned()), "{direct:?}, then {with_sidecar:?}");
    ensure!(sidecar.verdict("connect", "bypass", "no_route")? == destinations.len() as u64);
    Ok(())
}
