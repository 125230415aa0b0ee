//! The proxy's sign of life, written into memory that the kernel side reads: no system call per beat.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::{
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    time::{ClockId, clock_gettime},
};

use super::error::Error;

/// Workers beat; the kernel sees the oldest beat, so that one wedged worker is noticed although the others live.
#[derive(Clone)]
pub struct Heartbeat(Arc<Shared>);

struct Shared {
    workers: Box<[AtomicU64]>,
    page: Page,
}

impl Heartbeat {
    /// Maps the one entry of an mmap-able array.
    pub(super) fn map(array: impl AsFd, workers: usize) -> Result<Self, Error> {
        let page = Page::map(array).map_err(Error::Heartbeat)?;
        let now = monotonic_now();
        let workers = (0..workers).map(|_| AtomicU64::new(now)).collect();
        let heartbeat = Self(Arc::new(Shared { workers, page }));
        heartbeat.publish();
        Ok(heartbeat)
    }

    /// `worker` is alive now.
    pub fn beat(&self, worker: usize) {
        self.0.workers[worker].store(monotonic_now(), Ordering::Relaxed);
        self.publish();
    }

    /// Age of the oldest beat, in nanoseconds.
    pub fn age(&self) -> u64 {
        monotonic_now().saturating_sub(self.oldest())
    }

    fn oldest(&self) -> u64 {
        self.0.workers.iter().map(|beat| beat.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    fn publish(&self) {
        self.0.page.value().store(self.oldest(), Ordering::Relaxed);
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, the clock of `bpf_ktime_get_ns`.
fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("CLOCK_MONOTONIC always exists");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// The first page of the array, shared with the kernel.
struct Page(NonNull<libc::c_void>);

/// The smallest mapping that the kernel makes.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

// SAFETY: the mapping belongs to the whole process and is used through an atomic only.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    fn map(array: impl AsFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address that the kernel chooses; nothing else knows it.
        let at =
            unsafe { mmap(None, PAGE, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, array, 0) }?;
        Ok(Self(at))
    }

    fn value(&self) -> &AtomicU64 {
        // SAFETY: the mapping lives as long as `self`, is page-aligned, and its first eight bytes are the array's entry,
        // which the kernel reads as one word.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().cast()) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no reference outlives `self`.
        let unmapped = unsafe { munmap(self.0, PAGE.get()) };
        debug_assert!(unmapped.is_ok());
    }
}
