use super::*;

const OWN: Ip = Ip::from_v4(u32::from_ne_bytes([10, 0, 0, 1]));

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Ip {
    Ip::from_v4(u32::from_ne_bytes([a, b, c, d]))
}

fn v6(first: u16, last: u16) -> Ip {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&first.to_be_bytes());
    octets[14..].copy_from_slice(&last.to_be_bytes());
    Ip::from_octets(octets)
}

fn rules(flags: u32) -> CaptureRules {
    CaptureRules { flags, outbound_port: PortBe::from_host(15_001), ..CaptureRules::default() }
}

/// Every fact, known beforehand.
#[derive(Clone, Copy)]
struct Known {
    transport: Transport,
    other_netns: bool,
    by_proxy: bool,
    dst: Endpoint,
    dst_is_own: bool,
    dst_port_roles: u32,
    cidr_excluded: bool,
    bound: Bound,
    source: Ip,
    source_device: u32,
    proxy: Liveness,
}

impl Attempt for Known {
    fn transport(&self) -> Transport {
        self.transport
    }
    fn other_netns(&self) -> bool {
        self.other_netns
    }
    fn by_proxy(&self) -> bool {
        self.by_proxy
    }
    fn dst(&self) -> Endpoint {
        self.dst
    }
    fn dst_port_roles(&self) -> u32 {
        self.dst_port_roles
    }
    fn device_of(&self, ip: Ip) -> u32 {
        if ip == self.dst.ip { u32::from(self.dst_is_own) } else { self.source_device }
    }
    fn cidr_excluded(&self) -> bool {
        self.cidr_excluded
    }
    fn bound(&self) -> Bound {
        self.bound
    }
    fn source(&self) -> Ip {
        self.source
    }
    fn proxy(&self) -> Liveness {
        self.proxy
    }
}

fn attempt(ip: Ip) -> Known {
    Known {
        transport: Transport::Tcp,
        other_netns: false,
        by_proxy: false,
        dst: Endpoint::new(ip, PortBe::from_host(80)),
        dst_is_own: false,
        dst_port_roles: 0,
        cidr_excluded: false,
        bound: Bound::default(),
        source: OWN,
        source_device: 2,
        proxy: Liveness::Alive,
    }
}

const CAPTURE: Action = captured(v4(10, 0, 0, 2), 0);

/// What a captured connection to port 80 of `dst` becomes.
const fn captured(dst: Ip, device: u32) -> Action {
    let dst = Endpoint::new(dst, PortBe::from_host(80));
    Action::Capture(detour(
        PortBe::from_host(15_001),
        dst,
        OWN,
        &Bound { ip: Ip::UNSPECIFIED_V6, port: PortBe::from_host(0), device },
    ))
}

const OPEN: u32 = CAPTURE_OUTBOUND;
const CLOSED: u32 = CAPTURE_OUTBOUND | FAIL_CLOSED;
const STRICT: u32 = CAPTURE_OUTBOUND | STRICT_OUTBOUND;

