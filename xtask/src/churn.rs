//! `cargo xtask churn`: connections in quick succession, half of them reset, and then a look at what they left behind.

mod state;

use crate::{
    Reported, build,
    load::{READY, churn::Report, serve},
    setup::{self, Group},
    world::{
        SERVER, World,
        pod::{Place, Pod},
        process::Process,
        sidecar::Plan,
        wait,
    },
};
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use state::{Figure, Sockets, State};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Arguments of `churn`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For how long
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Connections per second that are asked for; the machine may reach fewer
    #[arg(long, default_value_t = 10_000.0)]
    rate: f64,
    /// A sidecar in the client's pod only: fewer steps for each connection, so that more are reached
    #[arg(long)]
    one_sidecar: bool,
    /// Use this binary instead of building one
    #[arg(long, value_name = "FILE")]
    sidecar: Option<PathBuf>,
}

const START_LIMIT: Duration = Duration::from_secs(15);
/// Ends that are on their way.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// Longer than TIME_WAIT (include/net/tcp.h, `TCP_TIMEWAIT_LEN`: 60 s).
const TIME_WAIT_LIMIT: Duration = Duration::from_secs(75);
/// Everything is allocated once that is kept: buffers, threads' stacks, caches of the kernel.
const WARM_UP: f64 = 3.0;
/// At the same time.
const CLIENTS: &str = "64";

/// Churns, and fails if anything is left behind.
pub(crate) fn run(args: Args) -> Result<()> {
    ensure!(args.seconds > 0.0 && args.rate > 0.0, "--seconds and --rate must be more than 0");
    setup::ensure(&[Group::Demo])?;
    let binary = match &args.sidecar {
        Some(file) => file.canonicalize().with_context(|| format!("--sidecar {}", file.display()))?,
        None => build::sidecar()?,
    };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit(RLIMIT_NOFILE)")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit(RLIMIT_NOFILE)")?;
    let world = World::new("churn")?;
    let mut rig = Rig::set(&world, &binary, args.one_sidecar)?;
    rig.churn(args.rate, WARM_UP)?;
    let before = rig.settled(0)?;
    eprintln!("{} s of {} connections a second, half of them reset …", args.seconds, args.rate);
    let report = rig.churn(args.rate, args.seconds)?;
    rig.check()?;
    tell(&report, &args);
    eprintln!("until TIME_WAIT is over …");
    let after = rig.settled(report.connections)?;
    let kept = compare(&before, &after);
    if kept == 0 && report.failures.is_empty() {
        println!("nothing is left behind");
        return Ok(());
    }
    println!("{kept} figures are above what they were, {} kinds of failure", report.failures.len());
    Err(Reported.into())
}

fn tell(report: &Report, args: &Args) {
    let through = if args.one_sidecar { "one sidecar" } else { "two sidecars" };
    println!(
        "{} connections through {through} in {:.1} s: {:.0} a second of the {:.0} that were asked for; {} reset by the client",
        report.connections,
        report.seconds,
        report.connections as f64 / report.seconds,
        args.rate,
        report.reset
    );
    for (failure, times) in &report.failures {
        println!("{times} times {failure}");
    }
}

/// Prints every figure, and says how many have grown by more than they may.
fn compare(before: &State, after: &State) -> usize {
    let grown = |before: &Figure, after: &Figure| after.value > before.value + after.slack;
    println!("{:68} {:>9} {:>9} {:>9}", "", "before", "after", "may grow");
    for (before, after) in before.iter().zip(after) {
        let mark = if grown(before, after) { "  LEFT BEHIND" } else { "" };
        println!("{:68} {:>9} {:>9} {:>9}{mark}", after.name, before.value, after.value, after.slack);
    }
    before.iter().zip(after).filter(|(before, after)| grown(before, after)).count()
}

/// The pods, the echo server and the sidecars.
struct Rig<'a> {
    world: &'a World,
    xtask: String,
    servers: Process,
    sidecars: Vec<(Process, &'a Pod)>,
}

impl<'a> Rig<'a> {
    fn set(world: &'a World, binary: &Path, one: bool) -> Result<Self> {
        let (client, server) = (&world.client, &world.server);
        for pod in [client, server] {
            // Ports in TIME_WAIT must not be what limits it.
            pod.netns.sysctl("ipv4/ip_local_port_range", "16000 64999")?;
            pod.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
        }
        let xtask = std::env::current_exe().context("cannot find this program's own file")?.display().to_string();
        let line = [&xtask, "load", "serve", "--at", &SERVER.to_string()];
        let mut servers = Process::start(server, Place::App, &world.folder, "servers", &line)?;
        servers.line(0, START_LIMIT, "their readiness", |line| line == READY)?;
        let pods = if one { vec![client] } else { vec![client, server] };
        let start = |pod: &'a Pod| {
            let plan = Plan::new(binary, pod, &world.folder, "off", "")?;
            Ok((plan.serve(pod, &world.folder, "churn")?.0, pod))
        };
        let sidecars = pods.into_iter().map(start).collect::<Result<_>>()?;
        Ok(Self { world, xtask, servers, sidecars })
    }

    fn churn(&mut self, rate: f64, seconds: f64) -> Result<Report> {
        let to = format!("{SERVER}:{}", serve::ECHO);
        let (rate, span) = (rate.to_string(), seconds.to_string());
        let args = ["load", "churn", "--to", &to, "--clients", CLIENTS, "--rate", &rate, "--seconds", &span];
        let line = [&[self.xtask.as_str()], &args[..]].concat();
        let client = Process::start(&self.world.client, Place::App, &self.world.folder, "churn", &line)?;
        let output = client.finish(Duration::from_secs_f64(seconds) + SETTLE_LIMIT)?;
        serde_json::from_str(&output).with_context(|| format!("not a report: {output}"))
    }

    /// Fails when something has ended by itself.
    fn check(&mut self) -> Result<()> {
        self.servers.check()?;
        self.sidecars.iter_mut().try_for_each(|(sidecar, _)| sidecar.check())
    }

    /// The state after everything that ends by itself has ended.
    fn settled(&self, connections: u64) -> Result<State> {
        let pods = [&self.world.client, &self.world.server];
        for (_, pod) in &self.sidecars {
            let what = format!("the end of all connections of the {} pod", pod.name);
            wait::until(SETTLE_LIMIT, &what, || Ok((state::connections(pod)? == 0).then_some(())))?;
        }
        wait::until(TIME_WAIT_LIMIT, "the end of TIME_WAIT", || {
            // The questions of this program leave some of their own.
            let waiting = pods.map(|pod| Sockets::of(pod).map(|sockets| sockets.time_wait));
            let [client, server] = waiting;
            wait::pause(Duration::from_millis(200))?;
            Ok((client? + server? < 100).then_some(()))
        })?;
        let mut state = Vec::new();
        for (process, pod) in &self.sidecars {
            state.extend(state::of_sidecar(process, pod)?);
        }
        for pod in pods {
            state.extend(state::of_pod(pod)?);
        }
        state.extend(state::of_kernel(connections)?);
        Ok(state)
    }
}
