//! How sidecars begin, end, hang and come back, and what that means for the application.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4},
    harness::{PATIENCE, Process, Puppet, Sidecar, Spawn, Wedge, World, bpf, eventually, patient},
};

/// A test of the client's sidecar needs a server without one, which sees where connections come from.
struct Stage {
    app: Puppet,
    server: Puppet,
    world: World,
}

fn stage() -> Result<Stage> {
    let world = World::new()?;
    Ok(Stage { app: Puppet::start(&world.client)?, server: Puppet::serving(&world.server, ANY)?, world })
}

impl Stage {
    /// Whether a new connection goes without a proxy: the server sees the application's own port.
    fn goes_direct(&mut self) -> Result<bool> {
        let local = self.app.visit(TO_V4)?;
        Ok(self.server.accepted()?.last().map(SocketAddr::port) == Some(local.port()))
    }
}

/// With this `on_failure`, and soon given up when it hangs.
fn config(on_failure: &str) -> String {
    let age = patient(Duration::from_millis(300)).as_millis();
    format!(
        "{{ capture: {{ on_failure: {on_failure}, heartbeat_max_age: {age}ms }}, proxy: {{ workers: 2, hung_after: 1m }} }}"
    )
}

#[test]
fn sigterm_lets_live_connections_end_and_exits_with_0() -> Result<()> {
    let world = World::new()?;
    let server = Puppet::serving(&world.server, ANY)?;
    let mut client = Puppet::start(&world.client)?;
    let mut sidecar = Sidecar::start(&world.server, "proxy: { drain_deadline: 10m }")?;
    let (live, _) = client.open(TO_V4)?;
    client.echo(live)?;
    sidecar.signal(Signal::SIGTERM)?;
    let pod = &world.server;
    let unready = eventually(PATIENCE, || !pod.get(15021, "/healthz/ready").is_ok_and(|answer| answer.status == 200));
    ensure!(unready, "a draining sidecar says that it is ready");
    client.echo(live).context("a live connection while draining")?;
    drop(server);
    client.order(Order::AwaitEnd(live))?;
    client.must(Order::Close(live))?;
    let start = Instant::now();
    let status = sidecar.process.wait(PATIENCE)?;
    ensure!(status.code() == Some(0), "{status}{}", sidecar.process.output());
    ensure!(
        start.elapsed() < patient(Duration::from_secs(5)),
        "it went on waiting after its last connection had ended"
    );
    Ok(())
}

#[test]
fn the_drain_deadline_resets_what_is_left() -> Result<()> {
    let mut stage = stage()?;
    let mut sidecar = Sidecar::start(&stage.world.client, "proxy: { drain_deadline: 500ms }")?;
    let (live, _) = stage.app.open(TO_V4)?;
    stage.app.echo(live)?;
    sidecar.signal(Signal::SIGTERM)?;
    ensure!(stage.app.order(Order::AwaitEnd(live))?.outcome == "ECONNRESET");
    let status = sidecar.process.wait(PATIENCE)?;
    ensure!(status.code() == Some(0), "{status}{}", sidecar.process.output());
    Ok(())
}

#[test]
fn a_second_signal_ends_it_at_once() -> Result<()> {
    let mut stage = stage()?;
    let mut sidecar = Sidecar::start(&stage.world.client, "proxy: { drain_deadline: 60s }")?;
    let (live, _) = stage.app.open(TO_V4)?;
    stage.app.echo(live)?;
    sidecar.signal(Signal::SIGTERM)?;
    let pod = &stage.world.client;
    eventually(PATIENCE, || !pod.get(15021, "/healthz/ready").is_ok_and(|answer| answer.status == 200));
    let start = Instant::now();
    sidecar.signal(Signal::SIGTERM)?;
    sidecar.process.wait(PATIENCE)?;
    ensure!(start.elapsed() < patient(Duration::from_secs(2)), "it took {:?}", start.elapsed());
    ensure!(stage.app.order(Order::AwaitEnd(live))?.outcome == "ECONNRESET");
    Ok(())
}

#[test]
fn a_killed_sidecar_leaves_nothing_attached() -> Result<()> {
    for config in [config("open").as_str(), "{}"] {
        let mut stage = stage()?;
        let mut sidecar = Sidecar::start(&stage.world.client, config)?;
        ensure!(!stage.goes_direct()?);
        let pod = &stage.world.client;
        ensure!(bpf::attached_programs(pod)? > 0, "what is attached cannot be seen");
        sidecar.kill()?;
        ensure!(bpf::attached_programs(pod)? == 0, "{config}");
        ensure!(stage.goes_direct()?, "{config}");
    }
    Ok(())
}

#[test]
fn a_killed_sidecar_comes_back() -> Result<()> {
    let mut stage = stage()?;
    for _ in 0..3 {
        let mut sidecar = Sidecar::start(&stage.world.client, &config("open"))?;
        ensure!(!stage.goes_direct()?, "it does not capture");
        sidecar.kill()?;
        ensure!(stage.goes_direct()?, "it still captures");
    }
    Ok(())
}

