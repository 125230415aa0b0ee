//! `cargo xtask bench`: the sidecar beside what one would use instead, interleaved on the same machine in one run.
//!
//! Every round sets each mode up afresh, in an order that rotates, so that a drift of the machine hits all alike.

mod conditions;
pub(crate) mod envoy;
mod event_loops;
mod figure;
mod goals;
mod haproxy;
mod identity;
mod measure;
mod mode;
mod report;
mod rig;
mod samples;
mod start;
mod table;

use crate::{
    build, interrupt,
    setup::{self, Group as Need},
    world::World,
};
use anyhow::{Context, Result, bail};
use conditions::Conditions;
use figure::Group;
use mode::{Mode, Pair};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rig::Kit;
use samples::Samples;
use std::{path::PathBuf, slice::from_ref, time::Instant};

/// Arguments of `bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often every mode is set up and measured; default 5, with --quick 2
    #[arg(long)]
    rounds: Option<usize>,
    /// Shorter spans and streams: about ten minutes, six of them the fast path's; wider ranges
    #[arg(long)]
    quick: bool,
    /// Only these modes (direct, loopback, envoy, sidecar, sidecar-default, sidecar-fast, sidecar-excluded, envoy-mtls, sidecar-mtls,
    /// sidecar-mtls-cold, sidecar-mtls-hybrid; mtls: those four and direct) and figures (round-trip, connect, bulk,
    /// memory, lifecycle; fastpath: its figures for the four modes that have them), or start: nothing but the sidecar's start,
    /// phase by phase; may be given several times
    #[arg(long, value_name = "MODE|FIGURE")]
    only: Vec<Only>,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    sidecar: Option<PathBuf>,
}

/// Modes or a group of figures.
#[derive(Clone)]
enum Only {
    Modes(Vec<Mode>),
    Group(Group),
    Both(Vec<Mode>, Group),
    Start,
}

impl std::str::FromStr for Only {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "start" {
            return Ok(Self::Start);
        }
        if name == "mtls" {
            return Ok(Self::Modes(Pair::MTLS.modes(&Mode::ALL)));
        }
        if name == Group::FastPath.name() {
            let modes = Mode::ALL.into_iter().filter(|mode| mode.has(Group::FastPath)).collect();
            return Ok(Self::Both(modes, Group::FastPath));
        }
        let mode = Mode::ALL.into_iter().find(|mode| mode.name() == name).map(|mode| Self::Modes(vec![mode]));
        let group = || Group::ALL.into_iter().find(|group| group.name() == name).map(Self::Group);
        mode.or_else(group).ok_or_else(|| {
            let names =
                Mode::ALL.map(Mode::name).into_iter().chain(["mtls", "start"]).chain(Group::ALL.map(Group::name));
            format!("one of {}", names.collect::<Vec<_>>().join(", "))
        })
    }
}

/// How much is measured.
#[derive(Clone, Copy)]
struct Extent {
    rounds: usize,
    /// Length of each span of requests, in seconds.
    seconds: f64,
    /// Length of each stream.
    bytes: u64,
}

impl Extent {
    fn new(args: &Args) -> Self {
        if args.quick {
            Self { rounds: args.rounds.unwrap_or(2), seconds: 0.7, bytes: 256_000_000 }
        } else {
            Self { rounds: args.rounds.unwrap_or(5), seconds: 2.0, bytes: 1_000_000_000 }
        }
    }
}

