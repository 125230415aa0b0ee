//! What user space tells the kernel side: the rules every verdict obeys.

use core::mem::size_of;

use crate::addr::{Ip, PortBe};

/// `CaptureRules::flags`: outbound connections are captured.
pub const CAPTURE_OUTBOUND: u32 = 1;
/// `CaptureRules::flags`: inbound connections are captured.
pub const CAPTURE_INBOUND: u32 = 2;
/// `CaptureRules::flags`: without a live proxy connections fail instead of going direct.
pub const FAIL_CLOSED: u32 = 4;
/// `CaptureRules::flags`: an outbound connection that the proxy cannot carry is refused, for it could only go in plaintext.
pub const STRICT_OUTBOUND: u32 = 8;
/// `CaptureRules::flags`: the same for an inbound connection.
pub const STRICT_INBOUND: u32 = 16;

/// The one entry of the `RULES` array.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CaptureRules {
    /// Cookie of the pod's network namespace (`SO_NETNS_COOKIE`): sockets of others are left alone.
    pub netns: u64,
    /// Id of the sidecar's own cgroup (the inode number of its directory): its tasks are never captured.
    pub proxy_cgroup: u64,
    /// A heartbeat older than this, in nanoseconds of `CLOCK_MONOTONIC`, means that the proxy hangs.
    pub heartbeat_max_age: u64,
    /// Bits `CAPTURE_OUTBOUND`, `CAPTURE_INBOUND`, `FAIL_CLOSED`, `STRICT_OUTBOUND`, `STRICT_INBOUND`.
    pub flags: u32,
    /// Port of the outbound listener.
    pub outbound_port: PortBe,
    /// Always zero.
    pub _pad: u16,
}

impl CaptureRules {
    /// Whether every bit of `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }
}

/// What a port number means: bits of the value in the `PORTS` map, whose key is the [`PortBe`].
pub mod port_role {
    /// The application's connections to this port go direct.
    pub const EXCLUDED_OUTBOUND: u32 = 1;
    /// Connections to this port of the application stay direct.
    pub const EXCLUDED_INBOUND: u32 = 2;
    /// One of the sidecar's own: only the kernel side and the sidecar itself send connections here.
    pub const OWN_PRIVATE: u32 = 4;
    /// One of the sidecar's own that others may reach (metrics, health).
    pub const OWN_PUBLIC: u32 = 8;
}

/// Value of the `SOURCES` trie: the pod's own address that the kernel would choose as source for a destination.
///
/// `getsockname` shows it to the application; a socket that is bound to a device is led to the proxy by it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// An address of the pod.
    pub ip: Ip,
}

/// Slots of the `PROXY_LISTENERS` socket map.
pub mod listener_slot {
    /// The proxy's outbound listener.
    pub const OUTBOUND: u32 = 0;
    /// The proxy's inbound listener.
    pub const INBOUND: u32 = 1;
}

/// Whether the proxy can take a connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It listens and its heartbeat is fresh.
    Alive,
    /// Its listener is gone: the process died or is starting.
    Gone,
    /// It listens but its heartbeat is old: stopped, hung or overloaded.
    Stale,
}

/// Judges the proxy's liveness. `heartbeat` is the time of the last beat, `now` the present, both `CLOCK_MONOTONIC` in
/// nanoseconds; no beat yet is zero.
#[inline(always)]
pub const fn liveness(listens: bool, heartbeat: u64, now: u64, max_age: u64) -> Liveness {
    if !listens {
        Liveness::Gone
    } else if heartbeat == 0 || now.saturating_sub(heartbeat) > max_age {
        Liveness::Stale
    } else {
        Liveness::Alive
    }
}

const _: () = assert!(size_of::<CaptureRules>() == 32);
const _: () = assert!(size_of::<Source>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_alive_only_while_it_listens_and_beats() {
        let age = 1_000;
        for (listens, heartbeat, now, expected) in [
            (true, 5_000, 5_000, Liveness::Alive),
            (true, 5_000, 6_000, Liveness::Alive),
            (true, 5_000, 6_001, Liveness::Stale),
            (true, 0, 1, Liveness::Stale),
            (true, 6_000, 5_000, Liveness::Alive), // written by another CPU a moment after `now` was read
            (false, 5_000, 5_000, Liveness::Gone),
            (false, 0, 0, Liveness::Gone),
        ] {
            assert_eq!(liveness(listens, heartbeat, now, age), expected, "{listens} {heartbeat} {now}");
        }
    }
}
