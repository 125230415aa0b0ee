//! Memory that the kernel does not give: ENOMEM, wherever it meets the sidecar.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4},
    harness::{MemoryLimit, PATIENCE, Pod, Process, Puppet, Sidecar, Spawn, World, bpf, eventually, patient, skip},
};

/// More threads than there is room for: each has two mebibytes of stack.
const MANY_WORKERS: &str = "{ capture: { heartbeat_max_age: 60s }, proxy: { workers: 64 } }";
/// More entries than there is room for: each has sixteen bytes of the table's.
const LARGE_MAP: &str = "capture: { maps: { flows: 4194304 } }";

/// A number of bytes of `/proc/PID/status`.
fn bytes(process: Pid, key: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let line = line.with_context(|| format!("no {key} in {text}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Changes a soft limit of a process that runs: `as`, what it may map, `data`, what of that it may write, or `nofile`.
fn limit(process: Pid, what: &str, soft: &str) -> Result<()> {
    change(process, &format!("--{what}={soft}:"))
}

fn change(process: Pid, limit: &str) -> Result<()> {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &process.to_string(), limit]);
    Spawn::default().start(command)?.finish(patient(PATIENCE)).map(drop)
}

/// A start that ends by itself and says why; it leaves nothing.
fn does_not_start(process: &mut Process, pod: &Pod, words: [&str; 2]) -> Result<()> {
    let status = process.wait(patient(PATIENCE))?;
    ensure!(status.code() == Some(1), "{status}{}", process.output());
    let said = process.err.text();
    ensure!(words.iter().all(|word| said.contains(word)), "not {words:?}: {said}");
    ensure!(bpf::attached_programs(pod)? == 0, "programs are attached{}", process.output());
    Ok(())
}

/// Whether a connection from `local` went without a proxy.
fn is_direct(server: &mut Puppet, local: SocketAddr) -> Result<bool> {
    Ok(server.accepted()?.iter().any(|peer| peer.port() == local.port()))
}

/// 38
#[test]
fn a_sidecar_without_room_for_its_threads_says_so_and_leaves_nothing() -> Result<()> {
    let world = World::new()?;
    let (pod, mut server) = (&world.client, Puppet::serving(&world.server, ANY)?);
    let usual = Sidecar::start(pod, "{}")?;
    let room = bytes(usual.process.pid(), "VmPeak:")? + (32 << 20);
    drop(usual);
    let mut sidecar = Sidecar::spawn_through(pod, MANY_WORKERS, "prlimit", &[&format!("--as={room}")])?;
    does_not_start(&mut sidecar.process, pod, ["start the worker threads", "ulimit -v"])?;
    let local = Puppet::start(pod)?.visit(TO_V4)?;
    ensure!(is_direct(&mut server, local)?, "it does not go direct");
    Ok(())
}

/// 38
#[test]
fn a_sidecar_without_room_for_its_maps_says_so_and_leaves_nothing() -> Result<()> {
    let world = World::new()?;
    let (pod, mut server) = (&world.client, Puppet::serving(&world.server, ANY)?);
    let Some(limit) = MemoryLimit::new(pod, 48 << 20)? else {
        skip("a_sidecar_without_room_for_its_maps_says_so_and_leaves_nothing", "no memory controller");
        return Ok(());
    };
    // It is one process: none is short of memory, and killed, while the kernel looks for that of the map.
    let file = pod.directory().join("init.yaml");
    fs::write(&file, LARGE_MAP)?;
    let mut init = Command::new("sh");
    init.args(["-ec", &limit.enter()]).arg(Sidecar::program()?.get_program()).args(["init", "--config"]).arg(file);
    Sidecar::unconfigured(&mut init);
    let mut init = pod.spawn_beside_sidecar(init)?;
    does_not_start(&mut init, pod, ["`FLOWS`: Cannot allocate memory", "memory.max"])?;
    ensure!(limit.kills()? == 0, "killed for want of memory{}", limit.usage());
    let local = Puppet::start(pod)?.visit(TO_V4)?;
    ensure!(is_direct(&mut server, local)?, "it does not go direct");
    Ok(())
}

/// 38: it ends in the middle of what it carries.
#[test]
fn a_worker_that_gets_no_more_memory_is_replaced_and_nobody_hangs() -> Result<()> {
    /// Of which the first have no more room: each needs some kibibytes.
    const MOST: usize = 4000;
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    // No verdict changes while there is no worker: what comes then waits.
    let sidecar = Sidecar::start(&world.client, "{ proxy: { workers: 1 }, capture: { heartbeat_max_age: 60s } }")?;
    let mut app = Puppet::start(&world.client)?;
    app.visit(TO_V4)?;
    let worker = sidecar.worker()?;
    limit(worker, "data", &bytes(worker, "VmData:")?.to_string())?;
    let mut streams = Vec::new();
    while fs::read_to_string(format!("/proc/{worker}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        ensure!(streams.len() < MOST, "{MOST} connections need no memory{}", sidecar.process.output());
        streams.push(app.open(TO_V4)?);
    }
    streams.push(app.open(TO_V4)?);
    let (mut reset, mut served) = (0, 0);
    for (stream, local) in &streams {
        match app.order(Order::Echo(*stream, 1000))?.outcome.as_str() {
            "ok" => served += 1,
            "ECONNRESET" | "EPIPE" => reset += 1,
            other => bail!("{other} from {local}{}", sidecar.process.output()),
        }
    }
    ensure!(reset > 0 && served > 0, "{reset} reset, {served} served{}", sidecar.process.output());
    let captured = sidecar.verdict("connect", "capture", "captured")?;
    ensure!(captured == streams.len() as u64 + 1, "{captured} captured of {}", streams.len() + 1);
    ensure!(sidecar.process.err.text().contains("memory allocation of"), "{}", sidecar.process.output());
    let killed = sidecar.metrics()?.sum("sidecar_worker_restarts_total", &[("reason", "killed")]);
    ensure!(killed == 1.0, "{killed} restarts");
    Ok(())
}

/// 38: the limit is the supervisor's, and each worker inherits it.
#[test]
fn a_supervisor_that_can_start_no_worker_for_want_of_memory_goes_on_trying() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let sidecar = Sidecar::start(&world.client, MANY_WORKERS)?;
    let mut app = Puppet::start(&world.client)?;
    let supervisor = sidecar.process.pid();
    // Enough for itself and the beginning of a worker.
    limit(supervisor, "as", &(bytes(supervisor, "VmSize:")? + (32 << 20)).to_string())?;
    kill(sidecar.worker()?, Signal::SIGKILL)?;
    let (stream, local) = app.open(TO_V4)?;
    let tries = || sidecar.process.err.text().matches("the worker cannot serve").count() >= 2;
    ensure!(eventually(patient(PATIENCE), tries), "{}", sidecar.process.output());
    ensure!(sidecar.process.err.text().contains("ulimit -v"), "{}", sidecar.process.output());
    limit(supervisor, "as", "unlimited")?;
    app.echo(stream).with_context(|| sidecar.process.output())?;
    ensure!(!is_direct(&mut server, local)?, "what waited went direct");
    ensure!(sidecar.process.pid() == supervisor && eventually(patient(PATIENCE), || sidecar.is_ready()));
    Ok(())
}

/// 38: a thread reads the configuration.
#[test]
fn a_reload_without_room_for_its_thread_has_failed_and_the_next_one_with_room_has_not() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "{}")?;
    let supervisor = sidecar.process.pid();
    let succeeds = |expected: f64| -> Result<()> {
        sidecar.signal(Signal::SIGHUP)?;
        let told = || sidecar.metrics().is_ok_and(|now| now.sum("sidecar_config_last_reload_success", &[]) == expected);
        ensure!(eventually(patient(PATIENCE), told), "not {expected}{}", sidecar.process.output());
        Ok(())
    };
    // Enough for itself, and half of the thread's stack.
    limit(supervisor, "as", &(bytes(supervisor, "VmSize:")? + (1 << 19)).to_string())?;
    succeeds(0.0)?;
    said(&sidecar, "the configuration could not be read again")?;
    limit(supervisor, "as", "unlimited")?;
    succeeds(1.0)?;
    ensure!(sidecar.metrics()?.sum("sidecar_worker_restarts_total", &[]) == 0.0, "{}", sidecar.process.output());
    Ok(())
}

