//! From a configuration to a supervisor whose worker serves.

use std::{
    os::fd::{AsFd, BorrowedFd},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::resource::{Resource, getrlimit, setrlimit},
};

use super::{
    Error,
    application::Application,
    keeping::Keeping,
    listening::Listeners,
    pings::Pings,
    reload::Configurations,
    restarts::Restarts,
    signals::Signals,
    turns::{Limits, Supervisor},
    upgrade::{Door, Upgrades},
    worker::{OWN_BINARY, START_LIMIT, Stage, Worker},
};
use crate::{
    admin,
    config::{Config, Loaded},
    control::{self, Order, Report, Start},
    lifecycle::{
        beats::monotonic_now,
        board::{Board, Figure},
        startup::{Phase, Stopwatch},
    },
    pod::Pod,
    redirect::{Programs, SharedMaps, Subflows},
    telemetry,
};

/// Starts everything; from its return on, connections are captured and carried.
pub(super) fn start(loaded: Loaded) -> Result<Supervisor, Error> {
    let (began, mut watch) = (monotonic_now(), Stopwatch::configured());
    let config = &loaded.config;
    let log = telemetry::log::init(&config.telemetry)?;
    warn_of(config);
    raise_descriptor_limit();
    let signals = Signals::block()?;
    // The worker inherits the network namespace and the cgroup. It comes up while the programs are loaded.
    let pod = Pod::enter(&config.pod)?;
    let mut worker = Worker::spawn(Command::new(OWN_BINARY))?;
    let board = Arc::new(Board::new().map_err(Error::runtime("make memory for figures"))?);
    let mut programs = Programs::for_run(&pod, config)?;
    let told = *programs.subflows() == Subflows::Told;
    board.set(Figure::MptcpAsTcp, u64::from(!told));
    board.set(Figure::NoDiscovery, u64::from(programs.discovers().is_err()));
    programs.attach_discovery(&pod)?;
    watch.done(Phase::Programs);

    let listeners = Listeners::bind(config, &pod)?;
    watch.done(Phase::Listeners);
    let prepared = programs.prepare(&pod, config)?;
    let pulse = prepared.pulse()?;
    let configurations = Configurations::new(&loaded.snapshot())?;
    let lent =
        Lent { board: &board, shared: prepared.shared(), listeners: &listeners, configurations: &configurations };
    lent.start(&worker, began, 0, None, false)?;
    // No connection is captured before it can be protected.
    await_serving(&mut worker)?;
    watch.done(Phase::Worker);
    tracing::info!(
        pod_cgroup = %pod.cgroup_path().display(),
        own_cgroup = %pod.own_cgroup_path().display(),
        netns = pod.netns_inode(),
        worker = worker.pid(),
        "capturing"
    );
    let upgrades = Upgrades::new(open_door(config, pod.netns_inode()))?;
    let application = Application::new(pod.applications().clone(), config.lifecycle.exit_with_application, false);
    let attached = prepared.attach(pod, &listeners.outbound, &listeners.inbound)?;
    attached.capture.hold_links();
    watch.done(Phase::Attach);
    let mut keeping = Keeping::begin(attached, &board);
    watch.done(Phase::Check);
    tell(&watch, &board);
    let limits = Limits::of(config);
    let acceleration = config.capture.acceleration;
    drop(loaded);
    give_back_memory();
    let fast_path = keeping.accelerate(acceleration, &board)?;
    keeping.capture.keep();
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
        began,
        worker: Some(worker),
        restarts: Restarts::default(),
        restart_at: None,
        predecessors: 0,
        log_level: None,
        ending: None,
        pings: Pings::new(limits.hung_after),
        upgrades,
    };
    supervisor.tell_conditions();
    Ok(supervisor)
}

/// Without it there are still upgrades by signal: nothing else is to fail because of it.
fn open_door(config: &Config, netns: u64) -> Option<Door> {
    let opened = Door::open(&admin::socket::path(&config.telemetry, netns));
    opened.inspect_err(|error| tracing::warn!(%error, "`sidecar upgrade` will not reach this sidecar")).ok()
}

