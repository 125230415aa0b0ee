//! Threads that carry connections: each with its own reactor, sharing the listeners' queues. What becomes of a connection
//! is told by the stories of its direction, which are given, and which use the states of [`Accepted`].

mod application;
mod connection;
mod turns;

use std::{
    future::pending,
    io,
    net::{IpAddr, TcpListener},
    pin::Pin,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{
    runtime::{self, LocalOptions},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::coop,
};

use crate::{
    addr::ClientAddr,
    lifecycle::beats::Heartbeat,
    net::{Queue, Stream},
    telemetry::{Direction, shortage},
};

pub use application::Application;
pub use connection::{
    Accepted, Addressed, Connected, OnItsWay, Permitted, Proved, Shared, UnderWay, Upstream, why_not_connected,
};
pub use turns::Turns;

/// A listener, and what becomes of what it accepts.
pub struct Acceptor {
    /// Where the kernel hands over connections of this direction.
    pub listener: TcpListener,
    /// Which way they go.
    pub direction: Direction,
    /// Starts to carry one of them, on the thread that accepted it.
    pub carry: fn(Accepted),
    /// Connections that may be open at once. Each direction has its own: an application that needs an outbound connection
    /// to answer an inbound one must never wait for itself.
    pub slots: Arc<Semaphore>,
}

impl Acceptor {
    fn share(&self) -> io::Result<Self> {
        let listener = self.listener.try_clone()?;
        Ok(Self { listener, direction: self.direction, carry: self.carry, slots: Arc::clone(&self.slots) })
    }
}

/// Everything a worker needs. Listeners are given, not made: whoever makes them may outlive the worker.
pub struct Workers {
    /// Outbound and inbound.
    pub acceptors: [Acceptor; 2],
    /// Where connections that carry tunnels come in, if they may.
    pub tunnels: Option<Tunnels>,
    /// What all connections share.
    pub shared: Arc<Shared>,
    /// Kept going by every worker.
    pub heartbeat: Heartbeat,
    /// Time between two beats.
    pub beat_every: Duration,
}

/// A listener for connections that carry tunnels, and who serves them.
pub struct Tunnels {
    /// Where they come in. The workers share its queue.
    pub listener: TcpListener,
    /// Accepts and serves them on the calling thread, until there shall be no more of them.
    pub serve: Arc<dyn Fn(TcpListener) -> Serving + Send + Sync>,
}

/// The serving of tunnels by one thread.
pub type Serving = Pin<Box<dyn Future<Output = io::Result<()>>>>;

impl Tunnels {
    fn share(&self) -> io::Result<Self> {
        Ok(Self { listener: self.listener.try_clone()?, serve: Arc::clone(&self.serve) })
    }

    /// Ends only if the listener cannot be watched. The listener is closed when there shall be no more tunnels.
    async fn run(self) {
        match (self.serve)(self.listener).await {
            Ok(()) => pending().await,
            Err(error) => tracing::error!(%error, "the listener for tunnels cannot be watched"),
        }
    }
}

/// Running workers. Dropping it ends them and resets what they carry.
pub struct Running {
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    ended: Arc<Notify>,
}

impl Running {
    /// Waits until a worker has ended although nobody stopped it: it panicked, or its listeners cannot be watched.
    pub async fn worker_lost(&self) {
        self.ended.notified().await;
    }
}

/// Tells of the end of a thread, in whatever way it ends.
struct TellEnd(Arc<Notify>);

impl Drop for TellEnd {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// The kernel gives no thread, reactor or descriptor.
    pub fn start(self) -> io::Result<Running> {
        let (stop, _) = watch::channel(false);
        let mut running = Running { threads: Vec::new(), stop, ended: Arc::default() };
        for index in 0..self.shared.limits.workers {
            let worker = Worker {
                index,
                acceptors: [self.acceptors[0].share()?, self.acceptors[1].share()?],
                tunnels: self.tunnels.as_ref().map(Tunnels::share).transpose()?,
                shared: Arc::clone(&self.shared),
                heartbeat: self.heartbeat.clone(),
                beat_every: self.beat_every,
            };
            let thread = worker.start(running.stop.subscribe(), TellEnd(Arc::clone(&running.ended)))?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // A worker that panicked has reset its connections; the panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Turns of tasks between two looks at the reactor. A turn of a stream is up to a mebibyte: with tokio's 61 a connection
/// that became readable would wait for 61 of them.
const TURNS: u32 = 8;

struct Worker {
    index: usize,
    acceptors: [Acceptor; 2],
    tunnels: Option<Tunnels>,
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    beat_every: Duration,
}

impl Worker {
    /// Starts the thread; returns when its reactor runs. Connections belong to one thread for life, so nothing that they
    /// are made of needs to be shared between threads.
    fn start(mut self, mut stopped: watch::Receiver<bool>, tell_end: TellEnd) -> io::Result<JoinHandle<()>> {
        let (started, outcome) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("worker-{}", self.index)).spawn(move || {
            let _tell_end = tell_end;
            let mut builder = runtime::Builder::new_current_thread();
            let runtime =
                match builder.enable_io().enable_time().event_interval(TURNS).build_local(LocalOptions::default()) {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
            let _ = started.send(Ok(()));
            let tunnels = self.tunnels.take();
            runtime.block_on(async {
                tokio::select! {
                    () = self.work(tunnels) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
        })?;
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("a worker thread panicked while it started")))?;
        Ok(thread)
    }

    /// Ends only if a listener cannot be watched or the sidecar stops.
    async fn work(&self, tunnels: Option<Tunnels>) {
        tokio::select! {
            () = self.beat() => {}
            () = self.accept(&self.acceptors[0]) => {}
            () = self.accept(&self.acceptors[1]) => {}
            () = serve(tunnels) => {}
        }
    }

    /// A beat is due to this thread's reactor: a thread that hangs does not beat.
    async fn beat(&self) {
        let mut due = tokio::time::interval(self.beat_every);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            self.heartbeat.beat(self.index);
        }
    }

    async fn accept(&self, acceptor: &Acceptor) {
        let direction = acceptor.direction;
        let queue = match acceptor.listener.try_clone().and_then(Queue::watch) {
            Ok(queue) => queue,
            Err(error) => {
                tracing::error!(%error, direction = direction.label(), "the listener cannot be watched");
                return;
            }
        };
        let mut back_off = BackOff::default();
        while queue.filled().await.is_ok() {
            // A connection that cannot be carried now waits in the kernel's queue.
            let Some(slot) = slot(acceptor).await else { return };
            let accepted = match queue.accept() {
                Ok(Some(accepted)) => accepted,
                Ok(None) => continue,
                Err(error) => {
                    back_off.after(&error, direction).await;
                    continue;
                }
            };
            back_off = BackOff::default();
            self.carry(accepted, acceptor, slot);
            // A flood of connections must not keep this thread from those that it carries.
            coop::consume_budget().await;
        }
    }

    fn carry(&self, (socket, client): (socket2::Socket, ClientAddr), acceptor: &Acceptor, slot: OwnedSemaphorePermit) {
        let downstream = match Stream::register(socket) {
            Ok(downstream) => downstream,
            Err(error) => {
                tracing::warn!(%error, %client, "the connection cannot be watched");
                return;
            }
        };
        let direction = acceptor.direction;
        let (client, source) = match direction {
            Direction::Outbound => real_client(&downstream, client),
            Direction::Inbound => (client, None),
        };
        let (at, record, shared) = (Instant::now(), None, Arc::clone(&self.shared));
        (acceptor.carry)(Accepted { downstream, client, source, direction, at, record, shared, slot: Some(slot) });
    }
}

async fn serve(tunnels: Option<Tunnels>) {
    match tunnels {
        Some(tunnels) => tunnels.run().await,
        None => pending().await,
    }
}

/// The application as it would be seen without us, and the address that it chose for itself: the one that the socket
/// shows belongs to the way here.
fn real_client(downstream: &Stream, mut client: ClientAddr) -> (ClientAddr, Option<IpAddr>) {
    match downstream.client_local() {
        Ok(Some(local)) => {
            client.0.set_ip(local.address);
            (client, local.chosen.then_some(local.address))
        }
        _ => (client, None),
    }
}

/// A slot, at once or when one is free; `None`: the sidecar ends.
async fn slot(acceptor: &Acceptor) -> Option<OwnedSemaphorePermit> {
    if let Ok(slot) = Arc::clone(&acceptor.slots).try_acquire_owned() {
        return Some(slot);
    }
    let direction = acceptor.direction.label();
    metrics::counter!("sidecar_connection_limit_waits_total", "direction" => direction).increment(1);
    tracing::debug!(direction, "proxy.max_connections are open; further ones wait in the kernel's queue");
    Arc::clone(&acceptor.slots).acquire_owned().await.ok()
}

/// What an accept loop does about errors: descriptors or memory are short (accept(2)), and asking again at once would
/// only burn the CPU that could free them.
#[derive(Default)]
struct BackOff(Option<Duration>);

impl BackOff {
    const FIRST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_secs(1);

    async fn after(&mut self, error: &io::Error, direction: Direction) {
        // A client that gave up while it waited says nothing about this machine.
        if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO)) {
            return;
        }
        let pause = self.0.map_or(Self::FIRST, |pause| (pause * 2).min(Self::LONGEST));
        if self.0.is_none() || pause == Self::LONGEST {
            tracing::warn!(%error, direction = direction.label(), ?pause, "accept failed; connections wait in the kernel's queue");
        }
        let reason = shortage(error);
        metrics::counter!("sidecar_accept_errors_total", "direction" => direction.label(), "reason" => reason)
            .increment(1);
        self.0 = Some(pause);
        tokio::time::sleep(pause).await;
    }
}
