//! The verdict on a connection that arrives at the pod.

use crate::{
    addr::{Endpoint, Ip},
    capture::Transport,
    counter::Counter,
    rules::{CAPTURE_INBOUND, CaptureRules, FAIL_CLOSED, Liveness, STRICT_INBOUND, port_role},
};

/// What can be known about an arriving connection when it is judged; asked for one by one, in the order in which the
/// facts decide.
pub trait Arrival {
    /// TCP, or not ours.
    fn transport(&self) -> Transport;
    /// The pod's end.
    fn local(&self) -> Endpoint;
    /// The client's address.
    fn remote(&self) -> Ip;
    /// The address is one of the pod's own.
    fn is_own(&self, ip: Ip) -> bool;
    /// What the port means: bits of [`port_role`].
    fn port_roles(&self) -> u32;
    /// The application listens on this address and port.
    fn listened(&self) -> bool;
    /// Some socket that the application listens on found no room in the set of them.
    fn listeners_lost(&self) -> bool;
    /// Whether the proxy can take the connection.
    fn proxy(&self) -> Liveness;
}

/// What the hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// Hand the connection to the inbound listener; `otherwise` is the verdict if the kernel refuses the listener.
    Steer,
    /// Let the kernel look for a listener as if we were not there.
    Pass,
    /// No listener: the client gets RST.
    Drop,
}

/// A steering and the counter of its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub steering: Steering,
    /// Why.
    pub counter: Counter,
}

#[inline(always)]
const fn pass(counter: Counter) -> Verdict {
    Verdict { steering: Steering::Pass, counter }
}

#[inline(always)]
const fn drop(counter: Counter) -> Verdict {
    Verdict { steering: Steering::Drop, counter }
}

/// Judges an arriving connection.
///
/// The pod talking to itself, the proxy's own leg among it, is told by address: `ingress_ifindex` of such a connection
/// is the device that owns the address, not the loopback device.
#[inline(always)]
pub fn verdict(rules: &CaptureRules, arrival: &impl Arrival) -> Verdict {
    if arrival.transport() != Transport::Tcp {
        return pass(Counter::LookupPassNotTcp);
    }
    let (local, remote) = (arrival.local().ip, arrival.remote());
    // Equal addresses tell it also where user space does not know the address: one that was added a moment ago, or one of
    // a whole network that is local (AnyIP).
    if local == remote || local.is_loopback() || remote.is_loopback() || arrival.is_own(remote) {
        return pass(Counter::LookupPassOwnAddress);
    }
    let roles = arrival.port_roles();
    if roles & port_role::OWN_PRIVATE != 0 {
        return drop(Counter::LookupDropOwnPort);
    }
    if roles & port_role::OWN_PUBLIC != 0 {
        return pass(Counter::LookupPassOwnPort);
    }
    if !rules.has(CAPTURE_INBOUND) {
        return pass(Counter::LookupPassDisabled);
    }
    if roles & port_role::EXCLUDED_INBOUND != 0 {
        return pass(Counter::LookupPassExcludedPort);
    }
    // The proxy could not dial it: the scope that such an address needs is not part of what the proxy is told.
    if local.is_v6_link_local() || remote.is_v6_link_local() {
        return if rules.has(STRICT_INBOUND) {
            drop(Counter::LookupDropLinkLocal)
        } else {
            pass(Counter::LookupPassLinkLocal)
        };
    }
    // Where nothing may pass the proxy by, a port that may be listened on counts as listened on: the proxy resets what
    // nobody listens for.
    let listened = arrival.listened() || (never_past(rules) && arrival.listeners_lost());
    if !listened {
        return pass(Counter::LookupPassNotListened);
    }
    match (arrival.proxy(), rules.has(FAIL_CLOSED)) {
        (Liveness::Alive, _) => Verdict { steering: Steering::Steer, counter: Counter::LookupSteered },
        (Liveness::Gone, false) => pass(Counter::LookupPassProxyGone),
        (Liveness::Stale, false) => pass(Counter::LookupPassProxyStale),
        (Liveness::Gone, true) => drop(Counter::LookupDropProxyGone),
        (Liveness::Stale, true) => drop(Counter::LookupDropProxyStale),
    }
}

/// The verdict when the kernel refused to assign the inbound listener (for example an IPv6-only listener for IPv4):
/// never a fall-through to the application where nothing may pass the proxy by.
#[inline(always)]
pub const fn assign_refused(rules: &CaptureRules) -> Verdict {
    if never_past(rules) { drop(Counter::LookupDropAssignRefused) } else { pass(Counter::LookupPassAssignRefused) }
}

