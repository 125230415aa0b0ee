//! What is done to the pods, in order.

use super::{Args, fleet::Fleet, tell, wakes::Wakes};
use crate::{
    Reported,
    load::answer::Asked,
    world::{cgroup, memory, memory::Memory, pod::Place, process::Process, wait},
};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// Until all that were started at the same time are ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Until a pod has asked everything.
const ASK_LIMIT: Duration = Duration::from_secs(240);
/// Spare connections of the traffic before have been made, and ended unused (`mtls.spare.idle`: 30 s); buffers given back.
const SETTLE: Duration = Duration::from_secs(50);
/// Questions of each pod, each on a connection of its own.
const QUESTIONS: u32 = 10;
/// Of every so many pods one is killed, or upgraded.
const TENTH: usize = 10;
/// Under that load: so many questions a second of each pod that asks, and of all together at the most.
const RATES: (u64, u64) = (10, 200);
/// The load goes on for so long before and after.
const AROUND: Duration = Duration::from_secs(2);

/// Everything; fails at the end if something did not work.
pub(super) fn all(fleet: &mut Fleet, args: &Args) -> Result<()> {
    let pods = args.pods;
    println!("{pods} pods, {} started at a time", args.at_once);
    let begin = Instant::now();
    fleet.identify()?;
    fleet.applications()?;
    println!("namespaces, identities and applications: {:.1} s", begin.elapsed().as_secs_f64());
    let before = tell::Kernel::read()?;

    start(fleet, args.at_once)?;
    let traffic = traffic(fleet, args.at_once)?;
    wait::pause(SETTLE)?;
    resources(fleet, &before, Duration::from_secs(args.idle))?;
    let killed = disturb(fleet, args.at_once, Blow::Kill)?;
    let upgraded = if fleet.upgrades() {
        disturb(fleet, args.at_once, Blow::Upgrade)?
    } else {
        println!("this binary has no `sidecar upgrade`: none is made");
        true
    };
    if traffic && killed && upgraded {
        println!("every pod was served, by whom it asked");
        return Ok(());
    }
    println!("not every pod was served (above)");
    Err(Reported.into())
}

/// All sidecars.
fn start(fleet: &mut Fleet, at_once: usize) -> Result<()> {
    let begin = Instant::now();
    let all: Vec<_> = (0..fleet.members.len()).collect();
    let mut took = started(fleet, &all, at_once)?;
    let span = begin.elapsed();
    println!("all sidecars ready after {:.1} s; start to ready, ms: {}", span.as_secs_f64(), tell::spread(&mut took));
    Ok(())
}

/// Starts these sidecars, so many at a time; says how many milliseconds each took to be ready.
pub(super) fn started(fleet: &mut Fleet, which: &[usize], at_once: usize) -> Result<Vec<f64>> {
    let (mut took, mut starting) = (Vec::new(), Vec::new());
    let mut left = which.iter().copied();
    loop {
        while starting.len() < at_once
            && let Some(number) = left.next()
        {
            starting.push((number, Instant::now()));
            fleet.launch(number)?;
        }
        if starting.is_empty() {
            return Ok(took);
        }
        let mut still = Vec::new();
        for (number, since) in starting {
            if fleet.ready(number)? {
                took.push(since.elapsed().as_secs_f64() * 1000.0);
            } else {
                let words = || fleet.members[number].sidecar.as_ref().map(Process::last_words).unwrap_or_default();
                let late = since.elapsed() > READY_LIMIT;
                anyhow::ensure!(!late, "pod-{number} was not ready within {READY_LIMIT:?}:\n{}", words());
                still.push((number, since));
            }
        }
        starting = still;
        wait::pause(Duration::from_millis(1))?;
    }
}

/// Every pod asks its neighbour; every connection must be one with mutual TLS.
fn traffic(fleet: &Fleet, at_once: usize) -> Result<bool> {
    let begin = Instant::now();
    let (mut running, mut all) = (std::collections::VecDeque::new(), Vec::new());
    for number in 0..fleet.members.len() {
        if running.len() == at_once {
            all.extend(running.pop_front().map(collect));
        }
        running.push_back((number, fleet.asker(number, "ask", QUESTIONS, 0)?));
    }
    all.extend(running.into_iter().map(collect));
    let all = all.into_iter().collect::<Result<Vec<_>>>()?;
    let held = tell::asked("every pod asked its neighbour", &all, begin.elapsed());
    let mut short = Vec::new();
    for number in 0..fleet.members.len() {
        let opened = encrypted(fleet, number, "source")? + encrypted(fleet, number, "destination")?;
        // It asked, and was asked.
        if opened < f64::from(2 * QUESTIONS) {
            short.push(format!("pod-{number} ({opened})"));
        }
    }
    println!("pods with fewer than {} connections with mutual TLS: {} {}", 2 * QUESTIONS, short.len(), short.join(" "));
    Ok(held && short.is_empty())
}

/// The connections with mutual TLS that a pod's sidecar has opened, or accepted.
pub(super) fn encrypted(fleet: &Fleet, number: usize, reporter: &str) -> Result<f64> {
    let labels = [("connection_security_policy", "mutual_tls"), ("reporter", reporter)];
    Ok(fleet.metrics(number)?.sum("istio_tcp_connections_opened_total", &labels))
}

