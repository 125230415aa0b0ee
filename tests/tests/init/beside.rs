//! What is left beside the store that is used, by one that failed or died while it made another.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    cases::net::{ANY, TO_V4},
    harness::{Puppet, Sidecar, World, bpf},
};

use super::{CLOSED, OPEN, OTHER_PORT, init, is_direct, is_refused, powerless, run_init, started, stores};

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

#[test]
fn an_init_that_fails_leaves_what_was_there_and_else_nothing() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let fails = |config: &str, foreign: usize| -> Result<()> {
        let _foreign = bpf::attach_foreign_lookups(world.client.netns().as_fd(), foreign)?;
        let (status, process) = run_init(&world.client, config, &[])?;
        let message = process.err.text();
        ensure!(status.code() == Some(1) && message.contains("`on_lookup` cannot be attached"), "{status}: {message}");
        Ok(())
    };
    fails(CLOSED, bpf::MOST_LOOKUPS)?;
    ensure!(stores(&world.client)?.is_empty(), "{:?}", stores(&world.client)?);
    ensure!(bpf::attached_programs(&world.client)? == 0, "programs stay");
    ensure!(is_direct(&mut app, &mut server)?, "it does not go direct");

    init(&world.client, CLOSED)?;
    let (before, attached) = (stores(&world.client)?, bpf::attached_programs(&world.client)?);
    // One of them is that of the store that is there.
    fails(OTHER_PORT, bpf::MOST_LOOKUPS - 1)?;
    ensure!(stores(&world.client)? == before, "{:?}, before {before:?}", stores(&world.client)?);
    ensure!(bpf::attached_programs(&world.client)? == attached, "others than before are attached");
    ensure!(is_refused(&mut app)?, "what was there refuses no more");
    drop(Sidecar::start(&world.client, CLOSED)?);
    Ok(())
}
