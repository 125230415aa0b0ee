//! What is left beside the store that is used, by one that failed or died while it made another.

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    cases::net::{ANY, TO_V4},
    harness::{Puppet, World, bpf},
};

use super::{OPEN, OTHER_PORT, init, powerless, run_init, started, stores};

/// The programs of both would run: what the first sends to the sidecar, the second would refuse as a stranger's.
#[test]
fn a_half_made_store_beside_one_that_fits_is_removed_by_whoever_uses_that() -> Result<()> {
    for (step, by_init) in [("half", false), ("half", true), ("mark", false)] {
        half_made(step, by_init).with_context(|| format!("after {step}, removed by init: {by_init}"))?;
    }
    Ok(())
}

fn half_made(step: &str, by_init: bool) -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    init(&world.client, OPEN)?;
    let (before, attached) = (stores(&world.client)?, bpf::attached_programs(&world.client)?);
    let (status, process) = run_init(&world.client, OTHER_PORT, &["--stop-after", step])?;
    ensure!(status.code() == Some(1), "{status}{}", process.output());
    ensure!(stores(&world.client)?.len() == 2, "nothing is left beside: {:?}", stores(&world.client)?);
    if by_init {
        init(&world.client, OPEN)?;
        ensure!(bpf::attached_programs(&world.client)? == attached, "the programs of the other one are still there");
    }
    let sidecar = started(powerless(&world.client, OPEN)?)?;
    app.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1, "{}", sidecar.verdicts());
    ensure!(stores(&world.client)? == before, "{:?}, before {before:?}", stores(&world.client)?);
    Ok(())
}
