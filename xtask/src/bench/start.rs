//! The sidecar's start, phase by phase, with its program in the page cache and without.

use super::conditions::Conditions;
use crate::{
    interrupt,
    load::{READY, now_us, probe::Path as Way, serve},
    process,
    world::{
        SERVER, World,
        metrics::Metrics,
        pod::Place,
        process::Process,
        sidecar::{self, Plan},
        wait,
    },
};
use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::signal::Signal,
};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use super::{identity, rig::time_told};

const LIMIT: Duration = Duration::from_secs(15);

/// The reach of the whole, in milliseconds: warm and cold.
const REACH: [f64; 2] = [50.0, 100.0];

/// Where the program is when it is started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    Warm,
    Cold,
}

impl Cache {
    fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// Rows of the table in their order. The phases are those of `sidecar_startup_seconds`; the others are seen from outside.
const PROGRAM: &str = "a process of this program, to its end (sidecar --version)";
const PHASES: [&str; 6] = ["configuration", "programs", "listeners", "worker", "attach", "check"];
const REST: &str = "before the first and after the last phase";
const ALL: &str = "exec to the first captured and relayed byte";
const FAULTS: &str = "major page faults of both processes";

/// Values of each row.
type Rows = BTreeMap<&'static str, Vec<f64>>;

/// Starts so many of each kind, in turns; prints the table and returns it for the file.
pub(super) fn measure(binary: &Path, starts: usize) -> Result<Value> {
    let world = World::new("bench")?;
    let line = [own()?, "load".to_owned(), "serve".to_owned(), "--at".to_owned(), SERVER.to_string()];
    let mut servers = Process::start(&world.server, Place::App, &world.folder, "servers", &line)?;
    servers.line(0, LIMIT, "their readiness", |line| line == READY)?;
    identity::issue(binary, &world.folder, &[&world.client])?;
    // The other end has no sidecar, so that what is measured is one start.
    let settings = identity::settings(&world.folder, &world.client)
        + "mtls: { mode: permissive }\nproxy: { drain_deadline: 0s }\n";
    let plan = Plan::new(binary, &world.client, &world.folder, "off", &settings)?;
    let mut all = [(Cache::Warm, Rows::new()), (Cache::Cold, Rows::new())];
    // The first one of all is warm for nobody.
    one(&world, &plan, binary, Cache::Warm, &mut Rows::new())?;
    for _ in 0..starts {
        for (cache, rows) in &mut all {
            interrupt::check()?;
            one(&world, &plan, binary, *cache, rows)?;
        }
    }
    print(&all, starts);
    Ok(to_json(&all))
}

fn own() -> Result<String> {
    Ok(std::env::current_exe().context("cannot find this program's own file")?.display().to_string())
}

/// One start, and one of the program alone.
fn one(world: &World, plan: &Plan, binary: &Path, cache: Cache, rows: &mut Rows) -> Result<()> {
    let mut add = |row, value| rows.entry(row).or_default().push(value);
    prepare(binary, cache)?;
    let begin = Instant::now();
    process::output(Command::new(binary).arg("--version"))?;
    add(PROGRAM, begin.elapsed().as_secs_f64() * 1e3);

    let mut probe = probe(world)?;
    prepare(binary, cache)?;
    let begin = now_us();
    let mut sidecar = plan.start(&world.client, &world.folder, "start", &[])?;
    let captured = sidecar.until(LIMIT, "a captured connection", || time_told(&mut probe))?;
    let total = captured.saturating_sub(begin) as f64 / 1e3;
    let metrics = sidecar.until(LIMIT, "its metrics", || Ok(sidecar::metrics(&world.client).ok()))?;
    let phases = PHASES.map(|phase| phase_of(&metrics, phase));
    PHASES.into_iter().zip(phases).for_each(|(phase, took)| add(phase, took));
    add(REST, total - phases.iter().sum::<f64>());
    add(ALL, total);
    add(FAULTS, sidecar.pids().into_iter().filter_map(major_faults).sum());
    sidecar.end(Signal::SIGTERM, LIMIT)?;
    wait::pause(Duration::from_millis(50))
}

fn phase_of(metrics: &Metrics, phase: &str) -> f64 {
    metrics.sum("sidecar_startup_seconds", &[("phase", phase)]) * 1e3
}

/// A client that tells when connections are captured, and waits until it tries.
fn probe(world: &World) -> Result<Process> {
    let way = Way::Captured.to_possible_value().context("a way without a name")?;
    let to = format!("{SERVER}:{}", serve::WHO);
    let line = [&own()?, "load", "probe", "--until", way.get_name(), "--to", &to];
    let mut probe = Process::start(&world.client, Place::App, &world.folder, "probe", &line)?;
    probe.line(0, LIMIT, "its readiness", |line| line == READY)?;
    Ok(probe)
}

/// Takes the program's file out of the page cache, or reads it whole. Pages that somebody has mapped stay (nobody has: the
/// sidecar before has ended), and so do those that wait to be written.
fn prepare(binary: &Path, cache: Cache) -> Result<()> {
    let mut file = File::open(binary).with_context(|| format!("cannot open {}", binary.display()))?;
    if cache == Cache::Warm {
        std::io::copy(&mut file, &mut std::io::sink()).context("read the program's file")?;
        return Ok(());
    }
    file.sync_all().context("write the program's file out")?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("posix_fadvise(POSIX_FADV_DONTNEED)")
}

/// Pages that had to be read from the disk (proc_pid_stat(5): field 12, the tenth after the name in parentheses).
fn major_faults(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(9)?.parse().ok()
}

/// Median and 99th percentile (the highest, where there are fewer than a hundred).
fn spread(values: &[f64]) -> (f64, f64) {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 - 1.0) * share).round() as usize).copied().unwrap_or(0.0);
    (at(0.5), at(0.99))
}

