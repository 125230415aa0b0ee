//! From what the supervisor lends to workers that carry connections.

use std::{
    fs,
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{Semaphore, watch};

use super::{
    Error, acceleration,
    hooks::{export_board, export_counters},
    inherited::Inherited,
    trust::Trust,
};
use crate::{
    admin,
    config::{Config, Loaded},
    control::Start,
    hbone::{self, Baggage, Pace, Server, ServerConfig},
    inbound,
    lifecycle::{
        beats::{Heartbeat, monotonic_now},
        board::BoardReader,
        readiness::Readiness,
    },
    mtls::Mtls,
    outbound,
    policy::{Permits, Policy},
    serve::{Acceptor, Running, Serving, Shared, Tunnels, Turns, UnderWay, Workers},
    telemetry::{Direction, Telemetry, log::LogControl},
    tls::Current,
};

/// A worker process that serves.
pub(super) struct Sidecar {
    pub(super) workers: Running,
    pub(super) endpoints: admin::Listeners,
    pub(super) queues: [TcpListener; 2],
    pub(super) tunnels: Option<TcpListener>,
    /// True: no more tunnels.
    pub(super) drain: watch::Sender<bool>,
    /// True: nothing more at all.
    pub(super) handed_over: watch::Sender<bool>,
    pub(super) heartbeat: Heartbeat,
    pub(super) telemetry: Telemetry,
    pub(super) log: LogControl,
    pub(super) loaded: Loaded,
    pub(super) permits: Permits,
    pub(super) trust: Option<Trust>,
    pub(super) readiness: Readiness,
    pub(super) under_way: UnderWay,
    pub(super) waiting: Waiting,
    /// Configurations put in force before.
    pub(super) generation: u64,
    /// The one that was read last had a fault.
    pub(super) reload_failed: bool,
    pub(super) began: Began,
    pub(super) board: BoardReader,
    /// Process id of the supervisor.
    pub(super) supervisor: u32,
}

/// Connections of other sidecars that are secured and wait for their use.
pub(super) struct Waiting {
    room: Arc<Semaphore>,
    all: usize,
}

impl Waiting {
    pub(super) fn is_none(&self) -> bool {
        self.room.available_permits() == self.all
    }
}

/// When the start began whose end will be told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Began {
    /// That of the sidecar, in nanoseconds of `CLOCK_MONOTONIC`.
    Sidecar(u64),
    /// That of this worker alone.
    Worker(Instant),
}

impl Began {
    fn of(start: &Start) -> Self {
        if start.predecessors == 0 { Self::Sidecar(start.began) } else { Self::Worker(Instant::now()) }
    }

    pub(super) fn elapsed(self) -> Duration {
        match self {
            Self::Sidecar(began) => Duration::from_nanos(monotonic_now().saturating_sub(began)),
            Self::Worker(began) => began.elapsed(),
        }
    }
}

/// Starts everything; from its return on, connections that the listeners hold are carried.
pub(super) async fn start(inherited: Inherited, log: LogControl) -> Result<Sidecar, Error> {
    let Inherited { start, loaded, board, heartbeat, counters, mixes, queues, endpoints, tunnels, .. } = inherited;
    let began = Began::of(&start);
    let config = &loaded.config;
    let telemetry = Telemetry::start(&config.telemetry, &config.pod)?;
    export_counters(&telemetry, counters);
    export_board(&telemetry, board.clone());
    acceleration::export(&telemetry, board.clone());
    acceleration::expect(config.capture.acceleration, mixes);
    let readiness = Readiness::new();
    let mtls = Mtls { config: config.mtls.clone(), current: Current::default() };
    let mut trust = Trust::begin(config, &telemetry, &mtls, &readiness);
    let permits = telemetry.within(|| Permits::new(Policy::new(&config.authorization)));
    let (drain, handed_over) = (watch::Sender::new(false), watch::Sender::new(false));
    let slots = slots_per_direction(config);
    let shared = share(config, &telemetry, board.clone(), mtls, &permits, slots);
    let under_way = shared.under_way.clone();
    let waiting = Waiting { room: Arc::clone(&shared.waiting), all: shared.waiting.available_permits() };
    // The identity comes before what would be carried without it.
    if let Some(trust) = &mut trust {
        if start.successor { trust.await_identity().await } else { trust.first().await }
    }
    let tunnelling = tunnels.as_ref().map(|listener| (listener, drain.subscribe()));
    let beating = (&heartbeat, handed_over.subscribe());
    let workers = start_workers(config, &queues, tunnelling, beating, shared, slots)?;
    Ok(Sidecar {
        workers,
        endpoints,
        queues,
        tunnels,
        drain,
        handed_over,
        heartbeat,
        telemetry,
        log,
        permits,
        trust,
        readiness,
        under_way,
        waiting,
        generation: start.generation,
        reload_failed: start.reload_failed,
        began,
        board,
        supervisor: start.supervisor,
        loaded,
    })
}

