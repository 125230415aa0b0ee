//! What a sidecar does when something runs out: connections, time, descriptors, memory. The numbers are those of the
//! fault table in the project's notes.

#[path = "limits/memory.rs"]
mod memory;
#[path = "limits/shortage.rs"]
mod shortage;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, PORT, TO_V4},
    harness::{PATIENCE, Puppet, Sidecar, Spawn, World, eventually, patient},
};

/// Waits until so many connections have ended for this reason: that is told after their sockets were closed.
fn have_ended(sidecar: &Sidecar, reason: &str, count: u64) -> Result<()> {
    let told = || sidecar.closed(reason).is_ok_and(|ended| ended == count);
    ensure!(eventually(PATIENCE, told), "{} ended by {reason}{}", sidecar.closed(reason)?, sidecar.process.output());
    Ok(())
}

/// Nobody has this address, and nobody says so: packets to it disappear in the other pod.
const BLACK_HOLE: &str = "10.88.99.99";

/// A configuration with this time limit of the proxy's, in milliseconds of a machine of usual speed.
fn limited(key: &str, milliseconds: u64) -> String {
    format!("proxy: {{ {key}: {}ms }}", patient(Duration::from_millis(milliseconds)).as_millis())
}

#[test]
fn connections_above_the_limit_wait_and_go_on_when_others_end() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "proxy: { max_connections: 4 }")?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let sockets = (0..8).map(|_| app.open(TO_V4).map(|(socket, _)| socket)).collect::<Result<Vec<_>>>()?;
    let (carried, waiting) = sockets.split_at(4);
    for socket in carried {
        app.echo(*socket)?;
    }
    ensure!(world.client.waiting_at(15001)? == 4, "{} wait", world.client.waiting_at(15001)?);
    ensure!(sidecar.live()? == 4 && server.accepted()?.len() == 4);
    ensure!(sidecar.metrics()?.sum("sidecar_connection_limit_waits_total", &[("direction", "outbound")]) >= 1.0);
    for (carried, waiting) in carried.iter().zip(waiting) {
        app.must(Order::Close(*carried))?;
        app.echo(*waiting)?;
        // A record ends a moment after its connection.
        let settled = eventually(PATIENCE, || sidecar.live().is_ok_and(|live| live == 4));
        ensure!(settled, "{}", sidecar.connections()?);
    }
    for waiting in waiting {
        app.must(Order::Reset(*waiting))?;
    }
    ensure!(eventually(PATIENCE, || sidecar.live().is_ok_and(|live| live == 0)), "{}", sidecar.connections()?);
    app.visit(TO_V4).map(drop)
}

/// 38
#[test]
fn without_free_descriptors_connections_wait_and_none_is_lost() -> Result<()> {
    let world = World::new()?;
    // What the supervisor needs while it starts: when it has, it has let go of its programs, once by the object and once by
    // themselves. It is more than what the worker needs for itself and both ends of one connection.
    let needs = Sidecar::start(&world.client, "{}")?;
    let limit = needs.descriptors_of_supervisor()? + 40;
    ensure!(limit > needs.descriptors_of_worker()? + 2);
    drop(needs);
    let mut sidecar = Sidecar::spawn_through(&world.client, "{}", "prlimit", &[&format!("--nofile={limit}:{limit}")])?;
    sidecar.wait_until_ready(PATIENCE)?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let streams = (0..100).map(|_| app.open(TO_V4).map(|(socket, _)| socket)).collect::<Result<Vec<_>>>()?;
    ensure!(sidecar.descriptors_of_worker()? <= limit && sidecar.live()? < streams.len(), "all are carried");
    ensure!(world.client.waiting_at(15001)? > 0, "no connection waits");
    let used = sidecar.cpu_time()?;
    // How busy it is can only be told over a time.
    let window = Duration::from_secs(2);
    std::thread::sleep(window);
    let busy = sidecar.cpu_time()? - used;
    ensure!(busy < patient(window) / 20, "{busy:?} of processor time in {window:?} of waiting");
    for (number, stream) in streams.into_iter().enumerate() {
        let answer = app.order(Order::Echo(stream, 1000))?;
        ensure!(answer.outcome == "ok", "stream {number}: {answer:?}{}", sidecar.process.output());
        app.must(Order::Close(stream))?;
    }
    ensure!(eventually(PATIENCE, || sidecar.live().is_ok_and(|live| live == 0)), "{}", sidecar.connections()?);
    app.visit(TO_V4).map(drop)
}

/// 38: the limit comes down while it runs, below what is open.
#[test]
fn accepts_and_dials_that_find_no_descriptor_are_counted_and_the_connections_wait() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "proxy: { workers: 1 }")?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    app.visit(TO_V4)?;
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    let count = |name: &str| {
        // Whoever asks for the metrics needs a descriptor as well.
        limit_descriptors(&sidecar, hard, hard)?;
        anyhow::Ok(sidecar.metrics()?.sum(name, &[("reason", "descriptors")]))
    };
    leave_descriptors(&sidecar, 0, hard)?;
    let (waiting, _) = app.open(TO_V4)?;
    let waits = || world.client.waiting_at(15001).is_ok_and(|waiting| waiting == 1);
    ensure!(eventually(PATIENCE, waits), "it does not wait in the kernel's queue");
    // The pause after a failed accept is 5 ms at first: more than one has failed by then.
    std::thread::sleep(patient(Duration::from_millis(50)));
    ensure!(count("sidecar_accept_errors_total")? > 0.0, "accepts that failed are not counted");
    app.echo(waiting)?;
    // One descriptor is enough for the accept, and not for the dial.
    leave_descriptors(&sidecar, 1, hard)?;
    let end = app.end_of(TO_V4)?;
    ensure!(end == "ECONNRESET", "{end}");
    ensure!(count("sidecar_connect_errors_total")? == 1.0, "the dial that failed is not counted");
    have_ended(&sidecar, "connect_failed", 1)?;
    app.echo(waiting)?;
    app.visit(TO_V4).map(drop)
}

