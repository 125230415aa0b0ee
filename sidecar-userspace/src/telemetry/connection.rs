//! The words for a connection: which way it goes, how it ended, what it has moved.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use serde::Serialize;

/// Which way a connection goes, as the application sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The application's client opened it.
    Inbound,
    /// The application opened it.
    Outbound,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The value of the `direction` label and of the access log's `direction` field.
    pub fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    /// Istio's `reporter`: which end of the connection speaks.
    pub fn reporter(self) -> &'static str {
        match self {
            Self::Inbound => "destination",
            Self::Outbound => "source",
        }
    }
}

/// How a connection ended. One variant per different thing an operator would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// Both sides said FIN and every byte was delivered.
    Completed,
    /// The side that opened the connection reset it.
    DownstreamReset,
    /// The destination reset it.
    UpstreamReset,
    /// The destination answered the connect with RST.
    ConnectRefused,
    /// The destination did not answer the connect in time.
    ConnectTimeout,
    /// There is no route to the destination, or a router said so.
    ConnectUnreachable,
    /// The connect failed for a reason of this machine (no local port, no memory, not permitted).
    ConnectFailed,
    /// The kernel knows no original destination for it: it did not come through capture.
    NoOriginalDst,
    /// Its original destination is one of the sidecar's own ports.
    OwnPort,
    /// It asked for a tunnel in a way that is not understood, or to where none may lead.
    BadRequest,
    /// No byte moved for longer than the idle timeout.
    IdleTimeout,
    /// It was still open when the drain deadline passed.
    DrainDeadline,
    /// The relay stopped without saying why: a defect of ours.
    Aborted,
    /// The TLS handshake with the other sidecar failed.
    HandshakeFailed,
    /// Inbound: the client spoke plaintext where the mode is strict.
    PlaintextRefused,
    /// The mode is strict, and the connection cannot be encrypted: there is no identity here, or, outbound, the destination
    /// is known to speak plaintext.
    NotEncryptable,
    /// Outbound: the other side proved to be another workload than the expected one.
    WrongPeer,
    /// No rule allows it, or one denies it.
    Unauthorized,
    /// It was open when new rules came that do not allow it.
    NoLongerAuthorized,
    /// The other side's certificate was revoked, before or while it was open.
    Revoked,
    /// The TLS stream of the other sidecar ended without close_notify (RFC 8446 section 6.1): somebody cut it.
    Truncated,
}

impl CloseReason {
    /// All of them, in declaration order: `ALL[reason as usize] == reason`.
    pub const ALL: [Self; 21] = [
        Self::Completed,
        Self::DownstreamReset,
        Self::UpstreamReset,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectUnreachable,
        Self::ConnectFailed,
        Self::NoOriginalDst,
        Self::OwnPort,
        Self::BadRequest,
        Self::IdleTimeout,
        Self::DrainDeadline,
        Self::Aborted,
        Self::HandshakeFailed,
        Self::PlaintextRefused,
        Self::NotEncryptable,
        Self::WrongPeer,
        Self::Unauthorized,
        Self::NoLongerAuthorized,
        Self::Revoked,
        Self::Truncated,
    ];

