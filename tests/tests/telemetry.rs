//! What a sidecar tells about the connections it carries.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, CLOSED_PORT, SERVER_V4, TO_V4},
    harness::{PATIENCE, Puppet, Sidecar, World, eventually, patient},
};

/// Two pods with sidecars of this configuration, a server and a client.
struct Stage {
    client: Sidecar,
    server: Sidecar,
    app: Puppet,
    _service: Puppet,
    _world: World,
}

fn stage(config: &str) -> Result<Stage> {
    let world = World::new()?;
    Ok(Stage {
        client: Sidecar::start(&world.client, config)?,
        server: Sidecar::start(&world.server, config)?,
        _service: Puppet::serving(&world.server, ANY)?,
        app: Puppet::start(&world.client)?,
        _world: world,
    })
}

/// The first line of the access log.
fn record(sidecar: &Sidecar) -> Result<String> {
    let first = sidecar.process.out.wait_for(PATIENCE, |lines| lines.first().cloned());
    first.with_context(|| format!("no access log{}", sidecar.process.output()))
}

fn address(value: &Value) -> Result<SocketAddr> {
    Ok(value.as_str().with_context(|| format!("{value} is not an address"))?.parse()?)
}

#[test]
fn one_json_line_tells_of_each_connection_on_each_side() -> Result<()> {
    let mut stage = stage("telemetry: { access_log: json }")?;
    let local = stage.app.visit(TO_V4)?;
    for (sidecar, direction) in [(&stage.client, "outbound"), (&stage.server, "inbound")] {
        let line = record(sidecar)?;
        let record: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        ensure!(record["direction"] == direction && record["reason"] == "completed", "{line}");
        ensure!(record["bytes_sent"] == 1000 && record["bytes_recv"] == 1000, "{line}");
        ensure!(address(&record["dst.addr"])? == TO_V4, "{line}");
        let source = address(&record["src.addr"])?;
        ensure!(source.ip() == local.ip(), "{line}");
        // The server's sidecar sees the port of the client's sidecar.
        ensure!((source.port() == local.port()) == (direction == "outbound"), "{line}");
        ensure!(sidecar.process.out.lines().len() == 1, "more than one line: {}", sidecar.process.out.text());
    }
    Ok(())
}

#[test]
fn the_access_log_is_text_by_default_and_can_be_off() -> Result<()> {
    let mut by_default = stage("{}")?;
    by_default.app.visit(TO_V4)?;
    let line = record(&by_default.client)?;
    ensure!(line.contains("direction=outbound") && line.contains("dst.addr=10.77.0.2:8080"), "{line}");

    let mut off = stage("telemetry: { access_log: off }")?;
    off.app.visit(TO_V4)?;
    ensure!(eventually(PATIENCE, || off.client.closed("completed").is_ok_and(|count| count == 1)));
    ensure!(off.client.process.out.text().is_empty(), "{}", off.client.process.out.text());
    Ok(())
}

#[test]
fn live_connections_are_listed_with_both_addresses() -> Result<()> {
    let mut stage = stage("{}")?;
    let (socket, local) = stage.app.open(TO_V4)?;
    stage.app.echo(socket)?;
    let table = stage.client.connections()?;
    let row = table.pointer("/connections/0").or_else(|| table.get(0)).with_context(|| format!("no row: {table}"))?;
    ensure!(address(&row["client"])? == local, "{row}");
    ensure!(address(&row["original_destination"])? == TO_V4, "{row}");
    ensure!(row["direction"] == "outbound" && row["bytes_from_downstream"] == 1000, "{row}");
    Ok(())
}

