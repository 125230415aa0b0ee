//! When a worker that has ended is started again.

use std::time::{Duration, Instant};

/// Pauses before a start: the first is short enough for whoever waits in a queue, and each is twice the one before.
const FIRST: Duration = Duration::from_millis(10);
/// The longest after a worker that could not serve, and after one that did: the next can, too, and somebody waits.
const LONGEST: Duration = Duration::from_secs(10);
const LONGEST_SERVED: Duration = Duration::from_secs(2);
/// After a worker that served for so many times the pause before it, the next pause is the first again: the pauses take a
/// tenth of the time at most.
const WORTH: u32 = 10;
/// A worker that has lived for this long did not fail for the same reason as the one before.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// So many short lives in a row are a loop.
const LOOP: u32 = 5;
/// A loop is told again so often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The short lives so far.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// In a row.
    short: u32,
    /// The last pause.
    pause: Option<Duration>,
    /// When the loop was told.
    told: Option<Instant>,
}

/// What to do about the end of a worker.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// When to start the next.
    pub(super) at: Instant,
    /// The pause until then.
    pub(super) pause: Duration,
    /// What to tell.
    pub(super) tell: Tell,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// This end.
    End,
    /// That this is a loop, of so many short lives by now.
    Loop(u32),
    /// Nothing: the loop was told not long ago.
    Nothing,
}

impl Restarts {
    /// A worker has ended at `now` after it lived for `life`; whether it served.
    pub(super) fn after(&mut self, life: Duration, served: bool, now: Instant) -> Plan {
        if life >= LONG_LIFE {
            *self = Self::default();
        }
        let longest = if served { LONGEST_SERVED } else { LONGEST };
        let longer = self.pause.filter(|last| !served || life < *last * WORTH);
        let pause = longer.map_or(FIRST, |last| (last * 2).min(longest));
        self.pause = Some(pause);
        self.short += 1;
        let tell = match self.told {
            _ if self.short < LOOP => Tell::End,
            Some(told) if now.saturating_duration_since(told) < TELL_EVERY => Tell::Nothing,
            _ => {
                self.told = Some(now);
                Tell::Loop(self.short)
            }
        };
        Plan { at: now + pause, pause, tell }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(lives: &[(u64, bool)]) -> Vec<u128> {
        let (mut restarts, now) = (Restarts::default(), Instant::now());
        let plan = |(life, served): &(u64, bool)| restarts.after(Duration::from_millis(*life), *served, now);
        lives
            .iter()
            .map(plan)
            .inspect(|plan| assert_eq!(plan.at, now + plan.pause))
            .map(|p| p.pause.as_millis())
            .collect()
    }

    #[test]
    fn short_lives_are_followed_by_longer_and_longer_pauses() {
        let fails = pauses(&[(1000, false); 14]);
        assert_eq!(fails[..6], [10, 20, 40, 80, 160, 320]);
        assert_eq!(fails[10..], [10_000; 4]);
        assert_eq!(pauses(&[(50, true); 12])[6..], [640, 1280, 2000, 2000, 2000, 2000]);
    }

    #[test]
    fn a_life_that_was_worth_its_pause_makes_the_next_one_short() {
        assert_eq!(pauses(&[(50_000, true); 20]), [10; 20]);
        assert_eq!(pauses(&[(0, true), (0, true), (0, true), (399, true), (800, true)]), [10, 20, 40, 80, 10]);
        assert_eq!(pauses(&[(0, false), (0, false), (59_000, false), (60_000, false)]), [10, 20, 40, 10]);
    }

    #[test]
    fn a_loop_is_told_once_a_minute_with_its_count() {
        let (mut restarts, start) = (Restarts::default(), Instant::now());
        let mut told = |second: u64, life: u64| {
            restarts.after(Duration::from_secs(life), true, start + Duration::from_secs(second)).tell
        };
        assert_eq!([0, 1, 2, 3].map(|second| told(second, 1)), [Tell::End, Tell::End, Tell::End, Tell::End]);
        assert_eq!(told(4, 1), Tell::Loop(5));
        assert_eq!([5, 6, 63].map(|second| told(second, 1)), [Tell::Nothing, Tell::Nothing, Tell::Nothing]);
        assert_eq!(told(64, 1), Tell::Loop(9));
        assert_eq!(told(65, 1), Tell::Nothing);
        assert_eq!(told(126, 61), Tell::End, "a long life ends the loop");
    }
}
