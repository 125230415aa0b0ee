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
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

use super::words::Words;

/// Entries of the array: the oldest beat, the connections that are open, and whether the main thread waits for events.
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
            self.0.array.get(2).store(waits.into(), Ordering::Relaxed);
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

    /// Whether the worker's main thread waits for events.
    pub fn main_waits(&self) -> bool {
        self.0.get(2).load(Ordering::Relaxed) != 0
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
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn the_oldest_beat_is_what_the_supervisor_feels() {
        let array = File::from(memfd_create(c"beats", MFdFlags::empty()).unwrap());
        array.set_len(4096).unwrap();
        let pulse = Pulse::map(&array).unwrap();
        assert!(pulse.age() < Duration::from_secs(5));
        let heartbeat = Heartbeat::map(&array, 2).unwrap();
        let first = pulse.0.get(0).load(Ordering::Relaxed);
        heartbeat.beat(1);
        assert_eq!(pulse.0.get(0).load(Ordering::Relaxed), first, "the other thread has not beaten");
        heartbeat.beat(0);
        assert!(pulse.0.get(0).load(Ordering::Relaxed) > first);
    }

    #[test]
    fn a_thread_that_waits_for_events_is_as_alive_as_the_first_and_one_that_was_woken_must_beat_again() {
        let array = File::from(memfd_create(c"beats", MFdFlags::empty()).unwrap());
        array.set_len(4096).unwrap();
        let pulse = Pulse::map(&array).unwrap();
        let heartbeat = Heartbeat::map(&array, 2).unwrap();
        let seen = || pulse.0.get(0).load(Ordering::Relaxed);
        heartbeat.waits(1);
        let mut before = seen();
        for _ in 0..2 {
            heartbeat.beat(0);
            assert!(seen() > before, "nobody else is at work");
            before = seen();
        }
        heartbeat.woke(1);
        heartbeat.beat(0);
        assert_eq!(seen(), before, "it is at work since the beat before, and has not beaten");
        heartbeat.beat(1);
        assert!(seen() > before);
    }

    #[tokio::test]
    async fn threads_at_work_are_asked_each_time_and_those_that_sleep_where_everybody_is() {
        let array = File::from(memfd_create(c"beats", MFdFlags::empty()).unwrap());
        array.set_len(4096).unwrap();
        let heartbeat = Heartbeat::map(&array, 3).unwrap();
        heartbeat.waits(2);
        heartbeat.lead(false);
        heartbeat.asked(1).await;
        tokio::select! {
            biased;
            () = heartbeat.asked(2) => panic!("it is to be left to sleep"),
            () = std::future::ready(()) => {}
        }
        heartbeat.lead(true);
        heartbeat.asked(1).await;
        heartbeat.asked(2).await;
        let before = heartbeat.oldest();
        heartbeat.lead(false);
        assert_eq!(heartbeat.oldest(), before, "those that were asked owe an answer");
    }

    #[test]
    fn what_a_main_thread_did_is_over_with_its_end_and_untold_once_handed_over() {
        let array = File::from(memfd_create(c"beats", MFdFlags::empty()).unwrap());
        array.set_len(4096).unwrap();
        let pulse = Pulse::map(&array).unwrap();
        let heartbeat = Heartbeat::map(&array, 1).unwrap();
        assert!(!pulse.main_waits());
        heartbeat.main_waits(true);
        assert!(pulse.main_waits());
        pulse.of_the_dead();
        assert!(!pulse.main_waits());
        heartbeat.hand_over();
        heartbeat.main_waits(true);
        assert!(!pulse.main_waits());
    }

    #[test]
    fn whoever_has_handed_over_leaves_the_beat_to_another() {
        let array = File::from(memfd_create(c"beats", MFdFlags::empty()).unwrap());
        array.set_len(4096).unwrap();
        let pulse = Pulse::map(&array).unwrap();
        let before = Heartbeat::map(&array, 1).unwrap();
        before.hand_over();
        pulse.0.get(0).store(1, Ordering::Relaxed);
        before.beat(0);
        before.carries(7);
        assert_eq!((pulse.0.get(0).load(Ordering::Relaxed), pulse.0.get(1).load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn the_dead_have_not_beaten_in_the_future() {
        let array = File::from(memfd_create(c"beats", MFdFlags::empty()).unwrap());
        array.set_len(4096).unwrap();
        let pulse = Pulse::map(&array).unwrap();
        pulse.0.get(0).store(u64::MAX, Ordering::Relaxed);
        Heartbeat::map(&array, 1).unwrap().carries(7);
        let carried = Carried::map(&array).unwrap();
        assert_eq!(carried.connections(), 7);
        pulse.0.get(0).store(u64::MAX, Ordering::Relaxed);
        pulse.of_the_dead();
        assert_eq!(carried.connections(), 0, "the dead carry nothing");
        assert!(pulse.0.get(0).load(Ordering::Relaxed) <= monotonic_now());
        pulse.0.get(0).store(1, Ordering::Relaxed);
        pulse.of_the_dead();
        assert_eq!(pulse.0.get(0).load(Ordering::Relaxed), 1, "an old beat stays old");
    }
}
