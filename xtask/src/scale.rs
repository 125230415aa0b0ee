//! `cargo xtask scale`: many pods on one machine, each with a small application and a sidecar with mutual TLS.
//!
//! Pods stand in pairs on a veth of their own, and all pairs have the same addresses: whatever mixes pods up shows.

mod fleet;
mod phases;
mod race;
mod room;
mod tell;
mod wakes;

use crate::{
    build,
    setup::{self, Group},
    world::memory,
};
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::path::PathBuf;

/// Arguments of `scale`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many pods; an even number
    #[arg(long, default_value_t = 1000)]
    pods: usize,
    /// How many are started at the same time
    #[arg(long, default_value_t = 4)]
    at_once: usize,
    /// For how many seconds idle CPU time is measured
    #[arg(long, default_value_t = 20)]
    idle: u64,
    /// Show instead that nothing leaves in plaintext, and nothing fails, while pods start: applications that connect in their
    /// first instruction, after `sidecar init` and before the sidecar serves
    #[arg(long)]
    race: bool,
    /// Use this binary instead of building one
    #[arg(long, value_name = "FILE")]
    sidecar: Option<PathBuf>,
}

/// What a pod may take at the most before the machine is said to be too small: application, sidecar, and the kernel's
/// part (namespace, maps, sockets).
const BYTES_PER_POD: u64 = 16 << 20;
/// So much of the machine's memory is left alone: with less nothing more is started, and everything ends.
const LEFT: u64 = 2 << 30;
/// Files that this process holds for each pod: namespaces, outputs.
const FILES_PER_POD: u64 = 8;

/// Starts them, sees that they carry traffic, measures, and takes everything down. Fails if anything did not work; a
/// goal that is missed fails nothing.
pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(args.pods >= 2 && args.pods.is_multiple_of(2), "--pods must be an even number, of 2 or more");
    ensure!(args.at_once >= 1, "--at-once must be 1 or more");
    room(args.pods as u64)?;
    setup::ensure(&[Group::Demo])?;
    let binary = match &args.sidecar {
        Some(file) => file.canonicalize().with_context(|| format!("--sidecar {}", file.display()))?,
        None => build::sidecar()?,
    };
    let _room = room::Room::for_pods(args.pods)?;
    if args.race {
        race::own_bpffs()?;
    }
    let mut fleet = fleet::Fleet::new(args.pods, &binary, args.race)?;
    if args.race { race::all(&mut fleet, &args) } else { phases::all(&mut fleet, &args) }
}

/// Fails when the machine has hardly any memory left.
fn enough_memory() -> Result<()> {
    let available = memory::available()?;
    ensure!(
        available >= LEFT,
        "{} MiB of memory are left: this machine is too small for so many pods",
        available >> 20
    );
    Ok(())
}

/// Says beforehand when the machine is too small, instead of bringing it down.
fn room(pods: u64) -> Result<()> {
    let available = memory::available()?;
    let fit = available.saturating_sub(LEFT) / BYTES_PER_POD;
    ensure!(
        pods <= fit,
        "{pods} pods may need {} MiB, and {} MiB are available, of which {} are left alone: --pods {}",
        (pods * BYTES_PER_POD) >> 20,
        available >> 20,
        LEFT >> 20,
        fit & !1
    );
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit(RLIMIT_NOFILE)")?;
    ensure!(
        pods * FILES_PER_POD <= hard,
        "{pods} pods need {} open files, and the limit is {hard}: ulimit -n",
        pods * FILES_PER_POD
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit(RLIMIT_NOFILE)")
}
