//! What must be survived. The numbers are those of the fault table in the project's notes.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, PORT, TO_V4},
    harness::{Layout, Mesh, PATIENCE, Puppet, Sidecar, World, bpf, eventually, patient, work},
};

/// 11, 12: see also the table of behaviours.
#[test]
fn both_legs_are_freed_after_a_reset() -> Result<()> {
    let mesh = Mesh::new(Layout::BOTH)?;
    let _server = Puppet::serving(&mesh.world.server, ANY)?;
    let mut app = Puppet::start(&mesh.world.client)?;
    let (by_reset, _) = app.open(TO_V4)?;
    let (by_end, _) = app.open(TO_V4)?;
    app.echo(by_reset)?;
    app.echo(by_end)?;
    let sidecars = [mesh.client.as_ref(), mesh.server.as_ref()].map(|sidecar| sidecar.expect("both have one"));
    for sidecar in sidecars {
        ensure!(sidecar.live()? == 2, "{}", sidecar.connections()?);
    }
    app.must(Order::Reset(by_reset))?;
    app.must(Order::Close(by_end))?;
    for sidecar in sidecars {
        let freed = eventually(patient(Duration::from_secs(2)), || sidecar.live().is_ok_and(|live| live == 0));
        ensure!(freed, "still there: {}", sidecar.connections()?);
    }
    Ok(())
}

/// 13
#[test]
fn a_killed_sidecar_resets_its_200_streams_at_once_and_new_ones_go_direct() -> Result<()> {
    let world = World::new()?;
    let mut sidecar = Sidecar::start(&world.client, "{}")?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let streams = (0..200).map(|_| app.open(TO_V4).map(|(socket, _)| socket)).collect::<Result<Vec<_>>>()?;
    for stream in &streams {
        app.echo(*stream)?;
    }
    let start = Instant::now();
    sidecar.kill()?;
    for stream in &streams {
        let end = app.order(Order::AwaitEnd(*stream))?.outcome;
        ensure!(end == "ECONNRESET", "a stream of a killed sidecar ended with {end}");
    }
    ensure!(start.elapsed() < patient(Duration::from_secs(1)), "the last reset came after {:?}", start.elapsed());
    let local = app.visit(TO_V4)?;
    ensure!(server.accepted()?.last().map(SocketAddr::port) == Some(local.port()), "not direct");
    let left = bpf::attached_programs(&world.client)?;
    ensure!(left == 0, "{left} programs are still attached");
    Ok(())
}

/// 18
#[test]
fn a_foreign_program_that_shares_the_hook_does_no_harm() -> Result<()> {
    let world = World::new()?;
    bpf::attach_foreign_connect4(world.client.cgroup(), true)?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let _server = Puppet::serving(&world.server, ANY)?;
    Puppet::start(&world.client)?.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1);
    Ok(())
}

/// 18: programs of the pod run before those of its parents, and see what the application meant.
#[test]
fn a_foreign_program_that_rewrites_for_the_whole_node_works_with_the_sidecar() -> Result<()> {
    let world = World::new()?;
    let node = world.client.cgroup().parent().context("a pod without a parent")?;
    bpf::attach_rewriting_connect4(node, 9999, PORT)?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let service = SocketAddr::new(TO_V4.ip(), 9999);
    Puppet::start(&world.client)?.visit(service).context("without a sidecar")?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    Puppet::start(&world.client)?.visit(service)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1);
    ensure!(sidecar.verdict("sockops", "note", "claimed")? == 1);
    Ok(())
}

/// 22
#[test]
fn equal_addresses_in_two_pods_do_not_meet() -> Result<()> {
    let world = World::new()?;
    for pod in [&world.client, &world.server] {
        pod.add_address("10.88.1.1/32")?;
    }
    let (_client, _server) = (Sidecar::start(&world.client, "{}")?, Sidecar::start(&world.server, "{}")?);
    let mut a = Puppet::serving(&world.client, ANY)?;
    let mut b = Puppet::serving(&world.server, ANY)?;
    for ip in ["127.0.0.1", "10.88.1.1"] {
        let own = SocketAddr::new(ip.parse::<IpAddr>()?, PORT);
        let (before_a, before_b) = (a.accepted()?.len(), b.accepted()?.len());
        a.visit(own)?;
        b.visit(own)?;
        ensure!(a.accepted()?.len() == before_a + 1 && b.accepted()?.len() == before_b + 1, "{ip}");
    }
    Ok(())
}