/// Nothing may pass the proxy by.
#[inline(always)]
const fn never_past(rules: &CaptureRules) -> bool {
    rules.has(FAIL_CLOSED) || rules.has(STRICT_INBOUND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PortBe;

    fn endpoint(octets: [u8; 4], port: u16) -> Endpoint {
        Endpoint::new(Ip::from_v4(u32::from_ne_bytes(octets)), PortBe::from_host(port))
    }

    fn rules(flags: u32) -> CaptureRules {
        CaptureRules { flags, ..CaptureRules::default() }
    }

    /// Every fact, known beforehand.
    #[derive(Clone, Copy)]
    struct Known {
        transport: Transport,
        local: Endpoint,
        remote: Ip,
        remote_is_own: bool,
        port_roles: u32,
        listened: bool,
        listeners_lost: bool,
        proxy: Liveness,
    }

    impl Arrival for Known {
        fn transport(&self) -> Transport {
            self.transport
        }
        fn local(&self) -> Endpoint {
            self.local
        }
        fn remote(&self) -> Ip {
            self.remote
        }
        fn is_own(&self, ip: Ip) -> bool {
            ip == self.remote && self.remote_is_own
        }
        fn port_roles(&self) -> u32 {
            self.port_roles
        }
        fn listened(&self) -> bool {
            self.listened
        }
        fn listeners_lost(&self) -> bool {
            self.listeners_lost
        }
        fn proxy(&self) -> Liveness {
            self.proxy
        }
    }

    const OPEN: u32 = CAPTURE_INBOUND;
    const CLOSED: u32 = CAPTURE_INBOUND | FAIL_CLOSED;
    const STRICT: u32 = CAPTURE_INBOUND | STRICT_INBOUND;

    #[test]
    fn every_fact_leads_to_its_verdict() {
        let plain = Known {
            transport: Transport::Tcp,
            local: endpoint([10, 0, 0, 1], 80),
            remote: Ip::from_v4(u32::from_ne_bytes([10, 0, 0, 2])),
            remote_is_own: false,
            port_roles: 0,
            listened: true,
            listeners_lost: false,
            proxy: Liveness::Alive,
        };
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfe, 0x80]);
        let link_local = Ip::from_octets(octets);
        let loopback = Known { local: endpoint([127, 0, 0, 1], 80), remote: Ip::LOOPBACK_V4, ..plain };
        let table: &[(&str, u32, Known, Steering, Counter)] = &[
            ("plain", OPEN, plain, Steering::Steer, Counter::LookupSteered),
            ("udp", OPEN, Known { transport: Transport::Other, ..plain }, Steering::Pass, Counter::LookupPassNotTcp),
            ("own", OPEN, Known { remote_is_own: true, ..plain }, Steering::Pass, Counter::LookupPassOwnAddress),
            (
                "itself",
                CLOSED,
                Known { remote: plain.local.ip, ..plain },
                Steering::Pass,
                Counter::LookupPassOwnAddress,
            ),
            ("loopback", OPEN, loopback, Steering::Pass, Counter::LookupPassOwnAddress),
            (
                "own leg",
                CLOSED,
                Known { remote_is_own: true, port_roles: port_role::OWN_PRIVATE, ..plain },
                Steering::Pass,
                Counter::LookupPassOwnAddress,
            ),
            (
                "capture port",
                OPEN,
                Known { port_roles: port_role::OWN_PRIVATE, ..plain },
                Steering::Drop,
                Counter::LookupDropOwnPort,
            ),
            (
                "capture port, off",
                0,
                Known { port_roles: port_role::OWN_PRIVATE, ..plain },
                Steering::Drop,
                Counter::LookupDropOwnPort,
            ),
            (
                "metrics port",
                CLOSED,
                Known { port_roles: port_role::OWN_PUBLIC, ..plain },
                Steering::Pass,
                Counter::LookupPassOwnPort,
            ),
            ("link-local", CLOSED, Known { remote: link_local, ..plain }, Steering::Pass, Counter::LookupPassLinkLocal),
            (
                "link-local, strict",
                STRICT,
                Known { remote: link_local, ..plain },
                Steering::Drop,
                Counter::LookupDropLinkLocal,
            ),
            (
                "link-local, excluded",
                STRICT,
                Known { remote: link_local, port_roles: port_role::EXCLUDED_INBOUND, ..plain },
                Steering::Pass,
                Counter::LookupPassExcludedPort,
            ),
            ("off", 0, plain, Steering::Pass, Counter::LookupPassDisabled),
            (
                "excluded",
                OPEN,
                Known { port_roles: port_role::EXCLUDED_INBOUND, ..plain },
                Steering::Pass,
                Counter::LookupPassExcludedPort,
            ),
            (
                "not listened",
                CLOSED,
                Known { listened: false, ..plain },
                Steering::Pass,
                Counter::LookupPassNotListened,
            ),
            (
                "lost, open",
                OPEN,
                Known { listened: false, listeners_lost: true, ..plain },
                Steering::Pass,
                Counter::LookupPassNotListened,
            ),
            (
                "lost, closed",
                CLOSED,
                Known { listened: false, listeners_lost: true, ..plain },
                Steering::Steer,
                Counter::LookupSteered,
            ),
            (
                "lost, strict",
                STRICT,
                Known { listened: false, listeners_lost: true, ..plain },
                Steering::Steer,
                Counter::LookupSteered,
            ),
            (
                "gone, open",
                OPEN,
                Known { proxy: Liveness::Gone, ..plain },
                Steering::Pass,
                Counter::LookupPassProxyGone,
            ),
            (
                "stale, open",
                OPEN,
                Known { proxy: Liveness::Stale, ..plain },
                Steering::Pass,
                Counter::LookupPassProxyStale,
            ),
            (
                "gone, closed",
                CLOSED,
                Known { proxy: Liveness::Gone, ..plain },
                Steering::Drop,
                Counter::LookupDropProxyGone,
            ),
            (
                "stale, closed",
                CLOSED,
                Known { proxy: Liveness::Stale, ..plain },
                Steering::Drop,
                Counter::LookupDropProxyStale,
            ),
        ];
        for (name, flags, arrival, steering, counter) in table {
            assert_eq!(verdict(&rules(*flags), arrival), Verdict { steering: *steering, counter: *counter }, "{name}");
        }
    }

    #[test]
    fn a_refused_assignment_falls_through_only_in_open_mode() {
        assert_eq!(assign_refused(&rules(OPEN)).steering, Steering::Pass);
        assert_eq!(assign_refused(&rules(CLOSED)).steering, Steering::Drop);
    }
}