#[test]
fn metrics_count_connections_and_bytes() -> Result<()> {
    let mut stage = stage("pod: { workload: shop, namespace: trade }")?;
    for _ in 0..3 {
        stage.app.visit(TO_V4)?;
    }
    let refused = SocketAddr::new(SERVER_V4.into(), CLOSED_PORT);
    ensure!(stage.app.end_of(refused)? == "ECONNRESET");
    for (sidecar, reporter, workload) in
        [(&stage.client, "source", "source_workload"), (&stage.server, "destination", "destination_workload")]
    {
        let ended = || sidecar.closed("completed").is_ok_and(|count| count == 3);
        ensure!(eventually(patient(Duration::from_secs(3)), ended), "{reporter}: {}", sidecar.verdicts());
        let metrics = sidecar.metrics()?;
        let labels = [("reporter", reporter), (workload, "shop")];
        for name in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
            ensure!(metrics.sum(name, &labels) == 3000.0, "{reporter} {name}: {}", metrics.sum(name, &labels));
        }
        ensure!(metrics.sum("sidecar_connections", &[]) == 0.0);
        ensure!(metrics.sum("sidecar_build_info", &[]) == 1.0);
    }
    ensure!(stage.client.closed("connect_refused")? == 1);
    ensure!(stage.server.closed("connect_refused")? == 0);
    Ok(())
}

#[test]
fn the_admin_socket_answers_like_the_admin_port() -> Result<()> {
    let world = World::new()?;
    let path = world.client.directory().join("admin.sock");
    let mut sidecar = Sidecar::start(&world.client, &format!("telemetry: {{ admin_socket: {} }}", path.display()))?;
    let mut stream = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
    stream.write_all(b"GET /config_dump HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let by_port = world.client.get(15000, "/config_dump")?;
    ensure!(answer.starts_with("HTTP/1.") && by_port.status == 200 && answer.ends_with(&by_port.body), "{answer}");
    sidecar.signal(nix::sys::signal::Signal::SIGTERM)?;
    sidecar.process.wait(PATIENCE)?;
    ensure!(!path.exists(), "the socket file stays behind");
    Ok(())
}

#[test]
fn a_log_that_nobody_reads_stops_no_traffic() -> Result<()> {
    let world = World::new()?;
    // A reader that never reads: the pipe to it is full after 64 KiB, and the queue before it after some thousand lines.
    let script = "exec \"$0\" \"$@\" > >(exec sleep 1000)";
    let mut deaf = Sidecar::spawn_through(&world.client, "{}", "bash", &["-c", script])?;
    deaf.wait_until_ready(PATIENCE)?;
    let _service = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let dropped = || deaf.metrics().is_ok_and(|metrics| metrics.sum("sidecar_access_log_dropped_total", &[]) > 0.0);
    for _ in 0..50 {
        if dropped() {
            // It goes on all the same.
            return app.must(Order::Churn(TO_V4, 200)).map(drop);
        }
        app.must(Order::Churn(TO_V4, 200))?;
    }
    bail!("nothing was dropped")
}

#[test]
fn the_start_is_told_in_parts_that_are_no_longer_than_the_whole_and_both_processes_have_figures() -> Result<()> {
    let world = World::new()?;
    let begin = std::time::Instant::now();
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let whole = begin.elapsed().as_secs_f64();
    let metrics = sidecar.metrics()?;
    let mut parts = 0.0;
    for phase in ["configuration", "programs", "listeners", "worker", "attach", "check"] {
        let took = metrics.sum("sidecar_startup_seconds", &[("phase", phase)]);
        ensure!(took > 0.0, "{phase} took no time");
        parts += took;
    }
    let sum = metrics.sum("sidecar_startup_seconds", &[]);
    // Added in another order.
    ensure!(parts < whole && (parts - sum).abs() < 1e-9, "{parts} of {whole} s; all are {sum}");
    let pids = sidecar.pids();
    ensure!(pids.len() == 2, "{pids:?}");
    for process in ["worker", "supervisor"] {
        let figure = |name: &str| metrics.sum(&format!("sidecar_process_{name}"), &[("process", process)]);
        ensure!(figure("anonymous_memory_bytes") > 1e5, "{process}: {}", figure("anonymous_memory_bytes"));
        ensure!(figure("resident_memory_bytes") > figure("anonymous_memory_bytes"), "{process}");
        ensure!(figure("open_fds") > 10.0 && figure("threads") >= 1.0, "{process}");
    }
    Ok(())
}
