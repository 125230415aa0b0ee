//! `getsockopt` and `setsockopt` on the proxy's own sockets: attached to the sidecar's cgroup only, so that an application
//! neither pays for them nor can use them.

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use sidecar_common::{
    addr::{Endpoint, Ip},
    counter::Counter,
    flow::{Local, Note, note_kind},
    mesh::{Spoken, Transports},
    sockopt::{
        SO_CLIENT_LOCAL, SO_MESH_ANSWER, SO_MESH_OFFER, SO_MESH_PEER, SO_ORIGINAL_DST, SO_PRESENT_AS, SOL_IP, SOL_IPV6,
        SOL_SIDECAR, SockaddrIn, SockaddrIn6,
    },
};

use crate::{count::count, ctx::Sockopt, maps::MESH_ANSWER};

/// The kernel's own verdict stands.
const PROCEED: i32 = 1;
/// The call fails with `EPERM`.
const REFUSE: i32 = 0;
/// The kernel shows a program at most one page of the value.
const VISIBLE: i32 = 4096;

#[cgroup_sockopt(getsockopt)]
pub fn on_getsockopt(ctx: SockoptContext) -> i32 {
    let call = Sockopt(&ctx);
    match call.option() {
        (SOL_IP | SOL_IPV6, SO_ORIGINAL_DST) => original_dst(&call),
        (SOL_SIDECAR, SO_PRESENT_AS) => presented_as(&call),
        (SOL_SIDECAR, SO_CLIENT_LOCAL) => client_local(&call),
        (SOL_SIDECAR, SO_MESH_PEER) => mesh_peer(&call),
        _ if call.len() > VISIBLE => call.leave_long_value_alone(),
        _ => {}
    }
    PROCEED
}

#[cgroup_sockopt(setsockopt)]
pub fn on_setsockopt(ctx: SockoptContext) -> i32 {
    let call = Sockopt(&ctx);
    match call.option() {
        (SOL_SIDECAR, SO_PRESENT_AS) => present_as(&call),
        (SOL_SIDECAR, SO_MESH_OFFER) => mesh_offer(&call),
        (SOL_SIDECAR, SO_MESH_ANSWER) => mesh_answer(&call),
        _ => {
            if call.len() > VISIBLE {
                call.leave_long_value_alone();
            }
            PROCEED
        }
    }
}

/// Answers with a `sockaddr_in` at level `SOL_IP` and a `sockaddr_in6` at level `SOL_IPV6`, as netfilter does. A socket that
/// was not captured, or asks at the level of the other family, keeps the kernel's own answer.
#[inline(always)]
fn original_dst(call: &Sockopt<'_>) {
    let note = call.socket().and_then(|socket| socket.note()).filter(|note| note.kind == note_kind::ORIGINAL_DST);
    let answered = note.is_some_and(|note| match (call.option().0, note.peer.ip.is_v4()) {
        (SOL_IP, true) => call.answer(SockaddrIn::from(note.peer)),
        (SOL_IPV6, false) => call.answer(SockaddrIn6::from(note.peer)),
        _ => false,
    });
    count(call.0, if answered { Counter::OriginalDstAnswered } else { Counter::OriginalDstUnknown });
}

/// Answers with the application's own end.
#[inline(always)]
fn client_local(call: &Sockopt<'_>) {
    let note = call.socket().and_then(|socket| socket.note());
    if let Some(note) = note.filter(|note| note.kind == note_kind::ORIGINAL_DST) {
        call.answer(note.local);
    }
}

/// Answers with the client that the application sees; without an answer the kernel's `ENOPROTOOPT` stands.
#[inline(always)]
fn presented_as(call: &Sockopt<'_>) {
    let note = call.socket().and_then(|socket| socket.note());
    if let Some(note) = note.filter(|note| note.kind == note_kind::PRESENT_AS) {
        call.answer(note.peer);
    }
}

/// The proxy names the client that the application is to see.
#[inline(always)]
fn present_as(call: &Sockopt<'_>) -> i32 {
    let stored = match (call.socket(), call.value::<Endpoint>()) {
        (Some(socket), Some(client)) => {
            let local = Local { ip: Ip::UNSPECIFIED_V6, chosen: 0 };
            socket.remember(Note { kind: note_kind::PRESENT_AS, peer: client, local })
        }
        _ => false,
    };
    if !stored {
        count(call.0, Counter::PresentAsRefused);
        return REFUSE;
    }
    call.swallow();
    count(call.0, Counter::PresentAsStored);
    PROCEED
}

/// Answers with what the other end said in the handshake; if it said nothing the kernel's `ENOPROTOOPT` stands.
#[inline(always)]
fn mesh_peer(call: &Sockopt<'_>) {
    let spoken = call.socket().and_then(|socket| socket.spoken());
    if let Some(spoken) = spoken.filter(|spoken| !spoken.theirs.is_empty()) {
        call.answer(spoken.theirs);
    }
}

/// The proxy says what the SYN of a connection is to offer.
#[inline(always)]
fn mesh_offer(call: &Sockopt<'_>) -> i32 {
    let (Some(socket), Some(ours)) = (call.socket(), call.value::<Transports>()) else { return REFUSE };
    if !socket.speak(Spoken { ours, ..Spoken::default() }) {
        count(call.0, Counter::MeshNoMemory);
        return REFUSE;
    }
    call.swallow();
    PROCEED
}

/// The proxy says with what its inbound listener answers.
#[inline(always)]
fn mesh_answer(call: &Sockopt<'_>) -> i32 {
    let Some(ours) = call.value::<Transports>() else { return REFUSE };
    if MESH_ANSWER.set(0, u32::from(ours.bits()), 0).is_err() {
        return REFUSE;
    }
    call.swallow();
    PROCEED
}