fn collect((number, process): (usize, Process)) -> Result<(usize, Asked)> {
    let said = process.finish(ASK_LIMIT)?;
    Ok((number, serde_json::from_str(&said).with_context(|| format!("not a report: {said}"))?))
}

/// What a sidecar takes that has nothing to do.
fn resources(fleet: &Fleet, before: &tell::Kernel, idle: Duration) -> Result<()> {
    let places: Vec<_> = fleet.members.iter().map(|member| member.pod.container(Place::Sidecar).path()).collect();
    let cpu = || places.iter().map(|place| cgroup::cpu(place)).collect::<Result<Vec<_>>>();
    let (wakes, begin, at_first) = (Wakes::read(&places)?, Instant::now(), cpu()?);
    wait::pause(idle)?;
    let (span, at_last) = (begin.elapsed().as_secs_f64(), cpu()?);
    let woken = Wakes::read(&places)?.since(&wakes, places.len(), span);
    let used = at_last.iter().zip(&at_first).map(|(last, first)| (*last - *first).as_secs_f64() / span * 100.0);
    let memory = places.iter().map(|place| Memory::of_cgroup(place)).collect::<Result<Vec<_>>>()?;
    let maps = places.iter().map(|place| memory::maps(place)).collect::<Result<Vec<_>>>()?;
    let kernel = tell::Kernel::read()?;
    tell::resources(&memory, &maps, used.collect());
    println!("of that, for each sidecar:\n{woken}");
    let restarts =
        (0..fleet.members.len()).map(|number| Ok(fleet.metrics(number)?.sum("sidecar_worker_restarts_total", &[])));
    let restarts: f64 = restarts.sum::<Result<_>>()?;
    println!("workers that were restarted so far: {restarts}");
    println!("{}", kernel.since(before, places.len()));
    Ok(())
}

/// What is done to a tenth of the sidecars while pods ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// SIGKILL, and a new one: those of the killed and of their neighbours may fail meanwhile; nobody else's.
    Kill,
    /// `sidecar upgrade`: nobody's may.
    Upgrade,
}

/// Deals the blow, and says who was disturbed. Whether nobody was who must not be, and all are served afterwards.
fn disturb(fleet: &mut Fleet, at_once: usize, blow: Blow) -> Result<bool> {
    let victims: Vec<_> = (0..fleet.members.len()).step_by(TENTH).collect();
    // Of a victim's pair, and of the pair after it, where there is one.
    let askers = victims.iter().flat_map(|number| [number + 1, number + 2]);
    let askers: Vec<_> = askers.filter(|number| *number < fleet.members.len()).collect();
    let begin = Instant::now();
    let every = (1000 / RATES.0).max(askers.len() as u64 * 1000 / RATES.1);
    let running = askers.iter().map(|number| Ok((*number, fleet.asker(*number, "load", u32::MAX, every)?)));
    let running = running.collect::<Result<Vec<_>>>()?;
    wait::pause(AROUND)?;
    let (mut took, done) = match blow {
        Blow::Kill => (killed(fleet, &victims, at_once)?, "killed and ready again"),
        Blow::Upgrade => (upgraded(fleet, &victims)?, "upgraded"),
    };
    println!(
        "{} sidecars {done}, while {} pods asked {:.0} times a second in all; ms: {}",
        victims.len(),
        askers.len(),
        askers.len() as f64 * 1000.0 / every as f64,
        tell::spread(&mut took)
    );
    wait::pause(AROUND)?;
    running.iter().try_for_each(|(_, asker)| asker.signal(Signal::SIGTERM))?;
    let asked = running.into_iter().map(collect).collect::<Result<Vec<_>>>()?;
    let (hit, spared): (Vec<_>, Vec<_>) = asked.into_iter().partition(|(number, _)| victims.contains(&(number ^ 1)));
    let undisturbed =
        tell::asked(&format!("meanwhile, pods whose neighbour's sidecar was {done}"), &hit, begin.elapsed());
    let others = tell::asked("meanwhile, all other pods that asked", &spared, begin.elapsed());
    tell::disturbed(&hit, &spared);
    Ok(traffic(fleet, at_once)? && others && (undisturbed || blow == Blow::Kill))
}

/// Kills them all at the same moment, and starts them again.
fn killed(fleet: &mut Fleet, victims: &[usize], at_once: usize) -> Result<Vec<f64>> {
    for number in victims {
        let pod = &fleet.members[*number].pod;
        pod.container(Place::Sidecar).kill().with_context(|| format!("kill the sidecar of {}", pod.name))?;
    }
    started(fleet, victims, at_once)
}

/// One after the other, as a rollout does; how many milliseconds each took.
fn upgraded(fleet: &Fleet, victims: &[usize]) -> Result<Vec<f64>> {
    let one = |number: &usize| {
        let begin = Instant::now();
        fleet.upgrade(*number)?;
        Ok(begin.elapsed().as_secs_f64() * 1000.0)
    };
    victims.iter().map(one).collect()
}