fn warn_of(config: &Config) {
    for way in config.ways_past_strict() {
        tracing::warn!("{way}");
    }
    for denial in config.denials_past_plaintext() {
        tracing::warn!("{denial}");
    }
    if let Some(unbounded) = config.past_socket_buffer() {
        tracing::warn!("{unbounded}");
    }
}

/// What every worker gets.
pub(super) struct Lent<'a> {
    pub(super) board: &'a Board,
    pub(super) shared: &'a SharedMaps,
    pub(super) listeners: &'a Listeners,
    pub(super) configurations: &'a Configurations,
}

impl Lent<'_> {
    /// Has a worker serve.
    pub(super) fn start(
        &self,
        worker: &Worker,
        began: u64,
        predecessors: u64,
        log_level: Option<&String>,
        successor: bool,
    ) -> Result<(), control::Error> {
        let Self { board, shared, listeners, configurations } = self;
        let mut descriptors: Vec<BorrowedFd<'_>> =
            vec![board.as_fd(), shared.heartbeat(), shared.counters(), shared.mixed(), configurations.first.as_fd()];
        descriptors.extend(listeners.descriptors());
        descriptors.extend(configurations.in_force.as_ref().map(AsFd::as_fd));
        let start = Start {
            cpus: shared.cpus(),
            tunnels: listeners.tunnels.is_some(),
            reloaded: configurations.in_force.is_some(),
            generation: configurations.generation,
            reload_failed: configurations.failed,
            began,
            predecessors,
            successor,
            supervisor: std::process::id(),
            log_level: log_level.cloned(),
        };
        debug_assert_eq!(start.descriptors(), descriptors.len());
        worker.channel.send(&Order::Start(start), &descriptors)
    }
}

/// Waits until the first worker serves. A sidecar whose first worker cannot has not started, and whoever started it is told.
fn await_serving(worker: &mut Worker) -> Result<(), Error> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::WorkerLate(START_LIMIT));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(worker.channel.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => continue,
            polled => polled.map_err(Error::runtime("wait for the worker"))?,
        };
        match worker.heard() {
            Ok(Report::Serving) => break,
            Ok(Report::Failed(why)) => return Err(Error::Worker(why)),
            Ok(_) | Err(control::Error::Busy) => {}
            Err(control::Error::Gone) => return Err(ended(worker)),
            Err(error) => return Err(error.into()),
        }
    }
    worker.stage = Stage::Serving;
    Ok(())
}

fn ended(worker: &mut Worker) -> Error {
    /// It has closed its end of the channel: it is on its way.
    const A_MOMENT: Duration = Duration::from_millis(10);
    for _ in 0..100 {
        match worker.ended() {
            Ok(Some(end)) => return Error::WorkerEnded(end.to_string()),
            Ok(None) => std::thread::sleep(A_MOMENT),
            Err(error) => return Error::Spawn(error),
        }
    }
    Error::WorkerEnded("it has closed its control channel".to_owned())
}

/// Says in the log and on the board how long each part of the start took.
fn tell(watch: &Stopwatch, board: &Board) {
    watch.write(board);
    tracing::info!(
        configuration_ms = watch.ms(Phase::Configuration),
        programs_ms = watch.ms(Phase::Programs),
        listeners_ms = watch.ms(Phase::Listeners),
        worker_ms = watch.ms(Phase::Worker),
        attach_ms = watch.ms(Phase::Attach),
        check_ms = watch.ms(Phase::Check),
        total_ms = watch.total_ms(),
        "attached"
    );
}

/// Every connection needs two descriptors; the default soft limit of 1024 is for programs that use select(2). The worker
/// inherits it.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of file descriptors cannot be raised to its hard limit");
    }
}

/// What the start needed is not needed again: the eBPF object, its programs and the configuration.
pub(super) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: gives free memory of the allocator back to the kernel; there is one thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
