//! Why a tunnel could not be opened.

use std::{io, sync::Arc};

use http::StatusCode;
use thiserror::Error;

use crate::{identity::Problem, serve::why_not_connected, telemetry::CloseReason, tls::Failure};

/// Why a tunnel could not be opened. Those that waited for the same connection get the same answer.
#[derive(Clone, Debug, Error)]
pub enum OpenError {
    /// The connection could not be made.
    #[error("connect: {0}")]
    Connect(Arc<io::Error>),
    /// It was not made in time.
    #[error("no answer to connect in time")]
    ConnectTimeout,
    /// The peer is not believed, or does not believe us.
    #[error("TLS handshake: {0}")]
    Tls(#[from] Failure),
    /// The HTTP/2 connection failed.
    #[error("HTTP/2: {0}")]
    Http2(Arc<h2::Error>),
    /// The peer closes the connection, or takes no more streams, and has not looked at the request.
    #[error("the peer takes no more tunnels: {0}")]
    TurnedAway(Arc<h2::Error>),
    /// The connection was given up while the tunnel waited for it.
    #[error("the connection was given up before the tunnel was asked for")]
    Retired,
    /// What was asked for cannot be written as a request.
    #[error("the request cannot be written: {0}")]
    Request(Arc<http::Error>),
    /// The peer answered with something other than 200.
    #[error("the peer answered {}{}", .0, meaning(.0))]
    Refused(StatusCode),
}

fn meaning(status: &StatusCode) -> &'static str {
    match *status {
        StatusCode::BAD_REQUEST => ": it does not serve that destination",
        StatusCode::UNAUTHORIZED => ": its policy denies it",
        StatusCode::SERVICE_UNAVAILABLE => ": its application cannot be reached",
        _ => "",
    }
}

impl OpenError {
    /// Whether the peer said that it closes the connection.
    pub(super) fn closes_connection(&self) -> bool {
        matches!(self, Self::TurnedAway(error) if error.is_go_away())
    }

    /// How the connection that wanted the tunnel ends.
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::Tls(Failure::WrongPeer) => CloseReason::WrongPeer,
            Self::Tls(Failure::Certificate(Problem::Revoked)) => CloseReason::Revoked,
            Self::Tls(_) => CloseReason::HandshakeFailed,
            Self::Connect(error) => why_not_connected(error),
            Self::ConnectTimeout => CloseReason::ConnectTimeout,
            Self::Refused(StatusCode::UNAUTHORIZED) => CloseReason::Unauthorized,
            Self::Refused(StatusCode::SERVICE_UNAVAILABLE) => CloseReason::ConnectUnreachable,
            Self::Refused(_) | Self::Request(_) => CloseReason::BadRequest,
            Self::Http2(_) | Self::TurnedAway(_) | Self::Retired => CloseReason::ConnectFailed,
        }
    }
}

/// Errors of a request. A peer that says so has not looked at it (RFC 9113 §6.8, §8.7), so that another connection may be
/// tried.
impl From<h2::Error> for OpenError {
    fn from(error: h2::Error) -> Self {
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if error.is_remote() && (error.is_go_away() || refused) {
            Self::TurnedAway(Arc::new(error))
        } else {
            Self::Http2(Arc::new(error))
        }
    }
}

impl From<http::Error> for OpenError {
    fn from(error: http::Error) -> Self {
        Self::Request(Arc::new(error))
    }
}
