//! The verdict on a connect of a task in the pod.

use crate::{
    addr::{Endpoint, Ip, PortBe},
    counter::Counter,
    rules::{CAPTURE_OUTBOUND, CaptureRules, FAIL_CLOSED, Liveness, STRICT_OUTBOUND, port_role},
};

/// `EPERM` (asm-generic/errno.h): what a local firewall answers (connect(2)), and all that kernels before 5.19 let the hook
/// answer.
pub const EPERM: i32 = 1;
/// `EINVAL`.
pub const EINVAL: i32 = 22;
/// `ECONNREFUSED`.
pub const ECONNREFUSED: i32 = 111;
/// `ENETUNREACH`.
pub const ENETUNREACH: i32 = 101;

/// What can be known about a connect when it is judged.
///
/// Facts are asked for one by one, in the order in which they decide: a connect over loopback pays for no look-up, and
/// the verifier follows one path instead of every combination of answers.
pub trait Attempt {
    /// How the socket speaks.
    fn transport(&self) -> Transport;
    /// The socket lives in another network namespace than the pod's.
    fn other_netns(&self) -> bool;
    /// The calling task is in the sidecar's own cgroup.
    fn by_proxy(&self) -> bool;
    /// Where it wants to go.
    fn dst(&self) -> Endpoint;
    /// What the destination's port means: bits of [`port_role`].
    fn dst_port_roles(&self) -> u32;
    /// The interface that owns an address of the pod; zero: it is not the pod's.
    fn device_of(&self, ip: Ip) -> u32;
    /// The operator excluded the network of the destination.
    fn cidr_excluded(&self) -> bool;
    /// What the application chose for its own end before the connect.
    fn bound(&self) -> Bound;
    /// The address that the kernel would choose for the application's end; `::`: no route is known.
    fn source(&self) -> Ip;
    /// Whether the proxy can take the connection.
    fn proxy(&self) -> Liveness;
}

/// What an application chose for its own end with `bind` and `SO_BINDTODEVICE`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bound {
    /// The address; unspecified if it chose none.
    pub ip: Ip,
    /// The port; zero if it chose none.
    pub port: PortBe,
    /// The interface index; zero if it chose none.
    pub device: u32,
}

/// How a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `SOCK_STREAM`, `IPPROTO_TCP`.
    Tcp,
    /// `SOCK_STREAM`, `IPPROTO_MPTCP`: its subflows are sockets of their own that carry no note.
    Mptcp,
    /// Anything else.
    Other,
}

impl Transport {
    /// From a socket's type and protocol.
    #[inline(always)]
    pub const fn of(sock_type: u32, protocol: u32) -> Self {
        const SOCK_STREAM: u32 = 1;
        const IPPROTO_TCP: u32 = 6;
        const IPPROTO_MPTCP: u32 = 262;
        match (sock_type, protocol) {
            (SOCK_STREAM, IPPROTO_TCP) => Self::Tcp,
            (SOCK_STREAM, IPPROTO_MPTCP) => Self::Mptcp,
            _ => Self::Other,
        }
    }
}

/// What the hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Remember the destination and send the connection to the proxy.
    Capture(Detour),
    /// Leave it alone.
    Bypass,
    /// Fail the call with this errno.
    Deny(i32),
}

/// Where a captured connection goes instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// An address of the pod at which the outbound listener is reached.
    pub to: Endpoint,
    /// What `getsockname` must answer; `::` where the kernel's own answer is right.
    pub shown_local: Ip,
}

/// An action and the counter of its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub action: Action,
    /// Why.
    pub counter: Counter,
}

#[inline(always)]
const fn bypass(counter: Counter) -> Verdict {
    Verdict { action: Action::Bypass, counter }
}

#[inline(always)]
const fn deny(errno: i32, counter: Counter) -> Verdict {
    Verdict { action: Action::Deny(errno), counter }
}

