//! The race at the start of a pod: applications that connect in their first instruction, and a sidecar that does not serve yet.
//!
//! `sidecar init` has run, and then everything is started at the same moment: a *hasty* application that asks its neighbour at
//! once, and again and again; a *waiting* one, which is `sidecar wait && exec application` and asks once; and the sidecar, without
//! any capability. Mutual TLS is strict at both ends. A tap sees what leaves the pod from before `init` on.

use super::{Args, fleet::Fleet, phases};
use crate::{
    Reported,
    load::answer::Asked,
    world::{
        pod::Place,
        process::Process,
        wait,
        wire::{Seen, Wire},
    },
};
use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
};
use std::time::{Duration, Instant};

/// Part of every question, and of every answer.
const WORDS: &[u8] = b" asks pod-";
/// Milliseconds between two questions of a hasty application.
const EVERY: u64 = 20;
/// Until `sidecar init` has ended, and until an application that waits was answered.
const LIMIT: Duration = Duration::from_secs(60);
/// A hasty application goes on for so long when the waiting one was answered.
const AFTER: Duration = Duration::from_millis(200);

/// A mount namespace of this process's own, with a BPF file system: what is pinned ends with it.
pub(super) fn own_bpffs() -> Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS); run as root")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make all mounts private")?;
    let place = "/sys/fs/bpf";
    mount(Some("bpf"), place, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("mount a BPF file system at {place}"))
}

/// What became of all applications.
#[derive(Default)]
struct Outcome {
    waiting: Asked,
    hasty: Asked,
    packets: usize,
    faults: Vec<String>,
}

/// One wave after the other, so that each pod's neighbour serves already: what a pod without a sidecar refuses is no race.
pub(super) fn all(fleet: &mut Fleet, args: &Args) -> Result<()> {
    println!("{} pods, {} started at a time", args.pods, args.at_once);
    fleet.identify()?;
    fleet.applications()?;
    control(fleet)?;
    let [even, odd] = [0, 1].map(|first| (first..args.pods).step_by(2).collect::<Vec<_>>());
    for some in even.chunks(args.at_once) {
        init(fleet, some)?;
    }
    phases::started(fleet, &even, args.at_once)?;
    let mut outcome = Outcome::default();
    wave(fleet, &odd, args.at_once, &mut outcome)?;
    for number in &even {
        end(fleet, *number)?;
    }
    wave(fleet, &even, args.at_once, &mut outcome)?;
    outcome.tell(args.pods)
}

/// What is looked for can be found: before anything captures, the wire shows a question.
fn control(fleet: &Fleet) -> Result<()> {
    let wire = Wire::tap(&fleet.members[0].pod)?;
    fleet.asker(0, "control", 1, 0)?.finish(LIMIT)?;
    ensure!(wire.all()?.holds(WORDS), "the wire does not show a question that nothing encrypts: it cannot tell");
    println!("before `sidecar init` the wire shows a question in plaintext");
    Ok(())
}

/// Runs `sidecar init` in these pods at the same time.
fn init(fleet: &Fleet, some: &[usize]) -> Result<()> {
    let start = |number: &usize| {
        let (pod, config) = (&fleet.members[*number].pod, fleet.config(*number)?);
        let line = [fleet.binary.as_os_str(), "init".as_ref(), "--config".as_ref(), config.as_os_str()];
        // Again after the sidecar of before was killed.
        Process::start(pod, Place::Sidecar, &fleet.folder, &format!("init-{}", pod.name), &line)
    };
    let running = some.iter().map(start).collect::<Result<Vec<_>>>()?;
    running.into_iter().try_for_each(|init| init.finish(LIMIT).map(drop))
}

/// Kills the sidecar of a pod; its programs stay, and refuse.
fn end(fleet: &mut Fleet, number: usize) -> Result<()> {
    let member = &mut fleet.members[number];
    let place = member.pod.container(Place::Sidecar);
    place.kill().with_context(|| format!("kill the sidecar of {}", member.pod.name))?;
    wait::until(LIMIT, "the end of a killed sidecar", || Ok((!place.populated()?).then_some(())))?;
    member.sidecar = None;
    Ok(())
}

