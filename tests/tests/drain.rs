//! How a sidecar ends: inbound first, outbound with the application, and a job's with its job.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, PORT, TO_V4},
    harness::{PATIENCE, Process, Puppet, Sidecar, World, bpf, eventually, patient},
};

/// So long that a test which waits for it fails.
const LONG: &str = "proxy: { drain_deadline: 10m }\n";

/// The client's sidecar ends; the server sees where connections come from.
struct Stage {
    sidecar: Sidecar,
    app: Puppet,
    server: Puppet,
    world: World,
}

impl Stage {
    fn new(config: &str) -> Result<Self> {
        let world = World::new()?;
        let server = Puppet::serving(&world.server, ANY)?;
        let sidecar = Sidecar::start(&world.client, config)?;
        Ok(Self { app: Puppet::start(&world.client)?, sidecar, server, world })
    }

    /// Whether a new connection goes without a proxy: the server sees the application's own port.
    fn goes_direct(&mut self) -> Result<bool> {
        let local = self.app.visit(TO_V4)?;
        Ok(self.server.accepted()?.last().map(SocketAddr::port) == Some(local.port()))
    }

    /// Has the sidecar begun to drain.
    fn drains(&self) -> bool {
        eventually(PATIENCE, || !self.sidecar.is_ready())
    }

    /// It has ended well, and soon.
    fn ended(&mut self) -> Result<()> {
        ended(&mut self.sidecar)
    }
}

/// It ends well, and soon: within a second for a machine of usual speed.
fn ended(sidecar: &mut Sidecar) -> Result<()> {
    let start = Instant::now();
    let status = sidecar.process.wait(PATIENCE)?;
    ensure!(status.code() == Some(0), "{status}{}", sidecar.process.output());
    ensure!(start.elapsed() < patient(Duration::from_secs(1)), "it took {:?}", start.elapsed());
    Ok(())
}

#[test]
fn outbound_is_captured_until_the_last_process_of_the_application_has_ended() -> Result<()> {
    let mut stage = Stage::new(LONG)?;
    let last = Puppet::start(&stage.world.client)?;
    stage.sidecar.signal(Signal::SIGTERM)?;
    ensure!(stage.drains(), "it says that it is ready");
    let (live, _) = stage.app.open(TO_V4)?;
    for _ in 0..3 {
        ensure!(!stage.goes_direct()?, "a connection of the application goes past a draining sidecar");
    }
    stage.app.echo(live)?;
    let mut last = std::mem::replace(&mut stage.app, last);
    ensure!(!stage.goes_direct()?, "a connection of a second process goes past it");
    last.must(Order::Close(live))?;
    drop(last);
    ensure!(!stage.goes_direct()?, "it has ended although a process is left");
    stage.app = Puppet::start(&stage.world.server)?;
    stage.ended()?;
    ensure!(bpf::attached_programs(&stage.world.client)? == 0, "programs are still attached");
    Ok(())
}

#[test]
fn inbound_stops_at_once_and_outbound_does_not() -> Result<()> {
    let world = World::new()?;
    let mut pod = Puppet::serving(&world.server, ANY)?;
    let mut client = Puppet::serving(&world.client, ANY)?;
    let mut sidecar = Sidecar::start(&world.server, LONG)?;
    let (live, _) = client.open(TO_V4)?;
    client.echo(live)?;
    sidecar.signal(Signal::SIGTERM)?;
    let passes =
        || client.visit(TO_V4).is_ok() && sidecar.verdict("sk_lookup", "bypass", "proxy_gone").is_ok_and(|n| n > 0);
    ensure!(eventually(PATIENCE, passes), "inbound still goes to the proxy: {}", sidecar.verdicts());
    let steered = sidecar.verdict("sk_lookup", "capture", "steered")?;
    let captured = sidecar.verdict("connect", "capture", "captured")?;
    for _ in 0..3 {
        client.visit(TO_V4)?;
        pod.visit(SocketAddr::new(world.client.v4().into(), PORT))?;
    }
    ensure!(sidecar.verdict("sk_lookup", "capture", "steered")? == steered, "inbound: {}", sidecar.verdicts());
    ensure!(sidecar.verdict("connect", "capture", "captured")? == captured + 3, "outbound: {}", sidecar.verdicts());
    client.echo(live).context("an inbound connection from before")?;
    client.must(Order::Close(live))?;
    drop(pod);
    ended(&mut sidecar)
}

