//! `cargo xtask lab`: what other uses of sockmaps would win, on loopback, without a sidecar.

mod bpf;
mod lane;
mod unread;

use anyhow::{Context, Result, ensure};
use lane::{CHUNK, Lane, Way, receive, send, turn};
use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

/// Arguments of `lab`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each way is measured, in turn
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of each span of requests
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Length of each stream
    #[arg(long, default_value_t = 2_000_000_000)]
    bytes: u64,
}

/// What is sent.
#[derive(Clone, Copy)]
enum Load {
    /// Requests of so many bytes, echoed, on so many connections with one on its way each.
    Requests { bytes: usize, connections: usize },
    /// One stream.
    Stream,
}

const LOADS: [(&str, Load); 5] = [
    ("64 B there and back, 1 connection", Load::Requests { bytes: 64, connections: 1 }),
    ("4 KiB there and back, 1 connection", Load::Requests { bytes: 4096, connections: 1 }),
    ("64 KiB there and back, 1 connection", Load::Requests { bytes: 65536, connections: 1 }),
    ("1 KiB there and back, 64 connections", Load::Requests { bytes: 1024, connections: 64 }),
    ("one stream, per MB", Load::Stream),
];

/// Of one operation: an exchange, or a megabyte.
#[derive(Clone, Copy)]
struct Cost {
    /// Half of them took so many microseconds; of a stream: the average.
    time: f64,
    /// CPU time of the whole machine in microseconds, its kernel threads among it.
    cpu: f64,
    /// Context switches of the whole machine.
    switches: f64,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0 && args.bytes > 0, "--rounds and --bytes must be 1 or more");
    unread::show()?;
    let mut costs: BTreeMap<(usize, Way), Vec<Cost>> = BTreeMap::new();
    for round in 0..args.rounds {
        for turn in 0..Way::ALL.len() {
            let way = Way::ALL[(round + turn) % Way::ALL.len()];
            for (number, (name, load)) in LOADS.iter().enumerate() {
                let cost = measure(way, *load, args).with_context(|| format!("{}: {name}", way.name()))?;
                costs.entry((number, way)).or_default().push(cost);
            }
        }
        eprintln!("round {}/{}", round + 1, args.rounds);
    }
    println!("Medians [lowest–highest] of {} rounds; one operation is an exchange, or a megabyte", args.rounds);
    for (number, (name, _)) in LOADS.iter().enumerate() {
        println!("\n{name:38}  {:>22}  {:>22}  {:>22}", "time, µs", "CPU of the machine, µs", "context switches");
        for way in Way::ALL {
            let of = |pick: fn(&Cost) -> f64| spread(costs[&(number, way)].iter().map(pick).collect());
            println!(
                "  {:36}  {:>22}  {:>22}  {:>22}",
                way.name(),
                of(|cost| cost.time),
                of(|cost| cost.cpu),
                of(|cost| cost.switches)
            );
        }
    }
    Ok(())
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values[values.len() / 2];
    format!("{middle:.1} [{:.1}–{:.1}]", values[0], values[values.len() - 1])
}

fn measure(way: Way, load: Load, args: &Args) -> Result<Cost> {
    match load {
        Load::Requests { bytes, connections } => {
            let lane = Lane::open(way, connections, None)?;
            requests(&lane, bytes, Duration::from_millis(200))?;
            let before = Machine::now()?;
            let mut times = requests(&lane, bytes, Duration::from_secs_f64(args.seconds))?;
            let (cpu, switches) = Machine::now()?.since(before);
            lane.close();
            times.sort_unstable();
            let count = times.len() as f64;
            let time = times[times.len() / 2].as_secs_f64() * 1e6;
            Ok(Cost { time, cpu: cpu / count, switches: switches / count })
        }
        Load::Stream => {
            let lane = Lane::open(way, 1, Some(args.bytes))?;
            let (before, begin) = (Machine::now()?, Instant::now());
            stream(&lane, args.bytes)?;
            let (time, (cpu, switches)) = (begin.elapsed(), Machine::now()?.since(before));
            lane.close();
            let megabytes = args.bytes as f64 / 1e6;
            Ok(Cost {
                time: time.as_secs_f64() * 1e6 / megabytes,
                cpu: cpu / megabytes,
                switches: switches / megabytes,
            })
        }
    }
}

/// Times of the exchanges that were made within `span`; those on their way at its end are waited for.
fn requests(lane: &Lane, bytes: usize, span: Duration) -> Result<Vec<Duration>> {
    let (request, mut buffer) = (vec![0x5a; bytes], vec![0; bytes]);
    let mut open: Vec<_> = lane.clients.iter().map(|_| (Instant::now(), 0)).collect();
    let (end, mut times, mut under_way) = (Instant::now() + span, Vec::new(), lane.clients.len());
    lane.clients.iter().try_for_each(|client| send(client, &request))?;
    turn(lane.clients.iter(), |number| {
        let (client, (sent, got)) = (&lane.clients[number], &mut open[number]);
        *got += match receive(client, &mut buffer[*got..])? {
            Some(0) => anyhow::bail!("a connection ended before its answer"),
            Some(count) => count,
            None => 0,
        };
        if *got == bytes {
            let now = Instant::now();
            times.push(now - *sent);
            if now > end {
                under_way -= 1;
            } else {
                (*sent, *got) = (now, 0);
                send(client, &request)?;
            }
        }
        Ok(under_way > 0)
    })?;
    Ok(times)
}

fn stream(lane: &Lane, bytes: u64) -> Result<()> {
    let (chunk, mut left) = (vec![0x5a; CHUNK], bytes);
    let client = &lane.clients[0];
    while left > 0 {
        let size = left.min(CHUNK as u64);
        send(client, &chunk[..size as usize])?;
        left -= size;
    }
    turn([client].into_iter(), |_| Ok(receive(client, &mut [0])?.is_none()))
}

/// What the machine has done since it was started.
#[derive(Clone, Copy)]
struct Machine {
    cpu_us: f64,
    switches: f64,
}

impl Machine {
    fn now() -> Result<Self> {
        /// User, nice and system; then come idle and waiting, then interrupts, hard and soft. In hundredths of a second.
        const BUSY: [usize; 5] = [1, 2, 3, 6, 7];
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let line =
            |name| text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(move |w| w[0] == name);
        let (cpu, ctxt) =
            (line("cpu").context("no cpu in /proc/stat")?, line("ctxt").context("no ctxt in /proc/stat")?);
        let ticks = BUSY.iter().map(|at| cpu[*at].parse::<f64>()).sum::<Result<f64, _>>()?;
        Ok(Self { cpu_us: ticks * 1e4, switches: ctxt[1].parse()? })
    }

    /// CPU time and context switches.
    fn since(self, before: Self) -> (f64, f64) {
        (self.cpu_us - before.cpu_us, self.switches - before.switches)
    }
}
