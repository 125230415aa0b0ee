//! execve(2) and what comes after it: the state is taken, and the new programs are put in the place of those before. What cannot be
//! done is told to the binary before, which goes on in the same way.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::fd::{AsRawFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::unistd::execv;

use super::{
    Leaving, Stage, UnderWay, Upgrades,
    outcome::Done,
    standby::{self, Standby},
    state::{self, State},
};
use crate::{
    lifecycle::{beats::monotonic_now, board::Figure},
    supervisor::{
        Error,
        resume::{self, Resumed},
        turns::Supervisor,
        worker::Worker,
    },
};

/// The subcommand that takes over; its argument is the number of the descriptor of a [`State`].
pub const COMMAND: &str = "take-over";

/// The worker before has so long to say what it still carries before somebody is answered without.
const WORD: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Goes on as the new binary. Returns only if the kernel refuses: then nothing has changed.
    pub(super) fn go_on_as(&mut self, under_way: &UnderWay) -> String {
        let fast_path = self.fast_path.as_ref().and_then(|path| path.pause());
        let offered = self.keeping.capture.offer_links().map_err(io::Error::other);
        let standby = offered.and_then(|()| Standby::start(under_way.patience));
        let state = standby.as_ref().map_err(refused_standby).and_then(|standby| {
            let state = self.state(under_way, fast_path, standby.known())?;
            state.write_to(&standby.memory)?;
            Ok(state)
        });
        // The new one reads what the one that stands by would.
        let Err(error) = state.and_then(|state| execute(state.new, &state, state.standby.memory));
        // Nobody executes this binary again from here on, which would be without the links.
        drop(standby);
        self.keeping.capture.hold_links();
        self.fast_path.iter().for_each(|path| path.resume(fast_path));
        format!("the kernel does not run it in the place of this one: {error}")
    }

    fn state(&self, under_way: &UnderWay, fast_path: Option<bool>, standby: standby::Known) -> io::Result<State> {
        let Stage::Starts { worker: candidate, generation } = &under_way.stage else {
            return Err(io::Error::other("it has no worker; please report"));
        };
        let store = self.keeping.store().map_err(io::Error::other)?;
        Ok(State {
            version: state::VERSION,
            pod: self.keeping.capture.known_pod(),
            listeners: self.listeners.sockets(),
            door: self.upgrades.door.as_ref().map(|door| door.listener.as_raw_fd()),
            board: self.board.as_raw_fd(),
            store: store.descriptor().as_raw_fd(),
            configurations: self.configurations.kept(),
            current: self.worker.as_ref().map(|worker| process(worker, None)),
            candidate: process(candidate, None),
            candidate_generation: *generation,
            leaving: self.upgrades.leaving.iter().map(|leaving| process(&leaving.worker, Some(leaving))).collect(),
            began: self.began,
            predecessors: self.predecessors,
            log_level: self.log_level.clone(),
            applications_were_there: self.application.were_there(),
            name: fs::read_to_string("/proc/self/comm")?.trim_end().to_owned(),
            binary: self.upgrades.binary.clone(),
            own: self.upgrades.own.as_raw_fd(),
            new_binary: under_way.path.clone(),
            new: under_way.binary.as_raw_fd(),
            client: under_way.client.as_ref().map(AsRawFd::as_raw_fd),
            outcome: under_way.outcome.clone(),
            step: monotonic_now(),
            standby,
            fast_path,
            failed: None,
        })
    }

    /// The last step after execve(2): from here on there is one that serves, and the others leave.
    fn settle(&mut self, state: &State, candidate: Worker) {
        let left = self.limits.drain_deadline;
        let replaced = match &state.failed {
            None => {
                self.predecessors += 1;
                self.pings.forget();
                self.worker.replace(candidate)
            }
            Some(_) => Some(candidate),
        };
        self.upgrades.leaving.extend(replaced.map(|worker| Leaving::begin(worker, left)));
        if self.worker.is_none() {
            self.restart_at = Some(Instant::now());
        }
        self.greet(state.failed.is_none() && state.candidate_generation != self.configurations.generation);
    }

    /// Keeps the story of the upgrade until it is told.
    fn tell_upgrade(&mut self, state: &State) -> io::Result<()> {
        let client = state.client.map(state::again).transpose()?.map(Into::into);
        let since = Instant::now().checked_sub(Duration::from_nanos(monotonic_now().saturating_sub(state.step)));
        let mut under_way = UnderWay {
            client,
            path: state.new_binary.clone(),
            binary: File::from(state::again(state.new)?),
            patience: WORD,
            outcome: state.outcome.clone(),
            step: since.unwrap_or_else(Instant::now),
            stage: Stage::Done { until: Instant::now() + WORD },
        };
        match &state.failed {
            None => {
                under_way.made("its programs in the place of those before");
                under_way.outcome.result = Done::Upgraded;
                self.board.add(Figure::UpgradesDone, 1);
                let steps = &under_way.outcome.steps;
                tracing::info!(binary = %state.new_binary.display(), ?steps, "upgraded");
            }
            Some(why) => {
                under_way.made("it could not take over, and the one before did again");
                under_way.outcome.result = Done::RolledBack;
                under_way.outcome.reason = Some(format!("{}: {why}", state.new_binary.display()));
                self.board.add(Figure::UpgradesRolledBack, 1);
                tracing::error!(
                    binary = %state.new_binary.display(),
                    why,
                    "the new binary could not take over; the one before goes on with all that was open: mend what it names, and try again"
                );
            }
        }
        self.upgrades.under_way = Some(under_way);
        Ok(())
    }
}

