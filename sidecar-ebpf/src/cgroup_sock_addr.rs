//! `connect`, `getpeername` and `getsockname` of the pod's tasks.

use core::marker::PhantomData;

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use sidecar_common::{
    addr::{Endpoint, Ip},
    capture::{Action, Attempt, Bound, Transport, verdict},
    counter::Counter,
    flow::{Local, Note, note_kind, shows_peer},
    rules::{CaptureRules, Liveness, STRICT_OUTBOUND, listener_slot},
};

use crate::{
    count::count,
    ctx::{self, Family, SockAddr, Socket, V4, V6},
    maps::{EXCLUDED_CIDRS, SOURCES, device_of, longest_match, port_roles},
};

/// The call goes on.
const PROCEED: i32 = 1;
/// The call fails.
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn on_connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn on_connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn on_getpeername4(ctx: SockAddrContext) -> i32 {
    peer_name::<V4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn on_getpeername6(ctx: SockAddrContext) -> i32 {
    peer_name::<V6>(&ctx)
}

#[cgroup_sock_addr(getsockname4)]
pub fn on_getsockname4(ctx: SockAddrContext) -> i32 {
    local_name::<V4>(&ctx)
}

#[cgroup_sock_addr(getsockname6)]
pub fn on_getsockname6(ctx: SockAddrContext) -> i32 {
    local_name::<V6>(&ctx)
}

#[inline(always)]
fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let call = SockAddr(ctx);
    let (Some(rules), Some(socket)) = (ctx::rules(), call.socket()) else { return PROCEED };
    let connect = Connect { call, rules, socket, family: PhantomData::<F> };
    let verdict = verdict(rules, &connect);
    match verdict.action {
        Action::Bypass => {
            forget_earlier_connect(socket);
            if let Some(multipath) = connect.multipath() {
                forget_earlier_connect(multipath);
            }
        }
        Action::Deny(errno) => {
            count(ctx, verdict.counter);
            ctx::set_errno(errno);
            return REFUSE;
        }
        Action::Capture(detour) => {
            let chosen = u32::from(!connect.bound().ip.is_unspecified());
            let local = Local { ip: detour.shown_local, chosen };
            let note = Note { kind: note_kind::CAPTURED, peer: connect.dst(), local };
            let remembered = socket.remember(note) && connect.multipath().is_none_or(|it| it.remember(note));
            if !remembered {
                count(ctx, Counter::ConnectDenyNoMemory);
                ctx::set_errno(ENOMEM);
                return REFUSE;
            }
            connect.call.set_address::<F>(detour.to);
        }
    }
    count(ctx, verdict.counter);
    PROCEED
}

/// A socket whose earlier, captured connect failed or was undone (`AF_UNSPEC`) must not go on showing that destination.
#[inline(always)]
fn forget_earlier_connect(socket: Socket) {
    if socket.note().is_some_and(|note| shows_peer(note.kind)) {
        socket.forget();
    }
}

/// `ENOMEM`.
const ENOMEM: i32 = 12;

/// A connect whose facts are looked up when they are asked for.
struct Connect<'a, F> {
    call: SockAddr<'a>,
    rules: &'a CaptureRules,
    socket: Socket,
    family: PhantomData<F>,
}

impl<F: Family> Connect<'_, F> {
    /// The MPTCP socket of a subflow, where those are captured.
    #[inline(always)]
    fn multipath(&self) -> Option<Socket> {
        if self.rules.has(STRICT_OUTBOUND) { self.call.multipath() } else { None }
    }
}

impl<F: Family> Attempt for Connect<'_, F> {
    #[inline(always)]
    fn transport(&self) -> Transport {
        self.call.transport()
    }

    #[inline(always)]
    fn other_netns(&self) -> bool {
        ctx::netns_cookie(self.call.0) != self.rules.netns
    }

    #[inline(always)]
    fn by_proxy(&self) -> bool {
        ctx::current_cgroup_is(self.rules.proxy_cgroup)
    }

    #[inline(always)]
    fn dst(&self) -> Endpoint {
        self.call.address::<F>()
    }

    #[inline(always)]
    fn dst_port_roles(&self) -> u32 {
        port_roles(self.dst().port)
    }

    #[inline(always)]
    fn device_of(&self, ip: Ip) -> u32 {
        device_of(ip)
    }

    #[inline(always)]
    fn cidr_excluded(&self) -> bool {
        longest_match(&EXCLUDED_CIDRS, self.dst().ip).is_some()
    }

    #[inline(always)]
    fn bound(&self) -> Bound {
        self.call.bound::<F>(self.socket)
    }

    #[inline(always)]
    fn source(&self) -> Ip {
        longest_match(&SOURCES, self.dst().ip).map_or(Ip::UNSPECIFIED_V6, |source| source.ip)
    }

    #[inline(always)]
    fn proxy(&self) -> Liveness {
        ctx::proxy_liveness(self.rules, listener_slot::OUTBOUND)
    }
}

/// Serves `accept` and `accept4` too, which ask for the peer's name in the same way.
#[inline(always)]
fn peer_name<F: Family>(ctx: &SockAddrContext) -> i32 {
    let call = SockAddr(ctx);
    if let Some(note) = call.socket().and_then(Socket::note)
        && shows_peer(note.kind)
    {
        call.set_address::<F>(note.peer);
        count(ctx, Counter::PeerRestored);
    }
    PROCEED
}

/// Only a loopback address is ours to hide: a socket that was disconnected since (`AF_UNSPEC`) has another.
#[inline(always)]
fn local_name<F: Family>(ctx: &SockAddrContext) -> i32 {
    let call = SockAddr(ctx);
    if let Some(note) = call.socket().and_then(Socket::note)
        && note.kind == note_kind::CAPTURED
        && !note.local.ip.is_unspecified()
        && call.address::<F>().ip.is_loopback()
    {
        call.set_ip::<F>(note.local.ip);
        count(ctx, Counter::LocalRestored);
    }
    PROCEED
}
