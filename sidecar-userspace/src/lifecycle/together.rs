//! What sidecars do from time to time, they do at the same instants: of a thousand on a node, each wakes several times a second, and
//! one interrupt and one warm cache then serve many. As the kernel does with its own timers (`round_jiffies`, kernel/time/timer.c).

use std::time::{Duration, Instant};

use super::beats::monotonic_now;

/// Time between two such instants, since the machine started: an eighth of a beat's default interval. What a node has to do at one of
/// them for a thousand sidecars, some hundred times twenty microseconds, is done long before the next.
const GRID: Duration = Duration::from_nanos(1_000_000_000 / 32);

/// The last such instant up to `at`; `at` itself where that is over.
pub fn together(at: Instant) -> Instant {
    let now = Instant::now();
    let left = at.saturating_duration_since(now).as_nanos();
    let past = (u128::from(monotonic_now()) + left) % GRID.as_nanos();
    at.checked_sub(Duration::from_nanos(past as u64)).filter(|earlier| *earlier > now).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_of_all_processes_fall_together_and_never_before_now() {
        let at = || Instant::now() + Duration::from_secs(1);
        let past_one = |at| {
            let (before, left) = (monotonic_now(), together(at).saturating_duration_since(Instant::now()));
            (before + left.as_nanos() as u64) % GRID.as_nanos() as u64
        };
        // Whoever loses its CPU between two looks at the clock measures that instead.
        let falls_on_one = || GRID.as_nanos() as u64 - past_one(at()) < 1_000_000;
        assert!((0..1000).any(|_| falls_on_one()));
        let at = at();
        assert!(together(at) <= at && together(at) + GRID > at);
        let soon = Instant::now() + Duration::from_micros(1);
        assert_eq!(together(soon), soon, "a common instant is over by then");
    }
}
