//! The fast path: what the application sends goes past TCP into the proxy's queue, where nobody can tell.
//!
//! It runs on a thread of its own, in the pod's network namespace, and begins when the sidecar serves: it costs the start nothing.
//! Everything about it may fail; then every byte goes by TCP.

mod engine;
mod kernel_types;
mod memory;
mod probe;
mod traps;

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use aya::Ebpf;
use sidecar_common::fastpath::WORTH_BYTES;

use super::programs::Programs;
use crate::{config::Acceleration, net};
use engine::Engine;

pub use engine::Error;
pub(super) use engine::Maps;
pub use probe::{Report, traps};

/// Time between two passes: what a connection waits that has become worth it, and what one keeps that has gone over to blocking mode.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A pass may take this part of a core: where very many sockets are open it is made less often.
const SHARE: u32 = 100;

/// What the fast path is made of, before it is loaded.
pub struct Parts {
    pub(super) ebpf: Arc<Mutex<Ebpf>>,
    pub(super) maps: Maps,
    pub(super) netns: u64,
}

/// The running fast path. Clones are the same.
#[derive(Clone)]
pub struct FastPath(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    acceleration: Acceleration,
    /// What the operator said last; `None`: nothing, so that the probe decides.
    wanted: Option<bool>,
    phase: Phase,
}

enum Phase {
    Off,
    Starting,
    Absent(String),
    Present { engine: Box<Engine>, report: Report, on: bool },
}

/// What there is to say about the fast path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Messages may be redirected now.
    pub on: bool,
    /// Why, for people.
    pub why: String,
    /// What the probe found; `None`: it did not take place, or is under way.
    pub report: Option<Report>,
    /// Connections whose application end is enrolled now.
    pub connections: usize,
}

impl FastPath {
    /// There is none: `acceleration: off`.
    pub fn off() -> Self {
        Self::new(Acceleration::Off, Phase::Off)
    }

    /// Loads and probes on a thread of its own, which then brings connections onto the fast path. Must be called in the pod's network
    /// namespace. `open` says how many connections there are: while there are none, nobody looks for them.
    pub fn start(acceleration: Acceleration, parts: Parts, open: impl Fn() -> usize + Send + 'static) -> Self {
        let path = Self::new(acceleration, Phase::Starting);
        let own = path.clone();
        let run = move || {
            let outcome = prepare(parts, acceleration);
            own.present(outcome);
            own.follow(open);
        };
        if let Err(source) = thread::Builder::new().name("fast-path".into()).spawn(run) {
            path.lock().phase = Phase::Absent(format!("the kernel gives no thread: {source}"));
        }
        path
    }

