//! From a connected socket to TLS with a peer whose identity is known.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{CommonState, pki_types::CertificateDer};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{
    addr::canonical,
    id::SpiffeId,
    telemetry::{Role, Telemetry},
    tls::{self, Alpn, Contexts, Failure},
};

/// A connection that carries tunnels: between whom, and where.
pub(super) struct Carrier {
    /// Whom the peer's certificate names.
    pub(super) identity: SpiffeId,
    chain: Box<[CertificateDer<'static>]>,
    /// The peer's end.
    pub(super) remote: SocketAddr,
    /// Ours.
    pub(super) local: SocketAddr,
}

impl Carrier {
    /// Whether the peer's certificate has been revoked by what is believed now.
    pub(super) fn is_revoked(&self, contexts: &Contexts) -> bool {
        contexts.identity().revoked(&self.chain)
    }
}

/// What handshakes need beside a socket.
pub(super) struct Handshakes<'a> {
    /// Who we are, and whom we believe; `None`: nobody yet.
    pub(super) contexts: Option<&'a Arc<Contexts>>,
    /// Time limit for each.
    pub(super) limit: Duration,
    /// Counts them.
    pub(super) telemetry: &'a Telemetry,
}

impl Handshakes<'_> {
    /// Secures a connection that we opened. `expected`: who must be there, if that is known.
    pub(super) async fn connect(
        &self,
        tcp: TcpStream,
        expected: Option<&SpiffeId>,
    ) -> Result<(Carrier, client::TlsStream<TcpStream>), Failure> {
        let shake = async {
            let contexts = self.contexts.ok_or(Failure::NoIdentity)?;
            let (remote, local) = ends(&tcp)?;
            let connector = TlsConnector::from(contexts.client(Alpn::Hbone)?);
            let tls =
                connector.connect(tls::server_name(remote.ip()), tcp).await.map_err(|error| Failure::from(&error))?;
            let carrier = carrier(contexts, tls.get_ref().1, remote, local)?;
            if expected.is_some_and(|expected| *expected != carrier.identity) {
                tracing::warn!(to = %remote, peer = %carrier.identity, "the destination is another workload than mtls.workloads says");
                return Err(Failure::WrongPeer);
            }
            Ok((carrier, tls))
        };
        self.counted(Role::Client, shake).await
    }

    /// Secures a connection that another opened.
    pub(super) async fn accept(&self, tcp: TcpStream) -> Result<(Carrier, server::TlsStream<TcpStream>), Failure> {
        let shake = async {
            let contexts = self.contexts.ok_or(Failure::NoIdentity)?;
            let (remote, local) = ends(&tcp)?;
            let acceptor = TlsAcceptor::from(contexts.server(Alpn::Hbone)?);
            let tls = acceptor.accept(tcp).await.map_err(|error| Failure::from(&error))?;
            Ok((carrier(contexts, tls.get_ref().1, remote, local)?, tls))
        };
        self.counted(Role::Server, shake).await
    }

    async fn counted<T>(&self, role: Role, shake: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let _under_way = self.telemetry.handshake_begins(role);
        let begun = Instant::now();
        let shaken = timeout(self.limit, shake).await.unwrap_or(Err(Failure::Timeout));
        match &shaken {
            // No session is ever resumed here.
            Ok(_) => self.telemetry.handshake(role, false, begun.elapsed()),
            Err(failure) => self.telemetry.handshake_failed(role, failure.label()),
        }
        shaken
    }
}

/// The peer's end, and ours.
fn ends(tcp: &TcpStream) -> Result<(SocketAddr, SocketAddr), Failure> {
    let failed = |error: io::Error| Failure::from(&error);
    Ok((canonical(tcp.peer_addr().map_err(failed)?), canonical(tcp.local_addr().map_err(failed)?)))
}

fn carrier(
    contexts: &Contexts,
    state: &CommonState,
    remote: SocketAddr,
    local: SocketAddr,
) -> Result<Carrier, Failure> {
    let identity = contexts.admit(state, Alpn::Hbone)?;
    let chain = state.peer_certificates().unwrap_or_default().iter().cloned().map(CertificateDer::into_owned).collect();
    Ok(Carrier { identity, chain, remote, local })
}
