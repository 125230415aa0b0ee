//! Accepting clients and serving their requests, within limits.

use std::{collections::VecDeque, convert::Infallible, future::pending, io, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{
    Hooks,
    endpoints::{self, Interface},
};

/// Clients served at once on one listener. One more costs the one that has been there longest its place: slow clients must
/// not keep a health probe waiting.
pub(super) const MAX_CLIENTS: usize = 256;

/// Time for a whole request header, also while a kept-alive connection is idle.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a request header: curl's and Prometheus' are below one KiB. Also hyper's minimum.
const MAX_HEADER: usize = 8 * 1024;

/// A connection answers no further request after this time.
const LIFETIME: Duration = Duration::from_secs(120);

/// Time for the response that is being written when the lifetime is over; then a client that does not read is cut off.
const LAST_RESPONSE: Duration = Duration::from_secs(10);

/// Pause after an accept that failed for lack of descriptors or memory: epoll would report the same client at once.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A listening socket.
pub(super) enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Client {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Door {
    async fn accept(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Client::Tcp(stream)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Client::Unix(stream)),
        }
    }
}

/// Serves every client of `door`, until there shall be no more.
pub(super) async fn admit(
    door: Door,
    interface: Interface,
    hooks: Arc<Hooks>,
    no_more: watch::Receiver<bool>,
) -> Infallible {
    let mut clients = JoinSet::new();
    let mut by_age = VecDeque::new();
    loop {
        while clients.try_join_next().is_some() {}
        by_age.retain(|client: &AbortHandle| !client.is_finished());
        if by_age.len() >= MAX_CLIENTS
            && let Some(oldest) = by_age.pop_front()
        {
            oldest.abort();
        }
        let accepted = tokio::select! {
            biased;
            () = told(no_more.clone()) => break,
            accepted = door.accept() => accepted,
        };
        let (hooks, no_more) = (Arc::clone(&hooks), no_more.clone());
        match accepted {
            Ok(Client::Tcp(stream)) => by_age.push_back(clients.spawn(converse(stream, interface, hooks, no_more))),
            Ok(Client::Unix(stream)) => by_age.push_back(clients.spawn(converse(stream, interface, hooks, no_more))),
            Err(error) if lacks_resources(&error) => {
                tracing::warn!(%error, ?interface, "accept failed; waiting");
                sleep(BACK_OFF).await;
            }
            Err(error) => tracing::debug!(%error, ?interface, "client gone before it was accepted"),
        }
    }
    drop(door);
    while clients.join_next().await.is_some() {}
    pending().await
}

/// Waits until there shall be no more.
async fn told(mut no_more: watch::Receiver<bool>) {
    if no_more.wait_for(|no_more| *no_more).await.is_err() {
        // Nobody is left who could say so.
        pending().await
    }
}

/// accept(2): these stay until something is freed; all other errors belong to the one client that is gone.
fn lacks_resources(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    interface: Interface,
    hooks: Arc<Hooks>,
    no_more: watch::Receiver<bool>,
) {
    let answer = service_fn(|request| {
        let response = endpoints::answer(interface, &hooks, &request);
        async { Ok::<_, Infallible>(response) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER)
            .serve_connection(TokioIo::new(stream), answer)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = sleep(LIFETIME) => None,
        () = told(no_more) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_RESPONSE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?interface, "client connection ended");
    }
}