#[test]
fn inbound_is_refused_at_once_in_closed_mode_and_outbound_goes_on() -> Result<()> {
    let world = World::new()?;
    let mut pod = Puppet::serving(&world.server, ANY)?;
    let mut client = Puppet::serving(&world.client, ANY)?;
    let config = "{ capture: { on_failure: closed }, proxy: { drain_deadline: 10m } }";
    let mut sidecar = Sidecar::start(&world.server, config)?;
    client.visit(TO_V4)?;
    sidecar.signal(Signal::SIGTERM)?;
    // One that comes just before is carried, and would keep the sidecar if it stayed open.
    let mut refused = || match client.try_open(TO_V4) {
        Ok((_, answer)) if answer.outcome == "ECONNREFUSED" => true,
        Ok((socket, _)) => client.must(Order::Close(socket)).is_err(),
        Err(_) => false,
    };
    ensure!(eventually(PATIENCE, &mut refused) && refused(), "inbound is not refused");
    pod.visit(SocketAddr::new(world.client.v4().into(), PORT))?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1, "{}", sidecar.verdicts());
    drop(pod);
    ended(&mut sidecar)
}

#[test]
fn a_pod_without_an_application_is_not_waited_for() -> Result<()> {
    let world = World::new()?;
    let mut sidecar = Sidecar::start(&world.client, LONG)?;
    sidecar.signal(Signal::SIGTERM)?;
    ended(&mut sidecar)
}

#[test]
fn processes_that_only_watch_containers_are_not_waited_for() -> Result<()> {
    let world = World::new()?;
    let conmon = world.client.cgroup().join(format!("crio-conmon-{}.scope", "a".repeat(64)));
    std::fs::create_dir(&conmon)?;
    let watcher = Puppet::start(&world.client)?;
    let mut sidecar = Sidecar::start(&world.client, LONG)?;
    watcher.process().move_to(&conmon)?;
    sidecar.signal(Signal::SIGTERM)?;
    ended(&mut sidecar)
}

#[test]
fn the_deadline_ends_it_although_the_application_goes_on() -> Result<()> {
    let mut stage = Stage::new("proxy: { drain_deadline: 700ms }")?;
    let (live, _) = stage.app.open(TO_V4)?;
    stage.app.echo(live)?;
    let start = Instant::now();
    stage.sidecar.signal(Signal::SIGTERM)?;
    ensure!(stage.drains() && !stage.goes_direct()?, "outbound was not captured while it drained");
    let end = stage.app.order(Order::AwaitEnd(live))?;
    ensure!(end.outcome == "ECONNRESET" && start.elapsed() >= Duration::from_millis(700), "{end:?}");
    stage.ended()?;
    ensure!(stage.goes_direct()?, "it still captures");
    let told = stage.sidecar.process.err.text();
    ensure!(told.contains("before the application has ended"), "{told}");
    Ok(())
}

#[test]
fn a_second_signal_ends_it_at_once_although_the_application_goes_on() -> Result<()> {
    let mut stage = Stage::new(LONG)?;
    stage.sidecar.signal(Signal::SIGTERM)?;
    ensure!(stage.drains(), "it does not drain");
    stage.sidecar.signal(Signal::SIGINT)?;
    stage.ended()
}

/// `sidecar drain` where it reaches the sidecar's socket.
fn drain(world: &World, arguments: &[&str]) -> Result<Process> {
    let mut command: Command = Sidecar::program()?;
    command.arg("drain").args(arguments);
    world.client.spawn_beside_sidecar(command)
}

#[test]
fn sidecar_drain_says_what_remains_and_waits_for_the_end() -> Result<()> {
    let mut stage = Stage::new(LONG)?;
    let (live, _) = stage.app.open(TO_V4)?;
    stage.app.echo(live)?;
    let mut asking = drain(&stage.world, &[])?;
    let said = asking.out.wait_for(PATIENCE, |lines| lines.first().cloned()).context("it says nothing")?;
    for part in ["inbound has stopped", "1 application process,", "0 inbound and 1 outbound connections"] {
        ensure!(said.contains(part), "no {part} in: {said}");
    }
    ensure!(stage.drains() && !stage.goes_direct()?, "outbound was not captured while it drained");
    ensure!(asking.is_running() && stage.sidecar.process.is_running(), "it did not wait for the application");
    stage.app = Puppet::start(&stage.world.server)?;
    stage.ended()?;
    let status = asking.wait(PATIENCE)?;
    ensure!(
        status.code() == Some(0) && asking.out.lines().last().is_some_and(|last| last == "ended"),
        "{status}{}",
        asking.output()
    );
    Ok(())
}

