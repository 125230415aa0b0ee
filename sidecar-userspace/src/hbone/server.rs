//! The end of tunnels that others open to the application.

mod connection;
mod stream;

use std::{future::Future, io, net::TcpListener, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::coop,
};

use super::Pace;
use crate::{
    net::{Queue, Stream},
    serve::{Application, Shared},
    telemetry::{CloseReason, Direction, shortage},
};

/// Connects to the application on behalf of a client.
pub type Dial = fn(Application) -> Pin<Box<dyn Future<Output = Result<Stream, CloseReason>>>>;

/// [`Application::dial`].
pub fn dial_application(application: Application) -> Pin<Box<dyn Future<Output = Result<Stream, CloseReason>>>> {
    Box::pin(application.dial())
}

/// What a [`Server`] is given.
pub struct ServerConfig {
    /// What all connections share.
    pub shared: Arc<Shared>,
    /// Inbound connections that may be open at once: one for each tunnel.
    pub slots: Arc<Semaphore>,
    /// Connections that may carry tunnels at once.
    pub carriers: Arc<Semaphore>,
    /// Names by which clients may call the pod; its address always serves.
    pub hosts: Vec<Box<str>>,
    /// Connects to the application.
    pub dial: Dial,
    /// True: no more tunnels; those that are open live on.
    pub drain: watch::Receiver<bool>,
    /// Pings and idle connections.
    pub pace: Pace,
}

/// Serves tunnels. One for all workers: each calls [`Server::serve`] on its own thread.
pub struct Server(ServerConfig);

impl Server {
    /// Makes one.
    pub fn new(config: ServerConfig) -> Arc<Self> {
        Arc::new(Self(config))
    }

    /// Accepts connections and serves their tunnels in tasks of this thread's runtime, until the sidecar drains: those that
    /// wait in the queue then are accepted, and told to go elsewhere, instead of reset. The listener is non-blocking
    /// ([`crate::net::listen_for_tunnels`]); other threads may serve the same queue by another descriptor.
    ///
    /// # Errors
    /// The listener cannot be watched.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let queue = Queue::watch(listener)?;
        let mut drain = self.0.drain.clone();
        tokio::select! {
            result = self.accept(&queue) => return result,
            _ = drain.wait_for(|drain| *drain) => {}
        }
        while let Ok(carrier) = Arc::clone(&self.0.carriers).try_acquire_owned() {
            let Ok(Some((socket, client))) = queue.accept_unheard() else { break };
            tokio::task::spawn_local(connection::serve(Arc::clone(&self), socket, client, carrier));
        }
        Ok(())
    }

    async fn accept(self: &Arc<Self>, queue: &Queue) -> io::Result<()> {
        loop {
            queue.filled().await?;
            // What cannot be served now waits in the kernel's queue.
            let Some(carrier) = free(&self.0.carriers).await else { return Ok(()) };
            match queue.accept() {
                Ok(Some((socket, client))) => {
                    tokio::task::spawn_local(connection::serve(Arc::clone(self), socket, client, carrier));
                }
                Ok(None) => {}
                Err(error) => after(&error).await,
            }
            coop::consume_budget().await;
        }
    }
}

async fn free(semaphore: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(semaphore).try_acquire_owned() {
        return Some(permit);
    }
    metrics::counter!("sidecar_connection_limit_waits_total", "direction" => Direction::Inbound.label()).increment(1);
    Arc::clone(semaphore).acquire_owned().await.ok()
}

/// Descriptors or memory are short (accept(2)): asking again at once would only burn the CPU that could free them.
async fn after(error: &io::Error) {
    const PAUSE: Duration = Duration::from_millis(100);
    // A client that gave up while it waited says nothing about this machine.
    if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO)) {
        return;
    }
    tracing::warn!(%error, pause = ?PAUSE, "accept failed on the HBONE port; connections wait in the kernel's queue");
    let (direction, reason) = (Direction::Inbound.label(), shortage(error));
    metrics::counter!("sidecar_accept_errors_total", "direction" => direction, "reason" => reason).increment(1);
    tokio::time::sleep(PAUSE).await;
}
