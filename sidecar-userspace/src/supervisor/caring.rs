//! The life of the worker: its end, its silence, and its successor.

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use super::{
    Error,
    pings::{Shown, Silence},
    restarts::Tell,
    start::Lent,
    turns::{Ending, SILENT_LIMIT, Supervisor},
    worker::{End, OWN_BINARY, Reason, START_LIMIT, Stage, Why, Worker},
};
use crate::{
    control::{self, Order},
    lifecycle::board::Figure,
};

impl Supervisor {
    /// Notices the worker's end and its silence, and starts the next one. Returns the exit code when the sidecar has ended.
    pub(super) fn look_after_worker(&mut self) -> Result<Option<ExitCode>, Error> {
        let now = Instant::now();
        if self.ending.as_ref().and_then(|ending| ending.kill_at).is_some_and(|at| at <= now)
            && let Some(worker) = &mut self.worker
        {
            worker.kill(Why::Asked);
        }
        if let Some(worker) = &mut self.worker {
            match worker.ended().map_err(Error::runtime("wait for the worker"))? {
                Some(end) => self.worker_ended(end, now),
                None => {
                    self.look_for_place(now);
                    self.look_for_life(now);
                }
            }
        }
        if self.worker.is_none()
            && self.upgrades.leaving.is_empty()
            && self.ending.as_ref().is_some_and(|ending| self.has_ended(ending, now))
        {
            return Ok(Some(ExitCode::SUCCESS));
        }
        if self.restart_at.is_some_and(|at| at <= now) {
            self.start_worker(now);
        }
        Ok(None)
    }

    fn worker_ended(&mut self, end: End, now: Instant) {
        // What it had to say before it ended.
        self.listen();
        let Some(worker) = self.worker.take() else { return };
        if let Some(ending) = &self.ending {
            let at_once = ending.kill_at.is_some();
            if end.success() || at_once || !ending.carries || ending.deadline <= now {
                if !end.success() && !at_once {
                    tracing::error!(how = %end, "the worker ended while it drained: what was open is reset");
                }
                return;
            }
            tracing::error!(how = %end, "the worker ended while it drained: another goes on with what the application opens");
        }
        self.pulse.of_the_dead();
        let figure = match end.reason() {
            Reason::Exited => Figure::RestartsExited,
            Reason::Killed => Figure::RestartsKilled,
            Reason::Hung => Figure::RestartsHung,
            Reason::Moved => Figure::RestartsMoved,
        };
        self.board.add(figure, 1);
        let life = now.saturating_duration_since(worker.since);
        let served = worker.stage == Stage::Serving;
        drop(worker);
        self.restart((life, served), &end.to_string(), now);
    }

    /// There is no worker and will be none.
    fn has_ended(&self, ending: &Ending, now: Instant) -> bool {
        if self.restart_at.is_some() && ending.deadline <= now {
            tracing::warn!("the drain deadline has passed while there was no worker");
            return true;
        }
        self.restart_at.is_none()
    }

    fn restart(&mut self, (life, served): (Duration, bool), how: &str, now: Instant) {
        let plan = self.restarts.after(life, served, now);
        match plan.tell {
            Tell::End => {
                tracing::error!(how, life_s = life.as_secs(), pause = ?plan.pause, "the worker has ended; starting another");
            }
            Tell::Loop(ends) => tracing::error!(
                how,
                ends,
                life_s = life.as_secs(),
                pause = ?plan.pause,
                "the worker keeps ending soon after its start; it is started again, after a pause that grows while that is of \
                 no use, and on_failure decides meanwhile. Its own words are above: mend what they name, or report them; this \
                 is told once a minute, sidecar_worker_restarts_total counts on"
            ),
            Tell::Nothing => {}
        }
        let deadline = self.ending.as_ref().map_or(plan.at, |ending| ending.deadline);
        self.restart_at = Some(plan.at.min(deadline));
        self.predecessors += 1;
    }

    fn start_worker(&mut self, now: Instant) {
        self.restart_at = None;
        let Self { board, keeping, listeners, configurations, .. } = self;
        let lent = Lent { board, shared: &keeping.shared, listeners, configurations };
        let started = Worker::spawn(Command::new(OWN_BINARY)).and_then(|worker| {
            match lent.start(&worker, self.began, self.predecessors, self.log_level.as_ref(), false) {
                // One that is dead already is noticed as any other.
                Ok(()) | Err(control::Error::Gone) => Ok(worker),
                Err(error) => Err(error.into()),
            }
        });
        match started {
            Ok(worker) => {
                self.worker = Some(worker);
                self.pings.forget();
                // Before it has told anybody that it is ready.
                self.tell_to_drain();
            }
            Err(error) => self.restart((Duration::ZERO, false), &error.to_string(), now),
        }
    }

    /// Kills a worker that somebody has moved: the next one is born where the supervisor is.
    fn look_for_place(&mut self, now: Instant) {
        /// A look takes some thirty microseconds, and something else is due in less than a second after it: it is noticed within
        /// five.
        const EVERY: Duration = Duration::from_secs(4);
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.killed.is_none()) else { return };
        if now < worker.looked_for + EVERY {
            return;
        }
        worker.looked_for = now;
        if let Some(there) = self.keeping.capture.moved(worker.pid()) {
            tracing::error!(
                there,
                worker = worker.pid(),
                "somebody has moved the worker to another cgroup: its own connections would be captured there; it is \
                 killed, and the next one is where the supervisor is"
            );
            worker.kill(Why::Moved);
        }
    }

    /// Kills a worker that hangs: it cannot do what it is there for, and the one after it can.
    fn look_for_life(&mut self, now: Instant) {
        let Some(worker) = &mut self.worker else { return };
        if worker.killed.is_some() {
            return;
        }
        if worker.silent_since.is_some_and(|since| now >= since + SILENT_LIMIT) {
            return worker.kill(Why::Hung);
        }
        if worker.stage == Stage::Starting {
            if now >= worker.since + START_LIMIT {
                tracing::error!(after = ?START_LIMIT, "the worker does not serve; it is killed");
                worker.kill(Why::Hung);
            }
            self.pings.at = self.pings.at.max(now + self.pings.every);
            return;
        }
        if now < self.pings.at {
            return;
        }
        let age = self.pulse.age();
        let silence = self.pings.turn(now, Shown { waits: self.pulse.main_waits(), age }, || worker.seen());
        let why = match silence {
            None => None,
            Some(Silence::TooLong) => Some("its main thread does not answer"),
            Some(Silence::Tolerable) => {
                (age > self.limits.hung_after).then_some("a thread that carries connections does not beat")
            }
        };
        if let Some(why) = why {
            tracing::error!(
                why,
                ?age,
                "the worker hangs; it is killed, which resets its connections, and started again"
            );
            return worker.kill(Why::Hung);
        }
        if let Some(number) = self.pings.ask() {
            worker.tell(&Order::Ping(number));
        }
    }
}
