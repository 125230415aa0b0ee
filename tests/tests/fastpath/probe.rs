//! What the probe finds on each kernel, and what becomes of it: of the fast path as it is, and of what it could be as well.

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    harness::{self, PATIENCE, Sidecar, World, bpf, eventually, patient},
};

use super::{MIB, stage::Stage};

#[test]
fn fastpath_is_what_check_says() -> Result<()> {
    let world = World::new()?;
    for (setting, told) in [("off", &["off; "][..]), ("force", &["forced: ", "not used: "]), ("auto", &["used: "])] {
        let mut command = Sidecar::program()?;
        command.args(["check", "--set", &format!("acceleration={setting}")]);
        let said = world.client.spawn_beside_sidecar(command)?.finish(patient(PATIENCE))?;
        let line = said.lines().find(|line| line.contains("fast path")).context("no line about it")?;
        ensure!(told.iter().any(|words| line.contains(words)), "{setting}: {line}");
    }
    Ok(())
}

#[test]
fn fastpath_auto_is_on_exactly_where_no_trap_is_sprung() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "acceleration: auto\n")?;
    let status = sidecar.fast_path_probed()?;
    // For the table in the README: `cargo xtask vm -- --nocapture fastpath_auto`.
    println!("acceleration: auto makes of this kernel: {status}");
    let clean = status["redirects"] == true && count(&status["sprung"]) + count(&status["untried"]) == 0;
    ensure!(status["on"] == clean, "{status}");
    let metrics = sidecar.metrics()?;
    ensure!(metrics.sum("sidecar_fast_path_on", &[]) == f64::from(u8::from(clean)), "{status}");
    ensure!(metrics.sum("sidecar_fast_path_trap", &[]) == count(&status["sprung"]) as f64, "{status}");
    ensure!(
        metrics.sum("sidecar_fast_path_clean", &[("variant", "to_proxy")]) == f64::from(u8::from(clean)),
        "{status}"
    );
    drop(sidecar);
    if count(&status["untried"]) == 0 && status["both"].is_object() && count(&status["both"]["untried"]) == 0 {
        // What the one before has found the next one knows; but for those that a sidecar of another build comes between, which
        // remembers in the same place.
        let knows = || -> Result<bool> {
            let next = Sidecar::start(&world.client, "acceleration: auto\n")?;
            next.fast_path_probed()?;
            let log = || next.process.output().to_string();
            ensure!(eventually(patient(PATIENCE), || log().contains("both_ms=")), "{}", log());
            Ok(log().contains("probe_ms=0 ") && log().contains("both_ms=0"))
        };
        let known = (0..5).map(|_| knows()).find(|known| !matches!(known, Ok(false)));
        ensure!(known.transpose()? == Some(true), "five starts in a row probed anew");
    }
    Ok(())
}

/// A trap that was played on a socket that is somebody else's has shown nothing.
#[test]
fn fastpath_is_not_used_where_a_trap_could_not_be_enrolled_and_names_it() -> Result<()> {
    const ROOM: u32 = 3;
    let world = World::new()?;
    for pod in [&world.client, &world.server] {
        bpf::take_sockets_of(pod.cgroup(), ROOM)?;
    }
    // It probes at each start.
    let sidecar = Sidecar::start(&world.client, "acceleration: force\n")?;
    let status = sidecar.fast_path_probed()?;
    if status["redirects"] != true {
        harness::skip("fastpath", "this kernel does not redirect");
        return Ok(());
    }
    let untried = status["untried"].as_array().context("what could not be tried")?;
    ensure!((1..=ROOM as usize).contains(&untried.len()), "{status}");
    let metrics = sidecar.metrics()?;
    for name in untried {
        let name = name.as_str().context("a name")?;
        ensure!(status["why"].as_str().is_some_and(|why| why.contains("not tried") && why.contains(name)), "{status}");
        let found = metrics.sum("sidecar_fast_path_probe", &[("variant", "to_proxy"), ("trap", name)]);
        ensure!(found == 2.0, "{name}: {found}");
    }
    // What both directions miss costs the one nothing.
    let both = &status["both"];
    ensure!(status["on"] == true && (both.is_null() || count(&both["untried"]) > 0), "{status}");
    let mut command = Sidecar::program()?;
    command.args(["check", "--set", "acceleration=auto"]);
    let said = world.server.spawn_beside_sidecar(command)?.finish(patient(PATIENCE))?;
    let line = said.lines().find(|line| line.starts_with("-     fast path ")).context("no line about it")?;
    ensure!(line.contains("not used: ") && line.contains("not tried, for their connections"), "{line}");
    Ok(())
}