/// 38: poll(2) refuses more descriptors than the limit allows.
#[test]
fn a_supervisor_outlives_a_limit_below_the_descriptors_that_it_waits_for() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let config = "{ capture: { heartbeat_max_age: 60s }, proxy: { drain_deadline: 100ms } }";
    let mut sidecar = Sidecar::start(&world.client, config)?;
    let mut app = Puppet::start(&world.client)?;
    app.visit(TO_V4)?;
    let (supervisor, worker) = (sidecar.process.pid(), sidecar.worker()?);
    limit(supervisor, "nofile", "1")?;
    kill(worker, Signal::SIGKILL)?;
    app.visit(TO_V4).with_context(|| sidecar.process.output())?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 2, "{}", sidecar.verdicts());
    said(&sidecar, "it is raised to its hard limit")?;
    // Where it may not raise it there is no next worker, but it does not end, and what it is told it does.
    let next = sidecar.worker()?;
    change(supervisor, "--nofile=1:1")?;
    kill(next, Signal::SIGKILL)?;
    said(&sidecar, "the hard limit of file descriptors is below")?;
    said(&sidecar, "Too many open files")?;
    sidecar.signal(Signal::SIGTERM)?;
    let status = sidecar.process.wait(patient(PATIENCE))?;
    ensure!(status.code() == Some(0), "{status}{}", sidecar.process.output());
    ensure!(bpf::attached_programs(&world.client)? == 0, "programs stay");
    Ok(())
}

fn said(sidecar: &Sidecar, words: &str) -> Result<()> {
    let said = eventually(patient(PATIENCE), || sidecar.process.err.text().contains(words));
    ensure!(said, "not {words}{}", sidecar.process.output());
    Ok(())
}