/// Judges a connect. The order is the meaning: the sidecar's own ports are guarded before anything lets a connection
/// through, and a destination that the kernel itself will refuse is left to the kernel.
#[inline(always)]
pub fn verdict(rules: &CaptureRules, attempt: &impl Attempt) -> Verdict {
    let transport = attempt.transport();
    if transport == Transport::Other {
        return bypass(Counter::ConnectBypassNotTcp);
    }
    if attempt.by_proxy() {
        return bypass(Counter::ConnectBypassProxy);
    }
    let Endpoint { ip, .. } = attempt.dst();
    if attempt.other_netns() {
        return elsewhere(rules, attempt, ip);
    }
    if ip.is_loopback() {
        return in_pod(attempt, Counter::ConnectBypassLoopback);
    }
    if ip.is_unspecified() {
        return in_pod(attempt, Counter::ConnectBypassUnspecified);
    }
    if attempt.device_of(ip) != 0 {
        return in_pod(attempt, Counter::ConnectBypassOwnAddress);
    }
    // As TCP it loses its further paths, in plaintext it would lose more.
    if transport == Transport::Mptcp && !rules.has(STRICT_OUTBOUND) {
        return bypass(Counter::ConnectBypassMptcp);
    }
    if !rules.has(CAPTURE_OUTBOUND) {
        return bypass(Counter::ConnectBypassDisabled);
    }
    if ip.is_not_unicast() {
        return bypass(Counter::ConnectBypassNotUnicast);
    }
    if attempt.dst_port_roles() & port_role::EXCLUDED_OUTBOUND != 0 {
        return bypass(Counter::ConnectBypassExcludedPort);
    }
    if attempt.cidr_excluded() {
        return bypass(Counter::ConnectBypassExcludedCidr);
    }
    if ip.is_v6_link_local() {
        return not_carried(rules, EPERM, [Counter::ConnectBypassLinkLocal, Counter::ConnectDenyLinkLocal]);
    }
    if rules.has(FAIL_CLOSED) { closed(rules, attempt) } else { open(rules, attempt) }
}

/// The proxy cannot carry it: it goes direct, or, where that must not be, fails with this errno. `why` counts the one and
/// the other.
#[inline(always)]
const fn not_carried(rules: &CaptureRules, errno: i32, why: [Counter; 2]) -> Verdict {
    let [bypassed, denied] = why;
    if rules.has(STRICT_OUTBOUND) { deny(errno, denied) } else { bypass(bypassed) }
}

/// The socket lives in another network namespace than the pod's, where the proxy has no listener. What stays in there and
/// what the operator excluded is left alone in any case.
#[inline(always)]
fn elsewhere(rules: &CaptureRules, attempt: &impl Attempt, ip: Ip) -> Verdict {
    let stays = ip.is_loopback() || ip.is_unspecified();
    if stays || attempt.dst_port_roles() & port_role::EXCLUDED_OUTBOUND != 0 || attempt.cidr_excluded() {
        return bypass(Counter::ConnectBypassOtherNetns);
    }
    not_carried(rules, EPERM, [Counter::ConnectBypassOtherNetns, Counter::ConnectDenyOtherNetns])
}

/// The connection stays in the pod: nobody's business, unless it is meant for the sidecar itself.
#[inline(always)]
fn in_pod(attempt: &impl Attempt, bypassed: Counter) -> Verdict {
    if attempt.dst_port_roles() & port_role::OWN_PRIVATE != 0 {
        return deny(ECONNREFUSED, Counter::ConnectDenyOwnPort);
    }
    bypass(bypassed)
}

/// The rest of the verdict where a connection that the proxy cannot take goes direct.
#[inline(always)]
fn open(rules: &CaptureRules, attempt: &impl Attempt) -> Verdict {
    match attempt.proxy() {
        Liveness::Gone => bypass(Counter::ConnectBypassProxyGone),
        Liveness::Stale => bypass(Counter::ConnectBypassProxyStale),
        Liveness::Alive => with_proxy(rules, attempt),
    }
}

