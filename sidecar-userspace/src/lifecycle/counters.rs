//! What the kernel side counted, read where it is written.

use std::{
    fs, io,
    os::fd::AsFd,
    sync::{Arc, atomic::Ordering},
};

use sidecar_common::counter::{Counter, PER_CPU, slot};

use super::words::Words;

/// The counters of all CPUs, summed on reading. Clones read the same ones.
#[derive(Clone)]
pub struct Counters {
    words: Arc<Words>,
    cpus: u32,
}

impl Counters {
    /// Maps the array `COUNTERS` of a machine of so many CPUs.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn map(array: impl AsFd, cpus: u32) -> io::Result<Self> {
        Ok(Self { words: Arc::new(Words::map_to_read(array, (cpus * PER_CPU) as usize)?), cpus })
    }

    /// The value of one counter since the programs were loaded.
    pub fn get(&self, counter: Counter) -> u64 {
        (0..self.cpus).map(|cpu| self.words.get(slot(cpu, counter) as usize).load(Ordering::Relaxed)).sum()
    }

    /// Every counter with its value.
    pub fn all(&self) -> impl Iterator<Item = (Counter, u64)> {
        Counter::ALL.iter().map(|counter| (*counter, self.get(*counter)))
    }
}

/// Numbers of CPUs that this machine may ever have, from zero: one more than the last of
/// `/sys/devices/system/cpu/possible` (`0`, `0-3`, `0,2-5`).
///
/// # Errors
/// The file cannot be read or understood.
pub fn possible_cpus() -> io::Result<u32> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    last_cpu(&text).map(|last| last + 1).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))
}

fn last_cpu(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_possible_cpu_is_found() {
        for (list, last) in [("0\n", Some(0)), ("0-3\n", Some(3)), ("0,2-15", Some(15)), ("0-1,7", Some(7)), ("", None)]
        {
            assert_eq!(last_cpu(list), last, "{list}");
        }
    }
}