    fn new(acceleration: Acceleration, phase: Phase) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State { acceleration, wanted: None, phase }),
            changed: Condvar::new(),
        }))
    }

    /// Switches it on or off. Off means for the very next message.
    ///
    /// # Errors
    /// Why it cannot be switched on, and what can be done.
    pub fn switch(&self, on: bool) -> Result<(), String> {
        let mut state = self.lock();
        let acceleration = state.acceleration;
        match &state.phase {
            Phase::Off if on => {
                return Err(
                    "acceleration is `off` in the configuration, and the kernel maps are made at the start: set \
                            `acceleration: auto` and start the sidecar again"
                        .to_owned(),
                );
            }
            Phase::Absent(why) if on => return Err(format!("there is no fast path on this kernel: {why}")),
            Phase::Present { report, .. } if on && acceleration == Acceleration::Auto && !report.is_clean() => {
                return Err(format!(
                    "{}; `acceleration: force` in the configuration would use it all the same",
                    report.verdict()
                ));
            }
            _ => {}
        }
        state.wanted = Some(on);
        state.apply();
        drop(state);
        self.0.changed.notify_all();
        Ok(())
    }

    /// What there is to say.
    pub fn status(&self) -> Status {
        let state = self.lock();
        match &state.phase {
            Phase::Off => Status::without("acceleration is `off`"),
            Phase::Starting => Status::without("the kernel is being probed"),
            Phase::Absent(why) => Status::without(why),
            Phase::Present { engine, report, on } => Status {
                on: *on,
                why: match state.wanted {
                    Some(_) => format!("switched by hand; {}", report.verdict()),
                    None => report.verdict(),
                },
                report: Some(report.clone()),
                connections: engine.enrolled().0,
            },
        }
    }

    /// Whether messages may be redirected, and what the probe found: what metrics tell.
    pub fn figures(&self) -> (bool, Option<Report>) {
        match &self.lock().phase {
            Phase::Present { report, on, .. } => (*on, Some(report.clone())),
            _ => (false, None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves a state that still holds.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self, outcome: Result<(Engine, Report), Error>) {
        let mut state = self.lock();
        state.phase = match outcome {
            Ok((engine, report)) => Phase::Present { engine: Box::new(engine), report, on: false },
            Err(error) => {
                tracing::warn!(%error, "no fast path: every byte goes by TCP");
                Phase::Absent(error.to_string())
            }
        };
        state.apply();
        if let Phase::Present { report, on, .. } = &state.phase {
            let (verdict, probe_ms) = (report.verdict(), report.took.as_millis());
            tracing::info!(on, verdict, probe_ms, "fast path");
        }
    }

    /// Makes passes for ever.
    fn follow(&self, open: impl Fn() -> usize) {
        let mut pause = LOOK_EVERY;
        loop {
            let state = self.lock();
            let (mut state, _) = self.0.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner);
            let Phase::Present { engine, on, .. } = &mut state.phase else { return };
            if open() == 0 && (!*on || engine.enrolled().0 == 0) {
                continue;
            }
            let started = Instant::now();
            if let Err(error) = engine.pass() {
                tracing::warn!(%error, "no more connections come onto the fast path");
                let _ = engine.turn(false);
                state.phase = Phase::Absent(error.to_string());
                return;
            }
            pause = LOOK_EVERY.max(started.elapsed() * SHARE);
        }
    }
}

impl State {
    /// Does what operator, configuration and probe say.
    fn apply(&mut self) {
        let Phase::Present { engine, report, on } = &mut self.phase else { return };
        let wanted = self.wanted.unwrap_or(match self.acceleration {
            Acceleration::Off => false,
            Acceleration::Auto => report.is_clean(),
            Acceleration::Force => report.redirects,
        });
        if wanted {
            // Before the first message can be redirected.
            net::expect_data_past_tcp();
        }
        match engine.turn(wanted) {
            Ok(()) => *on = wanted,
            Err(error) => tracing::warn!(%error, "the fast path stays as it was"),
        }
    }
}

impl Status {
    fn without(why: &str) -> Self {
        Self { on: false, why: why.to_owned(), report: None, connections: 0 }
    }
}

/// Loads the programs and looks what they change, unless that is known. `force` looks again each time: who forces wants to see.
fn prepare(Parts { ebpf, maps, netns }: Parts, acceleration: Acceleration) -> Result<(Engine, Report), Error> {
    let mut engine = Engine::load(ebpf, maps, netns)?;
    let known = if acceleration == Acceleration::Auto { memory::recall() } else { None };
    let report = match known {
        Some(report) => report,
        None => {
            let report = probe::probe(&mut engine)?;
            memory::remember(&report);
            report
        }
    };
    engine.look_for(None, WORTH_BYTES)?;
    Ok((engine, report))
}

impl Programs {
    /// Probes the kernel as the fast path would at its start, with sockets of its own.
    ///
    /// # Errors
    /// Why there is no fast path.
    pub fn try_fast_path(mut self) -> Result<Report, Error> {
        let maps = Maps::take(&mut self.ebpf)?;
        let netns =
            net::netns_cookie().map_err(|source| Error::Probe { what: "ask for the network namespace", source })?;
        let parts = Parts { ebpf: Arc::new(Mutex::new(self.ebpf)), maps, netns };
        prepare(parts, Acceleration::Force).map(|(_, report)| report)
    }
}
