//! Every message of an enrolled application: past TCP into the proxy's queue, or by TCP.
//!
//! And every message of the proxy, for the probe alone: what an application would notice of both directions.

use core::ffi::c_void;

use aya_ebpf::{macros::sk_msg, programs::SkMsgContext};
use sidecar_common::{
    counter::Counter,
    fastpath::{Leg, Message as Facts, Refusal, decide},
};

use crate::{
    count::count,
    ctx::{Kernel, Message, current_write_is_plain},
    maps::{FAST_PATH, RECEIVERS, SENDERS},
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
    let counter = match judge(&message) {
        Ok(leg) if message.redirect(leg, receivers) => Counter::FastRedirected,
        Ok(_) => Counter::FastUnknown,
        Err(refusal) => refusal.counter(),
    };
    count(ctx, counter);
    // Never the redirection's own answer: the application would get EACCES where the receiver has gone.
    PASS
}

#[inline(always)]
fn judge(message: &Message<'_>) -> Result<&'static Leg, Refusal> {
    let switched_on = FAST_PATH.get(0).is_some_and(|switch| switch.on != 0);
    if !switched_on {
        return Err(Refusal::Off);
    }
    let leg = message.leg().ok_or(Refusal::Unknown)?;
    decide(&facts(message, leg).ok_or(Refusal::Unknown)?).map(|()| leg)
}

#[inline(always)]
fn facts(message: &Message<'_>, leg: &Leg) -> Option<Facts> {
    let kernel = Kernel::get()?;
    let sender = message.sender(kernel)?;
    let receiver = kernel.socket(leg.receiver);
    Some(Facts {
        switched_on: true,
        layered: sender.is_layered()?,
        // The proxy may have finished its own direction long ago: that of the message is what counts.
        closing: sender.has_finished_sending()? || !receiver.receives()?,
        nonblocking: sender.is_nonblocking()?,
        plain: current_write_is_plain(kernel)?,
        written: sender.written()?,
        consumed: receiver.consumed()?,
        waiting: receiver.waiting()?,
        bytes: message.bytes(),
    })
}
