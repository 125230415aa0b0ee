//! What the fast path could be as well is tried by `sidecar check` on each kernel, and is not used.

use anyhow::{Context, Result, ensure};
use sidecar_tests::harness::{self, PATIENCE, Sidecar, World};

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
    let said = world.server.spawn_beside_sidecar(command)?.finish(PATIENCE)?;
    // For the table in the README: `cargo xtask vm -- --nocapture fastpath_in_both`.
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("-     fast path ")).collect();
    println!("{}", lines.join("\n"));
    let both = lines.iter().find(|line| line.contains(" both directions: ")).context("no line about it")?;
    ensure!(sprung(both).contains(&"splice") && both.contains("never used"), "{both}");
    ensure!(lines.iter().filter(|line| line.contains("with a stream verdict: ")).count() == 2, "{said}");
    // The sidecar itself has tried none of them, and found the same of what it uses.
    let found = status["why"].as_str().context("what the probe found")?;
    ensure!(lines[0].contains(found), "{found}: {}", lines[0]);
    Ok(())
}
