//! The fast path: what the application sends goes past TCP into the proxy's queue, where nobody can tell.
//!
//! It runs on a thread of the supervisor, in the pod's network namespace, and begins when the sidecar serves: it costs the start
//! nothing, and outlives workers, whose sockets the kernel removes from its maps as they close.
//! Everything about it may fail; then every byte goes by TCP.

mod both;
mod engine;
mod kernel_types;
mod memory;
mod probe;
mod traps;

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use aya::Ebpf;
use nix::time::{ClockId, clock_gettime};
use sidecar_common::fastpath::WORTH_BYTES;

use crate::{
    config::Acceleration,
    lifecycle::{
        board::{Board, Figure},
        fast_path::{Both, Phase, Report},
    },
};
use engine::Engine;
use memory::Kept;
use probe::Directions;

pub use both::Findings;
pub use engine::Error;
pub(super) use engine::Maps;

/// Time between two passes: what a connection waits that has become worth it, and what one keeps that has gone over to blocking mode.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A pass may take this part of a core: where very many sockets are open it is made less often.
const SHARE: u32 = 100;
/// And no more seldom than this.
const LOOK_AT_LEAST: Duration = Duration::from_secs(10);

/// What the fast path is made of, before it is loaded.
pub struct Parts {
    pub(super) ebpf: Ebpf,
    pub(super) maps: Maps,
    pub(super) netns: u64,
}

/// The running fast path. Clones are the same.
#[derive(Clone)]
pub struct FastPath(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Where everybody reads how it stands.
    board: Arc<Board>,
}

struct State {
    acceleration: Acceleration,
    /// What the operator said last; `None`: nothing, so that the probe decides.
    wanted: Option<bool>,
    phase: Progress,
}

enum Progress {
    Starting,
    Absent(String),
    Present { engine: Box<Engine>, report: Report, both: Option<Both>, on: bool, failing: Option<String> },
}

impl FastPath {
    /// Loads and probes on a thread of its own, which then brings connections onto the fast path, and writes on the board how it
    /// stands. Must be called in the pod's network namespace. `open` says how many connections there are: while there are none,
    /// nobody looks for them.
    pub fn start(
        acceleration: Acceleration,
        parts: Parts,
        board: Arc<Board>,
        open: impl Fn() -> u64 + Send + 'static,
    ) -> Self {
        let state = Mutex::new(State { acceleration, wanted: None, phase: Progress::Starting });
        let path = Self(Arc::new(Shared { state, changed: Condvar::new(), board }));
        path.publish(&path.lock());
        let own = path.clone();
        let run = move || {
            let outcome = prepare(parts, acceleration);
            own.present(outcome);
            own.follow(open);
        };
        if let Err(source) = thread::Builder::new().name("fast-path".into()).spawn(run) {
            let mut state = path.lock();
            state.phase = Progress::Absent(format!("the kernel gives no thread: {source}"));
            path.publish(&state);
        }
        path
    }

    /// Switches it on or off, if that is wanted and allowed, and writes how it stands on the board. Off means for the very next
    /// message. `number` is the question's.
    pub fn answer(&self, wanted: Option<bool>, number: u64) {
        let mut state = self.lock();
        if let Some(on) = wanted.filter(|on| !on || state.standing().allows(state.acceleration).is_ok()) {
            state.wanted = Some(on);
            state.apply();
            self.0.changed.notify_all();
        }
        self.publish(&state);
        self.0.board.set(Figure::FastPathAnswered, number);
    }

    /// Lets every byte go by TCP from the next message on, until [`Self::resume`]. Returns what that needs.
    pub fn pause(&self) -> Option<bool> {
        let mut state = self.lock();
        let wanted = state.wanted.replace(false);
        state.apply();
        wanted
    }

    /// As it was before [`Self::pause`].
    pub fn resume(&self, wanted: Option<bool>) {
        let mut state = self.lock();
        state.wanted = wanted;
        state.apply();
        self.publish(&state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves a state that still holds.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        state.standing().write(&self.0.board);
    }

    fn present(&self, outcome: Result<(Engine, Findings), Error>) {
        let mut state = self.lock();
        state.phase = match outcome {
            Ok((engine, Findings { report, both })) => {
                let both = both.inspect_err(|error| tracing::info!(%error, "both directions were not probed")).ok();
                Progress::Present { engine: Box::new(engine), report, both, on: false, failing: None }
            }
            Err(error) => {
                tracing::warn!(%error, "no fast path: every byte goes by TCP");
                Progress::Absent(error.to_string())
            }
        };
        state.apply();
        self.publish(&state);
        if let Progress::Present { report, both, on, .. } = &state.phase {
            let (verdict, probe_ms) = (report.verdict(), report.took.as_millis());
            let both_ms = both.as_ref().map(|both| both.report.took.as_millis());
            let both = both.as_ref().map(Both::verdict);
            tracing::info!(on, verdict, probe_ms, both, both_ms, "fast path");
        }
    }

    /// Makes passes for ever.
    fn follow(&self, open: impl Fn() -> u64) {
        let mut pause = LOOK_EVERY;
        loop {
            let state = self.lock();
            let (mut state, _) = self.0.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner);
            let Progress::Present { engine, on, failing, .. } = &mut state.phase else { return };
            if open() == 0 && failing.is_none() && (!*on || engine.enrolled().0 == 0) {
                self.publish(&state);
                continue;
            }
            let before = cpu_time();
            let looked = engine.pass();
            pause = pause_after(cpu_time().saturating_sub(before));
            if looked.is_err() {
                self.0.board.add(Figure::FastPathFailures, 1);
            }
            state.looked(looked);
            self.publish(&state);
        }
    }
}

