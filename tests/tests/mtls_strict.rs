//! Where mutual TLS is a must, nothing passes in plaintext: neither what the proxy cannot carry, nor while no proxy is
//! there.

use std::{
    net::{SocketAddr, SocketAddrV6},
    num::NonZeroU32,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use nix::{net::if_::if_nametoindex, sys::signal::Signal};
use sidecar_tests::{
    agent::puppet::{Answer, Handle, Order},
    cases::net::{ANY, CLIENT_LINK_LOCAL, PORT, SERVER_LINK_LOCAL, TO_V4, TO_V6},
    harness::{
        Authority, Layout, Mesh, PATIENCE, Pod, Puppet, Segment, Sidecar, Spawn, TRUST_DOMAIN, Wire, World, bpf,
    },
};

const STRICT: &str = "mtls: { mode: strict }\n";

/// Starts a sidecar for which mutual TLS is a must.
fn strict(world: &World, pod: &Arc<Pod>, more: &str) -> Result<Sidecar> {
    let identity = Authority::named(world, pod.name(), TRUST_DOMAIN)?.issue(pod, "strict")?;
    Sidecar::start(pod, &format!("{identity}{STRICT}{more}"))
}

fn device(world: &World, name: &str) -> Result<u32> {
    Ok(world.client.netns().run(|| if_nametoindex(name))??)
}

fn link_local(world: &World) -> Result<SocketAddr> {
    world.client.add_address(&format!("{CLIENT_LINK_LOCAL}/64"))?;
    world.server.add_address(&format!("{SERVER_LINK_LOCAL}/64"))?;
    Ok(SocketAddrV6::new(SERVER_LINK_LOCAL, PORT, 0, device(world, "eth0")?).into())
}

/// What the application sends to the server's port over the network.
fn leaves(segment: &Segment) -> bool {
    !segment.loopback && segment.to.port() == PORT
}

/// What the proxy cannot carry, by the reason that is counted.
fn uncarried(app: &mut Puppet, world: &World) -> Result<[(&'static str, Handle, SocketAddr); 3]> {
    world.client.ip("link add other type veth peer name beyond\nlink set other up\nlink set beyond up\n\
         addr add 10.44.0.1/24 dev other\nneigh add 10.77.0.2 lladdr 02:00:00:00:00:02 dev other")?;
    let near = link_local(world)?;
    let (to_near, foreign, on_device) = (app.make(near)?, app.make(TO_V4)?, app.make(TO_V4)?);
    app.must(Order::Bind(foreign, "10.66.6.6:0".parse()?))?;
    let other = NonZeroU32::new(device(world, "other")?).context("no device")?;
    app.must(Order::BindDevice(on_device, other))?;
    Ok([("link_local", to_near, near), ("foreign_source", foreign, TO_V4), ("bound_device", on_device, TO_V4)])
}

#[test]
fn what_the_proxy_cannot_carry_is_refused_and_leaves_no_segment() -> Result<()> {
    for must in [false, true] {
        let world = World::new()?;
        let sidecar = if must { strict(&world, &world.client, "")? } else { Sidecar::start(&world.client, "{}")? };
        let mut app = Puppet::start(&world.client)?;
        let mut wire = Wire::tap(world.client.netns())?;
        for (reason, socket, to) in uncarried(&mut app, &world)? {
            let answer = app.order(Order::Begin(socket, to))?;
            let verdict = if must { "deny" } else { "bypass" };
            ensure!(sidecar.verdict("connect", verdict, reason)? == 1, "{reason}: {answer:?}\n{}", sidecar.verdicts());
            if must {
                ensure!(answer.outcome == "EPERM", "{reason}: {answer:?}");
                let sent: Vec<_> = wire.segments()?.iter().filter(|segment| leaves(segment)).collect();
                ensure!(sent.is_empty(), "{reason}: {sent:?}");
            } else {
                wire.wait_for(reason, |segment| leaves(segment) && segment.is_syn())?;
            }
            wire.forget()?;
        }
    }
    Ok(())
}

#[test]
fn a_process_of_the_pod_in_another_namespace_is_refused_but_for_what_stays_or_is_excluded() -> Result<()> {
    let world = World::new()?;
    let more = "capture: { outbound: { exclude_ports: [9090] } }\n";
    let sidecar = strict(&world, &world.client, more)?;
    let mut client = Puppet::serving(&world.client, ANY)?;
    client.serve("[::]:9090".parse()?)?;
    let elsewhere =
        Spawn { netns: Some(world.server.netns()), cgroup: Some(world.client.app_cgroup()), ..Spawn::default() };
    let mut guest = Puppet::of(elsewhere.start(Puppet::command()?)?);
    let mut wire = Wire::tap(world.server.netns())?;
    let (_, answer) = guest.try_open("10.77.0.1:8080".parse()?)?;
    ensure!(answer.outcome == "EPERM", "{answer:?}");
    ensure!(!wire.segments()?.iter().any(leaves), "a segment left");
    ensure!(sidecar.verdict("connect", "deny", "other_netns")? == 1);
    let mut server = Puppet::of(
        Spawn { netns: Some(world.server.netns()), cgroup: Some(world.client.app_cgroup()), ..Spawn::default() }
            .start(Puppet::command()?)?,
    );
    server.serve(ANY)?;
    guest.visit("127.0.0.1:8080".parse()?)?;
    let (_, answer) = guest.try_open("10.77.0.1:9090".parse()?)?;
    ensure!(answer.outcome == "ok", "excluded: {answer:?}");
    ensure!(sidecar.verdict("connect", "bypass", "other_netns")? == 2);
    Ok(())
}

#[test]
fn a_multipath_client_is_carried_and_nothing_of_it_is_readable_on_the_wire() -> Result<()> {
    let mesh = Mesh::new(Layout::STRICT)?;
    let _server = Puppet::serving(&mesh.world.server, ANY)?;
    let mut app = Puppet::start(&mesh.world.client)?;
    let mut wire = Wire::tap(mesh.world.client.netns())?;
    for to in [TO_V4, TO_V6] {
        let socket = app.make_multipath(to)?;
        app.must(Order::Connect(socket, to))?;
        app.must(Order::Send(socket, 100)).with_context(|| mesh.logs())?;
        app.must(Order::Finish(socket))?;
        app.must(Order::AwaitEnd(socket))?;
    }
    // As it was said: a hundred times the same byte.
    let readable = |segment: &&Segment| segment.payload.windows(16).any(|bytes| bytes.iter().all(|b| *b == bytes[0]));
    let (near, far): (Vec<_>, Vec<_>) =
        wire.segments()?.iter().filter(readable).cloned().partition(|segment| segment.loopback);
    ensure!(!near.is_empty() && far.is_empty(), "readable on the way to the sidecar {near:?}, beyond {far:?}");
    let client = mesh.client.as_ref().context("no sidecar")?;
    ensure!(client.verdict("connect", "capture", "captured")? == 2);
    ensure!(client.verdict("connect", "bypass", "mptcp")? == 0);
    Ok(())
}

/// What becomes of a client that speaks plaintext.
fn plaintext(client: &mut Puppet, to: SocketAddr) -> Result<Answer> {
    let (socket, answer) = client.try_open(to)?;
    if answer.outcome != "ok" {
        return Ok(answer);
    }
    client.must(Order::Send(socket, 100))?;
    client.order(Order::AwaitEnd(socket))
}

#[test]
fn a_plaintext_client_is_refused_before_and_after_the_servers_sidecar_was_killed() -> Result<()> {
    let world = World::new()?;
    let near = link_local(&world)?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut client = Puppet::start(&world.client)?;
    let mut sidecar = strict(&world, &world.server, "")?;
    for to in [TO_V4, TO_V6] {
        let answer = plaintext(&mut client, to)?;
        ensure!(answer.outcome == "ECONNRESET", "{to}: {answer:?}");
    }
    let answer = plaintext(&mut client, near)?;
    ensure!(answer.outcome == "ECONNREFUSED", "link-local: {answer:?}");
    ensure!(sidecar.verdict("sk_lookup", "deny", "link_local")? >= 1);
    sidecar.kill()?;
    for to in [TO_V4, TO_V6, near] {
        let answer = plaintext(&mut client, to)?;
        ensure!(answer.outcome == "ECONNREFUSED", "{to}: {answer:?}");
    }
    ensure!(server.accepted()?.is_empty(), "plaintext reached the application");
    // What stays in the pod is nobody's business.
    server.visit("127.0.0.1:8080".parse()?).map(drop)
}

#[test]
fn nothing_leaves_between_a_sidecar_that_was_killed_or_ended_in_order_and_the_next() -> Result<()> {
    let world = World::new()?;
    let authority = Authority::new(&world)?;
    // The application goes on, and the sidecar with it until then.
    const SOON: &str = "proxy: { drain_deadline: 200ms }\n";
    let config = |pod: &Pod| anyhow::Ok(authority.issue(pod, pod.name())? + STRICT + SOON);
    let (at_client, at_server) = (config(&world.client)?, config(&world.server)?);
    let _server = (Sidecar::start(&world.server, &at_server)?, Puppet::serving(&world.server, ANY)?);
    let mut app = Puppet::start(&world.client)?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut sidecar = Sidecar::start(&world.client, &at_client)?;
        app.visit(TO_V4).with_context(|| sidecar.process.output())?;
        let mut wire = Wire::tap(world.client.netns())?;
        sidecar.signal(signal)?;
        sidecar.process.wait(PATIENCE)?;
        wire.forget()?;
        for to in [TO_V4, TO_V6] {
            let (_, answer) = app.try_open(to)?;
            ensure!(answer.outcome == "ECONNREFUSED", "{signal}: {to}: {answer:?}");
        }
        ensure!(!wire.segments()?.iter().any(leaves), "{signal}: a segment left");
    }
    // Whoever wants plaintext says so.
    let mut open = Sidecar::start(&world.client, "{}")?;
    open.signal(Signal::SIGTERM)?;
    open.process.wait(PATIENCE)?;
    ensure!(bpf::attached_programs(&world.client)? == 0, "the pod stays closed");
    Ok(())
}

#[test]
fn an_open_failure_of_a_strict_sidecar_is_warned_about_with_both_keys() -> Result<()> {
    let world = World::new()?;
    let sidecar = strict(&world, &world.client, "capture: { on_failure: open }\n")?;
    let told = sidecar.process.err.text();
    let line = told.lines().find(|line| line.contains("capture.on_failure") && line.contains("mtls"));
    ensure!(line.is_some_and(|line| line.contains("WARN")), "{told}");
    drop(sidecar);
    let mut check = Sidecar::program()?;
    check.arg("check").arg("--config").arg(world.client.directory().join("sidecar.yaml"));
    let report = world.client.spawn_beside_sidecar(check)?.finish(PATIENCE)?;
    let warned = |line: &str| line.starts_with("WARN") && line.contains("capture.on_failure") && line.contains("mtls");
    ensure!(report.lines().any(warned), "{report}");
    ensure!(report.contains("are captured as TCP: mtls.outbound is strict"), "{report}");
    let quiet = strict(&world, &world.server, "")?;
    ensure!(!quiet.process.err.text().contains("capture.on_failure"), "{}", quiet.process.output());
    Ok(())
}
