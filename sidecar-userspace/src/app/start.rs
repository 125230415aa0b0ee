//! From a configuration to a sidecar that serves.

use std::{
    fs,
    net::TcpListener,
    os::unix::net::UnixListener,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{Semaphore, watch};

use super::{Error, hooks::export_fallbacks, trust::Trust};
use crate::{
    admin::{self, socket::SocketFile},
    config::{Config, Loaded},
    hbone::{self, Baggage, Pace, Server, ServerConfig},
    inbound,
    lifecycle::readiness::Readiness,
    mtls::Mtls,
    net::{self, Tuning},
    outbound,
    pod::Pod,
    policy::{Permits, Policy},
    redirect::{Attached, DeviceBound, Heartbeat, Programs},
    serve::{Acceptor, Running, Serving, Shared, Tunnels, Turns, UnderWay, Workers},
    telemetry::{self, Direction, Telemetry, log::LogControl},
    tls::Current,
};

/// A sidecar that captures and serves. Fields are dropped in this order: the capture goes before the workers, so that
/// no connection is handed to nobody.
pub(super) struct Sidecar {
    pub(super) attached: Attached,
    pub(super) workers: Running,
    pub(super) endpoints: admin::Listeners,
    pub(super) admin_socket: SocketFile,
    pub(super) queues: [TcpListener; 2],
    pub(super) tunnels: Option<TcpListener>,
    /// True: no more tunnels.
    pub(super) drain: watch::Sender<bool>,
    pub(super) heartbeat: Heartbeat,
    pub(super) telemetry: Telemetry,
    pub(super) log: LogControl,
    pub(super) loaded: Loaded,
    pub(super) permits: Permits,
    pub(super) trust: Option<Trust>,
    pub(super) readiness: Readiness,
    pub(super) under_way: UnderWay,
    pub(super) started: Instant,
}

/// Starts everything; from its return on, connections are captured and carried.
pub(super) async fn start(loaded: Loaded) -> Result<Sidecar, Error> {
    let started = Instant::now();
    let config = &loaded.config;
    let log = telemetry::log::init(&config.telemetry)?;
    for way in config.ways_past_strict() {
        tracing::warn!("{way}");
    }
    for denial in config.denials_past_plaintext() {
        tracing::warn!("{denial}");
    }
    raise_descriptor_limit();
    // Threads inherit the network namespace, so it is entered before there are any.
    let pod = Pod::enter(&config.pod)?;
    let telemetry = Telemetry::start(&config.telemetry, &config.pod)?;
    let readiness = Readiness::new();
    let mtls = Mtls { config: config.mtls.clone(), current: Current::default() };
    let mut trust = Trust::begin(config, &telemetry, &mtls, &readiness);
    let mut programs = Programs::load(&config.capture, config.proxy.max_connections, config.telemetry.bpf_log)?;
    export_fallbacks(&telemetry, programs.subflows());
    programs.attach_discovery(&pod)?;
    let permits = telemetry.within(|| Permits::new(Policy::new(&config.authorization)));
    let loaded_after = started.elapsed();

    let queues = listen_for_capture(config)?;
    let tunnels = listen_for_tunnels(config)?;
    let drain = watch::Sender::new(false);
    let (endpoints, admin_socket) = listen_for_questions(config, &pod)?;
    let prepared = programs.prepare(&pod, config, &queues[0], &queues[1])?;
    let heartbeat = prepared.heartbeat();
    let device_bound = DeviceBound::default();
    let slots = slots_per_direction(config);
    let shared = share(config, &telemetry, &device_bound, mtls, &permits, slots);
    let under_way = shared.under_way.clone();
    let tunnelling = tunnels.as_ref().map(|listener| (listener, drain.subscribe()));
    let workers = start_workers(config, &queues, tunnelling, &heartbeat, shared, slots)?;
    // No connection is captured before it can be protected.
    if let Some(trust) = &mut trust {
        trust.first().await;
    }
    tracing::info!(
        pod_cgroup = %pod.cgroup_path().display(),
        own_cgroup = %pod.own_cgroup_path().display(),
        netns = pod.netns_inode(),
        "capturing"
    );
    let attached = prepared.attach(pod, device_bound)?;
    tracing::info!(loaded_ms = millis(loaded_after), attached_ms = millis(started.elapsed()), "attached");
    Ok(Sidecar {
        attached,
        workers,
        endpoints,
        admin_socket,
        queues,
        tunnels,
        drain,
        heartbeat,
        telemetry,
        log,
        loaded,
        permits,
        trust,
        readiness,
        under_way,
        started,
    })
}

/// Milliseconds with fraction, for the log.
pub(super) fn millis(elapsed: Duration) -> f64 {
    (elapsed.as_secs_f64() * 1e6).round() / 1e3
}

/// Every connection needs two descriptors; the default soft limit of 1024 is for programs that use select(2).
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of file descriptors cannot be raised to its hard limit");
    }
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

fn listen_for_capture(config: &Config) -> Result<[TcpListener; 2], Error> {
    let tuning = Tuning { keepalive: config.proxy.keepalive, buffer: config.proxy.socket_buffer };
    let listen = |key, port| {
        net::listen_for_relay(port, tuning).map_err(|source| Error::Listen {
            key,
            address: format!("[::]:{port}"),
            source,
        })
    };
    Ok([
        listen("capture.outbound.port", config.capture.outbound.port)?,
        listen("capture.inbound.port", config.capture.inbound.port)?,
    ])
}

fn listen_for_tunnels(config: &Config) -> Result<Option<TcpListener>, Error> {
    let tuning = Tuning { keepalive: config.proxy.keepalive, buffer: None };
    let listen = |port| {
        net::listen_for_tunnels(port, tuning).map_err(|source| Error::Listen {
            key: "mtls.hbone_port",
            address: format!("[::]:{port}"),
            source,
        })
    };
    config.tunnel_port().map(listen).transpose()
}

fn listen_for_questions(config: &Config, pod: &Pod) -> Result<(admin::Listeners, SocketFile), Error> {
    let telemetry = &config.telemetry;
    let listen = |key, address: std::net::SocketAddr| {
        net::listen(address).map_err(|source| Error::Listen { key, address: address.to_string(), source })
    };
    let (admin_socket, file) = listen_for_admin(config, pod)?;
    let listeners = admin::Listeners {
        metrics: listen("telemetry.metrics", telemetry.metrics)?,
        health: listen("telemetry.health", telemetry.health)?,
        admin: listen("telemetry.admin", telemetry.admin)?,
        admin_socket,
    };
    Ok((listeners, file))
}

fn listen_for_admin(config: &Config, pod: &Pod) -> Result<(UnixListener, SocketFile), Error> {
    let default = || admin::socket::default_path(pod.netns_inode());
    let path = config.telemetry.admin_socket.clone().unwrap_or_else(default);
    admin::socket::sweep(Path::new(admin::socket::DIRECTORY));
    Ok(admin::socket::bind(&path)?)
}

fn share(
    config: &Config,
    telemetry: &Telemetry,
    device_bound: &DeviceBound,
    mtls: Mtls,
    permits: &Permits,
    slots: usize,
) -> Arc<Shared> {
    let own_ports = [config.capture.outbound.port, config.capture.inbound.port, config.telemetry.admin.port()];
    Arc::new(Shared {
        limits: config.proxy.clone(),
        own_ports: own_ports.into_iter().chain(config.tunnel_port()).collect(),
        device_bound: device_bound.clone(),
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
    heartbeat: &Heartbeat,
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
    };
    workers.start().map_err(runtime("start the worker threads"))
}