impl State {
    /// What a look came to. One that failed, as where memory or descriptors are short, lets every byte go by TCP until one succeeds,
    /// which lets go of all that is enrolled: they come back with the look after it. Told once, however often it fails.
    fn looked(&mut self, outcome: Result<usize, Error>) {
        let Progress::Present { engine, on, failing, .. } = &mut self.phase else { return };
        match outcome {
            Ok(_) if failing.take().is_some() => {
                tracing::info!("the pod's sockets can be looked at again: back to the fast path");
                self.apply();
            }
            Ok(_) => {}
            Err(error) => {
                if failing.is_none() {
                    tracing::warn!(%error, "every byte goes by TCP until a look at the pod's sockets succeeds");
                }
                *failing = Some(error.to_string());
                // One word of a map that is open: what could fail there fails for the next look too.
                *on = engine.turn(false).is_err() && *on;
            }
        }
    }

    /// Does what operator, configuration and probe say.
    fn apply(&mut self) {
        let Progress::Present { engine, report, on, failing, .. } = &mut self.phase else { return };
        let by_itself = match self.acceleration {
            Acceleration::Off => false,
            Acceleration::Auto => report.is_clean(),
            Acceleration::Force => report.redirects,
        };
        // What was said before the probe was over may not be allowed after it.
        let may = self.acceleration == Acceleration::Force || report.is_clean();
        let wanted = failing.is_none() && self.wanted.map_or(by_itself, |wanted| wanted && may);
        match engine.turn(wanted) {
            Ok(()) => *on = wanted,
            Err(error) => tracing::warn!(%error, "the fast path stays as it was"),
        }
    }

    /// How it stands, as everybody is told it.
    fn standing(&self) -> Phase {
        match &self.phase {
            Progress::Starting => Phase::Starting,
            Progress::Absent(why) => Phase::Absent(why.clone()),
            Progress::Present { engine, report, both, on, failing } => Phase::Present {
                report: report.clone(),
                both: both.clone(),
                on: *on,
                by_hand: self.wanted.is_some(),
                connections: engine.enrolled().0 as u64,
                failing: failing.clone(),
            },
        }
    }
}

/// What this thread has computed. What it has waited is nobody's loss: a pass waits for the kernel's grace periods too, and those
/// are long on a busy machine.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has a clock of its own").into()
}

/// What a pass that took so much CPU has the next one wait.
fn pause_after(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(LOOK_EVERY, LOOK_AT_LEAST)
}

/// Loads the programs and looks what they change, unless that is known. `force` looks again each time: who forces wants to see.
fn prepare(Parts { ebpf, maps, netns }: Parts, acceleration: Acceleration) -> Result<(Engine, Findings), Error> {
    let mut engine = Engine::load(ebpf, maps, netns)?;
    // The probe switches it on, and may fail.
    probe::release(&mut engine)?;
    let known = if acceleration == Acceleration::Auto { memory::recall() } else { Kept::default() };
    let report = match known.report.clone() {
        Some(report) => report,
        None => probe::probe(&mut engine, Directions::One)?,
    };
    // Before anything is enrolled that carries traffic. Whatever comes of it, the fast path has what was found of it.
    let both = known.both.clone().map_or_else(|| both::probe(&mut engine), Ok);
    memory::remember(known, &report, both.as_ref().ok());
    engine.look_for(None, WORTH_BYTES)?;
    Ok((engine, Findings { report, both }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_take_a_hundredth_of_a_core_and_are_at_most_ten_seconds_apart() {
        for (took_us, pause_ms) in
            [(0, 500), (4999, 500), (20_000, 2000), (99_000, 9900), (100_000, 10_000), (5_000_000, 10_000)]
        {
            assert_eq!(pause_after(Duration::from_micros(took_us)), Duration::from_millis(pause_ms), "{took_us} us");
        }
    }
}
