//! `cargo xtask upgrades`: two pods with mutual TLS under a steady load, whose sidecars are upgraded in place again and again.
//!
//! Every request is counted, and every exchange on a stream that stays open; each compares all bytes. One that is refused, reset,
//! stalled, wrong or missing fails the command, and so does a hook that has not exactly one program, a new one each time.

use crate::{
    Reported, build, interrupt,
    load::{
        now_us,
        steady::{self, BROKEN, Kind, Outcome},
    },
    setup::{self, Group},
    soak::{ledger::Ledger, rig::Rig},
    world::{World, programs, wait},
};
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Arguments of `upgrades`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each of the two sidecars is upgraded
    #[arg(long, default_value_t = 20)]
    count: usize,
    /// Requests per second, each on a connection of its own
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Streams that stay open
    #[arg(long, default_value_t = 200)]
    streams: u64,
    /// Use this binary instead of building one
    #[arg(long, value_name = "FILE")]
    sidecar: Option<PathBuf>,
}

/// No stream is to be cut because the command takes long.
const LONG: &str = "proxy: { drain_deadline: 1h }\n";
/// Before the first upgrade, between two, and after the last.
const CALM: Duration = Duration::from_millis(500);
/// The streams are opened, and the first requests answered.
const WARM: Duration = Duration::from_secs(3);
/// What takes longer has stalled: it is the time after which TCP sends a SYN again that was lost.
const STALLED_US: u64 = 1_000_000;
const READY_LIMIT: Duration = Duration::from_secs(30);

/// Upgrades, then says what became of the requests.
pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(args.count > 0 && args.rate > 0, "--count and --rate must be 1 or more");
    setup::ensure(&[Group::Demo])?;
    let binary = match &args.sidecar {
        Some(file) => file.canonicalize().with_context(|| format!("--sidecar {}", file.display()))?,
        None => build::sidecar()?,
    };
    let world = World::new("upgrades")?;
    let mut rig = Rig::set(&world, &binary, args.rate, args.streams, LONG)?;
    println!(
        "{} upgrades of each of two sidecars, with {} requests a second and {} streams between their pods, mutual TLS",
        args.count, args.rate, args.streams
    );
    let mut ledger = Ledger::new(rig.load_output());
    wait::pause(WARM)?;
    let mut made = Vec::new();
    for round in 0..2 * args.count {
        made.push(one(&mut rig, round % 2).with_context(|| format!("upgrade {}", round + 1))?);
        wait::pause(CALM)?;
    }
    interrupt::check()?;
    let end = now_us();
    // Whatever was due until now has its outcome by then.
    wait::pause(steady::LIMIT + Duration::from_secs(1))?;
    ledger.read()?;
    let outcomes = ledger.outcomes.iter().filter(|outcome| outcome.due <= end);
    let tally = Tally::of(outcomes, &made, args.rate, end);
    tally.print(&made);
    if tally.failed() > 0 { Err(Reported.into()) } else { Ok(()) }
}

/// When an upgrade began and ended, in microseconds: the command, from its start to its answer.
type Made = (u64, u64);

fn one(rig: &mut Rig<'_>, side: usize) -> Result<Made> {
    let before = programs::ids(rig.sides[side].pod)?;
    let begin = now_us();
    rig.upgrade(side).with_context(|| rig.last_words())?;
    let end = now_us();
    let after = programs::ids(rig.sides[side].pod)?;
    ensure!(after.len() == before.len(), "there were programs at {} hooks, and are at {}", before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        let new = after.len() == 1 && before.len() == 1 && before != after;
        ensure!(new, "a hook had the programs {before:?}, and has {after:?}");
    }
    rig.ready(READY_LIMIT)?;
    Ok((begin, end))
}

/// What became of all.
#[derive(Default)]
struct Tally {
    requests: usize,
    exchanges: usize,
    /// Of the requests, in microseconds, in order: those that were due in an upgrade, and the others.
    during: Vec<u64>,
    between: Vec<u64>,
    /// The slowest exchange on a stream.
    slowest_exchange: u64,
    broken: usize,
    stalled: usize,
    faults: BTreeMap<String, usize>,
}

