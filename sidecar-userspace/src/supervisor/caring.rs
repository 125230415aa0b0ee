//! The life of the worker: its end, its silence, and its successor.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{
    Error,
    pings::Silence,
    start::Lent,
    turns::{SILENT_LIMIT, Supervisor},
    worker::{End, Reason, START_LIMIT, Stage, Worker},
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
            worker.kill();
        }
        if let Some(worker) = &mut self.worker {
            match worker.ended().map_err(Error::runtime("wait for the worker"))? {
                Some(end) => self.worker_ended(end, now),
                None => self.look_for_life(now),
            }
        }
        if self.worker.is_none() && self.ending.is_some() {
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
        if self.ending.is_some() {
            if !end.success() {
                tracing::error!(how = %end, "the worker ended while it drained");
            }
            return;
        }
        self.pulse.of_the_dead();
        let figure = match end.reason() {
            Reason::Exited => Figure::RestartsExited,
            Reason::Killed => Figure::RestartsKilled,
            Reason::Hung => Figure::RestartsHung,
        };
        self.board.add(figure, 1);
        let life = now.saturating_duration_since(worker.since);
        drop(worker);
        self.restart(life, &end.to_string(), now);
    }

    fn restart(&mut self, life: Duration, how: &str, now: Instant) {
        let plan = self.restarts.after(life, now);
        if plan.new_loop {
            tracing::error!(
                how,
                "the worker keeps ending soon after its start; it is started again with longer and longer pauses, and on_failure \
                 decides meanwhile. Its own words are above: mend what they name, or report them; this is not told again, \
                 sidecar_worker_restarts_total counts on"
            );
        } else if plan.tell {
            tracing::error!(how, life_s = life.as_secs(), pause = ?plan.pause, "the worker has ended; starting another");
        }
        self.restart_at = Some(plan.at);
        self.predecessors += 1;
    }

    fn start_worker(&mut self, now: Instant) {
        self.restart_at = None;
        let Self { board, keeping, listeners, configurations, .. } = self;
        let lent = Lent { board, shared: &keeping.shared, listeners, configurations };
        let started = Worker::spawn().and_then(|worker| {
            match lent.start(&worker, self.began, self.predecessors, self.log_level.as_ref()) {
                // One that is dead already is noticed as any other.
                Ok(()) | Err(control::Error::Gone) => Ok(worker),
                Err(error) => Err(error.into()),
            }
        });
        match started {
            Ok(worker) => {
                self.worker = Some(worker);
                self.pings.forget();
            }
            Err(error) => self.restart(Duration::ZERO, &error.to_string(), now),
        }
    }

    /// Kills a worker that hangs: it cannot do what it is there for, and the one after it can.
    fn look_for_life(&mut self, now: Instant) {
        let Some(worker) = &mut self.worker else { return };
        if worker.hung {
            return;
        }
        if worker.silent_since.is_some_and(|since| now >= since + SILENT_LIMIT) {
            worker.hung = true;
            return worker.kill();
        }
        if worker.stage == Stage::Starting {
            if now >= worker.since + START_LIMIT {
                tracing::error!(after = ?START_LIMIT, "the worker does not serve; it is killed");
                worker.hung = true;
                worker.kill();
            }
            self.pings.at = self.pings.at.max(now + self.pings.every);
            return;
        }
        if now < self.pings.at {
            return;
        }
        let silence = self.pings.turn(now);
        let age = self.pulse.age();
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
            worker.hung = true;
            return worker.kill();
        }
        if self.pings.heard == self.pings.sent {
            self.pings.sent += 1;
            worker.tell(&Order::Ping(self.pings.sent));
        }
    }
}