fn order() -> impl Iterator<Item = &'static str> {
    [PROGRAM].into_iter().chain(PHASES).chain([REST, ALL, FAULTS])
}

fn print(all: &[(Cache, Rows); 2], starts: usize) {
    println!(
        "\nStart of the sidecar with an identity, permissive, ms of {starts} starts each. cold: its file is not in the page"
    );
    println!("cache (POSIX_FADV_DONTNEED); shared libraries, certificates and the kernel's own memory are.\n");
    println!("{:58} {:>10} {:>8} {:>12} {:>8}", "", "warm, p50", "p99", "cold, p50", "p99");
    for row in order() {
        let [warm, cold] = [&all[0].1, &all[1].1].map(|rows| spread(rows.get(row).map_or(&[], Vec::as_slice)));
        println!("{row:58} {:>10.1} {:>8.1} {:>12.1} {:>8.1}", warm.0, warm.1, cold.0, cold.1);
    }
    for ((cache, rows), reach) in all.iter().zip(REACH) {
        let (median, _) = spread(rows.get(ALL).map_or(&[], Vec::as_slice));
        let verdict = if median <= reach { "ok" } else { "MISSED" };
        println!("{verdict}: {} start {median:.1} ms, aim {reach} ms", cache.name());
    }
}

fn to_json(all: &[(Cache, Rows); 2]) -> Value {
    let of = |rows: &Rows| {
        let row = |(row, values): (&&str, &Vec<f64>)| {
            let (median, p99) = spread(values);
            ((*row).to_owned(), json!({ "median": median, "p99": p99, "values": values }))
        };
        Value::Object(rows.iter().map(row).collect::<Map<_, _>>())
    };
    json!({ "unit": "ms", "warm": of(&all[0].1), "cold": of(&all[1].1) })
}

/// Writes `target/bench/<date>-start.json` and says where.
pub(super) fn write(starts: &Value, conditions: &Conditions) -> Result<()> {
    let folder = process::root().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{}-start.json", conditions.date));
    let report = json!({ "date": conditions.date, "conditions": conditions.facts, "start": starts });
    std::fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}