/// 33
#[test]
fn churn_with_resets_leaves_nothing_behind() -> Result<()> {
    let mesh = Mesh::new(Layout::BOTH)?;
    let _server = Puppet::serving(&mesh.world.server, ANY)?;
    let mut app = Puppet::start(&mesh.world.client)?;
    let sidecar = mesh.client.as_ref().context("the client's sidecar")?;
    app.must(Order::Churn(TO_V4, 200))?;
    let settled = || sidecar.live().is_ok_and(|live| live == 0);
    ensure!(eventually(patient(Duration::from_secs(3)), settled), "{}", sidecar.connections()?);
    let (before, resident) = (sidecar.descriptors()?, sidecar.resident_pages()?);
    let (rounds, each) = (20, work(200));
    for _ in 0..rounds {
        app.must(Order::Churn(TO_V4, each))?;
    }
    ensure!(eventually(patient(Duration::from_secs(3)), settled), "{}", sidecar.connections()?);
    let after = sidecar.descriptors()?;
    ensure!(after <= before + 4, "{before} open descriptors before, {after} after");
    let grown = sidecar.resident_pages()?.saturating_sub(resident);
    ensure!(grown < 2048, "it has grown by {grown} pages");
    let notes = |reason| sidecar.verdict("sockops", "note", reason);
    ensure!(
        notes("published")? == notes("claimed")?,
        "{} published, {} claimed",
        notes("published")?,
        notes("claimed")?
    );
    ensure!(sidecar.verdict("connect", "capture", "captured")? == u64::from(200 + rounds * each));
    Ok(())
}

/// 33, at the speed of the machine: no end of a connection leaves anything of it.
#[test]
fn a_storm_of_every_way_to_end_leaves_nothing_behind() -> Result<()> {
    const TIME: Duration = Duration::from_secs(15);
    let mesh = Mesh::new(Layout::BOTH)?;
    let world = &mesh.world;
    for pod in [&world.client, &world.server] {
        // Ports in TIME_WAIT must not be what limits it.
        pod.sysctl("net/ipv4/ip_local_reserved_ports", "8080,15000-15021")?;
        pod.sysctl("net/ipv4/ip_local_port_range", "2000 65000")?;
        pod.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    }
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut apps = (0..4).map(|_| Puppet::start(&world.client)).collect::<Result<Vec<_>>>()?;
    let sidecars = [mesh.client.as_ref(), mesh.server.as_ref()].map(|sidecar| sidecar.expect("both have one"));
    for app in &mut apps {
        app.must(Order::Storm(TO_V4, Duration::from_millis(500)))?;
    }
    let quiet = || sidecars.iter().all(|sidecar| sidecar.live().is_ok_and(|live| live == 0));
    ensure!(eventually(PATIENCE, quiet), "connections stay open after the first gust");
    let state = || -> Result<Vec<(usize, u64)>> {
        sidecars.iter().map(|sidecar| Ok((sidecar.descriptors()?, sidecar.anonymous_kib()?))).collect()
    };
    let before = state()?;
    for app in &mut apps {
        app.begin(Order::Storm(TO_V4, TIME))?;
    }
    for app in &mut apps {
        let answer = app.answer(TIME + PATIENCE)?;
        ensure!(answer.outcome == "ok", "{answer:?}{}", app.process().output());
    }
    ensure!(eventually(PATIENCE, quiet), "{}{}", sidecars[0].connections()?, sidecars[1].connections()?);
    for ((descriptors, memory), sidecar) in before.into_iter().zip(sidecars) {
        nothing_is_left(sidecar)?;
        let now = sidecar.descriptors()?;
        ensure!(now <= descriptors + 4, "{descriptors} open descriptors before, {now} after");
        let grown = sidecar.anonymous_kib()?.saturating_sub(memory);
        ensure!(grown < 4096, "it has grown by {grown} KiB");
    }
    for pod in [&world.client, &world.server] {
        // Listeners, and the question itself.
        let few = || pod.tcp_sockets().is_ok_and(|sockets| sockets < 20);
        ensure!(eventually(PATIENCE, few), "{} sockets stay in use in {}", pod.tcp_sockets()?, pod.name());
    }
    apps[0].visit(TO_V4).map(drop)
}

