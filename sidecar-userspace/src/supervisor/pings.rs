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
    /// What the worker's main thread had waited for a CPU at the last turn without an answer.
    waited: Option<Duration>,
}

/// Answers in a row that did not come, and then it hangs.
const MISSED: u32 = 3;

impl Pings {
    pub(super) fn new(hung_after: Duration) -> Self {
        let every = hung_after / MISSED;
        Self { every, at: Instant::now() + every, sent: 0, heard: 0, missed: 0, waited: None }
    }

    /// A new worker owes nothing.
    pub(super) fn forget(&mut self) {
        *self = Self { at: Instant::now() + self.every, heard: self.sent, missed: 0, waited: None, ..*self };
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
    /// `waited` says how long the worker's main thread has waited for a CPU in all: a silence in which it did nothing else
    /// for most of the time is the machine's.
    pub(super) fn turn(&mut self, now: Instant, waited: impl FnOnce() -> Duration) -> Option<Silence> {
        let late = now > self.at + self.every;
        self.at = now + self.every;
        if late {
            self.heard = self.sent;
        }
        if self.heard == self.sent {
            (self.missed, self.waited) = (0, None);
            return (!late).then_some(Silence::Tolerable);
        }
        let waited = waited();
        let before = self.waited.replace(waited).unwrap_or(waited);
        if waited.saturating_sub(before) <= self.every / 2 {
            self.missed += 1;
        }
        Some(if self.missed >= MISSED { Silence::TooLong } else { Silence::Tolerable })
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
        judged_while(answers, times, |_| 0)
    }

    /// The same with a worker that has waited so many milliseconds for a CPU at a time.
    fn judged_while(answers: bool, times: &[u64], waited: impl Fn(u64) -> u64) -> Vec<Option<Silence>> {
        let mut pings = Pings::new(Duration::from_millis(300));
        let start = pings.at - pings.every;
        let turn = |time: &u64| {
            let waited = || Duration::from_millis(waited(*time));
            let silence = pings.turn(start + Duration::from_millis(*time), waited);
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
    fn silences_in_which_the_worker_waited_for_a_cpu_do_not_count() {
        use Silence::{Tolerable, TooLong};
        let times = [100, 200, 300, 400, 500, 600, 700];
        assert_eq!(judged_while(false, &times, |time| 60 * time / 100), [Some(Tolerable); 7]);
        let once_there_was_a_cpu = judged_while(false, &times, |time| 60 * time.min(500) / 100);
        assert_eq!(once_there_was_a_cpu[..6], [Some(Tolerable); 6]);
        assert_eq!(once_there_was_a_cpu[6], Some(TooLong));
        assert_eq!(
            judged_while(false, &times, |time| 40 * time / 100)[3],
            Some(TooLong),
            "it had a CPU for most of the time"
        );
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
