//! What is measured beside what.

use super::figure::Group;

/// A way from the client to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Mode {
    /// Nothing in between.
    Direct,
    /// HAProxy in the client pod, dialled by its loopback address: the price of a relay alone, on one side only.
    Loopback,
    /// iptables REDIRECT and Envoy's TCP proxy in both pods, one worker thread each.
    Envoy,
    /// A sidecar in both pods, one worker thread each.
    Sidecar,
    /// A sidecar in both pods as it comes.
    SidecarDefault,
    /// As [`Mode::Sidecar`], and what the applications send goes past TCP.
    SidecarFast,
    /// As [`Mode::Sidecar`], and the connections that are measured are excluded from capture.
    SidecarExcluded,
    /// As [`Mode::Envoy`], with mutual TLS between the two.
    EnvoyMtls,
    /// As [`Mode::Sidecar`], with mutual TLS between the two.
    SidecarMtls,
    /// The same without spare connections: every connection waits for its handshake.
    SidecarMtlsCold,
    /// The same, and the handshakes' key exchange is X25519MLKEM768.
    SidecarMtlsHybrid,
}

/// What is compared: the sidecar's mode and Envoy's with the same protection.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub(super) sidecar: Mode,
    pub(super) envoy: Mode,
}

impl Pair {
    /// Without encryption.
    pub(super) const PLAINTEXT: Self = Self { sidecar: Mode::Sidecar, envoy: Mode::Envoy };
    /// With mutual TLS.
    pub(super) const MTLS: Self = Self { sidecar: Mode::SidecarMtls, envoy: Mode::EnvoyMtls };

    /// What of these modes belongs in one table with it.
    pub(super) fn modes(self, of: &[Mode]) -> Vec<Mode> {
        let mtls = self.sidecar.is_mtls();
        of.iter().copied().filter(|mode| *mode == Mode::Direct || mode.is_mtls() == mtls).collect()
    }
}

impl Mode {
    /// All of them.
    pub(super) const ALL: [Self; 11] = [
        Self::Direct,
        Self::Loopback,
        Self::Envoy,
        Self::Sidecar,
        Self::SidecarDefault,
        Self::SidecarFast,
        Self::SidecarExcluded,
        Self::EnvoyMtls,
        Self::SidecarMtls,
        Self::SidecarMtlsCold,
        Self::SidecarMtlsHybrid,
    ];

    /// Its name in tables, files and arguments.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Loopback => "loopback",
            Self::Envoy => "envoy",
            Self::Sidecar => "sidecar",
            Self::SidecarDefault => "sidecar-default",
            Self::SidecarFast => "sidecar-fast",
            Self::SidecarExcluded => "sidecar-excluded",
            Self::EnvoyMtls => "envoy-mtls",
            Self::SidecarMtls => "sidecar-mtls",
            Self::SidecarMtlsCold => "sidecar-mtls-cold",
            Self::SidecarMtlsHybrid => "sidecar-mtls-hybrid",
        }
    }

    /// What it is, for the reader of a table.
    pub(super) fn is(self) -> &'static str {
        match self {
            Self::Direct => "nothing between client and server",
            Self::Loopback => "HAProxy, TCP, 1 thread, in the client pod only, dialled explicitly at 127.0.0.1",
            Self::Envoy => "iptables REDIRECT + Envoy TCP proxy, --concurrency 1, in both pods, plaintext",
            Self::Sidecar => "a sidecar in both pods, proxy.workers: 1, plaintext",
            Self::SidecarDefault => "a sidecar in both pods, default configuration, plaintext",
            Self::SidecarFast => "sidecar with acceleration: force",
            Self::SidecarExcluded => "sidecar, and the ports of the servers excluded from capture in both pods",
            Self::EnvoyMtls => "envoy with mutual TLS between the two, TLS 1.3, P-256, session resumption by default",
            Self::SidecarMtls => "sidecar with mtls.mode: strict, P-256",
            Self::SidecarMtlsCold => "the same with mtls.spare.per_destination: 0, sessions resumed",
            Self::SidecarMtlsHybrid => "the same, and mtls.post_quantum: true",
        }
    }

    /// Whether it is a pair of sidecars.
    pub(super) fn is_sidecar(self) -> bool {
        !matches!(self, Self::Direct | Self::Loopback) && !self.is_envoy()
    }

    /// Whether it is a pair of Envoys.
    pub(super) fn is_envoy(self) -> bool {
        matches!(self, Self::Envoy | Self::EnvoyMtls)
    }

    /// Whether the proxies encrypt.
    pub(super) fn is_mtls(self) -> bool {
        matches!(self, Self::EnvoyMtls | Self::SidecarMtls) || self.differs_in_handshakes()
    }

    /// Whether every connection of the application's begins with a handshake of its own.
    pub(super) fn shakes_hands_each_time(self) -> bool {
        self == Self::EnvoyMtls || self.differs_in_handshakes()
    }

    fn differs_in_handshakes(self) -> bool {
        matches!(self, Self::SidecarMtlsCold | Self::SidecarMtlsHybrid)
    }

    /// Whether the sidecar's binary is needed: it also issues the certificates.
    pub(super) fn needs_sidecar(self) -> bool {
        self.is_sidecar() || self.is_mtls()
    }

    /// What of the sidecar's configuration differs from the defaults.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Self::Sidecar => "proxy: { workers: 1, drain_deadline: 0s }\n",
            Self::SidecarFast => "proxy: { workers: 1, drain_deadline: 0s }\nacceleration: force\n",
            // Not `serve::WHO`, whose connections prove that the sidecars capture.
            Self::SidecarExcluded => {
                "proxy: { workers: 1, drain_deadline: 0s }\ncapture: { outbound: { exclude_ports: [7000, 7001, 7002] }, inbound: { exclude_ports: [7000, 7001, 7002] } }\n"
            }
            Self::SidecarMtls => {
                "proxy: { workers: 1, drain_deadline: 0s }\ncapture: { on_failure: open }\nmtls: { mode: strict }\n"
            }
            Self::SidecarMtlsCold => {
                "proxy: { workers: 1, drain_deadline: 0s }\ncapture: { on_failure: open }\nmtls: { mode: strict, spare: { per_destination: 0 } }\n"
            }
            Self::SidecarMtlsHybrid => {
                "proxy: { workers: 1, drain_deadline: 0s }\ncapture: { on_failure: open }\nmtls: { mode: strict, post_quantum: true, spare: { per_destination: 0 } }\n"
            }
            Self::Direct | Self::Loopback | Self::Envoy | Self::SidecarDefault | Self::EnvoyMtls => "",
        }
    }

    /// Whether these figures say something about it that those of another mode do not.
    pub(super) fn has(self, group: Group) -> bool {
        match group {
            Group::FastPath => {
                matches!(self, Self::Envoy | Self::Sidecar | Self::SidecarFast | Self::SidecarExcluded)
            }
            _ if matches!(self, Self::SidecarFast | Self::SidecarExcluded) => false,
            Group::Connect => true,
            Group::Lifecycle => !self.is_mtls(),
            Group::RoundTrip | Group::Bulk | Group::Memory => !self.differs_in_handshakes(),
        }
    }
}
