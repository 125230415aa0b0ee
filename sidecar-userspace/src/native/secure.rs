//! From a connected socket to a secured one whose peer is known.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustls::HandshakeKind;

use super::{
    role::{ClientEnd, Role, ServerEnd},
    stream::{HandshakeError, TlsStream},
};
use crate::{
    id::SpiffeId,
    net::Stream,
    telemetry::{self, Telemetry},
    tls::{self, Alpn, Contexts, Failure},
};

/// A secured connection.
pub struct Secured<R> {
    /// The connection.
    pub stream: TlsStream<R>,
    /// Who is at the other end.
    pub peer: SpiffeId,
}

/// What handshakes need beside a socket.
pub struct Handshakes<'a> {
    /// Who we are, and whom we believe.
    pub contexts: &'a Contexts,
    /// Time limit for each.
    pub limit: Duration,
    /// Counts them.
    pub telemetry: &'a Telemetry,
}

impl Handshakes<'_> {
    /// Secures a connection to `to` that we opened. The last flight leaves with the first data.
    ///
    /// # Errors
    /// Why the peer is not believed, or does not believe us.
    pub async fn connect(&self, socket: Stream, to: SocketAddr) -> Result<Secured<ClientEnd>, Failure> {
        let tls = self.contexts.client(Alpn::Native).and_then(|config| {
            ClientEnd::new(config, tls::server_name(to.ip())).map_err(|error| Failure::from(&error))
        });
        self.secure(telemetry::Role::Client, socket, tls).await
    }

    /// Secures a connection that another sidecar opened.
    ///
    /// # Errors
    /// Why the peer is not believed, or does not believe us.
    pub async fn accept(&self, socket: Stream) -> Result<Secured<ServerEnd>, Failure> {
        let tls = self
            .contexts
            .server(Alpn::Native)
            .and_then(|config| ServerEnd::new(config).map_err(|error| Failure::from(&error)));
        self.secure(telemetry::Role::Server, socket, tls).await
    }

    async fn secure<R: Role>(
        &self,
        role: telemetry::Role,
        socket: Stream,
        tls: Result<R, Failure>,
    ) -> Result<Secured<R>, Failure> {
        let _under_way = self.telemetry.handshake_begins(role);
        let begun = Instant::now();
        let secured: Result<Secured<R>, Failure> = async {
            let stream = TlsStream::new(socket, tls?);
            // On the heap, so that its buffers are not part of the connection's task for life.
            let shaken = tokio::time::timeout(self.limit, Box::pin(stream.handshake())).await;
            shaken.map_err(|_| Failure::Timeout)?.map_err(|error| Failure::from(&error))?;
            let peer = self.contexts.admit(stream.tls().common(), Alpn::Native)?;
            Ok(Secured { stream, peer })
        }
        .await;
        match &secured {
            Ok(secured) => {
                let resumed = secured.stream.tls().common().handshake_kind() == Some(HandshakeKind::Resumed);
                self.telemetry.handshake(role, resumed, begun.elapsed());
            }
            Err(failure) => self.telemetry.handshake_failed(role, failure.label()),
        }
        secured
    }
}

impl From<&HandshakeError> for Failure {
    fn from(error: &HandshakeError) -> Self {
        match error {
            HandshakeError::Tls(error) => error.into(),
            HandshakeError::Io(error) => error.into(),
        }
    }
}