#[test]
fn sidecar_drain_need_not_wait_and_a_sigterm_that_follows_does_not_cut_it_short() -> Result<()> {
    let mut stage = Stage::new(LONG)?;
    drain(&stage.world, &["--no-wait"])?.finish(PATIENCE)?;
    ensure!(stage.drains(), "it does not drain");
    // As an orchestrator does after its hook.
    stage.sidecar.signal(Signal::SIGTERM)?;
    let heard = stage
        .sidecar
        .process
        .err
        .wait_for(PATIENCE, |lines| lines.iter().any(|line| line.contains("draining already")).then_some(()));
    ensure!(heard.is_some() && !stage.goes_direct()?, "the signal ended it{}", stage.sidecar.process.output());
    stage.sidecar.signal(Signal::SIGTERM)?;
    stage.ended()
}

#[test]
fn sidecar_drain_without_a_sidecar_says_what_to_do() -> Result<()> {
    let world = World::new()?;
    let path = world.client.directory().join("nobody.sock");
    let of = format!("telemetry.admin_socket={}", path.display());
    for (arguments, place) in [(vec![], "/run/sidecar/"), (vec!["--set", &of], path.to_str().context("path")?)] {
        let mut asking = drain(&world, &arguments)?;
        let status = asking.wait(PATIENCE)?;
        let said = asking.err.text();
        ensure!(status.code() == Some(1), "{status}: {said}");
        for part in ["no sidecar answers at", place, "nsenter --net", "telemetry.admin_socket"] {
            ensure!(said.contains(part), "no {part} in: {said}");
        }
    }
    Ok(())
}

const JOB: &str = "{ lifecycle: { exit_with_application: true }, proxy: { drain_deadline: 10m } }";

#[test]
fn the_sidecar_of_a_job_ends_within_a_second_of_its_last_process() -> Result<()> {
    let mut stage = Stage::new(JOB)?;
    let (live, _) = stage.app.open(TO_V4)?;
    stage.app.echo(live)?;
    let last = Puppet::start(&stage.world.client)?;
    // Both were there when it looked, and one goes first.
    ensure!(!stage.goes_direct()?);
    stage.app = last;
    for _ in 0..3 {
        ensure!(!stage.goes_direct()?, "it has ended although a process is left");
    }
    stage.app = Puppet::start(&stage.world.server)?;
    stage.ended()?;
    let told = stage.sidecar.process.err.text();
    ensure!(told.contains("the end of the application"), "{told}");
    Ok(())
}

/// Not a byte is lost by that: what was sent before the end is delivered, however late it is read.
#[test]
fn a_peer_that_keeps_its_end_open_does_not_keep_the_sidecar_of_a_job() -> Result<()> {
    let mut stage = Stage::new(JOB)?;
    let deaf = SocketAddr::new(ANY.ip(), 9090);
    stage.server.must(Order::Ignore(deaf, 10))?;
    let (socket, _) = stage.app.open(SocketAddr::new(TO_V4.ip(), deaf.port()))?;
    stage.app.must(Order::Send(socket, 30_000))?;
    let carried = || stage.sidecar.connections().is_ok_and(|rows| rows.to_string().contains("30000"));
    ensure!(eventually(PATIENCE, carried), "{}", stage.sidecar.connections()?);
    stage.app = Puppet::start(&stage.world.server)?;
    stage.ended()?;
    let read = stage.server.must(Order::Drain)?.moved;
    ensure!(read == 30_000, "{read} bytes arrived");
    let told = stage.sidecar.process.out.text();
    ensure!(told.contains("reason=completed"), "{told}");
    Ok(())
}

#[test]
fn the_sidecar_of_a_job_waits_for_its_application_to_come() -> Result<()> {
    let world = World::new()?;
    let mut job = Sidecar::start(&world.client, JOB)?;
    let mut service = Sidecar::start(&world.server, LONG)?;
    // That something does not happen can only be told over a time: several of its looks.
    std::thread::sleep(patient(Duration::from_secs(1)));
    ensure!(
        job.process.is_running() && job.is_ready(),
        "it ended before there was an application{}",
        job.process.output()
    );
    let server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    app.visit(TO_V4)?;
    // As long as it takes to be noticed.
    std::thread::sleep(patient(Duration::from_millis(400)));
    drop(app);
    ended(&mut job)?;
    drop(server);
    std::thread::sleep(patient(Duration::from_secs(1)));
    ensure!(service.process.is_running() && service.is_ready(), "a service's sidecar ended with its application");
    Ok(())
}
