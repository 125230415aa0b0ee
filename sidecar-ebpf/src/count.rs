//! Every verdict leaves a trace.

use aya_ebpf::{EbpfContext, helpers::bpf_get_smp_processor_id};
use sidecar_common::counter::{Counter, slot};

use crate::maps::COUNTERS;

/// Adds one to `counter`, and says so where the object was built with the feature `log`.
#[inline(always)]
pub fn count(ctx: &impl EbpfContext, counter: Counter) {
    // SAFETY: asks for a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if let Some(value) = COUNTERS.get_ptr_mut(slot(cpu, counter)) {
        // SAFETY: the pointer is this CPU's own slot, which the verifier knows to be eight bytes; a program that
        // interrupts this one between load and store loses a count, never memory.
        unsafe { *value += 1 };
    }
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(ctx, "counter {}", counter as u32);
    #[cfg(not(feature = "log"))]
    let _ = ctx;
}
