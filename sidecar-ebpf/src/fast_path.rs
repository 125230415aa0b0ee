//! Every message of an enrolled application: past TCP into the proxy's queue, or by TCP.
//!
//! And every message of the proxy, for the probe alone: what an application would notice of both directions.

use core::ffi::c_void;

use aya_ebpf::{macros::sk_msg, programs::SkMsgContext};
use sidecar_common::{
    counter::Counter,
    fastpath::{
        Leg, Message as Facts, Refusal, decide,
        mixed::{Mixing, mixing},
    },
};

use crate::{
    count::count,
    ctx::{Kernel, Message, current_write_is_plain},
    maps::{FAST_PATH, RECEIVERS, SENDERS, note_mixing},
};

/// `SK_PASS`: by TCP, unless the message was redirected.
const PASS: u32 = 1;

#[sk_msg]
pub fn on_message(ctx: SkMsgContext) -> u32 {
    carry(&ctx, (&raw const RECEIVERS).cast())
}

/// What the proxy sends, judged alike, into the application's queue. Loaded for `sidecar check` alone, which shows what the
/// application sees then.
#[sk_msg]
pub fn on_answer(ctx: SkMsgContext) -> u32 {
    carry(&ctx, (&raw const SENDERS).cast())
}

/// `receivers`: the `SOCKHASH` of the other ends.
#[inline(always)]
fn carry(ctx: &SkMsgContext, receivers: *const c_void) -> u32 {
    let message = Message(ctx);
    // A socket leaves the map before this is forgotten, and who lets it go has its reader look into both queues if it must.
    let Some(leg) = message.leg().filter(|leg| leg.other != 0) else {
        count(ctx, Counter::FastUnknown);
        return PASS;
    };
    let judged = judge(&message, leg);
    // What is switched off says nothing of what it would be worth.
    if judged != Err(Refusal::Off) {
        leg.sent.all.bytes += u64::from(message.bytes());
        leg.sent.all.messages += 1;
    }
    let refusal = match judged {
        Ok(()) if message.redirect(leg, receivers) => {
            leg.sent.past += 1;
            count(ctx, Counter::FastRedirected);
            return PASS;
        }
        Ok(()) => Refusal::Unknown,
        Err(refusal) => refusal,
    };
    count(ctx, refusal.counter());
    note_mixing(&leg.key, told(&message, leg, refusal).unwrap_or(Mixing::Always));
    // Never the redirection's own answer: the application would get EACCES where the receiver has gone.
    PASS
}

#[inline(always)]
fn judge(message: &Message<'_>, leg: &Leg) -> Result<(), Refusal> {
    let switched_on = FAST_PATH.get(0).is_some_and(|switch| switch.on != 0);
    if !switched_on {
        return Err(Refusal::Off);
    }
    decide(&facts(message, leg).ok_or(Refusal::Unknown)?)
}

/// What the reader must know of a message that goes by TCP.
#[inline(always)]
fn told(message: &Message<'_>, leg: &Leg, refusal: Refusal) -> Option<Mixing> {
    /// The map, and this call.
    const ALONE: u32 = 2;
    let kernel = Kernel::get()?;
    let waiting = kernel.socket(leg.other).waiting()?;
    Some(mixing(refusal, waiting, message.sender(kernel)?.users()? <= ALONE))
}

#[inline(always)]
fn facts(message: &Message<'_>, leg: &Leg) -> Option<Facts> {
    let kernel = Kernel::get()?;
    let sender = message.sender(kernel)?;
    let receiver = kernel.socket(leg.other);
    // `connect(AF_UNSPEC)` leaves a socket in the map and its port to others, to whom the receiver or its address may belong by now.
    if !sender.is_end_of(&leg.key.reversed())? || !receiver.is_end_of(&leg.key)? {
        return None;
    }
    Some(Facts {
        switched_on: true,
        layered: sender.is_layered()?,
        // The proxy may have finished its own direction long ago: that of the message is what counts.
        closing: !sender.may_send()? || !receiver.receives()?,
        nonblocking: sender.is_nonblocking()?,
        plain: current_write_is_plain(kernel)?,
        written: sender.written()?,
        consumed: receiver.consumed()?,
        waiting: receiver.waiting()?,
        bytes: message.bytes(),
    })
}
