//! Where mutual TLS is a must, and what lets plaintext past it all the same.

use super::{Config, Mode, Modes, Mtls, OnFailure};

impl Modes {
    /// Whether mutual TLS is a must for any connection of this direction.
    pub fn any_strict(&self) -> bool {
        let modes = self.ports.iter().map(|(_, mode)| mode).chain(self.cidrs.iter().map(|(_, mode)| mode));
        modes.chain([&self.mode]).any(|mode| *mode == Mode::Strict)
    }
}

impl Mtls {
    /// Whether mutual TLS is a must for any connection.
    pub fn any_strict(&self) -> bool {
        self.outbound.any_strict() || self.inbound.any_strict()
    }
}

impl Config {
    /// Whether the pod stays closed after a sidecar that ended in order.
    pub fn stays_closed(&self) -> bool {
        self.capture.on_failure == OnFailure::Closed && self.mtls.any_strict()
    }

    /// What the configuration asks for that lets plaintext past strict mutual TLS, for people; each names the keys that
    /// disagree.
    pub fn ways_past_strict(&self) -> Vec<&'static str> {
        let (capture, mtls) = (&self.capture, &self.mtls);
        let ways = [
            (
                mtls.any_strict() && capture.on_failure == OnFailure::Open,
                "capture.on_failure is `open` and mtls is `strict`: while the sidecar is dead or hangs, connections go in \
                 plaintext; leave capture.on_failure out or set it to `closed`",
            ),
            (
                mtls.outbound.any_strict() && !capture.outbound.enabled,
                "capture.outbound.enabled is `false` and mtls.outbound is `strict`: nothing outbound is captured, and all \
                 of it goes in plaintext",
            ),
            (
                mtls.inbound.any_strict() && !capture.inbound.enabled,
                "capture.inbound.enabled is `false` and mtls.inbound is `strict`: nothing inbound is captured, and \
                 plaintext reaches the application",
            ),
        ];
        ways.into_iter().filter(|(past, _)| *past).map(|(_, told)| told).collect()
    }
}
