//! Threads that carry connections: each with its own reactor, sharing the listeners' queues. What becomes of a connection
//! is told by the stories of its direction, which are given, and which use the states of [`Accepted`].

mod application;
mod connection;
mod dial;
mod shared;
mod turns;
mod worker;

use std::{future::pending, io, net::TcpListener, pin::Pin, sync::Arc, thread::JoinHandle, time::Duration};

use tokio::sync::{Notify, Semaphore, watch};

use crate::{lifecycle::beats::Heartbeat, telemetry::Direction};

use worker::Worker;

pub use application::Application;
pub use connection::{Accepted, Addressed, Connected, Permitted, Proved, Relay, Upstream};
pub use dial::why_not_connected;
pub use shared::{OnItsWay, Shared, UnderWay};
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
    /// True: nothing more is accepted.
    pub handed_over: watch::Receiver<bool>,
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
    /// Starts the threads. None accepts before all are there: what the first had taken would be reset if the last could not be had.
    ///
    /// # Errors
    /// The kernel gives no thread, reactor or descriptor.
    pub fn start(self) -> io::Result<Running> {
        let (stop, begin) = (watch::Sender::new(false), watch::Sender::new(false));
        let mut running = Running { threads: Vec::new(), stop, ended: Arc::default() };
        for index in 0..self.shared.limits.workers {
            let worker = Worker {
                index,
                acceptors: [self.acceptors[0].share()?, self.acceptors[1].share()?],
                tunnels: self.tunnels.as_ref().map(Tunnels::share).transpose()?,
                shared: Arc::clone(&self.shared),
                heartbeat: self.heartbeat.clone(),
                beat_every: self.beat_every,
                begin: begin.subscribe(),
                handed_over: self.handed_over.clone(),
            };
            let thread = worker.start(running.stop.subscribe(), TellEnd(Arc::clone(&running.ended)))?;
            running.threads.push(thread);
        }
        begin.send_replace(true);
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
