//! Whether a connection is encrypted on the network, to whom, and if not, why not.

use crate::{config::Transport, id::SpiffeId};

/// What protects a connection between the two pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Nothing of ours: its bytes are on the network as the application wrote them.
    Plaintext(NotEncrypted),
    /// TLS in which both sides proved who they are.
    MutualTls {
        /// Who the other side is.
        peer: SpiffeId,
        /// How it was spoken: [`Transport::Native`] or [`Transport::Hbone`].
        transport: Transport,
    },
}

impl Security {
    /// The value of the `security` label and of the access log's `security` field.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Plaintext(_) => "plaintext",
            Self::MutualTls { .. } => "mutual_tls",
        }
    }

    /// Who the other side has proved to be.
    pub fn peer(&self) -> Option<&SpiffeId> {
        match self {
            Self::Plaintext(_) => None,
            Self::MutualTls { peer, .. } => Some(peer),
        }
    }

    /// The access log's `transport` field: how mutual TLS was spoken.
    pub fn transport(&self) -> Option<&'static str> {
        match self {
            Self::Plaintext(_) => None,
            Self::MutualTls { transport, .. } => Some(match transport {
                Transport::Native => "native",
                Transport::Hbone => "hbone",
                Transport::Plaintext => "plaintext",
            }),
        }
    }

    /// Why it is not encrypted.
    pub fn not_encrypted(&self) -> Option<NotEncrypted> {
        match self {
            Self::Plaintext(reason) => Some(*reason),
            Self::MutualTls { .. } => None,
        }
    }
}

/// Why a connection is not encrypted by the sidecar. One variant per different thing an operator would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotEncrypted {
    /// The mode that applies to it is `disable`.
    Disabled,
    /// This sidecar has no identity, or its certificate has expired.
    NoIdentity,
    /// Permissive, outbound: the other side did not say in the TCP handshake that it has a sidecar.
    PeerNotMeshed,
    /// The list of workloads says that the destination speaks plaintext.
    WorkloadPlaintext,
    /// Permissive, inbound: the client spoke plaintext.
    PeerPlaintext,
    /// The application speaks TLS itself, which passes byte for byte.
    OwnTls,
}

impl NotEncrypted {
    /// All of them, in declaration order: `ALL[reason as usize] == reason`.
    pub const ALL: [Self; 6] = [
        Self::Disabled,
        Self::NoIdentity,
        Self::PeerNotMeshed,
        Self::WorkloadPlaintext,
        Self::PeerPlaintext,
        Self::OwnTls,
    ];

    /// The value of the `reason` label of `sidecar_connections_security_total` and of the access log's `not_encrypted`
    /// field.
    pub fn label(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::NoIdentity => "no_identity",
            Self::PeerNotMeshed => "peer_not_meshed",
            Self::WorkloadPlaintext => "workload_plaintext",
            Self::PeerPlaintext => "peer_plaintext",
            Self::OwnTls => "own_tls",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_own_index_with_its_own_label() {
        for (index, reason) in NotEncrypted::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let labels: std::collections::HashSet<_> = NotEncrypted::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), NotEncrypted::ALL.len());
    }
}
