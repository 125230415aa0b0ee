//! Passes over the pod's TCP sockets, which bring connections onto the fast path and take them off it.
//!
//! User space reads the iterator: three times for a pass that finds something, once for one that does not. The proxy's end is
//! enrolled first, so that a sender never has a receiver that is not there.

use core::ffi::c_void;

use sidecar_common::{
    counter::Counter,
    fastpath::{Candidate, Leg, Switch, gains, step},
    flow::{FlowKey, note_kind},
};

use crate::{
    count::count,
    ctx::{Kernel, KernelSocket, SockIter},
    maps::{CANDIDATES, FAST_PATH, RECEIVERS, SENDERS},
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
    if !socket.is_established()? {
        return None;
    }
    let key = socket.key(switch.netns)?;
    let end = end_of(ctx, switch, &key)?;
    match (switch.step, end) {
        (step::FIND, End::Application) => find(ctx, switch, socket, key),
        (step::RECEIVERS, End::Proxy) => enrol_receiver(ctx, switch, socket, key),
        (step::SENDERS, End::Application) => enrol_sender(ctx, socket, key),
        _ => None,
    }
}

#[inline(always)]
fn end_of(ctx: &SockIter, switch: &Switch, key: &FlowKey) -> Option<End> {
    if switch.probe_port != 0 {
        let is = |port: u16| u32::from(port) == switch.probe_port;
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
    if ctx.is_enrolled() {
        if (blocks || zero_copy || switch.on == 0) && may_change(ctx, socket)? {
            // Nothing is ever redirected to this end: its queue is empty, and taking it out loses nothing.
            ctx.release((&raw const SENDERS).cast(), key);
            count(ctx, Counter::EnrolUndone);
        }
        return None;
    }
    if switch.on == 0 || socket.acknowledged()? < switch.worth || socket.is_shut_down()? {
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
    if switch.worth != 0 && !gains(socket.acknowledged()?, socket.segments()?) {
        count(ctx, Counter::EnrolSmall);
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
    if CANDIDATES.insert(key, Candidate::default(), 0).is_err() {
        count(ctx, Counter::EnrolFull);
    }
    if switch.answers != 0 && CANDIDATES.insert(key.reversed(), Candidate { receiver: socket.address() }, 0).is_err() {
        count(ctx, Counter::EnrolFull);
    }
    None
}

#[inline(always)]
fn enrol_receiver(ctx: &SockIter, switch: &Switch, socket: KernelSocket, key: FlowKey) -> Option<()> {
    let candidate = CANDIDATES.get_ptr_mut(key.reversed())?;
    // SAFETY: one aligned word, written by the step before.
    let other = unsafe { CANDIDATES.get(key) }.map_or(0, |other| other.receiver);
    // One whose way back found no room stays out: half of it on the fast path would look like all of it.
    if switch.answers != 0 && other == 0 {
        return None;
    }
    let leg = Leg { key: key.reversed(), receiver: other };
    if !ctx.is_enrolled() {
        if socket.is_layered()? || !may_change(ctx, socket)? {
            return None;
        }
        let answer = ctx.enrol((&raw const RECEIVERS).cast(), key, leg);
        if !count_answer(ctx, answer) {
            return None;
        }
    }
    // SAFETY: a value of the map, which stays allocated while the program runs (RCU).
    unsafe { (*candidate).receiver = socket.address() };
    None
}

#[inline(always)]
fn enrol_sender(ctx: &SockIter, socket: KernelSocket, key: FlowKey) -> Option<()> {
    // SAFETY: one aligned word, written by the step before.
    let receiver = unsafe { CANDIDATES.get(key) }?.receiver;
    if receiver == 0
        || !socket.is_nonblocking()?
        || socket.is_zero_copy()?
        || ctx.is_enrolled()
        || !may_change(ctx, socket)?
    {
        return None;
    }
    let leg = Leg { key: key.reversed(), receiver };
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
