//! The proxy's sign of life, written into memory that the kernel side and the supervisor read: no system call per beat.
//!
//! The worker's threads beat themselves, so that the kernel judges what carries connections and not who watches it. The
//! supervisor only reads: it would have to be woken several times a second otherwise, in every pod.

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

use super::words::Words;

/// Entries of the array: the oldest beat, and the connections that are open.
const WORDS: usize = 2;

/// Threads beat; the kernel sees the oldest beat, so that one wedged thread is noticed although the others live.
#[derive(Clone)]
pub struct Heartbeat(Arc<Shared>);

struct Shared {
    threads: Box<[AtomicU64]>,
    array: Words,
    /// Another process beats there now.
    handed_over: AtomicBool,
}

impl Heartbeat {
    /// Beats into the first entry of an mmap-able array, on behalf of so many threads.
    ///
    /// # Errors
    /// The array cannot be mapped.
    pub fn map(array: impl AsFd, threads: usize) -> io::Result<Self> {
        let now = monotonic_now();
        let threads = (0..threads).map(|_| AtomicU64::new(now)).collect();
        let heartbeat =
            Self(Arc::new(Shared { threads, array: Words::map(array, WORDS)?, handed_over: AtomicBool::new(false) }));
        heartbeat.publish();
        Ok(heartbeat)
    }

    /// `thread` is alive now.
    pub fn beat(&self, thread: usize) {
        self.0.threads[thread].store(monotonic_now(), Ordering::Relaxed);
        self.publish();
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
        self.0.threads.iter().map(|beat| beat.load(Ordering::Relaxed)).min().unwrap_or(0)
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

    /// Whoever beat is dead, and cannot have beaten in the future: what it wrote must not keep it alive for the kernel.
    pub fn of_the_dead(&self) {
        self.0.get(0).fetch_min(monotonic_now(), Ordering::Relaxed);
        self.0.get(1).store(0, Ordering::Relaxed);
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
