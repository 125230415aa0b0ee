//! What can happen to a sidecar.

use super::rig::{Rig, Side, signal};
use crate::{random::Random, world::wait};
use anyhow::Result;
use clap::ValueEnum;
use nix::sys::signal::Signal;
use std::{fmt, time::Duration};

/// One kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Fault {
    /// SIGKILL to the worker; the supervisor starts another.
    WorkerKilled,
    /// SIGKILL to supervisor and worker, and a new sidecar at once.
    SidecarKilled,
    /// SIGSTOP to the worker, for up to four seconds.
    WorkerStopped,
    /// SIGSTOP to supervisor and worker, for up to four seconds.
    SidecarStopped,
    /// SIGHUP.
    Reload,
    /// Certificate and key renewed in place.
    Certificate,
    /// The authority's root replaced, in its three steps, at both ends.
    Root,
    /// `sidecar upgrade` with the same binary.
    Upgrade,
    /// The client pod's link down, for up to two seconds.
    Link,
    /// The server pod's network namespace lost, and after up to two seconds the pod made anew.
    Namespace,
}

/// The shortest and the longest time that something is stopped: some are noticed (`proxy.hung_after`), some are not.
const STOPPED_MS: (u64, u64) = (300, 4000);
/// And that there is no network.
const DOWN_MS: (u64, u64) = (100, 2000);

impl Fault {
    /// All kinds.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    /// Makes it, to one side or the other; says to whom and how.
    pub(super) fn make(self, rig: &mut Rig<'_>, random: &mut Random) -> Result<String> {
        let at = random.below(2) as usize;
        let pod = rig.sides[at].pod.name.clone();
        match self {
            Self::WorkerKilled => signal(&[rig.sides[at].worker()?], Signal::SIGKILL)?,
            Self::SidecarKilled => rig.replace(at)?,
            Self::WorkerStopped => return stop(&rig.sides[at], &[rig.sides[at].worker()?], random),
            Self::SidecarStopped => return stop(&rig.sides[at], &rig.sides[at].sidecar.pids(), random),
            Self::Reload => {
                let side = &rig.sides[at];
                rig.grows(side, "sidecar_config_generation", || side.sidecar.signal(Signal::SIGHUP))?;
            }
            Self::Certificate => rig.issue(at)?,
            Self::Root => return root(rig),
            // One that is refused leaves the sidecar as it was: that is told, and the soak goes on.
            Self::Upgrade => {
                return Ok(match rig.upgrade(at) {
                    Ok(words) => format!("{pod}: {words}"),
                    Err(error) => format!("{pod}: REFUSED: {error:#}"),
                });
            }
            Self::Link => return link(rig, random),
            Self::Namespace => {
                let span = span(random, DOWN_MS);
                return rig
                    .lose_namespace(span)
                    .map(|()| format!("server, {} ms until it was made anew", span.as_millis()));
            }
        }
        Ok(pod)
    }

    /// Whether nobody is served meanwhile, with a sidecar or without.
    pub(super) fn takes_the_network(self) -> bool {
        matches!(self, Self::Link | Self::Namespace)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("?", |value| value.get_name()))
    }
}

fn span(random: &mut Random, (least, most): (u64, u64)) -> Duration {
    Duration::from_millis(least + random.below(most - least))
}

fn stop(side: &Side<'_>, processes: &[u32], random: &mut Random) -> Result<String> {
    let span = span(random, STOPPED_MS);
    signal(processes, Signal::SIGSTOP)?;
    let paused = wait::pause(span);
    // One that was killed meanwhile, because it hung, has gone.
    for process in processes {
        let _ = signal(&[*process], Signal::SIGCONT);
    }
    paused.map(|()| format!("{} for {} ms", side.pod.name, span.as_millis()))
}

/// Announced to both, then issued by, then the only one.
fn root(rig: &Rig<'_>) -> Result<String> {
    for step in [&[][..], &[], &["--finish"]] {
        rig.rotate(step)?;
        rig.issue(0)?;
        rig.issue(1)?;
    }
    Ok("at both ends".to_owned())
}

fn link(rig: &Rig<'_>, random: &mut Random) -> Result<String> {
    let (span, netns) = (span(random, DOWN_MS), &rig.sides[0].pod.netns);
    netns.ip(&["link", "set", "eth0", "down"])?;
    let paused = wait::pause(span);
    netns.ip(&["link", "set", "eth0", "up"])?;
    paused.map(|()| format!("{} ms", span.as_millis()))
}
