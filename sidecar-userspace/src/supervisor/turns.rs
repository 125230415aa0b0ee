//! The supervisor's loop: one thread, one wait for everything, and what each thing that speaks is answered with.

use std::{
    os::fd::{AsFd, BorrowedFd},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Error,
    application::Application,
    keeping::{Keeping, Watched},
    listening::Listeners,
    pings::Pings,
    reload::Configurations,
    restarts::Restarts,
    signals::Signals,
    upgrade::Upgrades,
    waiting,
    worker::{START_LIMIT, Stage, Worker},
};
use crate::{
    config::Config,
    control::Order,
    lifecycle::{beats::Pulse, board::Board},
    redirect::fast_path::FastPath,
    telemetry::log::LogControl,
};

/// What of the configuration is still needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// A worker that is silent for longer hangs.
    pub(super) hung_after: Duration,
    /// A drain takes no longer.
    pub(super) drain_deadline: Duration,
    /// Whoever ends the sidecar did not ask for plaintext.
    pub(super) stays_closed: bool,
}

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        // A beat comes four times in this age, so that no silence is one before it has passed.
        let hung_after = config.proxy.hung_after.max(config.capture.heartbeat_max_age);
        Self { hung_after, drain_deadline: config.proxy.drain_deadline, stays_closed: config.stays_closed() }
    }
}

/// A running supervisor. Fields are dropped in this order: the capture goes before the worker, so that no connection is handed
/// to nobody.
pub(super) struct Supervisor {
    pub(super) keeping: Keeping,
    /// `None`: `acceleration: off`.
    pub(super) fast_path: Option<FastPath>,
    pub(super) application: Application,
    pub(super) worker: Option<Worker>,
    pub(super) signals: Signals,
    pub(super) board: Arc<Board>,
    pub(super) listeners: Listeners,
    pub(super) configurations: Configurations,
    pub(super) pulse: Pulse,
    pub(super) log: LogControl,
    pub(super) limits: Limits,
    /// `CLOCK_MONOTONIC` in nanoseconds when the sidecar began to start.
    pub(super) began: u64,
    pub(super) restarts: Restarts,
    /// When the next worker is to be started.
    pub(super) restart_at: Option<Instant>,
    pub(super) predecessors: u64,
    pub(super) log_level: Option<String>,
    pub(super) ending: Option<Ending>,
    pub(super) pings: Pings,
    pub(super) upgrades: Upgrades,
}

/// Somebody has asked for the end.
pub(super) struct Ending {
    /// Who.
    pub(super) why: String,
    /// What is open is reset then.
    pub(super) deadline: Instant,
    /// What the application opens still comes to the worker.
    pub(super) carries: bool,
    /// A signal was among those who have.
    pub(super) signalled: bool,
    /// The worker is killed then, after it was told to end at once.
    pub(super) kill_at: Option<Instant>,
}

/// A worker that has closed its end of the channel has so long to end.
pub(super) const SILENT_LIMIT: Duration = Duration::from_secs(2);

/// Who spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaker {
    Signals,
    Worker,
    Configuration,
    Upgrades,
    Kept(Watched),
}

impl Supervisor {
    /// Serves until a signal ends the sidecar.
    pub(super) fn run(mut self) -> Result<ExitCode, Error> {
        loop {
            let ready = self.wait()?;
            let spoke = |speaker| ready.contains(&speaker);
            if spoke(Speaker::Worker) {
                self.listen();
            }
            while let Some(signal) = self.signals.next() {
                self.signalled(signal);
            }
            self.look_after_upgrades(spoke(Speaker::Upgrades));
            if let Some(code) = self.look_after_worker()? {
                return Ok(self.end(code));
            }
            if spoke(Speaker::Configuration) && self.configurations.turn() {
                self.offer_configuration();
            } else if spoke(Speaker::Configuration) {
                self.tell(&Order::ReloadFailed);
            }
            if self.application.turn(&self.board) {
                self.drain("the end of the application", false);
            }
            let kept: Vec<Watched> = ready
                .iter()
                .filter_map(|speaker| if let Speaker::Kept(kept) = speaker { Some(*kept) } else { None })
                .collect();
            if self.keeping.turn(&kept, &self.board) {
                self.tell_conditions();
            }
        }
    }

    /// Waits until somebody speaks or something is due.
    fn wait(&self) -> Result<Vec<Speaker>, Error> {
        let mut speakers: Vec<(Speaker, BorrowedFd<'_>)> = vec![(Speaker::Signals, self.signals.as_fd())];
        let heard = self.worker.as_ref().and_then(Worker::descriptor);
        speakers.extend(heard.map(|descriptor| (Speaker::Worker, descriptor)));
        speakers.extend(self.upgrades.descriptors().map(|descriptor| (Speaker::Upgrades, descriptor)));
        speakers.extend(self.configurations.descriptor().map(|descriptor| (Speaker::Configuration, descriptor)));
        speakers.extend(self.keeping.descriptors().map(|(kept, descriptor)| (Speaker::Kept(kept), descriptor)));
        // Rounded up: a turn that comes too early would be made again and again.
        let left = self.due().saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let descriptors: Vec<_> = speakers.iter().map(|(_, descriptor)| *descriptor).collect();
        let spoke = waiting::wait(&descriptors, left).map_err(Error::runtime("wait for events"))?;
        Ok(speakers.iter().zip(spoke).filter(|(_, spoke)| *spoke).map(|((speaker, _), _)| *speaker).collect())
    }

    fn due(&self) -> Instant {
        // The kernel tells of the end of one that was killed, and nothing else is due to it.
        let worker = self.worker.as_ref().filter(|worker| worker.killed.is_none());
        let kill_at = self.ending.as_ref().and_then(|ending| ending.kill_at).filter(|_| worker.is_some());
        let start_limit = worker.filter(|worker| worker.stage == Stage::Starting);
        let start_limit = start_limit.map(|worker| worker.since + START_LIMIT);
        let ping = worker.map(|_| self.pings.at);
        let silent = worker.and_then(|worker| worker.silent_since).map(|since| since + SILENT_LIMIT);
        let due = [self.restart_at, kill_at, start_limit, ping, silent, self.upgrades.due(), self.keeping.due()];
        let always = self.look_due(ping).min(self.application.due());
        due.into_iter().flatten().min().map_or(always, |due| due.min(always))
    }

    /// When to look what has become of the kernel side: with the next ping, if that is soon.
    fn look_due(&self, ping: Option<Instant>) -> Instant {
        const SOON: Duration = Duration::from_secs(1);
        let due = self.keeping.look_due();
        ping.filter(|ping| *ping < due + SOON).map_or(due, |ping| due.max(ping))
    }
}
