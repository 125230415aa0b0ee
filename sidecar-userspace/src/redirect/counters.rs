//! What the kernel side counted.

use aya::maps::{MapData, PerCpuArray};
use sidecar_common::counter::Counter;

use super::{capture::map_error, error::Error};

/// The per-CPU counters, summed on reading.
pub struct Counters(PerCpuArray<MapData, u64>);

impl Counters {
    pub(super) fn new(map: aya::maps::Map) -> Result<Self, Error> {
        Ok(Self(map.try_into().map_err(map_error("COUNTERS", "opened"))?))
    }

    /// The value of one counter since the programs were loaded.
    pub fn get(&self, counter: Counter) -> Result<u64, Error> {
        let per_cpu = self.0.get(&(counter as u32), 0).map_err(map_error("COUNTERS", "read"))?;
        Ok(per_cpu.iter().sum())
    }

    /// Every counter with its value.
    pub fn all(&self) -> Result<Vec<(Counter, u64)>, Error> {
        Counter::ALL.iter().map(|counter| Ok((*counter, self.get(*counter)?))).collect()
    }
}
