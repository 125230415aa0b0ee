//! Of which connections both queues may be filled at once: what the kernel side counts where it happens, as memory
//! (`sidecar_common::fastpath::mixed`).

use std::{
    collections::HashSet,
    io,
    os::fd::AsFd,
    sync::atomic::Ordering::{Acquire, Relaxed},
};

use sidecar_common::fastpath::mixed::{Mixed, PLACES};

use super::words::Words;

/// Words of a place: its number, and whether nobody counts.
const WORDS: usize = size_of::<Mixed>() / size_of::<u64>();

/// The map `MIXED`.
pub struct Mixes(Words);

impl Mixes {
    /// Maps it for reading.
    ///
    /// # Errors
    /// It cannot be mapped, as where it was made without the fast path.
    pub fn map_to_read(map: impl AsFd) -> io::Result<Self> {
        Words::map_to_read(map, PLACES as usize * WORDS).map(Self)
    }

    /// Maps it for [`Self::forget`].
    ///
    /// # Errors
    /// As above.
    pub(crate) fn map(map: impl AsFd) -> io::Result<Self> {
        Words::map(map, PLACES as usize * WORDS).map(Self)
    }

    /// The number of a place; `None`: nobody counts.
    pub fn count(&self, place: u32) -> Option<u64> {
        let first = place as usize * WORDS;
        let (count, always) = (self.0.get(first).load(Acquire), self.0.get(first + 1).load(Acquire));
        (always == 0).then_some(count)
    }

    /// Whether nobody counts for one of the places.
    pub(crate) fn any_uncounted(&self) -> bool {
        (0..PLACES).any(|place| self.count(place).is_none())
    }

    /// From now on everybody counts for all places but these.
    pub(crate) fn forget(&self, but: &HashSet<u32>) {
        for place in (0..PLACES).filter(|place| !but.contains(place)) {
            self.0.get(place as usize * WORDS + 1).store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn what_nobody_counts_for_is_forgotten_but_where_it_is_needed() {
        let memory = File::from(memfd_create("mixed", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.set_len(u64::from(PLACES) * size_of::<Mixed>() as u64).unwrap();
        let (kernel, ours, reader) =
            (Words::map(&memory, 8192).unwrap(), Mixes::map(&memory).unwrap(), Mixes::map_to_read(&memory).unwrap());
        assert!(!ours.any_uncounted() && reader.count(PLACES - 1) == Some(0));
        for place in [0_usize, 5, 4095] {
            kernel.get(2 * place).store(7, Relaxed);
            kernel.get(2 * place + 1).store(1, Relaxed);
        }
        assert!(ours.any_uncounted());
        assert_eq!([0, 1, 5, 4095].map(|place| reader.count(place)), [None, Some(0), None, None]);
        ours.forget(&HashSet::from([5]));
        assert_eq!([0, 1, 5, 4095].map(|place| reader.count(place)), [Some(7), Some(0), None, Some(7)]);
    }
}
