//! From the question to the execve(2).

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Door, Stage, UnderWay, Wanted, command, door,
    facts::{Asking, Facts},
    leaving, open,
    outcome::{Done, MOST_PATIENCE, Outcome},
    peer::Strangers,
};
use crate::{
    control::{self, Report},
    lifecycle::board::Figure,
    pod::Pod,
    supervisor::{
        start::Lent,
        turns::Supervisor,
        worker::{START_LIMIT, Worker},
    },
};

impl Supervisor {
    /// Does what is due to upgrades. `spoke`: somebody has spoken.
    pub(in crate::supervisor) fn look_after_upgrades(&mut self, spoke: bool) {
        // Before any is reaped: one that has asked and ended is known by its number as long as it has it.
        let workers = self.workers();
        if !self.upgrades.leaving.is_empty() {
            let said = leaving::turn(&mut self.upgrades.leaving, &self.board);
            said.into_iter().for_each(|report| self.pass_on(report));
        }
        // One that says nothing is late without a word.
        let late = |door: &Door| door.due().is_some_and(|due| due <= Instant::now());
        if let Some(door) = self.upgrades.door.as_mut().filter(|door| spoke || late(door)) {
            let is_application = |pid| self.application.holds(pid);
            for (client, wanted) in door.turn(&Strangers { workers: &workers, is_application: &is_application }) {
                self.upgrade(Some(client), wanted);
            }
        }
        let Some(mut under_way) = self.upgrades.under_way.take() else { return };
        match self.advance(&mut under_way, spoke) {
            Ok(false) => self.upgrades.under_way = Some(under_way),
            Ok(true) => {
                if let Some(client) = under_way.client.take() {
                    door::answer(client, &under_way.outcome);
                }
            }
            Err(why) => self.refuse(under_way, why),
        }
    }

    /// The numbers of all workers: the one that serves, those that were replaced, and that of a new binary.
    fn workers(&self) -> Vec<u32> {
        let candidate = self.upgrades.under_way.as_ref().and_then(|under_way| match &under_way.stage {
            Stage::Starts { worker, .. } => Some(worker.pid()),
            Stage::Asked(_) | Stage::Done { .. } => None,
        });
        let leaving = self.upgrades.leaving.iter().map(|leaving| leaving.worker.pid());
        self.worker.iter().map(Worker::pid).chain(leaving).chain(candidate).collect()
    }

    /// Somebody wants the binary at this path, or at that of ours, to take over.
    pub(in crate::supervisor) fn upgrade(&mut self, client: Option<UnixStream>, wanted: Wanted) {
        let path = wanted.binary.unwrap_or_else(|| self.upgrades.binary.clone());
        let outcome = Outcome::begin(Facts::ours().version);
        match self.begin_upgrade(&path) {
            Ok((binary, stage)) => {
                tracing::info!(binary = %path.display(), "an upgrade begins");
                let (patience, step) = (wanted.patience.min(MOST_PATIENCE), Instant::now());
                self.upgrades.under_way = Some(UnderWay { client, path, binary, patience, outcome, step, stage });
            }
            Err(why) => self.answer_refused(client, path, outcome, why),
        }
    }

    /// The same, by a signal.
    pub(in crate::supervisor) fn upgrade_by_signal(&mut self) {
        self.upgrade(None, Wanted { binary: None, patience: START_LIMIT });
    }

    fn begin_upgrade(&self, path: &Path) -> Result<(std::fs::File, Stage), String> {
        if let Some(ending) = &self.ending {
            return Err(format!("the sidecar ends: it drains after {}", ending.why));
        }
        if let Some(under_way) = &self.upgrades.under_way {
            return Err(format!(
                "another upgrade is under way, to {}; try again when it is over",
                under_way.path.display()
            ));
        }
        self.require_place()?;
        self.keeping.store().map_err(|why| {
            format!("no other binary could go on with the maps and links of this one: {why}; end this one and start the new one")
        })?;
        let binary = open(path).map_err(|error| format!("it cannot be opened: {error}; name another with --binary"))?;
        let asking = Asking::begin(command(&binary))?;
        Ok((binary, Stage::Asked(asking)))
    }

    /// The next binary goes on in the pod as this one has found it, and it could not from another place.
    fn require_place(&self) -> Result<(), String> {
        let moved = |error| format!("{error}, or move it back (cgroup.procs) and try again");
        self.keeping.capture.check_place().map_err(moved)?;
        Pod::again(&self.keeping.capture.known_pod()).map(drop).map_err(|error| error.to_string())
    }