/// Leaves a sidecar so many more descriptors: the limit is for their numbers, and the lowest free one is taken first.
fn leave_descriptors(sidecar: &Sidecar, count: usize, hard: u64) -> Result<()> {
    let open = || -> Result<std::collections::BTreeSet<u64>> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", sidecar.worker()?))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?)).collect()
    };
    // What connections and questions used before is closed when they stay the same for a while.
    let (mut last, mut times) = (open()?, 0);
    let stay = || {
        let now = open().unwrap_or_default();
        times = if now == last { times + 1 } else { 0 };
        last = now;
        times > 10
    };
    ensure!(eventually(PATIENCE, stay), "its descriptors change all the time");
    let mut free = (0..hard).filter(|number| !last.contains(number));
    limit_descriptors(sidecar, free.nth(count).unwrap_or(hard), hard)
}

/// Changes the limit of a running sidecar.
fn limit_descriptors(sidecar: &Sidecar, soft: u64, hard: u64) -> Result<()> {
    let mut command = std::process::Command::new("prlimit");
    command.args(["--pid", &sidecar.worker()?.to_string(), &format!("--nofile={soft}:{hard}")]);
    Spawn::default().start(command)?.finish(PATIENCE).map(drop)
}

/// 39
#[test]
fn a_destination_that_never_answers_ends_in_a_reset_within_the_limit() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, &limited("connect_timeout", 500))?;
    let mut app = Puppet::start(&world.client)?;
    let to = SocketAddr::new(BLACK_HOLE.parse::<IpAddr>()?, PORT);
    for half_close in [false, true] {
        let (socket, _) = app.open(to)?;
        app.must(Order::Send(socket, 1000))?;
        if half_close {
            app.must(Order::Finish(socket))?;
        }
        let end = app.order(Order::AwaitEnd(socket))?;
        ensure!(end.outcome == "ECONNRESET", "half-closed {half_close}: {end:?}");
        ensure!(end.took > Duration::from_millis(200) && end.took < patient(Duration::from_secs(2)), "{end:?}");
    }
    have_ended(&sidecar, "connect_timeout", 2)?;
    Ok(())
}

#[test]
fn dials_above_the_limit_wait_and_are_counted() -> Result<()> {
    let world = World::new()?;
    let time = patient(Duration::from_millis(500)).as_millis();
    let config = format!("proxy: {{ max_connecting: 1, connect_timeout: {time}ms, workers: 1 }}");
    let sidecar = Sidecar::start(&world.client, &config)?;
    let reached = |outcome| {
        let labels = [("limit", "proxy.max_connecting"), ("outcome", outcome)];
        anyhow::Ok(sidecar.metrics()?.sum("sidecar_limit_reached_total", &labels))
    };
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    app.visit(TO_V4)?;
    ensure!(reached("waited")? == 0.0, "somebody waited although nobody dialled");
    let to = SocketAddr::new(BLACK_HOLE.parse::<IpAddr>()?, PORT);
    let ((first, _), (second, _)) = (app.open(to)?, app.open(to)?);
    for socket in [first, second] {
        let end = app.order(Order::AwaitEnd(socket))?;
        ensure!(end.outcome == "ECONNRESET", "{end:?}");
    }
    have_ended(&sidecar, "connect_timeout", 2)?;
    ensure!(reached("waited")? == 1.0, "{} waited", reached("waited")?);
    app.visit(TO_V4).map(drop)
}

/// 39: nobody answers the question for its link address either.
#[test]
fn a_neighbour_that_does_not_exist_ends_in_a_reset_within_the_limit() -> Result<()> {
    let world = World::new()?;
    // After 3 s the kernel gives up, on a slow machine as well.
    let sidecar = Sidecar::start(&world.client, &limited("connect_timeout", 300))?;
    let mut app = Puppet::start(&world.client)?;
    let (socket, _) = app.open(SocketAddr::new([10, 77, 0, 200].into(), PORT))?;
    let end = app.order(Order::AwaitEnd(socket))?;
    ensure!(end.outcome == "ECONNRESET" && end.took < patient(Duration::from_secs(2)), "{end:?}");
    have_ended(&sidecar, "connect_timeout", 1)?;
    Ok(())
}

/// 39
#[test]
fn an_idle_connection_is_reset_after_the_limit_and_a_busy_one_is_not() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, &limited("idle_timeout", 600))?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let ((busy, _), (idle, _)) = (app.open(TO_V4)?, app.open(TO_V4)?);
    app.echo(idle)?;
    for _ in 0..10 {
        app.echo(busy)?;
        std::thread::sleep(patient(Duration::from_millis(100)));
    }
    ensure!(app.order(Order::AwaitEnd(idle))?.outcome == "ECONNRESET");
    have_ended(&sidecar, "idle_timeout", 1)?;
    app.echo(busy)
}
