//! What another version pinned.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    cases::net::{ANY, TO_V4},
    harness::{PATIENCE, Pod, Puppet, Sidecar, World},
};

use super::{OPEN, init, powerless, started, stores};

/// A store of init, which says of itself that another version made it.
fn pinned_by_another(pod: &Pod) -> Result<PathBuf> {
    init(pod, OPEN)?;
    let [store] = <[PathBuf; 1]>::try_from(stores(pod)?).map_err(|all| anyhow::anyhow!("{all:?}"))?;
    let marker = store.join("layout");
    pod.mounts().run(|| -> Result<()> {
        let text = fs::read_link(&marker)?.display().to_string();
        let (before, after) = text.split_once("layout=").context("a marker without a layout")?;
        let after = after.split_once(' ').context("a marker that ends early")?.1;
        fs::remove_file(&marker)?;
        Ok(symlink(format!("{before}layout=999 {after}"), &marker)?)
    })??;
    Ok(store)
}

#[test]
fn maps_of_another_layout_are_replaced_by_a_sidecar_that_may_load_and_stay_for_those_after_it() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    pinned_by_another(&world.client)?;
    drop(Sidecar::start(&world.client, OPEN)?);
    ensure!(stores(&world.client)?.len() == 1, "nothing is left for a sidecar without capabilities");
    let sidecar = started(powerless(&world.client, OPEN)?)?;
    app.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1, "{}", sidecar.verdicts());
    Ok(())
}

#[test]
fn maps_of_another_layout_are_refused_and_replaced_by_init() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let store = pinned_by_another(&world.client)?;
    let mut sidecar = powerless(&world.client, OPEN)?;
    let status = sidecar.process.wait(PATIENCE)?;
    let message = sidecar.process.err.text();
    for part in ["layout 999", "sidecar init", store.to_str().context("path")?] {
        ensure!(status.code() == Some(1) && message.contains(part), "{status}: {message}");
    }
    app.visit(TO_V4)?;
    init(&world.client, OPEN)?;
    let sidecar = started(powerless(&world.client, OPEN)?)?;
    app.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1, "{}", sidecar.verdicts());
    Ok(())
}
