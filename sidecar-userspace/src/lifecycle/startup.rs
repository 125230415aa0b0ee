//! How long the parts of the sidecar's start took, from the first instruction of its program on.

use std::sync::OnceLock;

use super::{
    beats::monotonic_now,
    board::{Board, BoardReader, Figure},
};

/// A part of the start, in their order. What comes before the first (exec(2), the dynamic linker) no process sees of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The command line, and the configuration read and checked.
    Configuration,
    /// The pod found and entered, the worker process begun, the programs loaded and verified.
    Programs,
    /// Every port bound.
    Listeners,
    /// The kernel side told of addresses, routes and rules; the worker up, with its identity or with word that there is none.
    Worker,
    /// The programs attached to the pod.
    Attach,
    /// The programs seen to be effective, and a probe connection seen to pass them.
    Check,
}

/// When the program began; set once.
static BEGAN: OnceLock<u64> = OnceLock::new();

/// The first thing that the program does.
pub fn begin() {
    BEGAN.get_or_init(monotonic_now);
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Self; 6] =
        [Self::Configuration, Self::Programs, Self::Listeners, Self::Worker, Self::Attach, Self::Check];

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Programs => "programs",
            Self::Listeners => "listeners",
            Self::Worker => "worker",
            Self::Attach => "attach",
            Self::Check => "check",
        }
    }

    fn figure(self) -> Figure {
        match self {
            Self::Configuration => Figure::StartConfiguration,
            Self::Programs => Figure::StartPrograms,
            Self::Listeners => Figure::StartListeners,
            Self::Worker => Figure::StartWorker,
            Self::Attach => Figure::StartAttach,
            Self::Check => Figure::StartCheck,
        }
    }

    /// How long it took, in seconds, as the supervisor has written it.
    pub fn seconds(self, board: &BoardReader) -> f64 {
        board.get(self.figure()) as f64 / 1e9
    }
}

/// Takes the time of each phase.
#[derive(Debug)]
pub struct Stopwatch {
    last: u64,
    /// Nanoseconds of each phase.
    took: [u64; Phase::ALL.len()],
}

impl Stopwatch {
    /// The configuration is there; the phase after it begins. Runs since [`begin`], or, where nobody called that, since now.
    pub fn configured() -> Self {
        let now = monotonic_now();
        let mut watch = Self { last: *BEGAN.get_or_init(|| now), took: [0; Phase::ALL.len()] };
        watch.done(Phase::Configuration);
        watch
    }

    /// A phase is over, and the one after it begins.
    pub fn done(&mut self, phase: Phase) {
        let now = monotonic_now();
        self.took[phase as usize] = now.saturating_sub(self.last);
        self.last = now;
    }

    /// Milliseconds of a phase, for the log.
    pub fn ms(&self, phase: Phase) -> f64 {
        self.took[phase as usize].div_ceil(1000) as f64 / 1e3
    }

    /// Milliseconds of all that are over.
    pub fn total_ms(&self) -> f64 {
        Phase::ALL.iter().map(|phase| self.ms(*phase)).sum()
    }

    /// Writes all of them for whoever reads the board.
    pub fn write(&self, board: &Board) {
        Phase::ALL.iter().for_each(|phase| board.set(phase.figure(), self.took[*phase as usize]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_has_the_time_since_the_one_before() {
        let board = Board::new().unwrap();
        let reader = BoardReader::map(&board).unwrap();
        let mut watch = Stopwatch::configured();
        std::thread::sleep(std::time::Duration::from_millis(3));
        watch.done(Phase::Programs);
        watch.done(Phase::Listeners);
        watch.write(&board);
        assert!(Phase::Programs.seconds(&reader) >= 0.003, "{watch:?}");
        assert!(Phase::Listeners.seconds(&reader) < Phase::Programs.seconds(&reader), "{watch:?}");
        assert!(Phase::Check.seconds(&reader).abs() < f64::EPSILON, "it is not over: {watch:?}");
        assert!(watch.total_ms() >= 3.0);
    }
}