fn refused_standby(error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("nobody can stand by to take it back: {error}; is a process more allowed (pids limit)?"),
    )
}

fn process(worker: &Worker, leaving: Option<&Leaving>) -> state::Process {
    state::Process {
        pid: worker.pid(),
        channel: worker.channel.as_raw_fd(),
        serves: worker.stage == crate::supervisor::worker::Stage::Serving,
        lived: worker.since.elapsed(),
        left: leaving.map(|leaving| leaving.until.saturating_duration_since(Instant::now())).unwrap_or_default(),
        open: leaving.and_then(|leaving| leaving.open),
    }
}

/// Runs the binary behind this descriptor in the place of this one. Signals stay blocked, so that none is lost.
fn execute(binary: RawFd, state: &State, memory: RawFd) -> io::Result<std::convert::Infallible> {
    let arguments = ["sidecar".to_owned(), COMMAND.to_owned(), memory.to_string()];
    let arguments = arguments.map(|argument| CString::new(argument).expect("words and a number"));
    let path = CString::new(format!("/proc/self/fd/{binary}"))?;
    state.inherit(true)?;
    let Err(errno) = execv(&path, &arguments);
    // No worker that is started from now on is to have them.
    state.inherit(false)?;
    Err(errno.into())
}

/// Goes on with what the binary before has left behind this descriptor.
///
/// # Errors
/// It is no state: then nothing was taken over, and the sidecar ends. Any other failure has the binary before go on.
pub(in crate::supervisor) fn take_over(memory: RawFd, refused: Option<String>) -> Result<ExitCode, Error> {
    let mut state = State::read(memory).map_err(Error::runtime("read what the supervisor before has left"))?;
    // The kernel names a process by the path of its binary, which is a number here.
    let _ = fs::write("/proc/self/comm", &state.name);
    let crashes_last = refused.as_deref() == Some(COMMAND);
    let taken = catch_unwind(AssertUnwindSafe(|| resume::resume(&state, refused)));
    let taken = taken.unwrap_or_else(|_| Err(Error::Panicked));
    match taken {
        // As late as the binary before can still be gone back to.
        Ok(_) if crashes_last => std::process::abort(),
        Ok(resumed) => go_on(&state, resumed)?.run(),
        Err(error) if state.failed.is_some() => Err(error),
        Err(error) => {
            state.failed = Some(error.to_string());
            let memory = state.write().map_err(Error::runtime("write down what to go back to"))?;
            let Err(errno) = execute(state.own, &state, memory.as_raw_fd());
            Err(Error::runtime("go back to the binary before")(errno))
        }
    }
}

fn go_on(state: &State, resumed: Resumed) -> Result<Supervisor, Error> {
    let Resumed { mut supervisor, candidate } = resumed;
    // Links stay pinned until then: the binary before would find none that were held by this one alone, and attach anew.
    state.standby.dismiss();
    supervisor.keeping.capture.hold_links();
    supervisor.settle(state, candidate);
    supervisor.tell_upgrade(state).map_err(Error::runtime("keep the story of the upgrade"))?;
    state.close();
    Ok(supervisor)
}

impl Upgrades {
    /// What is left of the binary before, or of the new one where it could not take over.
    pub(in crate::supervisor) fn inherited(state: &State) -> io::Result<Self> {
        let (own, binary) = match &state.failed {
            None => (state.new, &state.new_binary),
            Some(_) => (state.own, &state.binary),
        };
        Ok(Self {
            door: None,
            binary: binary.clone(),
            own: File::from(state::again(own)?),
            under_way: None,
            leaving: Vec::new(),
        })
    }
}
