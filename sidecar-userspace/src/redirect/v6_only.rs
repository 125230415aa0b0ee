//! Which ports' listeners at `::` are for IPv6 alone: `V6_ONLY`, as memory that is shared with the programs.

use std::{collections::HashSet, sync::atomic::Ordering};

use aya::maps::Map;
use sidecar_common::addr::{Ip, PortBe};

use super::{capture::mapping, error::Error, listeners::Table};
use crate::lifecycle::words::Words;

/// There is a byte for each.
const PORTS: usize = 1 << 16;

pub(super) struct V6Only(Words);

impl V6Only {
    pub(super) fn open(map: Map) -> Result<Self, Error> {
        let Map::Array(array) = map else { unreachable!("declared as an array") };
        Words::map(array.fd(), PORTS / size_of::<u64>()).map(Self).map_err(mapping("V6_ONLY"))
    }

    /// What is noted now.
    pub(super) fn noted(&self) -> HashSet<PortBe> {
        let noted = |port: &u16| self.0.byte((*port).into()).load(Ordering::Relaxed) != 0;
        (0..=u16::MAX).filter(noted).map(PortBe::from_host).collect()
    }

    /// Notes what the kernel's table of sockets says. `known`: what was noted before the table was read. What the kernel side has
    /// learnt since then is younger than the table. A port on which nobody listens stays: the next socket there may be noted at any
    /// moment.
    pub(super) fn compare(&self, known: &HashSet<PortBe>, table: &Table) {
        for (at, how) in table.iter().filter(|(at, _)| at.ip == Ip::UNSPECIFIED_V6) {
            if how.v6_only != known.contains(&at.port) {
                self.0.byte(at.port.host().into()).store(how.v6_only.into(), Ordering::Relaxed);
            }
        }
    }
}