#[test]
fn a_stopped_sidecar_is_bypassed_in_open_mode() -> Result<()> {
    let mut stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.client, &config("open"))?;
    let (live, _) = stage.app.open(TO_V4)?;
    stage.app.echo(live)?;
    sidecar.signal(Signal::SIGSTOP)?;
    wait_for_stale_heartbeat();
    let start = Instant::now();
    ensure!(stage.goes_direct()?, "a hung sidecar was given a connection");
    ensure!(start.elapsed() < patient(Duration::from_secs(1)), "it took {:?}", start.elapsed());
    sidecar.signal(Signal::SIGCONT)?;
    stage.app.echo(live).context("a connection from before")?;
    let captures_again = || stage.goes_direct().is_ok_and(|direct| !direct);
    ensure!(eventually(patient(Duration::from_secs(3)), captures_again), "it does not capture any more");
    ensure!(sidecar.verdict("connect", "bypass", "proxy_stale")? >= 1);
    Ok(())
}

#[test]
fn a_stopped_sidecar_refuses_at_once_in_closed_mode() -> Result<()> {
    let mut stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.client, &config("closed"))?;
    let (live, _) = stage.app.open(TO_V4)?;
    stage.app.echo(live)?;
    sidecar.signal(Signal::SIGSTOP)?;
    wait_for_stale_heartbeat();
    let (_, answer) = stage.app.try_open(TO_V4)?;
    ensure!(answer.outcome == "ECONNREFUSED" && answer.took < patient(Duration::from_millis(500)), "{answer:?}");
    sidecar.signal(Signal::SIGCONT)?;
    stage.app.echo(live).context("a connection from before")?;
    let captures_again = || stage.goes_direct().is_ok_and(|direct| !direct);
    ensure!(eventually(patient(Duration::from_secs(3)), captures_again), "it does not capture any more");
    ensure!(sidecar.verdict("connect", "deny", "proxy_stale")? >= 1);
    Ok(())
}

#[test]
fn a_stopped_sidecar_of_the_server_is_bypassed_or_refuses() -> Result<()> {
    for (on_failure, verdict, expected) in [("open", "bypass", "ok"), ("closed", "deny", "ECONNREFUSED")] {
        let mut stage = stage()?;
        let sidecar = Sidecar::start(&stage.world.server, &config(on_failure))?;
        stage.app.visit(TO_V4)?;
        sidecar.signal(Signal::SIGSTOP)?;
        wait_for_stale_heartbeat();
        let (_, answer) = stage.app.try_open(TO_V4)?;
        ensure!(
            answer.outcome == expected && answer.took < patient(Duration::from_millis(500)),
            "{on_failure}: {answer:?}"
        );
        sidecar.signal(Signal::SIGCONT)?;
        let steers_again = || stage.app.visit(TO_V4).is_ok() && sidecar.is_ready();
        ensure!(eventually(patient(Duration::from_secs(3)), steers_again), "{on_failure}: it does not steer any more");
        ensure!(sidecar.verdict("sk_lookup", verdict, "proxy_stale")? >= 1);
    }
    Ok(())
}

#[test]
fn one_wedged_worker_is_enough_to_be_bypassed() -> Result<()> {
    let mut stage = stage()?;
    let sidecar = Sidecar::start(&stage.world.client, &config("open"))?;
    ensure!(!stage.goes_direct()?);
    let wedge = Wedge::new(sidecar.worker()?, "worker-1")?;
    // One that sleeps is asked once in `heartbeat_max_age`, and so is found out within two.
    ensure!(eventually(patient(Duration::from_secs(3)), || !sidecar.is_ready()), "nobody notices");
    for _ in 0..10 {
        ensure!(stage.goes_direct()?, "a connection went to a proxy of which half hangs");
    }
    ensure!(sidecar.verdict("connect", "bypass", "proxy_stale")? >= 10);
    drop(wedge);
    let captures_again = || stage.goes_direct().is_ok_and(|direct| !direct);
    ensure!(eventually(patient(Duration::from_secs(3)), captures_again), "it does not capture any more");
    Ok(())
}

/// Time is what makes a heartbeat old: there is nothing to wait for.
fn wait_for_stale_heartbeat() {
    std::thread::sleep(patient(Duration::from_millis(500)));
}

#[test]
fn connections_from_before_the_start_go_on() -> Result<()> {
    let mut stage = stage()?;
    let (before, _) = stage.app.open(TO_V4)?;
    let unconnected = stage.app.make(TO_V4)?;
    let _client = Sidecar::start(&stage.world.client, "{}")?;
    let server = Sidecar::start(&stage.world.server, "{}")?;
    stage.app.echo(before)?;
    // The server's listener is older than its sidecar, and so is the client's socket.
    stage.app.must(Order::Connect(unconnected, TO_V4))?;
    stage.app.echo(unconnected)?;
    ensure!(server.verdict("sk_lookup", "capture", "steered")? == 1);
    Ok(())
}

#[test]
fn it_serves_a_pod_from_outside() -> Result<()> {
    let mut stage = stage()?;
    let pod = &stage.world.client;
    let file = pod.directory().join("outside.yaml");
    let (cgroup, netns) = (pod.cgroup().display(), pod.netns().path());
    std::fs::write(&file, format!("pod: {{ cgroup: {cgroup}, netns: {} }}", netns.display()))?;
    let mut command = Sidecar::program()?;
    command.arg("run").arg("--config").arg(&file);
    let outside: Process = Spawn::default().start(command)?;
    let ready = eventually(PATIENCE, || pod.get(15021, "/healthz/ready").is_ok_and(|answer| answer.status == 200));
    ensure!(ready, "not ready{}", outside.output());
    ensure!(!stage.goes_direct()?, "not captured{}", outside.output());
    Ok(())
}