/// Milliseconds with fraction, for the log.
pub(super) fn millis(elapsed: Duration) -> f64 {
    (elapsed.as_secs_f64() * 1e6).round() / 1e3
}

/// Connections that may be open at once in each direction: as many as configured, but no more than there are descriptors
/// for. A connection that waits in the kernel's queue is better off than one that is accepted and cannot be dialled.
fn slots_per_direction(config: &Config) -> usize {
    /// For the endpoints' clients and for what opens for a moment.
    const RESERVE: u64 = 32;
    /// Both sockets of a connection in both directions.
    const EACH: u64 = 2 * 2;
    /// For each second connection in both directions, one that waits for its use and one that carries tunnels.
    const EACH_SECURED: u64 = 1 + 1;
    let wanted = config.proxy.max_connections;
    let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return wanted };
    let open = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    let each = if config.identity.is_configured() { EACH + EACH_SECURED } else { EACH };
    let possible = usize::try_from(limit.saturating_sub(open + RESERVE) / each).unwrap_or(usize::MAX).max(1);
    if possible < wanted {
        tracing::warn!(
            possible,
            wanted,
            limit,
            "the limit of file descriptors allows fewer connections than proxy.max_connections; raise it (ulimit -n)"
        );
    }
    possible.min(wanted)
}

fn share(
    config: &Config,
    telemetry: &Telemetry,
    board: BoardReader,
    mtls: Mtls,
    permits: &Permits,
    slots: usize,
) -> Arc<Shared> {
    let own_ports = [config.capture.outbound.port, config.capture.inbound.port, config.telemetry.admin.port()];
    Arc::new(Shared {
        limits: config.proxy.clone(),
        own_ports: own_ports.into_iter().chain(config.tunnel_port()).collect(),
        board,
        dials: Arc::new(Semaphore::new(config.proxy.max_connecting)),
        handshakes: Turns::new(config.mtls.max_handshakes),
        waiting: Arc::new(Semaphore::new(slots / 2)),
        spares: slots / 2 / config.proxy.workers,
        under_way: UnderWay::default(),
        mtls,
        permits: permits.clone(),
        baggage: Baggage::of(&config.pod),
        telemetry: telemetry.clone(),
    })
}

fn start_workers(
    config: &Config,
    queues: &[TcpListener; 2],
    tunnels: Option<(&TcpListener, watch::Receiver<bool>)>,
    (heartbeat, handed_over): (&Heartbeat, watch::Receiver<bool>),
    shared: Arc<Shared>,
    most: usize,
) -> Result<Running, Error> {
    let runtime = |what| move |source| Error::Runtime { what, source };
    let [outbound_queue, inbound_queue] = queues;
    let slots = || Arc::new(Semaphore::new(most));
    let inbound_slots = slots();
    let serve_tunnels = |(listener, drain): (&TcpListener, _)| {
        let (shared, slots) = (Arc::clone(&shared), Arc::clone(&inbound_slots));
        let carriers = Arc::new(Semaphore::new(most.div_ceil(2)));
        let (hosts, dial, pace) = (Vec::new(), hbone::dial_application as hbone::Dial, Pace::default());
        let server = Server::new(ServerConfig { shared, slots, carriers, hosts, dial, drain, pace });
        let serve = move |listener| Box::pin(Arc::clone(&server).serve(listener)) as Serving;
        Ok(Tunnels { listener: listener.try_clone()?, serve: Arc::new(serve) })
    };
    let tunnels = tunnels.map(serve_tunnels).transpose().map_err(runtime("duplicate the listener for tunnels"))?;
    let workers = Workers {
        acceptors: [
            Acceptor {
                listener: outbound_queue.try_clone().map_err(runtime("duplicate the outbound listener"))?,
                direction: Direction::Outbound,
                carry: |accepted| drop(tokio::task::spawn_local(outbound::carry(accepted))),
                slots: slots(),
            },
            Acceptor {
                listener: inbound_queue.try_clone().map_err(runtime("duplicate the inbound listener"))?,
                direction: Direction::Inbound,
                carry: |accepted| drop(tokio::task::spawn_local(inbound::carry(accepted))),
                slots: inbound_slots,
            },
        ],
        tunnels,
        shared,
        heartbeat: heartbeat.clone(),
        // Three missed beats are a sign of trouble, one is not.
        beat_every: config.capture.heartbeat_max_age / 4,
        handed_over,
    };
    workers.start().map_err(runtime("start the worker threads"))
}
