//! Whether the worker's main thread lives.

use std::time::{Duration, Instant};

use crate::lifecycle::together::together;

/// Asks the worker's main thread for a sign of life.
#[derive(Debug)]
pub(super) struct Pings {
    pub(super) every: Duration,
    pub(super) at: Instant,
    pub(super) sent: u64,
    pub(super) heard: u64,
    missed: u32,
    /// Turns in a row in which nothing was asked.
    unasked: u32,
    /// Whether to ask after this turn.
    due: bool,
    /// CPU that the worker's main thread had had at the first turn without an answer.
    before: Duration,
}

/// What the worker shows by itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    /// Its main thread waits for events.
    pub(super) waits: bool,
    /// Time since the oldest thread's last beat.
    pub(super) age: Duration,
}

/// The worker's main thread as the kernel sees it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// It has a CPU or waits for one.
    pub(super) runnable: bool,
    /// CPU that it has had.
    pub(super) had: Duration,
}

/// Answers in a row that did not come, and then it hangs.
const MISSED: u32 = 3;
/// And so many where it has not had a CPU for most of the time.
const MISSED_WITHOUT_CPU: u32 = 10 * MISSED;
/// A main thread that waits for events is not woken to be asked, but for every so many turns: it might wait for the wrong ones.
const MOST_UNASKED: u32 = 9;

impl Pings {
    pub(super) fn new(hung_after: Duration) -> Self {
        let every = hung_after / MISSED;
        let at = Instant::now() + every;
        Self { every, at, sent: 0, heard: 0, missed: 0, unasked: 0, due: false, before: Duration::ZERO }
    }

    /// A new worker owes nothing.
    pub(super) fn forget(&mut self) {
        *self = Self { at: Instant::now() + self.every, heard: self.sent, missed: 0, unasked: 0, due: false, ..*self };
    }

    /// The number of the ping that is due after a turn.
    pub(super) fn ask(&mut self) -> Option<u64> {
        let asks = std::mem::take(&mut self.due);
        self.sent += u64::from(asks);
        asks.then_some(self.sent)
    }

    /// An answer. One to another ping, of before an upgrade that was taken back, says nothing about the one that waits.
    pub(super) fn answered(&mut self, number: u64) {
        if number == self.sent {
            self.heard = number;
        }
    }

