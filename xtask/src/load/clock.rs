//! One clock for all processes of a run.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Microseconds of CLOCK_MONOTONIC: comparable between processes, unlike an `Instant` that cannot leave its own.
pub(crate) fn now_us() -> u64 {
    // The call cannot fail for a clock that every Linux has.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
