//! What the configuration says about identities and mutual TLS.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use super::Cidr;
use crate::id::SpiffeId;

/// Who this workload is. At most one source is given; without one there is no mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Certificate, key and roots in files that somebody renews.
    pub files: Option<IdentityFiles>,
    /// Unix socket of a SPIFFE Workload API (`unix:///run/spire/agent.sock`).
    pub workload_api: Option<PathBuf>,
    /// The embedded certificate authority.
    pub ca: Option<Authority>,
}

impl Identity {
    /// Whether there is a source of one.
    pub fn is_configured(&self) -> bool {
        self.files.is_some() || self.workload_api.is_some() || self.ca.is_some()
    }
}

/// PEM files, read and replaced as a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The workload's certificate, followed by those of its intermediate authorities.
    pub cert: PathBuf,
    /// Its private key: PKCS #8, SEC 1 or PKCS #1.
    pub key: PathBuf,
    /// The trust domain's root certificates.
    pub roots: PathBuf,
    /// Certificate revocation lists.
    pub crl: Option<PathBuf>,
}

/// The embedded certificate authority: this sidecar issues its own certificates from a directory that `sidecar ca init`
/// made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The authority's directory.
    pub directory: PathBuf,
    /// The identity to issue.
    pub id: SpiffeId,
    /// Lifetime of each certificate. Default 1 h.
    pub lifetime: Duration,
}

/// Whether connections are protected by mutual TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Never asked for. Inbound, mutual TLS is still taken from a client that was answered in the TCP handshake.
    Disable,
    /// Where the other side can; plaintext otherwise.
    #[default]
    Permissive,
    /// Always; a connection that cannot be protected is refused.
    Strict,
}

/// Where mutual TLS is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mtls {
    /// For a direction that has no mode of its own. What holds in the end stands in [`Modes::mode`].
    pub mode: Mode,
    /// Connections that the application opens.
    pub outbound: Modes,
    /// Connections that others open to it.
    pub inbound: Modes,
    /// Offer hybrid post-quantum key exchange (X25519MLKEM768) first. Default `false`.
    pub post_quantum: bool,
    /// Time limit for a handshake and for the header that follows it. Default 10 s.
    pub handshake_timeout: Duration,
    /// Inbound handshakes that may be under way at once; further ones wait, and those that take longer than 1 s give way to
    /// them. Default 1024.
    pub max_handshakes: usize,
    /// Handshaked connections kept ready.
    pub spare: Spare,
    /// Port of the HBONE listener; `None` (key value 0): none. Default 15008.
    pub hbone_port: Option<u16>,
    /// Destinations of which is known who they are and what they speak.
    pub workloads: Vec<Workload>,
}

/// The mode of one direction: that of the port, else that of the most specific network, else the direction's.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Modes {
    /// Where nothing else is said.
    pub mode: Mode,
    /// By destination port.
    pub ports: Vec<(u16, Mode)>,
    /// By network of the other end.
    pub cidrs: Vec<(Cidr, Mode)>,
}

/// Handshaked connections that are kept ready for the next connection to the same destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spare {
    /// At most so many per destination and thread; 0: none. Default 8.
    pub per_destination: usize,
    /// One that was not used for this long is closed. Default 30 s.
    pub idle: Duration,
}

/// What a destination speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TLS on the original port.
    Native,
    /// HTTP/2 CONNECT over TLS on port 15008, as Istio's ambient mesh.
    Hbone,
    /// Nothing but plaintext: it is in no mesh.
    Plaintext,
}

/// Destinations of which is known who they are and what they speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Their addresses.
    pub addresses: Vec<Cidr>,
    /// Who must be there; `None`: anyone of the trust domain.
    pub identity: Option<SpiffeId>,
    /// What they speak; `None`: found out by discovery.
    pub transport: Option<Transport>,
}

impl Modes {
    /// The mode for a connection to `port` whose other end is `address`.
    pub fn of(&self, address: IpAddr, port: u16) -> Mode {
        if let Some((_, mode)) = self.ports.iter().find(|(of, _)| *of == port) {
            return *mode;
        }
        let matching = self.cidrs.iter().filter(|(cidr, _)| cidr.contains(address));
        matching.max_by_key(|(cidr, _)| cidr.prefix).map_or(self.mode, |(_, mode)| *mode)
    }
}

impl Mtls {
    /// What is known about the destination `address`: of the workloads that hold it the one with the longest prefix.
    pub fn workload(&self, address: IpAddr) -> Option<&Workload> {
        let prefix = |workload: &&Workload| {
            workload.addresses.iter().filter(|cidr| cidr.contains(address)).map(|cidr| cidr.prefix).max()
        };
        self.workloads.iter().filter(|workload| prefix(workload).is_some()).max_by_key(prefix)
    }
}

impl Default for Mtls {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            outbound: Modes::default(),
            inbound: Modes::default(),
            post_quantum: false,
            handshake_timeout: Duration::from_secs(10),
            max_handshakes: 1024,
            spare: Spare { per_destination: 8, idle: Duration::from_secs(30) },
            hbone_port: Some(15008),
            workloads: Vec::new(),
        }
    }
}
