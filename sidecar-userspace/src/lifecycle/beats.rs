//! The proxy's sign of life, written into memory that the kernel side and the supervisor read: no system call per beat.
//!
//! The worker's threads beat themselves, so that the kernel judges what carries connections and not who watches it. The
//! supervisor only reads: it would have to be woken several times a second otherwise, in every pod.
//!
//! A thread that waits for events does not hang by itself, and is left to sleep for a while: only the first is woken by a timer, and
//! asks the others, those that are at work each time.

use std::{
    io,
    os::fd::AsFd,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

use super::words::Words;

/// Entries of the array: the oldest beat, the connections that are open, and the process whose main thread waits for events.
const WORDS: usize = 3;

/// In the place of a thread's beat: it waits for events, and counts as alive until it is asked.
const WAITS: u64 = u64::MAX;

/// Threads beat; the kernel sees the oldest beat, so that one wedged thread is noticed although the others live.
#[derive(Clone)]
pub struct Heartbeat(Arc<Shared>);

struct Shared {
    threads: Box<[Thread]>,
    array: Words,
    /// Another process beats there now.
    handed_over: AtomicBool,
}

struct Thread {
    /// When it last beat, or that it [`WAITS`].
    beat: AtomicU64,
    asked: Notify,
}

impl Heartbeat {
    /// Beats into the first entry of an mmap-able array, on behalf of so many threads.
    ///
    /// # Errors
    /// The array cannot be mapped.
    pub fn map(array: impl AsFd, threads: usize) -> io::Result<Self> {
        let now = monotonic_now();
        let threads = (0..threads).map(|_| Thread { beat: AtomicU64::new(now), asked: Notify::new() }).collect();
        let heartbeat =
            Self(Arc::new(Shared { threads, array: Words::map(array, WORDS)?, handed_over: AtomicBool::new(false) }));
        heartbeat.publish();
        Ok(heartbeat)
    }

    /// `thread` is alive now.
    pub fn beat(&self, thread: usize) {
        self.0.threads[thread].beat.store(monotonic_now(), Ordering::Relaxed);
        self.publish();
    }

    /// The first thread beats, and has the others beat that are at work; `everybody`: also those that wait for events.
    pub fn lead(&self, everybody: bool) {
        self.beat(0);
        for other in self.0.threads.iter().skip(1) {
            // One that sleeps owes an answer from now on.
            let sleeps = if everybody {
                other.beat.compare_exchange(WAITS, monotonic_now(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
            } else {
                other.beat.load(Ordering::Relaxed) == WAITS
            };
            if everybody || !sleeps {
                other.asked.notify_one();
            }
        }
    }

    /// Until this thread is asked to beat.
    pub async fn asked(&self, thread: usize) {
        self.0.threads[thread].asked.notified().await;
    }

    /// This thread, which is not the first, waits for events from now on.
    pub fn waits(&self, thread: usize) {
        self.0.threads[thread].beat.store(WAITS, Ordering::Relaxed);
    }

    /// It has been woken. That is as good as a beat, and as exact as it has to be without a look at the clock.
    pub fn woke(&self, thread: usize) {
        let last = self.0.threads[0].beat.load(Ordering::Relaxed);
        self.0.threads[thread].beat.store(last, Ordering::Relaxed);
    }

    /// Whether the main thread waits for events, which carries no connections.
    pub fn main_waits(&self, waits: bool) {
        if !self.0.handed_over.load(Ordering::Relaxed) {
            let waiting = if waits { process::id() } else { 0 };
            self.0.array.get(2).store(waiting.into(), Ordering::Relaxed);
        }
    }

    /// From now on another process beats, and a thread of this one that hangs is no sign of that.
    pub fn hand_over(&self) {
        self.0.handed_over.store(true, Ordering::Relaxed);
    }

    /// So many connections are open.
    pub fn carries(&self, connections: usize) {
        if self.0.handed_over.load(Ordering::Relaxed) {
            return;
        }
        self.0.array.get(1).store(connections as u64, Ordering::Relaxed);
    }

    /// Age of the oldest beat, in nanoseconds.
    pub fn age(&self) -> u64 {
        monotonic_now().saturating_sub(self.oldest())
    }

    fn oldest(&self) -> u64 {
        self.0.threads.iter().map(|thread| thread.beat.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    fn publish(&self) {
        if self.0.handed_over.load(Ordering::Relaxed) {
            return;
        }
        self.0.array.get(0).store(self.oldest(), Ordering::Relaxed);
    }
}

/// The heartbeat as the supervisor feels it.
pub struct Pulse(Words);

impl Pulse {
    /// Feels the first entry of an mmap-able array, which counts as a beat now: whoever is about to beat gets the time for it.
    ///
    /// # Errors
    /// The array cannot be mapped.
    pub fn map(array: impl AsFd) -> io::Result<Self> {
        let pulse = Self(Words::map(array, WORDS)?);
        pulse.0.get(0).store(monotonic_now(), Ordering::Relaxed);
        Ok(pulse)
    }

    /// Time since the oldest thread's last beat.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(monotonic_now().saturating_sub(self.0.get(0).load(Ordering::Relaxed)))
    }

    /// Whether the main thread of this worker waits for events: others may beat at the same time, for a moment.
    pub fn main_waits(&self, worker: u32) -> bool {
        self.0.get(2).load(Ordering::Relaxed) == u64::from(worker)
    }

    /// Whoever beat is dead, and cannot have beaten in the future: what it wrote must not keep it alive for the kernel.
    pub fn of_the_dead(&self) {
        self.0.get(0).fetch_min(monotonic_now(), Ordering::Relaxed);
        self.0.get(1).store(0, Ordering::Relaxed);
        self.0.get(2).store(0, Ordering::Relaxed);
    }
}

/// What the worker says that it carries.
pub struct Carried(Words);

impl Carried {
    /// Reads the second entry of the array.
    ///
    /// # Errors
    /// The array cannot be mapped.
    pub fn map(array: impl AsFd) -> io::Result<Self> {
        Ok(Self(Words::map_to_read(array, WORDS)?))
    }

    /// Connections that are open.
    pub fn connections(&self) -> u64 {
        self.0.get(1).load(Ordering::Relaxed)
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, the clock of `bpf_ktime_get_ns`.
pub fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC always exists");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

#[cfg(test)]
mod tests;
