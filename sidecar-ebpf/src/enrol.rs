//! Passes over the pod's TCP sockets, which bring connections onto the fast path and take them off it.
//!
//! User space reads the iterator: three times for a pass that finds something, once for one that does not. The proxy's end is
//! enrolled first, so that a sender never has a receiver that is not there.

use core::ffi::c_void;

use sidecar_common::{
    counter::Counter,
    fastpath::{Candidate, Carried, Leg, Sent, Switch, mixed::Mixing, step},
    flow::{FlowKey, note_kind},
};

use crate::{
    count::count,
    ctx::{Kernel, KernelSocket, SockIter},
    maps::{CANDIDATES, FAST_PATH, RECEIVERS, SENDERS, note_mixing},
};

/// Which end of a leg a socket is.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Application,
    Proxy,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn on_socket(context: *mut c_void) -> i32 {
    let _ = look(&SockIter::new(context));
    0
}

#[inline(always)]
fn look(ctx: &SockIter) -> Option<()> {
    let switch = FAST_PATH.get(0)?;
    let kernel = Kernel::get()?;
    let socket = ctx.socket(kernel)?;
    // What has closed one of its directions may have to leave all the same.
    let fits = if switch.step == step::FIND { !socket.listens()? } else { socket.is_established()? };
    if !fits {
        return None;
    }
    let key = socket.key(switch.netns)?;
    let end = end_of(ctx, switch, &key)?;
    match (switch.step, end) {
        (step::FIND, End::Application) => find(ctx, switch, socket, key),
        (step::RECEIVERS, End::Proxy) => enrol_receiver(ctx, socket, key),
        (step::SENDERS, End::Application) => enrol_sender(ctx, socket, key),
        _ => None,
    }
}

#[inline(always)]
fn end_of(ctx: &SockIter, switch: &Switch, key: &FlowKey) -> Option<End> {
    if switch.probe_port != 0 {
        let is = |port: u16| u64::from(port) == switch.probe_port;
        return match (is(key.remote.port.host()), is(key.local.port.host())) {
            (true, false) => Some(End::Application),
            (false, true) => Some(End::Proxy),
            _ => None,
        };
    }
    match ctx.note_kind() {
        note_kind::CAPTURED | note_kind::PRESENTED => Some(End::Application),
        note_kind::ORIGINAL_DST | note_kind::PRESENT_AS => Some(End::Proxy),
        _ => None,
    }
}

#[inline(always)]
fn find(ctx: &SockIter, switch: &Switch, socket: KernelSocket, key: FlowKey) -> Option<()> {
    let blocks = !socket.is_nonblocking()?;
    let zero_copy = socket.is_zero_copy()?;
    let mut leg = ctx.leg();
    if let Some(leg) = leg.as_deref_mut().filter(|leg| leg.other != 0) {
        // `connect(AF_UNSPEC)` and another connection on the same socket.
        let same = leg.key == key.reversed() && Kernel::get()?.socket(leg.other).is_end_of(&leg.key) == Some(true);
        return keep(ctx, socket, leg, switch.on != 0 && !blocks && !zero_copy && same);
    }
    let all = carried_by_tcp(socket)?;
    // Another connection on the same socket, between other ends or the same: TCP counts the bytes of each from 0. One that has
    // carried as much again since the last look is taken for the one before, which costs speed alone.
    let is_another = |leg: &Leg| leg.key != key.reversed() || all.bytes < leg.before.bytes;
    // It begins anew at the next look, and so does what was let go if the fast path was off meanwhile.
    if switch.on == 0 || leg.as_deref().is_some_and(is_another) {
        ctx.forget();
        return None;
    }
    let (before, departures) = leg.as_ref().map_or((Carried::default(), 0), |leg| (leg.before, leg.departures));
    let carried = all.since(before);
    let worth = carried.is_worth(switch.worth, departures);
    if !worth || socket.is_shut_down()? || !socket.is_established()? {
        return None;
    }
    if blocks {
        count(ctx, Counter::EnrolBlocking);
        return None;
    }
    if zero_copy {
        count(ctx, Counter::EnrolZeroCopy);
        return None;
    }
    // The probe's have not carried anything yet.
    if switch.worth != 0 && !carried.gains() {
        count(ctx, Counter::EnrolSmall);
        if let Some(leg) = leg {
            // It has known better days: the next bytes are judged by themselves.
            leg.before = all;
        }
        return None;
    }
    if socket.is_layered()? {
        count(ctx, Counter::EnrolLayered);
        return None;
    }
    if socket.is_used_otherwise()? {
        count(ctx, Counter::EnrolBusy);
        return None;
    }
    let candidate = Candidate { sender: socket.address(), receiver: 0 };
    if CANDIDATES.insert(key, candidate, 0).is_err() {
        count(ctx, Counter::EnrolFull);
    }
    None
}