    /// Returns whether it is over.
    fn advance(&mut self, under_way: &mut UnderWay, spoke: bool) -> Result<bool, String> {
        if let Some(ending) = &self.ending
            && !matches!(under_way.stage, Stage::Done { .. })
        {
            return Err(format!("the sidecar ends: it drains after {}", ending.why));
        }
        match &mut under_way.stage {
            Stage::Asked(asking) if spoke && asking.is_done() => {
                let Stage::Asked(asking) =
                    std::mem::replace(&mut under_way.stage, Stage::Done { until: Instant::now() })
                else {
                    return Ok(false);
                };
                let facts = asking.answer()?;
                under_way.outcome.after = Some(facts.version.clone());
                Facts::ours().refuse(&facts).map_or(Ok(()), Err)?;
                under_way.made("asked the new binary what it is");
                under_way.stage = self.start_candidate(under_way)?;
                Ok(false)
            }
            Stage::Asked(_) => Ok(false),
            Stage::Starts { worker, .. } => {
                match serves(worker, under_way.patience)? {
                    Heard::Serving => {}
                    Heard::Nothing => return Ok(false),
                    Heard::Other(report) => {
                        self.pass_on(report);
                        return Ok(false);
                    }
                }
                under_way.made("its worker serves beside the one before");
                self.require_place()?;
                // Returns only if the kernel refuses.
                Err(self.go_on_as(under_way))
            }
            Stage::Done { until } => {
                let told = self.upgrades.leaving.last().is_none_or(|leaving| leaving.open.is_some());
                if !told && Instant::now() < *until {
                    return Ok(false);
                }
                let left =
                    self.upgrades.leaving.last().map(|leaving| (leaving.open.unwrap_or_default(), leaving.left()));
                under_way.outcome.draining = left;
                Ok(true)
            }
        }
    }

    /// Starts the new worker on the listeners of the one that serves.
    fn start_candidate(&self, under_way: &UnderWay) -> Result<Stage, String> {
        let Self { board, keeping, listeners, configurations, .. } = self;
        let lent = Lent { board, shared: &keeping.shared, listeners, configurations };
        let mut worker = Worker::spawn(command(&under_way.binary)).map_err(|error| error.to_string())?;
        match lent.start(&worker, self.began, self.predecessors + 1, self.log_level.as_ref(), true) {
            Ok(()) => {}
            Err(control::Error::Gone) => return Err(ended(&mut worker)),
            Err(error) => return Err(format!("its worker was not told to start: {error}")),
        }
        // Known before it answers anybody who asks whether it is ready.
        keeping.conditions().iter().for_each(|order| worker.tell(order));
        Ok(Stage::Starts { worker: Box::new(worker), generation: configurations.generation })
    }

    fn refuse(&mut self, under_way: UnderWay, why: String) {
        let UnderWay { client, path, outcome, stage, .. } = under_way;
        if let Stage::Starts { worker, .. } = &stage {
            while let Ok(report) = worker.heard() {
                self.pass_on(report);
            }
        }
        // Its worker ends with it, before anybody is told that everything is as it was.
        drop(stage);
        self.answer_refused(client, path, outcome, why);
    }

    fn answer_refused(&mut self, client: Option<UnixStream>, path: PathBuf, mut outcome: Outcome, why: String) {
        tracing::error!(binary = %path.display(), why, "no upgrade: everything is as it was");
        self.board.add(Figure::UpgradesRefused, 1);
        outcome.result = Done::Refused;
        outcome.reason = Some(format!("{}: {why}", path.display()));
        if let Some(client) = client {
            door::answer(client, &outcome);
        }
    }
}

/// What the new worker has said.
enum Heard {
    Nothing,
    Serving,
    Other(Report),
}

/// Whether the new worker serves.
fn serves(worker: &mut Worker, patience: Duration) -> Result<Heard, String> {
    match worker.heard() {
        Ok(Report::Serving) => {
            worker.stage = crate::supervisor::worker::Stage::Serving;
            return Ok(Heard::Serving);
        }
        Ok(Report::Failed(why)) => return Err(format!("its worker cannot serve: {why}")),
        // There may be more: it is heard in the next turn, which comes at once.
        Ok(report) => return Ok(Heard::Other(report)),
        Err(control::Error::Busy) => {}
        Err(control::Error::Gone) => return Err(ended(worker)),
        Err(error) => return Err(format!("its worker says what is not understood: {error}")),
    }
    if worker.since.elapsed() >= patience {
        return Err(format!(
            "its worker does not serve after {patience:?}; it may wait for its identity, or the machine is short of CPU: see its \
             words in the log, or give it more with --timeout"
        ));
    }
    Ok(Heard::Nothing)
}

fn ended(worker: &mut Worker) -> String {
    /// It has closed its end of the channel: it is on its way.
    const A_MOMENT: Duration = Duration::from_millis(10);
    for _ in 0..20 {
        if let Ok(Some(end)) = worker.ended() {
            return format!("its worker ended before it served ({end}); its last words are in the log");
        }
        std::thread::sleep(A_MOMENT);
    }
    "its worker has closed its control channel before it served".to_owned()
}
