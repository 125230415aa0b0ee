//! TCP callbacks of the pod's sockets: notes travel from a connecting socket to the other end, and the set of ports
//! that the application listens on is kept.
//!
//! Established callbacks run in softirq under whatever task is current: nothing here asks who that is.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_SOCK_OPS_TCP_LISTEN_CB,
    },
    macros::sock_ops,
    maps::HashMap,
    programs::SockOpsContext,
};
use sidecar_common::{
    addr::{Endpoint, Ip},
    counter::Counter,
    flow::{FlowKey, Note, Passed, note_kind, passed_on},
};

use crate::{
    count::{add, count},
    ctx::{self, SockOps, Socket},
    maps::{APP_LISTENERS, FLOWS, LISTENERS_LOST, LISTENING, PRESENTED_FLOWS, listened_at, note_v6_only},
};

/// States of `enum` in include/net/tcp_states.h.
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

#[sock_ops]
pub fn on_tcp_event(ctx: SockOpsContext) -> u32 {
    let event = SockOps(&ctx);
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => publish(&event),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => claim(&event),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&event),
        BPF_SOCK_OPS_STATE_CB => match event.transition() {
            (TCP_LISTEN, _) => listening_no_more(&event),
            (_, TCP_CLOSE) => withdraw(&event),
            _ => {}
        },
        _ => {}
    }
    1
}

/// A socket that carries a note to pass on connects: its port is chosen and the SYN has not left yet.
#[inline(always)]
fn publish(event: &SockOps<'_>) {
    let Some(socket) = event.socket() else { return };
    let Some(passed) = socket.note().and_then(passed_on) else { return };
    let key = flow_key(event);
    let stored = if passed.kind == note_kind::PRESENTED {
        PRESENTED_FLOWS.insert(key, passed, 0)
    } else {
        FLOWS.insert(key, passed, 0)
    };
    if stored.is_err() {
        socket.note_is_lost();
        count(event.0, Counter::NoteFlowsFull);
        return;
    }
    event.follow_state();
    count(event.0, Counter::NotePublished);
}

/// The other end is established and nobody can have accepted it yet.
#[inline(always)]
fn claim(event: &SockOps<'_>) {
    // A listener's wish for callbacks is inherited by what it accepts.
    event.follow_state_no_more();
    let key = flow_key(event).reversed();
    let Some(passed) = take(&FLOWS, key).or_else(|| take(&PRESENTED_FLOWS, key)) else { return };
    let Some(socket) = event.socket() else { return };
    let note = Note { kind: passed.kind, peer: passed.peer, local: passed.local };
    let remembered = socket.remember(note);
    count(event.0, if remembered { Counter::NoteClaimed } else { Counter::NoteNoMemory });
}

#[inline(always)]
fn take(flows: &HashMap<FlowKey, Passed>, key: FlowKey) -> Option<Passed> {
    // SAFETY: the entry is written once before the SYN leaves and deleted only here or when the connecting socket
    // closes; a copy is taken at once.
    let passed = unsafe { flows.get(key) }.copied()?;
    let _ = flows.remove(key);
    Some(passed)
}

/// A connecting socket closes: nobody claimed its note if it is still there.
#[inline(always)]
fn withdraw(event: &SockOps<'_>) {
    let key = flow_key(event);
    let _ = FLOWS.remove(key);
    let _ = PRESENTED_FLOWS.remove(key);
}

#[inline(always)]
fn flow_key(event: &SockOps<'_>) -> FlowKey {
    FlowKey { netns: ctx::netns_cookie(event.0), local: event.local(), remote: event.remote() }
}

/// The application listens.
#[inline(always)]
fn listening(event: &SockOps<'_>) {
    if !in_pod_netns(event) {
        return;
    }
    event.follow_state();
    let at = event.local();
    // Before it counts as listened on, so that no client is judged by what an earlier socket was.
    if at.ip == Ip::UNSPECIFIED_V6 {
        note_families(event, at);
    }
    // Sockets that share an address (`SO_REUSEPORT`) may get here on two CPUs at once: one inserts, the other adds.
    let mut counted = APP_LISTENERS.insert(at, 1, BPF_NOEXIST).is_ok();
    if !counted {
        counted = match APP_LISTENERS.get_ptr_mut(at) {
            Some(sockets) => {
                add(sockets, 1);
                true
            }
            // User space deleted it just now, or there was none and there is no room.
            None => APP_LISTENERS.insert(at, 1, 0).is_ok(),
        };
    }
    if !counted {
        let _ = LISTENERS_LOST.set(0, 1, 0);
    }
    count(event.0, if counted { Counter::ListenerAdded } else { Counter::ListenersFull });
    if at.ip == Ip::UNSPECIFIED_V6 || event.socket().is_some_and(|socket| socket.is_bound_to_device()) {
        wake_user_space();
    }
}

/// What listens at `::` serves IPv6 alone, or both families. Of sockets that share the port one that serves both is enough.
#[inline(always)]
fn note_families(event: &SockOps<'_>, at: Endpoint) {
    // Where the kernel does not show it, it serves both until user space knows better.
    if !event.socket().and_then(Socket::is_v6_only).unwrap_or(false) {
        note_v6_only(at.port, false);
    } else if !listened_at(at) {
        note_v6_only(at.port, true);
    }
}

/// The application stopped listening. An entry that has come to zero means the same as none; user space deletes it when
/// room gets short, for here another CPU may be about to add to it.
#[inline(always)]
fn listening_no_more(event: &SockOps<'_>) {
    if !in_pod_netns(event) {
        return;
    }
    let Some(sockets) = APP_LISTENERS.get_ptr_mut(event.local()) else { return };
    add(sockets, u64::MAX);
    count(event.0, Counter::ListenerRemoved);
}

/// A full buffer means that user space is about to look as it is.
#[inline(always)]
fn wake_user_space() {
    let _ = LISTENING.output::<u8>(1, 0);
}

/// `BPF_NOEXIST` (linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

#[inline(always)]
fn in_pod_netns(event: &SockOps<'_>) -> bool {
    ctx::rules().is_some_and(|rules| rules.netns == ctx::netns_cookie(event.0))
}
