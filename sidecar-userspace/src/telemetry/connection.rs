//! The record of one connection: born when it is accepted, finished exactly once.

use std::sync::atomic::{AtomicU64, Ordering};

/// Which way a connection goes, as the application sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The application's client opened it.
    Inbound,
    /// The application opened it.
    Outbound,
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
    /// No byte moved for longer than the idle timeout.
    IdleTimeout,
    /// It was still open when the drain deadline passed.
    DrainDeadline,
    /// The relay stopped without saying why: a defect of ours.
    Aborted,
}

impl CloseReason {
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
            Self::IdleTimeout => "idle_timeout",
            Self::DrainDeadline => "drain_deadline",
            Self::Aborted => "aborted",
        }
    }
}

/// The application bytes that a connection has moved so far; written by its relay, read by anyone.
#[derive(Debug, Default)]
pub struct Traffic {
    from_downstream: AtomicU64,
    from_upstream: AtomicU64,
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

    /// Bytes delivered so far: (from the side that opened the connection, from its destination).
    pub fn totals(&self) -> (u64, u64) {
        (
            self.from_downstream.load(Ordering::Relaxed),
            self.from_upstream.load(Ordering::Relaxed),
        )
    }
}