/// The race in each of these pods, in so many at a time.
fn wave(fleet: &mut Fleet, which: &[usize], at_once: usize, outcome: &mut Outcome) -> Result<()> {
    let begin = Instant::now();
    for some in which.chunks(at_once) {
        let wires = some.iter().map(|number| Wire::tap(&fleet.members[*number].pod)).collect::<Result<Vec<_>>>()?;
        init(fleet, some)?;
        let mut running = Vec::new();
        for number in some {
            let hasty = fleet.asker(*number, "hasty", u32::MAX, EVERY)?;
            running.push((*number, hasty, waiting(fleet, *number)?));
            fleet.launch(*number)?;
        }
        for ((number, hasty, waiting), wire) in running.into_iter().zip(wires) {
            let name = &fleet.members[number].pod.name;
            let waiting = report(waiting).with_context(|| format!("the application that waits in {name}"))?;
            wait::pause(AFTER)?;
            hasty.signal(Signal::SIGTERM)?;
            let hasty = report(hasty).with_context(|| format!("the hasty application in {name}"))?;
            let seen = wire.all()?;
            let carried = phases::encrypted(fleet, number, "source")?;
            outcome.add(name, (waiting, hasty), &seen, carried);
        }
    }
    println!("{} pods have raced after {:.1} s", which.len(), begin.elapsed().as_secs_f64());
    Ok(())
}

/// An application that waits for its sidecar.
fn waiting(fleet: &Fleet, number: usize) -> Result<Process> {
    let pod = &fleet.members[number].pod;
    let script = "\"$0\" wait --config \"$1\" --timeout 60s && shift && exec \"$@\"";
    let (binary, config) = (fleet.binary.display().to_string(), fleet.config(number)?.display().to_string());
    let shell = ["sh", "-c", script, &binary, &config].map(str::to_owned);
    let line = [&shell[..], &fleet.question(number, 1, 0)].concat();
    Process::start(pod, Place::App, &fleet.folder, &format!("waiting-{}", pod.name), &line)
}

fn report(process: Process) -> Result<Asked> {
    let said = process.finish(LIMIT)?;
    serde_json::from_str(&said).with_context(|| format!("not a report: {said}"))
}

impl Outcome {
    /// Of one pod; `carried`: the connections that its sidecar opened with mutual TLS.
    fn add(&mut self, pod: &str, (waiting, hasty): (Asked, Asked), seen: &Seen, carried: f64) {
        let answered = waiting.answered + hasty.answered;
        let mut fault = |what: String| self.faults.push(format!("{pod}: {what}"));
        let said = |asked: &Asked| asked.fault.clone().unwrap_or_default();
        if (waiting.answered, waiting.failed, waiting.wrong) != (1, 0, 0) {
            fault(format!("the first connection of the application that waits failed: {}", said(&waiting)));
        }
        if hasty.failed > hasty.refused || hasty.wrong > 0 || hasty.late > 0 {
            fault(format!(
                "a connection of the hasty application was not answered, nor refused before any was answered: {}",
                said(&hasty)
            ));
        }
        if seen.holds(WORDS) {
            fault("the wire shows plaintext".to_owned());
        }
        if carried < f64::from(answered) || seen.packets == 0 {
            let packets = seen.packets;
            fault(format!("{answered} answered, {carried} connections with mutual TLS, {packets} packets on the wire"));
        }
        self.packets += seen.packets;
        for (sum, more) in [(&mut self.waiting, waiting), (&mut self.hasty, hasty)] {
            sum.answered += more.answered;
            sum.failed += more.failed;
            sum.refused += more.refused;
            sum.late += more.late;
            sum.wrong += more.wrong;
            sum.slowest = sum.slowest.max(more.slowest);
        }
    }

    fn tell(&self, pods: usize) -> Result<()> {
        let Self { waiting, hasty, .. } = self;
        println!(
            "applications that wait for their sidecar: {} of {pods} had their first connection answered; slowest {:.0} ms",
            waiting.answered, waiting.slowest
        );
        println!(
            "hasty applications: {} connections refused before any was answered, then {} answered; otherwise failed: {}; slowest {:.0} ms",
            hasty.refused,
            hasty.answered,
            hasty.failed - hasty.refused.min(hasty.failed) + hasty.late + hasty.wrong,
            hasty.slowest
        );
        println!("on the wire: {} packets with data", self.packets);
        if self.faults.is_empty() {
            println!("every connection that was answered went through mutual TLS, and nothing left in plaintext");
            return Ok(());
        }
        self.faults.iter().take(10).for_each(|fault| println!("  {fault}"));
        println!("{} faults", self.faults.len());
        Err(Reported.into())
    }
}