/// The rest of the verdict where a connection that the proxy cannot take fails.
#[inline(always)]
fn closed(rules: &CaptureRules, attempt: &impl Attempt) -> Verdict {
    match attempt.proxy() {
        Liveness::Gone => deny(ECONNREFUSED, Counter::ConnectDenyProxyGone),
        Liveness::Stale => deny(ECONNREFUSED, Counter::ConnectDenyProxyStale),
        Liveness::Alive => with_proxy(rules, attempt),
    }
}

/// The proxy is alive: captured, if the proxy can be reached from where the application bound its socket.
#[inline(always)]
fn with_proxy(rules: &CaptureRules, attempt: &impl Attempt) -> Verdict {
    let bound = attempt.bound();
    let source = if bound.ip.is_unspecified() { attempt.source() } else { bound.ip };
    if source.is_loopback() {
        let why = [Counter::ConnectBypassLoopbackSource, Counter::ConnectDenyLoopbackSource];
        return not_carried(rules, EINVAL, why);
    }
    if source.is_unspecified() {
        return if rules.has(FAIL_CLOSED) {
            deny(ENETUNREACH, Counter::ConnectDenyNoRoute)
        } else {
            not_carried(rules, ENETUNREACH, [Counter::ConnectBypassNoRoute, Counter::ConnectDenyNoRoute])
        };
    }
    let device = attempt.device_of(source);
    if device == 0 {
        return not_carried(rules, EPERM, [Counter::ConnectBypassForeignSource, Counter::ConnectDenyForeignSource]);
    }
    if bound.device != 0 && bound.device != device {
        return not_carried(rules, EPERM, [Counter::ConnectBypassBoundDevice, Counter::ConnectDenyBoundDevice]);
    }
    let detour = detour(rules.outbound_port, attempt.dst(), source, &bound);
    Verdict { action: Action::Capture(detour), counter: Counter::ConnectCaptured }
}

/// Chooses the address at which a captured connection reaches the outbound listener.
///
/// For IPv4 each destination gets a loopback address of its own. All captured connections would otherwise be between the
/// same two addresses and to the same port: some 28,000 ephemeral ports for the whole pod instead of for each
/// destination, a minute of TIME_WAIT on each, and `EADDRNOTAVAIL` for an application that uses a port of its choice
/// for two destinations. (On loopback the kernel reuses ports in TIME_WAIT after a second, `tcp_tw_reuse`.) IPv6 has but
/// one loopback address: there the ports are shared. `getsockname` has to hide the address.
///
/// A socket that is bound to a device cannot reach loopback: it is led to the pod's own address, which the kernel also
/// chooses as its source.
#[inline(always)]
const fn detour(port: PortBe, dst: Endpoint, source: Ip, bound: &Bound) -> Detour {
    if bound.device != 0 {
        return Detour { to: Endpoint::new(source, port), shown_local: Ip::UNSPECIFIED_V6 };
    }
    let to = if dst.ip.is_v4() { loopback_of(dst) } else { Ip::LOOPBACK_V6 };
    Detour { to: Endpoint::new(to, port), shown_local: source }
}

/// A loopback address in `127.1.0.1` to `127.254.255.254` that stands for an IPv4 endpoint.
#[inline(always)]
pub const fn loopback_of(dst: Endpoint) -> Ip {
    // Fibonacci hashing: the golden ratio of 2^32 spreads neighbouring addresses and ports.
    let hash = (u32::from_be(dst.ip.v4()) ^ (dst.port.host() as u32).rotate_left(16)).wrapping_mul(0x9e37_79b9);
    let second = 1 + (hash >> 24) % 254;
    let fourth = 1 + (hash & 0xff) % 254;
    Ip::from_v4(((127 << 24) | (second << 16) | (hash & 0xff00) | fourth).to_be())
}

#[cfg(test)]
mod tests;