#[test]
fn every_fact_leads_to_its_verdict() {
    let far = attempt(v4(10, 0, 0, 2));
    let own = Known { dst_is_own: true, ..attempt(v4(10, 0, 0, 1)) };
    let table: &[(&str, u32, Known, Action, Counter)] = &[
        ("plain", OPEN, far, CAPTURE, Counter::ConnectCaptured),
        ("plain v6", OPEN, attempt(v6(0xfd00, 2)), captured(v6(0xfd00, 2), 0), Counter::ConnectCaptured),
        ("udp", OPEN, Known { transport: Transport::Other, ..far }, Action::Bypass, Counter::ConnectBypassNotTcp),
        ("proxy", CLOSED, Known { by_proxy: true, ..far }, Action::Bypass, Counter::ConnectBypassProxy),
        ("mptcp", OPEN, Known { transport: Transport::Mptcp, ..far }, Action::Bypass, Counter::ConnectBypassMptcp),
        ("loopback", OPEN, attempt(v4(127, 9, 9, 9)), Action::Bypass, Counter::ConnectBypassLoopback),
        ("loopback v6", OPEN, attempt(Ip::LOOPBACK_V6), Action::Bypass, Counter::ConnectBypassLoopback),
        ("0.0.0.0", OPEN, attempt(v4(0, 0, 0, 0)), Action::Bypass, Counter::ConnectBypassUnspecified),
        ("::", OPEN, attempt(Ip::UNSPECIFIED_V6), Action::Bypass, Counter::ConnectBypassUnspecified),
        ("own", OPEN, own, Action::Bypass, Counter::ConnectBypassOwnAddress),
        ("off", 0, far, Action::Bypass, Counter::ConnectBypassDisabled),
        ("broadcast", OPEN, attempt(v4(255, 255, 255, 255)), Action::Bypass, Counter::ConnectBypassNotUnicast),
        ("multicast", OPEN, attempt(v4(224, 0, 0, 1)), Action::Bypass, Counter::ConnectBypassNotUnicast),
        ("multicast v6", OPEN, attempt(v6(0xff02, 1)), Action::Bypass, Counter::ConnectBypassNotUnicast),
        ("link-local v6", OPEN, attempt(v6(0xfe80, 1)), Action::Bypass, Counter::ConnectBypassLinkLocal),
        (
            "port",
            OPEN,
            Known { dst_port_roles: port_role::EXCLUDED_OUTBOUND, ..far },
            Action::Bypass,
            Counter::ConnectBypassExcludedPort,
        ),
        ("cidr", OPEN, Known { cidr_excluded: true, ..far }, Action::Bypass, Counter::ConnectBypassExcludedCidr),
        (
            "no route, open",
            OPEN,
            Known { source: Ip::UNSPECIFIED_V6, ..far },
            Action::Bypass,
            Counter::ConnectBypassNoRoute,
        ),
        (
            "no route, closed",
            CLOSED,
            Known { source: Ip::UNSPECIFIED_V6, ..far },
            Action::Deny(ENETUNREACH),
            Counter::ConnectDenyNoRoute,
        ),
        (
            "another network namespace",
            CLOSED,
            Known { other_netns: true, ..far },
            Action::Bypass,
            Counter::ConnectBypassOtherNetns,
        ),
        (
            "bound to loopback",
            CLOSED,
            Known { bound: Bound { ip: Ip::LOOPBACK_V4, ..Bound::default() }, ..far },
            Action::Bypass,
            Counter::ConnectBypassLoopbackSource,
        ),
        (
            "bound to an address that is not the pod's",
            CLOSED,
            Known { bound: Bound { ip: OWN, ..Bound::default() }, source_device: 0, ..far },
            Action::Bypass,
            Counter::ConnectBypassForeignSource,
        ),
        (
            "bound to another device",
            CLOSED,
            Known { bound: Bound { device: 3, ..Bound::default() }, ..far },
            Action::Bypass,
            Counter::ConnectBypassBoundDevice,
        ),
        (
            "bound to the device of the source",
            OPEN,
            Known { bound: Bound { device: 2, ..Bound::default() }, ..far },
            captured(far.dst.ip, 2),
            Counter::ConnectCaptured,
        ),
        ("gone, open", OPEN, Known { proxy: Liveness::Gone, ..far }, Action::Bypass, Counter::ConnectBypassProxyGone),
        (
            "stale, open",
            OPEN,
            Known { proxy: Liveness::Stale, ..far },
            Action::Bypass,
            Counter::ConnectBypassProxyStale,
        ),
        (
            "gone, closed",
            CLOSED,
            Known { proxy: Liveness::Gone, ..far },
            Action::Deny(ECONNREFUSED),
            Counter::ConnectDenyProxyGone,
        ),
        (
            "stale, closed",
            CLOSED,
            Known { proxy: Liveness::Stale, ..far },
            Action::Deny(ECONNREFUSED),
            Counter::ConnectDenyProxyStale,
        ),
    ];
    for (name, flags, attempt, action, counter) in table {
        assert_eq!(verdict(&rules(*flags), attempt), Verdict { action: *action, counter: *counter }, "{name}");
    }
}

