//! Words of memory that are shared: with the kernel, or between supervisor and worker.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU64},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The smallest mapping that the kernel makes.
const PAGE: usize = 4096;

/// A mapping of a file of words: an eBPF array, or memory without a name.
pub(crate) struct Words {
    at: NonNull<libc::c_void>,
    bytes: NonZeroUsize,
    count: usize,
}

// SAFETY: the mapping belongs to the whole process and is used through atomics only.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Maps the first `count` words of `file` for reading and writing.
    pub(crate) fn map(file: impl AsFd, count: usize) -> io::Result<Self> {
        Self::with(file, count, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Maps them for reading.
    pub(crate) fn map_to_read(file: impl AsFd, count: usize) -> io::Result<Self> {
        Self::with(file, count, ProtFlags::PROT_READ)
    }

    fn with(file: impl AsFd, count: usize, protection: ProtFlags) -> io::Result<Self> {
        let bytes = (count * size_of::<u64>()).next_multiple_of(PAGE).max(PAGE);
        let bytes = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new shared mapping at an address that the kernel chooses; nothing else knows it.
        let at = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { at, bytes, count })
    }

    /// Puts the words of another file in the place of these, which were mapped for reading: whoever reads them reads the
    /// others from then on.
    pub(crate) fn replace(&self, file: impl AsFd) -> io::Result<()> {
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: the place is our own mapping, of this length, which the kernel replaces at once; all uses of it are atomic
        // loads of whole words, which may come before or after.
        let at = unsafe { mmap(Some(self.at.addr()), self.bytes, ProtFlags::PROT_READ, flags, file, 0) }?;
        debug_assert_eq!(at, self.at);
        Ok(())
    }

    /// One byte of memory that is used by bytes alone. What was mapped for reading must not be stored to: the process would die of it.
    pub(crate) fn byte(&self, index: usize) -> &AtomicU8 {
        assert!(index < self.count * size_of::<u64>(), "byte {index} of {} words", self.count);
        // SAFETY: the mapping lives as long as `self` and has at least `count` words; whoever shares it uses it by bytes.
        unsafe { AtomicU8::from_ptr(self.at.as_ptr().cast::<u8>().add(index)) }
    }

    /// One of them. A word that was mapped for reading must not be stored to: the process would die of it.
    pub(crate) fn get(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count, "word {index} of {}", self.count);
        // SAFETY: the mapping lives as long as `self`, is page-aligned and has at least `count` words; whoever shares it
        // writes it by whole words.
        unsafe { AtomicU64::from_ptr(self.at.as_ptr().cast::<u64>().add(index)) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: mapped in `with` with this length; no reference outlives `self`.
        let unmapped = unsafe { munmap(self.at, self.bytes.get()) };
        debug_assert!(unmapped.is_ok());
    }
}
