//! From what the binary before has left to a supervisor that goes on with it.

use std::{io, sync::Arc, time::Duration};

use super::{
    Error,
    application::Application,
    child::Child,
    keeping::Keeping,
    listening::Listeners,
    pings::Pings,
    reload::Configurations,
    restarts::Restarts,
    signals::Signals,
    start::give_back_memory,
    turns::{Limits, Supervisor},
    upgrade::{
        Door, Leaving, Upgrades,
        state::{self, Process, State},
    },
    worker::{Stage, Worker},
};
use crate::{
    admin::socket,
    config::Config,
    control::Channel,
    lifecycle::{
        beats::Pulse,
        board::{Board, Figure},
    },
    pod::Pod,
    redirect::{Programs, Store, Subflows},
    telemetry::{self, log::LogControl},
};

/// What goes on.
pub(super) struct Resumed {
    pub(super) supervisor: Supervisor,
    /// The worker of the new binary.
    pub(super) candidate: Worker,
}

/// Takes over. Everything that may fail comes before what ends with its owner: workers, which are killed, and files of sockets,
/// which are removed. Descriptors are duplicates: those of the state are for the binary that goes on if this one cannot.
/// `refused`: a program whose attachment is to fail.
pub(super) fn resume(state: &State, refused: Option<String>) -> Result<Resumed, Error> {
    let configurations = Configurations::inherited(&state.configurations).map_err(missing)?;
    let config = configurations.load_first()?.config;
    let log = log(&config, state)?;
    let signals = Signals::block()?;
    // Not looked for anew: somebody may have moved this process, and another pod would be found.
    let pod = Pod::again(&state.pod)?;
    let follows = config.lifecycle.exit_with_application;
    let application = Application::new(pod.applications().clone(), follows, state.applications_were_there);
    let admin_socket = socket::path(&config.telemetry, pod.netns_inode());
    let board = Arc::new(state::again(state.board).and_then(Board::copy_of).map_err(missing)?);
    let mut listeners = Listeners::inherited(&state.listeners).map_err(missing)?;
    let (mut keeping, pulse) = capture(state, pod, &config, refused, &listeners, &board)?;
    let channels = Channels::of(state).map_err(missing)?;
    let mut upgrades = Upgrades::inherited(state).map_err(missing)?;
    let door = state.door.map(state::again).transpose().map_err(missing)?;
    let fast_path = keeping.accelerate(config.capture.acceleration, &board)?;
    // From here on nothing fails.
    fast_path.iter().for_each(|path| path.resume(state.fast_path));
    listeners.own_file_of(&admin_socket);
    upgrades.door = door.map(|door| Door::inherited(door, &admin_socket));
    upgrades.leaving = channels.leaving.into_iter().map(leaving).collect();
    let limits = Limits::of(&config);
    drop(config);
    give_back_memory();
    let supervisor = Supervisor {
        signals,
        keeping,
        fast_path,
        application,
        board,
        listeners,
        configurations,
        pulse,
        log,
        limits,
        began: state.began,
        worker: channels.current.map(adopt),
        restarts: Restarts::default(),
        restart_at: None,
        predecessors: state.predecessors,
        log_level: state.log_level.clone(),
        ending: None,
        pings: Pings::new(limits.hung_after),
        upgrades,
    };
    Ok(Resumed { supervisor, candidate: adopt(channels.candidate) })
}

fn missing(error: io::Error) -> Error {
    Error::runtime("take over what the supervisor before held")(error)
}

fn log(config: &Config, state: &State) -> Result<LogControl, Error> {
    let log = telemetry::log::init(&config.telemetry)?;
    if let Some(directives) = &state.log_level {
        log.set(directives)?;
    }
    Ok(log)
}

/// Puts our programs in the place of those that run, with the maps of those. The binary before did the same at its time: if it does
/// so again, its programs need not be effective if they were not.
fn capture(
    state: &State,
    pod: Pod,
    config: &Config,
    refused: Option<String>,
    listeners: &Listeners,
    board: &Board,
) -> Result<(Keeping, Pulse), Error> {
    let store = Store::from_descriptor(state::again(state.store).map_err(missing)?);
    let mut programs = Programs::take_over(store, config, refused)?;
    board.set(Figure::MptcpAsTcp, u64::from(*programs.subflows() != Subflows::Told));
    board.set(Figure::NoDiscovery, u64::from(programs.discovers().is_err()));
    programs.attach_discovery(&pod)?;
    let prepared = programs.prepare(&pod, config)?;
    let pulse = prepared.pulse()?;
    let keeping = Keeping::begin(prepared.attach(pod, &listeners.outbound, &listeners.inbound)?, board);
    match keeping.failure() {
        Some(why) if state.failed.is_none() => Err(Error::NotEffective(why.clone())),
        _ => Ok((keeping, pulse)),
    }
}

/// The workers, which nobody owns yet.
struct Channels<'a> {
    current: Option<(&'a Process, Channel)>,
    candidate: (&'a Process, Channel),
    leaving: Vec<(&'a Process, Channel)>,
}

impl<'a> Channels<'a> {
    fn of(state: &'a State) -> io::Result<Self> {
        let channel = |process: &'a Process| {
            let channel = Channel::inherited(state::again(process.channel)?).map_err(io::Error::other)?;
            Ok::<_, io::Error>((process, channel))
        };
        Ok(Self {
            current: state.current.as_ref().map(channel).transpose()?,
            candidate: channel(&state.candidate)?,
            leaving: state.leaving.iter().map(channel).collect::<io::Result<_>>()?,
        })
    }
}

fn adopt((process, channel): (&Process, Channel)) -> Worker {
    let stage = if process.serves { Stage::Serving } else { Stage::Starting };
    Worker::adopt(Child::of(process.pid), channel, stage, process.lived)
}

fn leaving(process: (&Process, Channel)) -> Leaving {
    let (left, open): (Duration, _) = (process.0.left, process.0.open);
    Leaving::go_on(adopt(process), left, open)
}
