//! Every verdict leaves a trace.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

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

/// Adds to a count of the kernel's and returns what it was; `u64::MAX` takes one away.
#[inline(always)]
pub fn add(count: *mut u64, change: u64) -> u64 {
    // SAFETY: a map value of eight aligned bytes that stays allocated while the program runs (RCU), and that other CPUs
    // change with the same instruction.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(count, change) }
}
