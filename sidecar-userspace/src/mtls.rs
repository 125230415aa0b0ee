//! What protects a connection: the choice between plaintext and mutual TLS, from the configuration, the identity and what
//! is known of the other end.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    config::{self, Mode, Transport, Workload},
    identity::Problem,
    net::Transports,
    telemetry::{CloseReason, NotEncrypted},
    tls::{Contexts, Current, Failure},
};

/// The choice for every connection. Clones share the identity.
#[derive(Clone)]
pub struct Mtls {
    /// What is asked for.
    pub config: config::Mtls,
    /// The identity, if there is one.
    pub current: Current,
}

/// What is to protect a connection that the application opened.
pub enum Outward<'a> {
    /// Nothing.
    Plaintext(NotEncrypted),
    /// Mutual TLS, which cannot be had: the connection is refused.
    Refused(CloseReason),
    /// Mutual TLS.
    Encrypted {
        /// Who we are.
        contexts: Arc<Contexts>,
        /// What is known of the destination.
        workload: Option<&'a Workload>,
        /// Plaintext is no way out.
        strict: bool,
    },
}

/// How a destination is reached that is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In plaintext.
    Plaintext,
    /// By the native transport, on this connection.
    Native,
    /// Through a tunnel, on another.
    Tunnel,
}

impl Way {
    /// To a destination that said in the TCP handshake that it speaks `spoken`; `known`: it speaks the native transport, or
    /// must.
    pub fn to(spoken: Transports, known: bool) -> Self {
        if spoken.contains(Transports::NATIVE) {
            Self::Native
        } else if spoken.contains(Transports::HBONE) {
            Self::Tunnel
        } else if known {
            Self::Native
        } else {
            Self::Plaintext
        }
    }
}

/// What is to protect a connection to the application.
pub enum Inward {
    /// Nothing.
    Plaintext(NotEncrypted),
    /// Mutual TLS, which cannot be had: the connection is refused.
    Refused(CloseReason),
    /// Mutual TLS and nothing else.
    Encrypted(Arc<Contexts>),
    /// Mutual TLS if the client begins it.
    Either(Arc<Contexts>),
}

impl Mtls {
    /// For a connection to `to`.
    pub fn outward(&self, to: SocketAddr) -> Outward<'_> {
        let mode = self.config.outbound.of(to.ip(), to.port());
        let workload = self.config.workload(to.ip());
        let plaintext = workload.is_some_and(|workload| workload.transport == Some(Transport::Plaintext));
        match (mode, self.contexts()) {
            (Mode::Disable, _) => Outward::Plaintext(NotEncrypted::Disabled),
            (Mode::Permissive, _) if plaintext => Outward::Plaintext(NotEncrypted::WorkloadPlaintext),
            (Mode::Permissive, None) => Outward::Plaintext(NotEncrypted::NoIdentity),
            (Mode::Strict, None) => Outward::Refused(CloseReason::NotEncryptable),
            (Mode::Strict, _) if plaintext => Outward::Refused(CloseReason::NotEncryptable),
            (mode, Some(contexts)) => Outward::Encrypted { contexts, workload, strict: mode == Mode::Strict },
        }
    }

    /// For a connection from `client` to the application's `port`. `meshed`: the client said that it has a sidecar, and was
    /// answered; what it then begins is taken wherever it goes.
    pub fn inward(&self, client: SocketAddr, port: u16, meshed: bool) -> Inward {
        match (self.config.inbound.of(client.ip(), port), self.contexts()) {
            (Mode::Strict, None) => Inward::Refused(CloseReason::NotEncryptable),
            (Mode::Strict, Some(contexts)) => Inward::Encrypted(contexts),
            (Mode::Disable, Some(contexts)) if meshed => Inward::Either(contexts),
            (Mode::Disable, _) => Inward::Plaintext(NotEncrypted::Disabled),
            (Mode::Permissive, None) => Inward::Plaintext(NotEncrypted::NoIdentity),
            (Mode::Permissive, Some(contexts)) => Inward::Either(contexts),
        }
    }

    /// What we tell other sidecars in the TCP handshake that we speak.
    pub fn offer(&self) -> Transports {
        if self.contexts().is_none() {
            return Transports::NONE;
        }
        if self.config.hbone_port.is_some() { Transports::NATIVE.union(Transports::HBONE) } else { Transports::NATIVE }
    }

    /// Those of an identity that peers accept.
    fn contexts(&self) -> Option<Arc<Contexts>> {
        self.current.get().filter(|contexts| !contexts.identity().expired(std::time::SystemTime::now()))
    }
}

/// How a connection ends that could not be secured because of `failure`.
pub fn close_reason(failure: Failure) -> CloseReason {
    match failure {
        Failure::Certificate(Problem::Revoked) => CloseReason::Revoked,
        Failure::WrongPeer => CloseReason::WrongPeer,
        Failure::Plaintext => CloseReason::PlaintextRefused,
        _ => CloseReason::HandshakeFailed,
    }
}

#[cfg(test)]
mod tests;