/// Gauge and maps, when no connection is open.
fn nothing_is_left(sidecar: &Sidecar) -> Result<()> {
    for map in ["FLOWS", "PRESENTED_FLOWS"] {
        let notes = || bpf::map_entries(sidecar.process.pid(), map);
        ensure!(eventually(PATIENCE, || notes().is_ok_and(|notes| notes == 0)), "{} notes in {map}", notes()?);
    }
    let metrics = sidecar.metrics()?;
    let gauge = metrics.sum("sidecar_connections", &[]);
    ensure!(gauge == 0.0, "the gauge says {gauge}");
    ensure!(metrics.sum("sidecar_connections_closed_total", &[("reason", "aborted")]) == 0.0, "a relay was aborted");
    ensure!(sidecar.is_ready());
    Ok(())
}

/// 42
#[test]
fn a_container_that_is_made_again_is_captured() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let _server = Puppet::serving(&world.server, ANY)?;
    Puppet::start(&world.client)?.visit(TO_V4)?;
    let app = world.client.app_cgroup();
    ensure!(eventually(PATIENCE, || fs::remove_dir(app).is_ok()), "the container's cgroup cannot be removed");
    fs::create_dir(app)?;
    Puppet::start(&world.client)?.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 2);
    Ok(())
}

/// 42: the programs went with the cgroup that they were attached to.
#[test]
fn a_pod_cgroup_that_is_made_again_makes_the_sidecar_unready() -> Result<()> {
    let world = World::new()?;
    let pod = &world.client;
    let sidecar = Sidecar::start(pod, "{}")?;
    // Nothing of it can be removed while the sidecar is in it.
    let node = pod.cgroup().parent().context("a pod without a parent")?;
    for pid in sidecar.pids() {
        fs::write(node.join("cgroup.procs"), pid.to_string())?;
    }
    for cgroup in [pod.app_cgroup(), pod.sidecar_cgroup(), pod.cgroup()] {
        ensure!(eventually(PATIENCE, || fs::remove_dir(cgroup).is_ok()), "{} stays", cgroup.display());
    }
    for cgroup in [pod.cgroup(), pod.app_cgroup(), pod.sidecar_cgroup()] {
        fs::create_dir(cgroup)?;
    }
    ensure!(eventually(PATIENCE, || !sidecar.is_ready()), "ready without capturing{}", sidecar.process.output());
    let why = pod.get(15021, "/healthz/ready")?.body;
    ensure!(why.contains("programs") && why.contains("cgroup"), "{why}");
    // The application goes on without it.
    let _server = Puppet::serving(&world.server, ANY)?;
    Puppet::start(pod)?.visit(TO_V4).map(drop)
}

/// A stream that waits while its sidecar is stopped loses nothing (14).
#[test]
fn a_stream_survives_the_stopping_of_both_sidecars() -> Result<()> {
    let mesh = Mesh::new(Layout::BOTH)?;
    let _server = Puppet::serving(&mesh.world.server, ANY)?;
    let mut app = Puppet::start(&mesh.world.client)?;
    let (stream, _) = app.open(TO_V4)?;
    app.echo(stream)?;
    let sidecars = [mesh.client.as_ref(), mesh.server.as_ref()].map(|sidecar| sidecar.expect("both have one"));
    for sidecar in sidecars {
        sidecar.signal(Signal::SIGSTOP)?;
    }
    app.must(Order::Send(stream, 100_000))?;
    for sidecar in sidecars {
        sidecar.signal(Signal::SIGCONT)?;
    }
    app.must(Order::Finish(stream))?;
    ensure!(app.order(Order::AwaitEnd(stream))?.outcome == "ok");
    Ok(())
}
