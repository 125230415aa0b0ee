//! TLS between sidecars: what is spoken, who is believed, and what a failure is called.
//!
//! TLS 1.3 alone, both sides with certificates, no server name, no early data. A [`Contexts`] belongs to one identity: a
//! new certificate, root or revocation list makes a new one, and with it new session stores, so that no session is
//! resumed across a rotation or a revocation.

mod failure;
#[cfg(test)]
mod tests;
mod verifier;

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use rustls::{
    ClientConfig, CommonState, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs, aws_lc_rs::cipher_suite, aws_lc_rs::kx_group},
    pki_types::{CertificateDer, ServerName},
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
    version::TLS13,
};

use tokio::sync::watch;

use crate::{
    config,
    id::SpiffeId,
    identity::{Identity, Problem, Role, svid},
};

pub use failure::Failure;
use verifier::Verifier;

/// What is spoken inside of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// Between sidecars, on the original port.
    Native,
    /// HTTP/2 CONNECT, as Istio's ambient mesh.
    Hbone,
}

impl Alpn {
    /// The protocol's name in the handshake (RFC 7301).
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::Native => b"sidecar/1",
            Self::Hbone => b"h2",
        }
    }
}

/// The contexts for what begins now, told to all threads. Without an identity there are none.
#[derive(Clone, Default)]
pub struct Current(watch::Sender<Option<Arc<Contexts>>>);

impl Current {
    /// The contexts to use now.
    pub fn get(&self) -> Option<Arc<Contexts>> {
        self.0.borrow().clone()
    }

    /// From now on these are used.
    pub fn set(&self, contexts: Option<Arc<Contexts>>) {
        self.0.send_replace(contexts);
    }

    /// Waits until others than those of now are in force that `of_interest` says yes to.
    pub async fn others(&self, of_interest: impl Fn(&Contexts) -> bool) {
        let mut seen = self.0.subscribe();
        let interesting = |contexts: &Option<Arc<Contexts>>| contexts.as_deref().is_some_and(&of_interest);
        // Cannot fail: the sender is ours.
        let _ = seen.wait_for(interesting).await;
    }
}

/// Destinations of which a client remembers sessions.
const SESSIONS: usize = 256;

/// Everything that handshakes need, for one identity.
pub struct Contexts {
    identity: Arc<Identity>,
    native: (Arc<ClientConfig>, Arc<ServerConfig>),
    hbone: (Arc<ClientConfig>, Arc<ServerConfig>),
}

impl Contexts {
    /// Contexts for handshakes with `identity`.
    ///
    /// # Errors
    /// The provider has no random bytes for session tickets.
    pub fn new(identity: Arc<Identity>, mtls: &config::Mtls) -> Result<Self, rustls::Error> {
        let maker = Maker { provider: Arc::new(provider(mtls.post_quantum)), identity: &identity };
        let native = (maker.client(Alpn::Native)?, maker.server(Alpn::Native)?);
        let hbone = (maker.client(Alpn::Hbone)?, maker.server(Alpn::Hbone)?);
        Ok(Self { native, hbone, identity })
    }

    /// The identity that they prove.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// For connections that we open.
    ///
    /// # Errors
    /// [`Failure::OwnExpired`]: no peer would accept us.
    pub fn client(&self, alpn: Alpn) -> Result<Arc<ClientConfig>, Failure> {
        self.usable(
            &match alpn {
                Alpn::Native => &self.native,
                Alpn::Hbone => &self.hbone,
            }
            .0,
        )
    }

    /// For connections that others open.
    ///
    /// # Errors
    /// [`Failure::OwnExpired`]: no peer would accept us.
    pub fn server(&self, alpn: Alpn) -> Result<Arc<ServerConfig>, Failure> {
        self.usable(
            &match alpn {
                Alpn::Native => &self.native,
                Alpn::Hbone => &self.hbone,
            }
            .1,
        )
    }

