//! Two sidecars learn of each other in the handshake: the TCP option that says which transports its sender speaks.
//!
//! Attached to the sidecar's own cgroup, before the inbound listener listens: applications' sockets never come here. A
//! kernel that refuses this program captures all the same.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_HDR_OPT_LEN_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_SOCK_OPS_WRITE_HDR_OPT_CB,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use sidecar_common::{
    counter::Counter,
    mesh::{MeshOption, Spoken, Transports, answered, offered},
};

use crate::{
    count::count,
    ctx::{SockOps, inbound_port},
    maps::MESH_ANSWER,
};

#[sock_ops]
pub fn on_mesh(ctx: SockOpsContext) -> u32 {
    let event = SockOps(&ctx);
    match ctx.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB if event.local().port == inbound_port() => event.write_options(),
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&event),
        BPF_SOCK_OPS_HDR_OPT_LEN_CB => make_room(&event),
        BPF_SOCK_OPS_WRITE_HDR_OPT_CB => write(&event),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&event),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&event),
        _ => {}
    }
    1
}

/// The SYN has not left yet.
#[inline(always)]
fn connecting(event: &SockOps<'_>) {
    let Some(spoken) = event.socket().and_then(|socket| socket.spoken()) else { return };
    spoken.theirs = Transports::NONE;
    if !spoken.ours.is_empty() {
        event.write_options();
    }
}

/// What the segment that is about to leave says. Asked twice for each, to make room and to write.
#[inline(always)]
fn says(event: &SockOps<'_>) -> Transports {
    match event.socket() {
        Some(socket) => {
            let ours = socket.spoken().map_or(Transports::NONE, |spoken| spoken.ours);
            offered(ours, event.tcp_flags(), event.retransmits())
        }
        // The request of a client that shakes hands with the inbound listener.
        None => {
            let ours = MESH_ANSWER.get(0).map_or(Transports::NONE, |bits| Transports::from_bits(*bits as u8));
            if ours.is_empty() { ours } else { answered(ours, event.said_by_syn()) }
        }
    }
}

#[inline(always)]
fn make_room(event: &SockOps<'_>) {
    if !says(event).is_empty() && !event.reserve(MeshOption::LENGTH) {
        count(event.0, Counter::MeshNoRoom);
    }
}

/// A program that made room before this one also writes before it: where none was left for us, we take from nobody.
#[inline(always)]
fn write(event: &SockOps<'_>) {
    let transports = says(event);
    if !transports.is_empty() && event.store(MeshOption::saying(transports)) {
        let offers = event.socket().is_some();
        count(event.0, if offers { Counter::MeshOffered } else { Counter::MeshAnswered });
    }
}

/// The SYN-ACK has arrived.
#[inline(always)]
fn connected(event: &SockOps<'_>) {
    if !event.writes_options() {
        return;
    }
    event.write_options_no_more();
    let Some(spoken) = event.socket().and_then(|socket| socket.spoken()) else { return };
    spoken.theirs = event.said_by_segment();
    if !spoken.theirs.is_empty() {
        count(event.0, Counter::MeshSeen);
    }
}

/// A client has finished the handshake, and nobody can have accepted it yet. The wish to write options is inherited from the
/// inbound listener, and from no other.
#[inline(always)]
fn accepted(event: &SockOps<'_>) {
    if !event.writes_options() {
        return;
    }
    event.write_options_no_more();
    let theirs = event.said_by_syn();
    if theirs.is_empty() {
        return;
    }
    let Some(socket) = event.socket() else { return };
    let stored = socket.speak(Spoken { theirs, ..Spoken::default() });
    count(event.0, if stored { Counter::MeshAsked } else { Counter::MeshNoMemory });
}
