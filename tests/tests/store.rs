//! A store that is mounted nowhere: what a sidecar that is replaced while it runs hands to its successor.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use sidecar::{
    config::{self, Sources},
    redirect::{Programs, Store},
};
use sidecar_tests::harness::require_root;

fn place(store: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", store.as_fd().as_raw_fd()).into()
}

/// Whether this process has a file system mounted at a path that shows this name.
fn is_mounted_somewhere(name: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(places.into_iter().any(|place| Path::new(place).join("maps").join(name).exists()))
}

#[test]
fn programs_are_kept_where_only_a_descriptor_leads() -> Result<()> {
    require_root()?;
    let config = config::load(&Sources::default()).ok().context("the default configuration")?.config;
    let (store, descriptor) = Store::detached()?;
    let programs = Programs::load(&config.capture, 100, false, Some(store))?;
    for name in ["maps/NOTES", "maps/FLOWS", "maps/COUNTERS", "programs/on_getsockopt"] {
        let path = place(&descriptor).join(name);
        ensure!(path.exists(), "{} is not there", path.display());
    }
    ensure!(!is_mounted_somewhere("NOTES")?, "others can see it");
    // It lives on with the descriptor of a successor.
    drop(programs);
    let successor = Store::from_descriptor(descriptor);
    ensure!(place(&successor.descriptor()).join("maps/NOTES").exists(), "it went with the first process");
    Ok(())
}
