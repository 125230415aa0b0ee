//! Bounds that were reached, and what became of whoever came then: each by the key that sets it.

use std::io;

/// A bound of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `proxy.max_connections`, of tunnels: those of connections wait in the kernel's queue
    /// (`sidecar_connection_limit_waits_total`).
    Tunnels,
    /// `proxy.max_connecting`.
    Connecting,
    /// `mtls.max_handshakes`.
    Handshakes,
}

pub(super) const REACHED_TOTAL: &str = "sidecar_limit_reached_total";

impl Limit {
    /// Label `limit`: the key.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tunnels => "proxy.max_connections",
            Self::Connecting => "proxy.max_connecting",
            Self::Handshakes => "mtls.max_handshakes",
        }
    }

    /// Somebody has to wait.
    pub fn waited(self) {
        self.count("waited");
    }

    /// Somebody has waited for too long, or has to go so that others come.
    pub fn refused(self) {
        self.count("refused");
    }

    fn count(self, outcome: &'static str) {
        metrics::counter!(REACHED_TOTAL, "limit" => self.label(), "outcome" => outcome).increment(1);
    }
}

/// Of what this machine is short, by the error of a system call: label `reason`.
pub fn shortage(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => "descriptors",
        Some(libc::ENOMEM | libc::ENOBUFS) => "memory",
        Some(libc::EADDRNOTAVAIL) => "ports",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_are_told_apart() {
        for (code, reason) in [
            (libc::EMFILE, "descriptors"),
            (libc::ENFILE, "descriptors"),
            (libc::ENOMEM, "memory"),
            (libc::ENOBUFS, "memory"),
            (libc::EADDRNOTAVAIL, "ports"),
            (libc::EPERM, "other"),
        ] {
            assert_eq!(shortage(&io::Error::from_raw_os_error(code)), reason);
        }
    }
}
