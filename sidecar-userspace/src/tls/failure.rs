//! Why a handshake failed, as it is counted and logged.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::identity::{Problem, problem::labels};

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The peer's certificate breaks a rule.
    #[error("the peer's certificate is not accepted: {0}")]
    Certificate(#[from] Problem),
    /// The peer has no certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The peer is somebody else than was expected.
    #[error("the peer is another workload than was expected")]
    WrongPeer,
    /// No protocol in common.
    #[error("no application protocol (ALPN) in common with the peer")]
    Alpn,
    /// No version, suite, group or signature scheme in common.
    #[error("no TLS version, cipher suite, key exchange or signature scheme in common with the peer")]
    Incompatible,
    /// What the peer sent is not TLS.
    #[error("the peer does not speak TLS")]
    Plaintext,
    /// The peer broke the protocol.
    #[error("the peer broke the TLS protocol")]
    Protocol,
    /// The peer gave up and said why.
    #[error("the peer ended the handshake: {0:?}")]
    PeerAlert(AlertDescription),
    /// The handshake took longer than it may.
    #[error("the handshake took longer than mtls.handshake_timeout")]
    Timeout,
    /// The peer closed the connection without an alert.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The connection broke.
    #[error("the connection broke during the handshake")]
    Io,
    /// There is no identity to prove.
    #[error("this sidecar has no identity yet")]
    NoIdentity,
    /// Our own certificate has expired.
    #[error("this sidecar's own certificate has expired")]
    OwnExpired,
    /// Our side cannot: no random bytes, a key that does not sign.
    #[error("this sidecar could not do its part of the handshake")]
    Internal,
}

labels! { Failure {
    NoCertificate => "no_certificate",
    WrongPeer => "wrong_peer",
    Alpn => "alpn",
    Incompatible => "incompatible",
    Plaintext => "plaintext",
    Protocol => "protocol",
    PeerAlert => "peer_alert",
    Timeout => "timeout",
    Closed => "closed",
    Io => "io",
    NoIdentity => "no_identity",
    OwnExpired => "own_expired",
    Internal => "internal",
} or Certificate: Problem }

/// rustls' enums grow, so this one match has a `_`; what it catches is the peer's doing.
impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::Certificate(problem(error)),
            Error::InvalidCertRevocationList(_) => Self::Certificate(Problem::BadCrl),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::NoApplicationProtocol => Self::Alpn,
            // The same alert comes from a peer that wants another protocol.
            Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Self::Alpn,
            Error::AlertReceived(alert) => Self::PeerAlert(*alert),
            Error::PeerIncompatible(_) => Self::Incompatible,
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::Plaintext,
            Error::InvalidMessage(
                InvalidMessage::HandshakePayloadTooLarge | InvalidMessage::CertificatePayloadTooLarge,
            ) => Self::Certificate(Problem::ChainTooLong),
            Error::FailedToGetCurrentTime
            | Error::FailedToGetRandomBytes
            | Error::General(_)
            | Error::EncryptError
            | Error::InconsistentKeys(_)
            | Error::HandshakeNotComplete
            | Error::Other(_) => Self::Internal,
            _ => Self::Protocol,
        }
    }
}

fn problem(error: &CertificateError) -> Problem {
    match error {
        CertificateError::Other(other) => other.0.downcast_ref().copied().unwrap_or(Problem::BadChain),
        CertificateError::BadEncoding => Problem::Malformed,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Problem::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Problem::NotYetValid,
        CertificateError::Revoked => Problem::Revoked,
        CertificateError::UnknownIssuer => Problem::UnknownIssuer,
        // Also of the handshake itself: the peer does not hold the certificate's key.
        CertificateError::BadSignature => Problem::BadSignature,
        _ => Problem::BadChain,
    }
}

/// Of a stream that does TLS itself: it wraps TLS errors.
impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return tls.into();
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_one_label_and_a_row_in_the_operators_table() {
        const TABLE: &str = include_str!("../../../docs/operations.md");
        let mut labels: Vec<_> = Failure::labels().collect();
        let (_, section) = TABLE.split_once("### Failed handshakes").unwrap();
        let (section, _) = section.split_once("###").unwrap();
        let reasons: Vec<_> =
            section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next()).collect();
        for label in &labels {
            assert!(
                reasons.iter().any(|cell| cell.split("`, `").any(|word| word.trim_end_matches('`') == *label)),
                "{label}"
            );
        }
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Failure::labels().count());
        assert!(labels.contains(&Failure::Certificate(Problem::BadCrl).label()));
    }
}