impl Tally {
    fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome>, made: &[Made], rate: u64, end: u64) -> Self {
        let (mut tally, mut first) = (Self::default(), u64::MAX);
        for outcome in outcomes {
            let took = outcome.end.saturating_sub(outcome.due);
            tally.stalled += usize::from(outcome.served() && took >= STALLED_US);
            tally.broken += usize::from(outcome.is(BROKEN));
            if let Some(fault) = &outcome.fault {
                *tally.faults.entry(fault.clone()).or_default() += 1;
            }
            if outcome.kind == Kind::Stream {
                tally.exchanges += 1;
                tally.slowest_exchange = tally.slowest_exchange.max(took);
                continue;
            }
            tally.requests += 1;
            first = first.min(outcome.due);
            let upgrading = made.iter().any(|(begin, end)| (*begin..=*end).contains(&outcome.due));
            if upgrading { &mut tally.during } else { &mut tally.between }.push(took);
        }
        // A request without an outcome would be one that nobody counts; the clocks' rounding may make one of the last.
        let due = (end.saturating_sub(first) * rate / 1_000_000) as usize;
        if due > tally.requests {
            tally.faults.insert("no outcome".to_owned(), due - tally.requests);
        }
        tally.during.sort_unstable();
        tally.between.sort_unstable();
        tally
    }

    fn failed(&self) -> usize {
        self.stalled + self.faults.values().sum::<usize>()
    }

    fn print(&self, made: &[Made]) {
        let mut took: Vec<_> = made.iter().map(|(begin, end)| end - begin).collect();
        took.sort_unstable();
        println!("{:24} {:>8} {:>9} {:>9} {:>9}", "", "count", "p50, ms", "p99, ms", "most, ms");
        for (what, took) in
            [("upgrades", &took), ("requests in upgrades", &self.during), ("requests between them", &self.between)]
        {
            let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| millis(quantile(took, share)));
            println!("{what:24} {:>8} {p50:>9.1} {p99:>9.1} {most:>9.1}", took.len());
        }
        println!("{:24} {:>8} {:>29.1}", "exchanges on streams", self.exchanges, millis(self.slowest_exchange));
        let mut faults: Vec<_> = self.faults.iter().collect();
        faults.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
        faults.iter().take(8).for_each(|(fault, times)| println!("{times:8} times {fault}"));
        println!(
            "{} upgrades, each with a new program at every hook and one at each; {} requests and {} exchanges: {} failed, {} streams \
             broken, {} stalled for a second or more",
            made.len(),
            self.requests,
            self.exchanges,
            self.faults.values().sum::<usize>(),
            self.broken,
            self.stalled
        );
    }
}

fn millis(us: u64) -> f64 {
    us as f64 / 1e3
}

/// Of values in order; zero of none.
fn quantile(values: &[u64], share: f64) -> u64 {
    let index = ((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1));
    values.get(index).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_stalls_or_has_no_outcome_is_counted() {
        let outcome = |kind, due: u64, took: u64, fault: Option<&str>| Outcome {
            kind,
            due,
            end: due + took,
            fault: fault.map(str::to_owned),
        };
        let good = [outcome(Kind::Request, 0, 10, None), outcome(Kind::Request, 500_000, 20, None)];
        let of = |outcomes: &[Outcome], end| Tally::of(outcomes.iter(), &[(400_000, 600_000)], 2, end);
        let tally = of(&good, 999_999);
        assert_eq!((tally.requests, tally.failed()), (2, 0));
        assert_eq!((&tally.during, &tally.between), (&vec![20], &vec![10]));
        assert_eq!(of(&good, 1_500_000).failed(), 1, "the third has no outcome");
        for bad in [
            outcome(Kind::Request, 600_000, 1, Some("connect: refused")),
            outcome(Kind::Stream, 600_000, 1, Some("broken: receive: reset")),
            outcome(Kind::Stream, 600_000, STALLED_US, None),
        ] {
            assert_eq!(of(&[&good[..], &[bad]].concat(), 999_999).failed(), 1);
        }
    }
}
