//! `kill -9` of a sidecar while requests go on, and its return.

use super::{
    stage::Stage,
    story::Story,
    traffic::{Load, matches},
};
use crate::{
    load::{http::Outcome, now_us},
    world::{
        sidecar::{self, INBOUND, VERDICTS},
        wait,
    },
};
use anyhow::Result;
use nix::sys::signal::Signal;
use std::time::Duration;

/// How long requests go on before the kill, without the sidecar, and after its return.
const SPAN: Duration = Duration::from_secs(2);

/// When things happened, on the clock of the load.
struct Times {
    /// Just before the kill.
    kill: u64,
    /// The sidecar is no more.
    gone: u64,
    /// Its successor is ready.
    back: u64,
}

/// The sidecar beside nginx dies and comes back; the requests do not stop.
pub(super) fn survived(stage: &mut Stage<'_>, story: &mut Story) -> Result<()> {
    story.chapter("kill -9 of the sidecar beside nginx, while requests go on");
    let mut load = Load::start(stage, "load-outage")?;
    wait::pause(SPAN)?;
    let kill = now_us();
    stage.server.process()?.end(Signal::SIGKILL, Duration::from_secs(2))?;
    let gone = now_us();
    story.say("killed; on_failure: open, so connections to nginx now go direct");
    wait::pause(SPAN)?;
    let so_far = load.outcomes()?.iter().filter(|outcome| outcome.begin >= gone).count();
    story.say(format!("{so_far} requests since; the sidecar is started again"));
    let restart = now_us();
    let (pid, took) = stage.server.start(stage.world)?;
    let back = now_us();
    story.say(format!("pid {pid} is ready after {} ms", took.as_millis()));
    wait::pause(SPAN)?;
    let outcomes = load.stop()?;
    count(story, &outcomes, &Times { kill, gone, back });
    // The counters began at zero with the new sidecar.
    let steered = sidecar::metrics(stage.server.pod)?.sum(VERDICTS, &INBOUND);
    let begun_since = |time| outcomes.iter().filter(|outcome| outcome.begin >= time).count();
    let after = begun_since(back);
    let claim = format!("its successor has captured every one of these {after} requests ({steered} since its start)");
    story.check(after > 0 && matches(steered, after, begun_since(restart)), claim);
    Ok(())
}

fn count(story: &mut Story, outcomes: &[Outcome], times: &Times) {
    let mut phase = |name: &str, belongs: &dyn Fn(&Outcome) -> bool, may_fail: bool| {
        let of_phase: Vec<_> = outcomes.iter().filter(|outcome| belongs(outcome)).collect();
        let faults: Vec<_> = of_phase.iter().filter_map(|outcome| outcome.fault.as_deref()).collect();
        let counts = format!("{name}: {} ok, {} failed", of_phase.len() - faults.len(), faults.len());
        if may_fail {
            story.say(counts);
        } else {
            story.check(!of_phase.is_empty() && faults.is_empty(), counts);
        }
        faults.iter().take(3).for_each(|fault| story.show(fault));
    };
    phase("requests before the kill", &|outcome| outcome.end < times.kill, false);
    // Their connections ended with the process that carried them.
    let in_flight = |outcome: &Outcome| outcome.end >= times.kill && outcome.begin < times.gone;
    phase("requests in flight at the kill (these may be reset)", &in_flight, true);
    let during = |outcome: &Outcome| outcome.begin >= times.gone && outcome.begin < times.back;
    phase("requests while it was gone, and while it came back", &during, false);
    phase("requests after its return", &|outcome| outcome.begin >= times.back, false);
}