/// Maps outlive an upgrade, with what is enrolled in them. The new binary's probe gets as many ports as it has connections to begin with,
/// and fails when it is under way and needs another.
#[test]
fn fastpath_whose_probe_fails_after_an_upgrade_is_off_for_what_was_on_it() -> Result<()> {
    /// One for each trap, one more, and the port at which they end.
    const PORTS: u16 = 21;
    const FIRST: u16 = 20_001;
    let Some(mut stage) = Stage::with("acceleration: force\nproxy: { drain_deadline: 10m }\n")? else { return Ok(()) };
    let socket = stage.enrolled()?;
    let released = || stage.sidecar.verdict("enrol", "released", "released");
    let (pod, before) = (&stage.world.client, released()?);
    // The kernel gives out an even number of them.
    pod.sysctl("net/ipv4/ip_local_port_range", &format!("{} {}", FIRST - 1, FIRST + PORTS - 1))?;
    pod.sysctl("net/ipv4/ip_local_reserved_ports", &(FIRST - 1).to_string())?;
    let mut command = Sidecar::program()?;
    command.args(["upgrade", "--timeout", &patient(PATIENCE).as_secs().to_string(), "--config"]);
    command.arg(pod.directory().join("sidecar.yaml"));
    pod.spawn_beside_sidecar(command)?.finish(2 * patient(PATIENCE))?;
    let why = || stage.sidecar.fast_path().ok()?["why"].as_str().map(str::to_owned);
    let failed = || why().is_some_and(|why| why.contains("play a trap by TCP"));
    ensure!(eventually(patient(PATIENCE), failed), "{:?}{}", why(), stage.sidecar.process.output());
    ensure!(released()? > before, "{}", stage.sidecar.verdicts());
    let quiet = stage.redirected()?;
    stage.app.must(Order::Stream(socket, 4 * MIB, 20_000))?;
    ensure!(stage.redirected()? == quiet, "redirected while the fast path is said to be off");
    Ok(())
}

/// How many names that are.
fn count(names: &serde_json::Value) -> usize {
    names.as_array().map_or(0, Vec::len)
}

/// The traps that a line of `sidecar check` names.
fn sprung(line: &str) -> Vec<&str> {
    let names = line.split_once("traps: ").and_then(|(_, rest)| rest.split_once(';'));
    names.map(|(names, _)| names.split(", ").collect()).unwrap_or_default()
}

/// An application's end that has a second queue shows it: that is why nothing is ever redirected to it.
#[test]
fn fastpath_in_both_directions_would_be_seen_by_applications_and_check_says_how() -> Result<()> {
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "acceleration: force\n")?;
    let status = sidecar.fast_path_probed()?;
    if status["redirects"] != true {
        harness::skip("fastpath", "this kernel does not redirect");
        return Ok(());
    }
    let mut command = Sidecar::program()?;
    command.args(["check", "--set", "acceleration=force"]);
    // In the other pod: in this one the ports are taken.
    let said = world.server.spawn_beside_sidecar(command)?.finish(patient(PATIENCE))?;
    // For the table in the README: `cargo xtask vm -- --nocapture fastpath_in_both`.
    let line = |name| said.lines().find(|line| line.starts_with(name)).context("no line about it");
    let (one, both) = (line("-     fast path ")?, line("-     both directions ")?);
    println!("{one}\n{both}");
    ensure!(sprung(both).contains(&"splice") && both.contains("never used"), "{both}");
    // The sidecar has found the same of them.
    let shown = status["both"]["sprung"].as_array().context("what the probe found of both directions")?;
    ensure!(shown.iter().any(|name| name == "splice"), "{status}: {both}");
    ensure!(status["both"]["loses_unread"] == both.contains("unread is lost"), "{status}: {both}");
    let metrics = sidecar.metrics()?;
    for (variant, found) in [("to_proxy", &status), ("both", &status["both"])] {
        let sum = metrics.sum("sidecar_fast_path_probe", &[("variant", variant)]);
        let expected = count(&found["sprung"]) + 2 * count(&found["untried"]);
        ensure!(sum == expected as f64, "{variant}: {sum} {status}");
    }
    ensure!(metrics.sum("sidecar_fast_path_clean", &[("variant", "both")]) == 0.0, "{status}");
    // What both show is not told of the one that is used: the sidecar itself, which tries one alone, has found the same.
    let found = status["sprung"].as_array().context("what the probe found")?;
    for trap in ["fionread", "splice"] {
        ensure!(one.contains(trap) == found.iter().any(|name| name == trap), "{status}: {one}");
    }
    Ok(())
}
