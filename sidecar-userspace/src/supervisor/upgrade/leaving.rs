//! Workers that were replaced and carry what was open when they were.

use std::time::{Duration, Instant};

use crate::{
    control::{self, Order, Report},
    lifecycle::board::{Board, Figure},
    supervisor::worker::{Why, Worker},
};

/// After its deadline a worker resets what is open, which takes it a moment.
const GRACE: Duration = Duration::from_secs(5);

/// One of them.
pub(in crate::supervisor) struct Leaving {
    pub(in crate::supervisor) worker: Worker,
    /// It is killed then.
    pub(in crate::supervisor) until: Instant,
    /// Connections that it carries; `None`: it has not said so yet.
    pub(in crate::supervisor) open: Option<u64>,
}

impl Leaving {
    /// Tells a worker to take nothing more, and to end in this time.
    pub(in crate::supervisor) fn begin(worker: Worker, left: Duration) -> Self {
        worker.tell(&Order::HandOver { left });
        Self { worker, until: Instant::now() + left + GRACE, open: None }
    }

    /// One that was told so before, and has so much of its time left.
    pub(in crate::supervisor) fn go_on(worker: Worker, left: Duration, open: Option<u64>) -> Self {
        Self { worker, until: Instant::now() + left, open }
    }

    /// Time until it resets what is open.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now() + GRACE)
    }

    /// When to come back at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.worker.killed.is_none().then_some(self.until)
    }

    /// Hears what it says, and whether it has ended. What is not of itself is kept in `said`.
    fn turn(&mut self, now: Instant, said: &mut Vec<Report>) -> bool {
        while self.worker.silent_since.is_none() {
            match self.worker.heard() {
                Ok(Report::Open(open)) => self.open = Some(open),
                Ok(report) => said.push(report),
                Err(control::Error::Busy) => break,
                Err(control::Error::Gone) => self.worker.silent_since = Some(now),
                Err(error) => {
                    tracing::error!(%error, "a worker that was replaced speaks what is not understood and is killed; please report");
                    self.worker.kill(Why::NotUnderstood);
                    break;
                }
            }
        }
        if now >= self.until && self.worker.killed.is_none() {
            tracing::error!(worker = self.worker.pid(), "a worker that was replaced does not end; it is killed");
            self.worker.kill(Why::Asked);
        }
        match self.worker.ended() {
            Ok(None) => false,
            Ok(Some(end)) => {
                if !end.success() {
                    tracing::warn!(how = %end, open = self.open, "a worker that was replaced ended before its connections did");
                }
                true
            }
            Err(error) => {
                tracing::warn!(%error, "a worker that was replaced cannot be waited for");
                true
            }
        }
    }
}

/// Looks after them, and shows what they carry. Returns what else they have said.
pub(super) fn turn(leaving: &mut Vec<Leaving>, board: &Board) -> Vec<Report> {
    let now = Instant::now();
    let mut said = Vec::new();
    leaving.retain_mut(|worker| !worker.turn(now, &mut said));
    board.set(Figure::LeavingWorkers, leaving.len() as u64);
    board.set(Figure::LeavingConnections, leaving.iter().filter_map(|leaving| leaving.open).sum());
    said
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{
        control::Channel,
        supervisor::{child::Child, worker::Stage},
    };

    #[test]
    fn what_somebody_asked_one_that_leaves_for_is_passed_on() {
        let (ours, theirs) = Channel::pair().unwrap();
        let child = Child::of(Command::new("sleep").arg("1000").spawn().unwrap().id());
        let worker = Worker::adopt(child, ours, Stage::Serving, Duration::ZERO);
        let mut leaving = Leaving::begin(worker, Duration::from_secs(60));
        let asked = [Report::Drain, Report::LogLevel("debug".to_owned())];
        for report in asked.iter().chain([&Report::Open(3)]) {
            theirs.send(report, &[]).unwrap();
        }
        let mut said = Vec::new();
        assert!(!leaving.turn(Instant::now(), &mut said));
        assert_eq!((leaving.open, said), (Some(3), Vec::from(asked)));
    }
}