/// What it has sent, and TCP knows of.
#[inline(always)]
fn carried_by_tcp(socket: KernelSocket) -> Option<Carried> {
    Some(Carried { bytes: socket.acknowledged()?, messages: socket.segments()?.into() })
}

/// Lets an enrolled end go if it may not stay, or if it loses by it. It is in the map as what it was when it was enrolled.
#[inline(always)]
fn keep(ctx: &SockIter, socket: KernelSocket, leg: &mut Leg, may_stay: bool) -> Option<()> {
    let key = leg.key.reversed();
    let sent = leg.sent;
    if may_stay && !sent.tells() || !may_change(ctx, socket)? {
        return None;
    }
    leg.sent = Sent::default();
    if may_stay && !sent.loses() {
        leg.departures = leg.departures.saturating_sub(1);
        return None;
    }
    let nothing_moves = || {
        // The map alone: no thread is in a call that may have something redirected.
        let unused = socket.users()? <= 1;
        Some(unused && Kernel::get()?.socket(leg.other).waiting()?.messages == 0)
    };
    if nothing_moves() != Some(true) {
        note_mixing(&key, Mixing::Always);
    }
    // Nothing is ever redirected to this end: its queue is empty, and taking it out loses nothing. What it sends from now on goes by
    // TCP; while a thread is in a call on it, it is as it was, and that is not judged either.
    ctx.release((&raw const SENDERS).cast(), key);
    count(ctx, Counter::EnrolUndone);
    if may_stay {
        leg.other = 0;
        leg.departures += 1;
        leg.before = carried_by_tcp(socket)?;
    } else {
        ctx.forget();
    }
    None
}

#[inline(always)]
fn enrol_receiver(ctx: &SockIter, socket: KernelSocket, key: FlowKey) -> Option<()> {
    let candidate = CANDIDATES.get_ptr_mut(key.reversed())?;
    // SAFETY: a value of the map, which stays allocated while the program runs (RCU), written by the step before.
    let other = unsafe { (*candidate).sender };
    // One message after the other would go by TCP, for nothing.
    if Kernel::get()?.socket(other).written()? != socket.consumed()? {
        count(ctx, Counter::EnrolUnread);
        return None;
    }
    if !ctx.is_enrolled() {
        if socket.is_layered()? || !may_change(ctx, socket)? {
            return None;
        }
        let leg = Leg::new(key.reversed(), other);
        let answer = ctx.enrol((&raw const RECEIVERS).cast(), key, leg);
        if !count_answer(ctx, answer) {
            return None;
        }
    }
    // SAFETY: as above.
    unsafe { (*candidate).receiver = socket.address() };
    None
}

#[inline(always)]
fn enrol_sender(ctx: &SockIter, socket: KernelSocket, key: FlowKey) -> Option<()> {
    // SAFETY: one aligned word, written by the step before.
    let receiver = unsafe { CANDIDATES.get(key) }?.receiver;
    let known = ctx.leg();
    let enrolled = known.as_ref().is_some_and(|leg| leg.other != 0);
    if receiver == 0 || !socket.is_nonblocking()? || socket.is_zero_copy()? || enrolled || !may_change(ctx, socket)? {
        return None;
    }
    let mut leg = Leg::new(key.reversed(), receiver);
    // It was let go before.
    if let Some(known) = known.filter(|known| known.key == leg.key) {
        (leg.before, leg.departures) = (known.before, known.departures);
    }
    let answer = ctx.enrol((&raw const SENDERS).cast(), key, leg);
    if count_answer(ctx, answer) {
        count(ctx, Counter::EnrolDone);
    }
    None
}

/// The sockmap takes the socket's spin lock. Before Linux 6.5 (and its stable updates) the iterator may hold just that:
/// `lock_sock_fast` in net/ipv4/tcp_ipv4.c, `bpf_iter_tcp_seq_show`.
#[inline(always)]
fn may_change(ctx: &SockIter, socket: KernelSocket) -> Option<bool> {
    let owned = socket.is_owned()?;
    if !owned {
        count(ctx, Counter::EnrolLock);
    }
    Some(owned)
}

/// Counts what the kernel refused; true if it did not.
#[inline(always)]
fn count_answer(ctx: &SockIter, answer: i32) -> bool {
    const EBUSY: i32 = -16;
    const E2BIG: i32 = -7;
    const ENOMEM: i32 = -12;
    match answer {
        0 => return true,
        EBUSY => count(ctx, Counter::EnrolBusy),
        E2BIG | ENOMEM => count(ctx, Counter::EnrolFull),
        _ => count(ctx, Counter::EnrolRefused),
    }
    false
}