/// Measures, prints the table, and writes the figures to a file.
pub(crate) fn run(args: Args) -> Result<()> {
    let modes = chosen(Mode::ALL, &args.only, |only| match only {
        Only::Modes(modes) | Only::Both(modes, _) => modes,
        Only::Group(_) | Only::Start => &[],
    });
    let groups = chosen(Group::ALL, &args.only, |only| match only {
        Only::Group(group) | Only::Both(_, group) => from_ref(group),
        Only::Modes(_) | Only::Start => &[],
    });
    let extent = Extent::new(&args);
    if extent.rounds == 0 {
        bail!("--rounds 0 measures nothing");
    }
    if args.only.iter().any(|only| matches!(only, Only::Start)) {
        return starts(extent, args.sidecar);
    }
    setup::ensure(&[Need::Bench])?;
    let kit = Kit::assemble(&modes, args.sidecar)?;
    allow_many_files()?;
    let mut samples = Samples::default();
    let conditions = Conditions::read(&extent, &kit)?;
    rounds(&mut samples, &kit, &modes, &groups, extent)?;
    print!("{}", table::render(&samples, &modes, &conditions));
    let path = report::write(&samples, &modes, &conditions)?;
    println!("\nwritten to {}", path.display());
    if samples.has_faults() {
        bail!("not everything could be measured, see above");
    }
    Ok(())
}

/// The sidecar's start alone: twenty of each kind in a round.
fn starts(extent: Extent, given: Option<PathBuf>) -> Result<()> {
    const STARTS: usize = 20;
    setup::ensure(&[Need::Demo])?;
    let kit = Kit::assemble(&[Mode::Sidecar], given)?;
    let conditions = Conditions::read(&extent, &kit)?;
    let starts = start::measure(kit.sidecar()?, STARTS * extent.rounds)?;
    start::write(&starts, &conditions)
}

/// What was asked for of one kind; all, when nothing of that kind was.
fn chosen<T: PartialEq, const N: usize>(all: [T; N], only: &[Only], of: impl Fn(&Only) -> &[T]) -> Vec<T> {
    let asked: Vec<_> = only.iter().flat_map(of).collect();
    all.into_iter().filter(|item| asked.is_empty() || asked.contains(&item)).collect()
}

fn rounds(samples: &mut Samples, kit: &Kit, modes: &[Mode], groups: &[Group], extent: Extent) -> Result<()> {
    let together: Vec<_> = modes.iter().copied().filter(|mode| mode.has(Group::FastPath)).collect();
    for round in 0..extent.rounds {
        for turn in 0..modes.len() {
            let mode = modes[(round + turn) % modes.len()];
            if !groups.iter().any(|group| *group != Group::FastPath && mode.has(*group)) {
                continue;
            }
            let name = format!("round {}/{}  {:19}", round + 1, extent.rounds, mode.name());
            let measured = timed(&name, || measure::all(samples, kit, &World::new("bench")?, mode, groups, extent))?;
            if let Err(err) = measured {
                samples.fail(mode, &err);
            }
        }
        if groups.contains(&Group::FastPath) && !together.is_empty() {
            let name = format!("round {}/{}  {:19}", round + 1, extent.rounds, Group::FastPath.name());
            // Noted already.
            let _ = timed(&name, || event_loops::side_by_side(samples, kit, &together, extent))?;
        }
    }
    Ok(())
}

/// Says how long it took, or why it was not measured; fails when a signal to stop has come.
fn timed(name: &str, measure: impl FnOnce() -> Result<()>) -> Result<Result<()>> {
    let begin = Instant::now();
    eprint!("{name}");
    let measured = measure();
    interrupt::check()?;
    match &measured {
        Ok(()) => eprintln!("{:6.1} s", begin.elapsed().as_secs_f64()),
        Err(err) => eprintln!("not measured: {err:#}"),
    }
    Ok(measured)
}

/// A thousand connections through a proxy are two thousand descriptors; children inherit the limit.
fn allow_many_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit(RLIMIT_NOFILE)")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit(RLIMIT_NOFILE)")
}

/// Builds the sidecar unless one was given.
fn sidecar(given: Option<PathBuf>) -> Result<PathBuf> {
    match given {
        Some(file) => file.canonicalize().with_context(|| format!("--sidecar {}", file.display())),
        None => build::sidecar(),
    }
}
