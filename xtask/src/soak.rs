//! `cargo xtask soak`: two pods with mutual TLS under a steady load, and everything that can happen to their sidecars, at random.
//!
//! Every request is counted. A number that is missed fails nothing; a wrong byte does, and a sidecar that does not come back.

mod fault;
pub(crate) mod ledger;
pub(crate) mod rig;
mod tell;

use crate::{
    Reported, build, interrupt,
    load::{now_us, steady},
    process,
    random::Random,
    setup::{self, Group},
    world::{World, wait},
};
use anyhow::{Context, Result, ensure};
use fault::Fault;
use ledger::Ledger;
use rig::Rig;
use std::{path::PathBuf, process::Command, time::Duration};

/// Arguments of `soak`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For how long faults are made
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Requests per second, each on a connection of its own
    #[arg(long, default_value_t = 50)]
    rate: u64,
    /// Streams that stay open
    #[arg(long, default_value_t = 20)]
    streams: u64,
    /// The order of faults of a run before, which it printed
    #[arg(long)]
    seed: Option<u64>,
    /// Only faults of these kinds
    #[arg(long, value_name = "KIND")]
    only: Vec<Fault>,
    /// Use this binary instead of building one
    #[arg(long, value_name = "FILE")]
    sidecar: Option<PathBuf>,
}

/// Without a fault, before the first and after each.
const CALM: Duration = Duration::from_secs(1);
/// More of it, by chance.
const MORE_CALM_MS: u64 = 2000;
/// From a fault on until requests are answered again: it belongs to the fault.
const BACK_LIMIT: Duration = Duration::from_secs(30);

/// One fault that was made.
struct Made {
    fault: Fault,
    /// To whom, and how.
    detail: String,
    /// When it began, on the clock of [`now_us`].
    begin: u64,
    /// When both sidecars were ready and requests were answered again.
    back: u64,
}

/// Makes faults until the time is over, then says what became of the requests.
pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(args.minutes > 0.0, "--minutes must be more than 0");
    setup::ensure(&[Group::Demo])?;
    let binary = match &args.sidecar {
        Some(file) => file.canonicalize().with_context(|| format!("--sidecar {}", file.display()))?,
        None => build::sidecar()?,
    };
    let seed = args.seed.unwrap_or_else(|| now_us() % 1_000_000);
    let world = World::new("soak")?;
    let mut rig = Rig::set(&world, &binary, args.rate, args.streams, "")?;
    let kinds = kinds(&args.only, &rig);
    println!(
        "{} requests a second and {} streams between two pods with mutual TLS, for {} minutes; --seed {seed}",
        args.rate, args.streams, args.minutes
    );
    let mut soak = Soak { ledger: Ledger::new(rig.load_output()), made: Vec::new(), lost: None, begin: now_us() };
    let ended = soak.faults(&mut rig, &kinds, Random::new(seed), args.minutes);
    interrupt::check()?;
    let end = now_us();
    // Whatever was due until now has its outcome by then.
    wait::pause(steady::LIMIT + Duration::from_secs(1))?;
    soak.ledger.read()?;
    soak.lost = ended.err().map(|error| format!("{error:#}"));
    let summary = tell::Summary::of(&soak, args.rate, end);
    summary.print();
    let path = write(&summary.to_json(&soak, &args, seed))?;
    println!("written to {}", path.display());
    if let Some(lost) = &soak.lost {
        println!("the soak ended before its time: {lost}");
    }
    if soak.lost.is_some() || summary.wrong() > 0 {
        return Err(Reported.into());
    }
    Ok(())
}

/// Those that were asked for; all, but for what the binary cannot do.
fn kinds(only: &[Fault], rig: &Rig<'_>) -> Vec<Fault> {
    let asked = |fault: &Fault| only.is_empty() || only.contains(fault);
    let mut kinds: Vec<_> = Fault::all().filter(asked).collect();
    if kinds.contains(&Fault::Upgrade) && !rig.upgrades() {
        println!("this binary has no `sidecar upgrade`: none is made");
        kinds.retain(|fault| *fault != Fault::Upgrade);
    }
    kinds
}

/// What has happened so far.
struct Soak {
    ledger: Ledger,
    made: Vec<Made>,
    /// Why it ended before its time: a sidecar did not come back.
    lost: Option<String>,
    begin: u64,
}

impl Soak {
    /// Each kind once, in an order by chance, and again, until the time is over.
    fn faults(&mut self, rig: &mut Rig<'_>, kinds: &[Fault], mut random: Random, minutes: f64) -> Result<()> {
        let over = self.begin + (minutes * 60e6) as u64;
        wait::pause(CALM * 3)?;
        let mut left: Vec<Fault> = Vec::new();
        while now_us() < over {
            if left.is_empty() {
                left = kinds.to_vec();
                random.shuffle(&mut left);
            }
            let Some(fault) = left.pop() else { return wait::pause(Duration::from_secs_f64(minutes * 60.0)) };
            self.one(rig, fault, &mut random).with_context(|| format!("after fault {}", self.made.len() + 1))?;
            wait::pause(CALM + Duration::from_millis(random.below(MORE_CALM_MS)))?;
        }
        Ok(())
    }

    /// Makes a fault, and waits until everything is as before.
    fn one(&mut self, rig: &mut Rig<'_>, fault: Fault, random: &mut Random) -> Result<()> {
        let begin = now_us();
        let detail = fault.make(rig, random).with_context(|| fault.to_string())?;
        let since = now_us();
        rig.ready(BACK_LIMIT).with_context(|| format!("{fault} ({detail})"))?;
        let what = format!("an answered request after {fault} ({detail})");
        let back = wait::until(BACK_LIMIT, &what, || Ok(self.ledger.read()?.answered_since(since)))
            .with_context(|| rig.last_words())?;
        println!("{:7.1} s  {fault}: {detail}; back after {:.0} ms", seconds(begin - self.begin), millis(back - begin));
        self.made.push(Made { fault, detail, begin, back });
        Ok(())
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn millis(us: u64) -> f64 {
    us as f64 / 1e3
}

/// Writes `target/soak/<date>.json` and says where.
fn write(report: &serde_json::Value) -> Result<PathBuf> {
    let date = process::output(Command::new("date").args(["--utc", "+%Y-%m-%dT%H-%M-%SZ"]))?;
    let folder = process::root().join("target/soak");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{}.json", date.trim()));
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