    fn usable<T>(&self, config: &Arc<T>) -> Result<Arc<T>, Failure> {
        if self.identity.expired(SystemTime::now()) { Err(Failure::OwnExpired) } else { Ok(Arc::clone(config)) }
    }

    /// Who is on the other side of a finished handshake. Must be asked before a byte is trusted: rustls lets a peer
    /// name no protocol, and does not look at a certificate again when a session is resumed.
    ///
    /// # Errors
    /// Another protocol than `alpn`, no certificate, or one that has expired or was revoked.
    pub fn admit(&self, connection: &CommonState, alpn: Alpn) -> Result<SpiffeId, Failure> {
        if connection.alpn_protocol() != Some(alpn.name()) {
            return Err(Failure::Alpn);
        }
        let chain = connection.peer_certificates().unwrap_or_default();
        let id = peer_id(chain)?;
        if self.identity.revoked(chain) { Err(Problem::Revoked.into()) } else { Ok(id) }
    }
}

impl Contexts {
    /// Whether a peer that was admitted by `then` would be admitted now: an identity may have waited for its use.
    ///
    /// # Errors
    /// Why not.
    pub fn admit_again(
        &self,
        then: &Self,
        connection: &CommonState,
        alpn: Alpn,
        role: Role,
    ) -> Result<SpiffeId, Failure> {
        if !Arc::ptr_eq(&self.identity, &then.identity) {
            let chain = connection.peer_certificates().unwrap_or_default();
            let (leaf, intermediates) = chain.split_first().ok_or(Failure::NoCertificate)?;
            self.identity.trust().verify(leaf, intermediates, role, SystemTime::now())?;
        }
        self.admit(connection, alpn)
    }
}

/// Whose certificate chain this is, as verified in a handshake. A chain whose leaf has expired since is refused.
///
/// # Errors
/// There is no certificate, or its leaf breaks a rule.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, Failure> {
    let leaf = svid::leaf(chain.first().ok_or(Failure::NoCertificate)?)?;
    if leaf.expired(SystemTime::now()) { Err(Problem::Expired.into()) } else { Ok(leaf.id) }
}

/// What rustls calls the destination. It is never sent; a client's sessions are kept by it.
pub fn server_name(destination: IpAddr) -> ServerName<'static> {
    ServerName::from(destination)
}

/// aws-lc-rs with what both sides of a mesh speak. AES first: every server CPU of today has instructions for it; with 128
/// bits, as BoringSSL and Go: its key schedule uses SHA-256, which CPUs have instructions for as well, unlike SHA-384.
fn provider(post_quantum: bool) -> CryptoProvider {
    let mut kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
    if post_quantum {
        kx_groups.insert(0, kx_group::X25519MLKEM768);
    }
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups,
        ..aws_lc_rs::default_provider()
    }
}

struct Maker<'a> {
    provider: Arc<CryptoProvider>,
    identity: &'a Arc<Identity>,
}

impl Maker<'_> {
    fn client(&self, alpn: Alpn) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(Arc::clone(self.identity))))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(self.identity.certified()))));
        config.alpn_protocols = vec![alpn.name().to_vec()];
        config.enable_sni = false;
        config.resumption = match alpn {
            Alpn::Native => Resumption::in_memory_sessions(SESSIONS),
            // As ztunnel: the certificate is looked at on every connection.
            Alpn::Hbone => Resumption::disabled(),
        };
        Ok(Arc::new(config))
    }

    fn server(&self, alpn: Alpn) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(Verifier::new(Arc::clone(self.identity))))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(self.identity.certified()))));
        config.alpn_protocols = vec![alpn.name().to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match alpn {
            // Sessions are with the clients, encrypted by keys that die with this config: no store that clients could
            // fill, and none that forgets the quiet ones.
            Alpn::Native => {
                config.ticketer = aws_lc_rs::Ticketer::new()?;
                // One for the one that a resumption takes. Each costs both ends an AEAD and a record.
                config.send_tls13_tickets = 1;
            }
            Alpn::Hbone => config.send_tls13_tickets = 0,
        }
        Ok(Arc::new(config))
    }
}
