//! Whether the worker's main thread lives.

use std::time::{Duration, Instant};

/// Asks the worker's main thread for a sign of life.
#[derive(Debug)]
pub(super) struct Pings {
    pub(super) every: Duration,
    pub(super) at: Instant,
    pub(super) sent: u64,
    pub(super) heard: u64,
    missed: u32,
    /// CPU that the worker's main thread had had at the first turn without an answer.
    before: Duration,
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

impl Pings {
    pub(super) fn new(hung_after: Duration) -> Self {
        let every = hung_after / MISSED;
        Self { every, at: Instant::now() + every, sent: 0, heard: 0, missed: 0, before: Duration::ZERO }
    }

    /// A new worker owes nothing.
    pub(super) fn forget(&mut self) {
        *self = Self { at: Instant::now() + self.every, heard: self.sent, missed: 0, ..*self };
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
    pub(super) fn turn(&mut self, now: Instant, look: impl FnOnce() -> Seen) -> Option<Silence> {
        let late = now > self.at + self.every;
        self.at = now + self.every;
        if late {
            self.heard = self.sent;
        }
        if self.heard == self.sent {
            self.missed = 0;
            return (!late).then_some(Silence::Tolerable);
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

    /// Turns at these times in milliseconds; the worker answers to those of its pings.
    fn judged(answers: bool, times: &[u64]) -> Vec<Option<Silence>> {
        judged_while(answers, times, |_| Seen::default())
    }

    /// The same with a worker whose main thread looks so at a time.
    fn judged_while(answers: bool, times: &[u64], look: impl Fn(u64) -> Seen) -> Vec<Option<Silence>> {
        let mut pings = Pings::new(Duration::from_millis(300));
        let start = pings.at - pings.every;
        let turn = |time: &u64| {
            let silence = pings.turn(start + Duration::from_millis(*time), || look(*time));
            pings.sent += u64::from(pings.heard == pings.sent);
            if answers {
                pings.answered(pings.sent);
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