#[test]
fn what_the_proxy_cannot_carry_is_refused_where_mutual_tls_is_strict() {
    let far = attempt(v4(10, 0, 0, 2));
    let near = attempt(v6(0xfe80, 1));
    let elsewhere = Known { other_netns: true, ..far };
    let from = |ip| Known { bound: Bound { ip, ..Bound::default() }, source_device: 0, ..far };
    let on_device = Known { bound: Bound { device: 3, ..Bound::default() }, ..far };
    let denied = [
        ("link-local", near, EPERM, Counter::ConnectDenyLinkLocal),
        ("another network namespace", elsewhere, EPERM, Counter::ConnectDenyOtherNetns),
        ("bound to loopback", from(Ip::LOOPBACK_V4), EINVAL, Counter::ConnectDenyLoopbackSource),
        ("bound to a foreign address", from(v4(10, 9, 9, 9)), EPERM, Counter::ConnectDenyForeignSource),
        ("bound to another device", on_device, EPERM, Counter::ConnectDenyBoundDevice),
        ("no route", Known { source: Ip::UNSPECIFIED_V6, ..far }, ENETUNREACH, Counter::ConnectDenyNoRoute),
    ];
    for (name, attempt, errno, counter) in denied {
        for flags in [STRICT, STRICT | FAIL_CLOSED] {
            assert_eq!(verdict(&rules(flags), &attempt), Verdict { action: Action::Deny(errno), counter }, "{name}");
        }
        for excluded in [
            Known { cidr_excluded: true, ..attempt },
            Known { dst_port_roles: port_role::EXCLUDED_OUTBOUND, ..attempt },
            Known { by_proxy: true, ..attempt },
        ] {
            assert_eq!(verdict(&rules(STRICT), &excluded).action, Action::Bypass, "{name}");
        }
        assert_eq!(verdict(&rules(OPEN), &attempt).action, Action::Bypass, "{name}");
    }
    let multipath = Known { transport: Transport::Mptcp, ..far };
    assert_eq!(verdict(&rules(STRICT), &multipath), Verdict { action: CAPTURE, counter: Counter::ConnectCaptured });
    for stays in [v4(127, 0, 0, 1), v4(0, 0, 0, 0), Ip::LOOPBACK_V6] {
        for other_netns in [false, true] {
            let stays = Known { other_netns, ..attempt(stays) };
            assert_eq!(verdict(&rules(STRICT), &stays).action, Action::Bypass);
        }
    }
}

#[test]
fn own_ports_are_refused_by_every_address_that_reaches_them() {
    let denied = Verdict { action: Action::Deny(ECONNREFUSED), counter: Counter::ConnectDenyOwnPort };
    for ip in [v4(127, 0, 0, 1), v4(0, 0, 0, 0), Ip::LOOPBACK_V6, Ip::UNSPECIFIED_V6, v4(10, 0, 0, 1)] {
        for transport in [Transport::Tcp, Transport::Mptcp] {
            let to_own_port =
                Known { transport, dst_is_own: true, dst_port_roles: port_role::OWN_PRIVATE, ..attempt(ip) };
            assert_eq!(verdict(&rules(OPEN), &to_own_port), denied);
            let by_proxy = Known { by_proxy: true, ..to_own_port };
            assert_eq!(verdict(&rules(OPEN), &by_proxy).action, Action::Bypass);
        }
    }
}

#[test]
fn another_pods_port_of_the_same_number_is_captured() {
    let far = Known { dst_port_roles: port_role::OWN_PRIVATE, ..attempt(v4(10, 0, 0, 2)) };
    assert_eq!(verdict(&rules(OPEN), &far).action, CAPTURE);
}

#[test]
fn every_destination_has_a_loopback_address_of_its_own() {
    let mut seen = std::collections::HashSet::new();
    for last in 2..=200 {
        let Action::Capture(detour) = verdict(&rules(OPEN), &attempt(v4(10, 0, 0, last))).action else {
            panic!("not captured")
        };
        assert!(detour.to.ip.is_loopback() && detour.shown_local == OWN);
        assert!(seen.insert(detour.to.ip), "{last} shares its address");
    }
}

#[test]
fn the_application_sees_the_address_that_it_chose() {
    let chosen = v4(10, 0, 0, 9);
    for (bound, to, shown_local) in [
        (Bound { ip: chosen, ..Bound::default() }, loopback_of(attempt(v4(10, 0, 0, 2)).dst), chosen),
        (Bound { ip: chosen, device: 2, ..Bound::default() }, chosen, Ip::UNSPECIFIED_V6),
    ] {
        let far = Known { bound, ..attempt(v4(10, 0, 0, 2)) };
        let Action::Capture(detour) = verdict(&rules(OPEN), &far).action else { panic!("not captured") };
        assert_eq!((detour.to.ip, detour.shown_local), (to, shown_local));
    }
}

#[test]
fn transport_is_told_by_type_and_protocol() {
    assert_eq!(Transport::of(1, 6), Transport::Tcp);
    assert_eq!(Transport::of(1, 262), Transport::Mptcp);
    assert_eq!(Transport::of(2, 17), Transport::Other);
    assert_eq!(Transport::of(1, 132), Transport::Other);
    assert_eq!(Transport::of(3, 6), Transport::Other);
}
