//! Inbound handshakes that may be under way at once.
//!
//! Whoever begins a handshake and does not go on would keep everybody else waiting until it times out. So one that has had
//! time enough gives its turn to those that wait.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::telemetry::Limit;

/// How long a handshake keeps its turn while others wait: two round trips around the world, one of them lost.
const ENOUGH: Duration = Duration::from_secs(1);

/// Turns, and who waits for one.
pub struct Turns {
    free: Semaphore,
    waiting: AtomicUsize,
    /// Told once for each that waits; the longest under way hears it first.
    wanted: Notify,
}

impl Turns {
    /// So many at once.
    pub fn new(most: usize) -> Self {
        Self { free: Semaphore::new(most), waiting: AtomicUsize::new(0), wanted: Notify::new() }
    }

    /// Does `handshake` when it has its turn; `None`: it had time enough, and others wait.
    pub async fn take<T>(&self, handshake: impl Future<Output = T>) -> Option<T> {
        let _turn = self.turn().await?;
        tokio::select! {
            biased;
            done = handshake => Some(done),
            () = self.given_up() => {
                Limit::Handshakes.refused();
                None
            }
        }
    }

    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(turn) = self.free.try_acquire() {
            return Some(turn);
        }
        Limit::Handshakes.waited();
        let _waits = Waits::begin(&self.waiting);
        self.wanted.notify_one();
        self.free.acquire().await.ok()
    }

    async fn given_up(&self) {
        tokio::time::sleep(ENOUGH).await;
        while self.waiting.load(Ordering::SeqCst) == 0 {
            self.wanted.notified().await;
        }
    }
}

/// One more that waits, until it is dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test);
    }

    #[test]
    fn a_handshake_that_goes_on_for_long_gives_way_to_others() {
        run(async {
            let turns = Turns::new(1);
            let (slow, other) = tokio::join!(turns.take(pending::<()>()), turns.take(ready(())));
            assert_eq!((slow, other), (None, Some(())));
            assert_eq!(turns.take(ready(())).await, Some(()));
        });
    }

    #[test]
    fn one_that_waits_costs_no_more_than_one_its_turn_and_nobody_costs_none() {
        run(async {
            let turns = Turns::new(2);
            let slow = async { tokio::join!(turns.take(pending::<()>()), turns.take(pending::<()>())) };
            let other = async {
                tokio::time::sleep(ENOUGH * 3 / 2).await;
                turns.take(ready(())).await
            };
            tokio::select! {
                both = slow => panic!("both gave way: {both:?}"),
                other = other => assert_eq!(other, Some(())),
            }
        });
    }
}