    /// The value of the `reason` label and of the access log's `reason` field.
    pub fn label(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::DownstreamReset => "downstream_reset",
            Self::UpstreamReset => "upstream_reset",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectUnreachable => "connect_unreachable",
            Self::ConnectFailed => "connect_failed",
            Self::NoOriginalDst => "no_original_dst",
            Self::OwnPort => "own_port",
            Self::BadRequest => "bad_request",
            Self::IdleTimeout => "idle_timeout",
            Self::DrainDeadline => "drain_deadline",
            Self::Aborted => "aborted",
            Self::HandshakeFailed => "handshake_failed",
            Self::PlaintextRefused => "plaintext_refused",
            Self::NotEncryptable => "not_encryptable",
            Self::WrongPeer => "wrong_peer",
            Self::Unauthorized => "unauthorized",
            Self::NoLongerAuthorized => "no_longer_authorized",
            Self::Revoked => "revoked",
            Self::Truncated => "truncated",
        }
    }

    /// What Istio's `response_flags` says about it: ztunnel's vocabulary, `-` for a connection that was carried.
    pub fn flags(self) -> ResponseFlags {
        match self {
            Self::ConnectRefused | Self::ConnectTimeout | Self::ConnectUnreachable | Self::ConnectFailed => {
                ResponseFlags::Connect
            }
            Self::NoOriginalDst
            | Self::OwnPort
            | Self::BadRequest
            | Self::PlaintextRefused
            | Self::NotEncryptable
            | Self::Unauthorized
            | Self::NoLongerAuthorized => ResponseFlags::Deny,
            Self::HandshakeFailed => ResponseFlags::TlsFailure,
            Self::WrongPeer => ResponseFlags::IdentityError,
            Self::Revoked => ResponseFlags::CertRevoked,
            Self::Completed
            | Self::DownstreamReset
            | Self::UpstreamReset
            | Self::IdleTimeout
            | Self::DrainDeadline
            | Self::Aborted
            | Self::Truncated => ResponseFlags::None,
        }
    }
}

/// Istio's `response_flags`, as far as a connection can have any here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResponseFlags {
    /// It was carried, however it ended.
    None,
    /// Its destination could not be reached.
    Connect,
    /// The sidecar refused to carry it, or to carry it any longer.
    Deny,
    /// The TLS handshake failed.
    TlsFailure,
    /// The other side is not who it has to be.
    IdentityError,
    /// The other side's certificate was revoked.
    CertRevoked,
}

impl ResponseFlags {
    /// All of them, in declaration order: `ALL[flags as usize] == flags`.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Connect, Self::Deny, Self::TlsFailure, Self::IdentityError, Self::CertRevoked];

    /// The value of the `response_flags` label.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Connect => "CONNECT",
            Self::Deny => "DENY",
            Self::TlsFailure => "TLS_FAILURE",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// The application bytes that a connection has moved so far; written by its relay, read by anyone.
#[derive(Debug, Default)]
pub struct Traffic {
    from_downstream: AtomicU64,
    from_upstream: AtomicU64,
    /// One bit for each side.
    finished: AtomicU8,
}

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Whoever opened it.
    Downstream = 1,
    /// Its destination.
    Upstream = 2,
}

impl Traffic {
    /// Counts bytes delivered from the side that opened the connection to its destination.
    pub fn add_from_downstream(&self, bytes: u64) {
        self.from_downstream.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes delivered from the destination to the side that opened the connection.
    pub fn add_from_upstream(&self, bytes: u64) {
        self.from_upstream.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A side has finished sending, and all of it has been delivered with the end.
    pub fn finished(&self, end: End) {
        self.finished.fetch_or(end as u8, Ordering::Relaxed);
    }

    /// Whether it has.
    pub fn has_finished(&self, end: End) -> bool {
        self.finished.load(Ordering::Relaxed) & end as u8 != 0
    }

    /// Raises these totals to those of `other` and returns by how much. Several threads may do it at once: what one has
    /// seen the others do not see again, and a thread that read an older total adds nothing.
    pub(super) fn catch_up(&self, other: &Self) -> (u64, u64) {
        let (from_downstream, from_upstream) = other.totals();
        (
            from_downstream.saturating_sub(self.from_downstream.fetch_max(from_downstream, Ordering::Relaxed)),
            from_upstream.saturating_sub(self.from_upstream.fetch_max(from_upstream, Ordering::Relaxed)),
        )
    }

    /// Bytes delivered so far: (from the side that opened the connection, from its destination).
    pub fn totals(&self) -> (u64, u64) {
        (self.from_downstream.load(Ordering::Relaxed), self.from_upstream.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_own_index_with_its_own_label() {
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        let labels: std::collections::HashSet<_> = CloseReason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), CloseReason::ALL.len());
        for (index, flags) in ResponseFlags::ALL.into_iter().enumerate() {
            assert_eq!(flags as usize, index);
        }
        let labels: std::collections::HashSet<_> = ResponseFlags::ALL.iter().map(|f| f.label()).collect();
        assert_eq!(labels.len(), ResponseFlags::ALL.len());
    }
}
