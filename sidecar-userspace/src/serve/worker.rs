//! One thread with its reactor: it beats, accepts, and carries what it accepted.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::{self, LocalOptions},
    sync::{OwnedSemaphorePermit, watch},
    task::coop,
};

use crate::{
    addr::ClientAddr,
    lifecycle::{beats::Heartbeat, together::together},
    net::{Queue, Stream},
    telemetry::{Direction, shortage},
};

use super::{Accepted, Acceptor, Shared, TellEnd, Tunnels};

/// Turns of tasks between two looks at the reactor. A turn of a stream is up to a mebibyte: with tokio's 61 a connection
/// that became readable would wait for 61 of them.
const TURNS: u32 = 8;

pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) acceptors: [Acceptor; 2],
    pub(super) tunnels: Option<Tunnels>,
    pub(super) shared: Arc<Shared>,
    pub(super) heartbeat: Heartbeat,
    pub(super) beat_every: Duration,
    /// True: the others run as well.
    pub(super) begin: watch::Receiver<bool>,
    pub(super) handed_over: watch::Receiver<bool>,
}

impl Worker {
    /// Starts the thread; returns when its reactor runs. Connections belong to one thread for life, so nothing that they
    /// are made of needs to be shared between threads.
    pub(super) fn start(self, mut stopped: watch::Receiver<bool>, tell_end: TellEnd) -> io::Result<JoinHandle<()>> {
        let (started, outcome) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("worker-{}", self.index)).spawn(move || {
            let _tell_end = tell_end;
            let runtime = match self.reactor().build_local(LocalOptions::default()) {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(()));
            runtime.block_on(async {
                tokio::select! {
                    () = self.work() => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
        })?;
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("a worker thread panicked while it started")))?;
        Ok(thread)
    }

    /// The first thread beats by a timer; the others are left to sleep while they have nothing to do.
    fn reactor(&self) -> runtime::Builder {
        let mut builder = runtime::Builder::new_current_thread();
        builder.enable_io().enable_time().event_interval(TURNS);
        if self.index > 0 {
            let (index, waiting, woken) = (self.index, self.heartbeat.clone(), self.heartbeat.clone());
            builder.on_thread_park(move || waiting.waits(index)).on_thread_unpark(move || woken.woke(index));
        }
        builder
    }

    /// Ends only if a listener cannot be watched or the sidecar stops.
    ///
    /// All of it is what the runtime itself runs, and not tasks: these would wait in one queue behind those of connections,
    /// and a beat that waits there says that the thread hangs when it only works.
    async fn work(mut self) {
        if self.begin.wait_for(|begin| *begin).await.is_err() {
            return;
        }
        let tunnels = self.tunnels.take();
        tokio::select! {
            () = self.beat() => {}
            () = self.accept_until_handed_over(&self.acceptors[0]) => {}
            () = self.accept_until_handed_over(&self.acceptors[1]) => {}
            () = serve(tunnels) => {}
        }
    }

    /// A beat is due to this thread's reactor: a thread that hangs does not beat.
    async fn beat(&self) {
        if self.index > 0 {
            loop {
                self.heartbeat.beat(self.index);
                self.heartbeat.asked(self.index).await;
            }
        }
        let Err(error) = self.beat_by_timer().await;
        tracing::error!(%error, "the heartbeat has no timer");
    }

    async fn beat_by_timer(&self) -> io::Result<Infallible> {
        /// Beats from one at which everybody is asked to the next: in `capture.heartbeat_max_age`.
        const ROUND: u32 = 4;
        let beats = beats(self.beat_every)?;
        let mut beat = 0_u32;
        loop {
            self.heartbeat.lead(beat.is_multiple_of(ROUND));
            beat = beat.wrapping_add(1);
            beats.readable().await?.clear_ready();
            // Sets the timer off again: beats that were missed are not made up for.
            match nix::unistd::read(beats.get_ref(), &mut [0; 8]) {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What is accepted is carried at once, so that there is no connection between the two when this ends.
    async fn accept_until_handed_over(&self, acceptor: &Acceptor) {
        let mut handed_over = self.handed_over.clone();
        tokio::select! {
            biased;
            _ = handed_over.wait_for(|over| *over) => pending().await,
            () = self.accept(acceptor) => {}
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
                // It does not listen any more (`net::stop_listening`), and what is open is carried on.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return pending().await,
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
        let (downstream, client, source) = match direction {
            Direction::Outbound => {
                let (client, source) = real_client(&downstream, client);
                (downstream, client, source)
            }
            Direction::Inbound => (downstream.through_the_network(), client, None),
        };
        let (at, record, shared) = (Instant::now(), None, Arc::clone(&self.shared));
        (acceptor.carry)(Accepted { downstream, client, source, direction, at, record, shared, slot: Some(slot) });
    }
}

/// A timer of the kernel (timerfd_create(2)): it wakes the thread once for each beat, where the runtime's own, whose wheel
/// has slots of 64 ms for what is further away, wakes it twice. All sidecars of a node beat at the same instants.
fn beats(every: Duration) -> io::Result<AsyncFd<OwnedFd>> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    let now = Instant::now();
    let first = together(now + every).saturating_duration_since(now);
    let [first, every] = [first, every].map(TimeSpec::from_duration);
    timer.set(Expiration::IntervalDelayed(first, every), TimerSetTimeFlags::empty())?;
    // SAFETY: the descriptor is owned by what is returned, and stays the same one as long as that lives.
    unsafe { AsyncFd::register_with_interest(timer.into(), Interest::READABLE) }.map_err(io::Error::from)
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
