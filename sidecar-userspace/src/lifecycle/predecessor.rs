//! What a process that was killed has not let go of yet.
//!
//! The kernel closes descriptors and takes programs away while a process ends and in work queues after that: for some time they
//! look like those of one that lives, also when nobody sees the process any more (`css_task_iter_advance` in
//! kernel/cgroup/cgroup.c leaves it out from its first step in `do_exit` on).

use std::{thread, time::Duration};

/// Some milliseconds are enough on an idle machine; two and a half seconds in all.
const PAUSES: [u64; 7] = [20, 40, 80, 160, 320, 640, 1280];

/// Tries again for 2.5 s as long as the answer is that somebody has it.
pub(crate) fn given_time<T, E>(attempt: impl Fn() -> Result<T, E>, taken: impl Fn(&E) -> bool) -> Result<T, E> {
    for pause in PAUSES.map(Duration::from_millis) {
        match attempt() {
            Err(error) if taken(&error) => thread::sleep(pause),
            answer => return answer,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_taken_is_tried_again_and_another_failure_is_final() {
        for (answers, tried, outcome) in [
            (&[Ok(1)][..], 1, Ok(1)),
            (&[Err("taken"), Err("taken"), Ok(2)], 3, Ok(2)),
            (&[Err("taken"), Err("forbidden"), Ok(3)], 2, Err("forbidden")),
        ] {
            let next = Cell::new(0);
            let attempt = || answers[next.replace(next.get() + 1)];
            assert_eq!(given_time(attempt, |error| *error == "taken"), outcome);
            assert_eq!(next.get(), tried);
        }
    }
}