    /// It is time to ask again, and to judge; `None`: this process was late itself, stopped or short of CPU as its worker
    /// was, and cannot judge.
    ///
    /// A silence in which the worker's main thread was ready to run and had no CPU for most of the time is the machine's, up to ten
    /// times as long: one that runs in circles on a busy machine looks the same.
    ///
    /// A worker whose main thread waits for events while another one beats is not asked: it lives. If that was so at the turn before
    /// and nothing has beaten since, its silence began then.
    pub(super) fn turn(&mut self, now: Instant, shown: Shown, look: impl FnOnce() -> Seen) -> Option<Silence> {
        let late = now > self.at + self.every;
        self.at = together(now + self.every);
        if late {
            self.heard = self.sent;
        }
        if self.heard == self.sent {
            self.missed = 0;
            self.due = !(shown.waits && shown.age < self.every / 2 && self.unasked < MOST_UNASKED);
            let was_unasked = self.unasked > 0;
            self.unasked = if self.due { 0 } else { self.unasked + 1 };
            if late || !was_unasked || !shown.waits || shown.age < self.every {
                return (!late).then_some(Silence::Tolerable);
            }
        }
        let Seen { runnable, had } = look();
        self.missed += 1;
        if self.missed == 1 {
            self.before = had;
        }
        let starved = runnable && had.saturating_sub(self.before) < self.every * (self.missed - 1) / 2;
        let most = if starved { MISSED_WITHOUT_CPU } else { MISSED };
        Some(if self.missed >= most { Silence::TooLong } else { Silence::Tolerable })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    Tolerable,
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_WORK: Shown = Shown { waits: false, age: Duration::ZERO };
    const ASLEEP: Shown = Shown { waits: true, age: Duration::ZERO };

    /// Turns at these times in milliseconds; the worker answers to those of its pings.
    fn judged(answers: bool, times: &[u64]) -> Vec<Option<Silence>> {
        judged_while(answers, times, |_| Seen::default())
    }

    /// The same with a worker whose main thread looks so at a time.
    fn judged_while(answers: bool, times: &[u64], look: impl Fn(u64) -> Seen) -> Vec<Option<Silence>> {
        let mut pings = Pings::new(Duration::from_millis(300));
        let start = pings.at - pings.every;
        let turn = |time: &u64| {
            let silence = pings.turn(start + Duration::from_millis(*time), AT_WORK, || look(*time));
            if let Some(number) = pings.ask().filter(|_| answers) {
                pings.answered(number);
            }
            silence
        };
        times.iter().map(turn).collect()
    }

    #[test]
    fn three_silences_in_a_row_are_too_long_and_answers_never_are() {
        use Silence::{Tolerable, TooLong};
        let times = [100, 200, 300, 400, 500];
        assert_eq!(judged(true, &times), [Some(Tolerable); 5]);
        let silent = [Tolerable, Tolerable, Tolerable, TooLong, TooLong].map(Some);
        assert_eq!(judged(false, &times), silent);
    }

    #[test]
    fn a_worker_without_a_cpu_has_ten_times_as_long() {
        let times = (1..=40).map(|turn| turn * 100).collect::<Vec<_>>();
        let first_too_long = |look: &dyn Fn(u64) -> Seen| {
            judged_while(false, &times, look).iter().position(|silence| *silence == Some(Silence::TooLong)).unwrap()
        };
        let share =
            |percent: u64| move |time: u64| Seen { runnable: true, had: Duration::from_millis(time * percent / 100) };
        assert_eq!(first_too_long(&share(0)), 30);
        assert_eq!(first_too_long(&share(40)), 30);
        assert_eq!(first_too_long(&share(60)), 3, "it runs, and does not answer");
        assert_eq!(first_too_long(&|_| Seen::default()), 3, "it waits for something else");
    }

    /// The numbers of the turns, a third of 300 ms apart, at which something is asked, and the first at which the silence is too long.
    fn asked(shown: impl Fn(u32) -> Shown, answers: bool) -> (Vec<u32>, Option<u32>) {
        let mut pings = Pings::new(Duration::from_millis(300));
        let start = pings.at - pings.every;
        let mut asked = Vec::new();
        for turn in 1..=25 {
            let silence = pings.turn(start + turn * pings.every, shown(turn), Seen::default);
            if let Some(number) = pings.ask() {
                asked.push(turn);
                if answers {
                    pings.answered(number);
                }
            }
            if silence == Some(Silence::TooLong) {
                return (asked, Some(turn));
            }
        }
        (asked, None)
    }

    #[test]
    fn a_main_thread_that_waits_for_events_is_seldom_asked_and_one_at_work_at_each_turn() {
        assert_eq!(asked(|_| AT_WORK, true), ((1..=25).collect(), None));
        assert_eq!(asked(|_| ASLEEP, true), (vec![10, 20], None));
        assert_eq!(asked(|_| ASLEEP, false), (vec![10], Some(13)), "it may wait for the wrong events");
    }

    #[test]
    fn a_worker_that_is_stopped_in_its_sleep_is_found_out_as_soon_as_one_that_was_asked() {
        // Stopped right after the third turn and right before the fourth.
        for (last_beat, too_long) in [(300, 6), (390, 7)] {
            let shown = |turn: u32| Shown {
                waits: true,
                age: Duration::from_millis(u64::from(turn * 100).saturating_sub(last_beat)),
            };
            assert_eq!(asked(shown, false).1, Some(too_long), "300 ms after a beat at {last_beat}");
        }
        assert_eq!(asked(|turn| if turn < 4 { ASLEEP } else { AT_WORK }, false).1, Some(7), "it runs in circles");
    }

    #[test]
    fn an_answer_to_a_ping_of_before_is_none() {
        let mut pings = Pings::new(Duration::from_millis(300));
        pings.answered(57);
        assert_eq!(pings.heard, pings.sent, "nothing is asked, and the next ping may be");
        pings.sent = 1;
        pings.answered(57);
        assert_ne!(pings.heard, pings.sent);
        pings.answered(1);
        assert_eq!(pings.heard, pings.sent);
    }

    #[test]
    fn a_supervisor_that_was_stopped_itself_does_not_judge() {
        let late = judged(false, &[100, 200, 300, 9_000, 9_100, 9_200, 9_300, 9_400]);
        assert_eq!(late[3], None);
        assert_eq!(late[4..6], [Some(Silence::Tolerable); 2], "it begins to count anew");
        assert_eq!(late[6..], [Some(Silence::TooLong); 2]);
    }
}
