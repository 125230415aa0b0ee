//! The maps of the object: which there are, how large they are, and who has them.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use sidecar_common::{counter::PER_CPU, fastpath::mixed};

use super::{bpf, capture::map_error, error::Error, store::Store};
use crate::{
    config::{self, Acceleration},
    lifecycle::counters::possible_cpus,
};

/// Every map but what the loader makes of constants and what the programs say: what a store keeps.
pub(super) const KEPT: [&str; 25] = [
    "RULES",
    "HEARTBEAT",
    "PORTS",
    "EXCLUDED_CIDRS",
    "OWN_ADDRESSES",
    "SOURCES",
    "PROXY_LISTENERS",
    "APP_LISTENERS",
    "SEEDED_LISTENERS",
    "LISTENERS_LOST",
    "V6_ONLY",
    "LISTENING",
    "PRESENTED_FLOWS",
    "FLOWS",
    "NOTES",
    "MESH",
    "MESH_ANSWER",
    "FAST_PATH",
    "KERNEL_FIELDS",
    "CANDIDATES",
    "SENDERS",
    "RECEIVERS",
    "LEGS",
    "MIXED",
    "COUNTERS",
];

/// Open maps by name, until whoever uses one takes it.
pub(super) struct Maps(HashMap<String, Map>);

impl Maps {
    /// Those of an object.
    pub(super) fn of(ebpf: &mut Ebpf) -> Self {
        let names: Vec<String> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
        Self(names.into_iter().filter_map(|name| ebpf.take_map(&name).map(|map| (name, map))).collect())
    }

    /// Those of a store that this process's part of the capture uses.
    pub(super) fn open(store: &Store, names: &[&'static str]) -> Result<Self, Error> {
        let open = |name: &&'static str| {
            let opened = MapData::from_pin(store.map(name)).and_then(Map::from_map_data);
            opened.map(|map| ((*name).to_owned(), map)).map_err(map_error(name, "opened"))
        };
        names.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn take(&mut self, name: &'static str) -> Map {
        self.0.remove(name).expect("build.rs builds the object from the same tree, and nobody takes one twice")
    }

    /// Another descriptor of an array, which stays among these.
    pub(super) fn lend(&self, name: &'static str) -> Result<OwnedFd, Error> {
        let Some(Map::Array(array)) = self.0.get(name) else { unreachable!("declared as an array, and not taken") };
        array.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError).map_err(map_error(name, "opened"))
    }

    /// A map to write to.
    pub(super) fn get<'a, T: TryFrom<&'a mut Map, Error = MapError>>(
        &'a mut self,
        name: &'static str,
    ) -> Result<T, Error> {
        let map = self.0.get_mut(name).expect("build.rs builds the object from the same tree");
        map.try_into().map_err(map_error(name, "opened"))
    }
}

/// The maps that the worker sees as memory.
pub struct SharedMaps {
    pub(super) heartbeat: MapData,
    pub(super) counters: MapData,
    pub(super) mixed: OwnedFd,
    pub(super) cpus: u32,
}

impl SharedMaps {
    /// Where the proxy beats.
    pub fn heartbeat(&self) -> BorrowedFd<'_> {
        self.heartbeat.fd().as_fd()
    }

    /// Where the kernel side counts.
    pub fn counters(&self) -> BorrowedFd<'_> {
        self.counters.fd().as_fd()
    }

    /// Where the kernel side counts what it must know of sockets with two queues.
    pub fn mixed(&self) -> BorrowedFd<'_> {
        self.mixed.as_fd()
    }

    /// CPUs that count there.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }
}

/// The sizes of the maps that are *configured*.
pub(super) struct Rooms {
    pub(super) of_maps: [(&'static str, u32); 11],
    /// CPUs that have counters of their own.
    pub(super) cpus: u32,
}

impl Rooms {
    pub(super) fn of(capture: &config::Capture, connections: usize) -> Result<Self, Error> {
        let (outbound, inbound) = (&capture.outbound, &capture.inbound);
        let accelerated = capture.accelerated();
        let cpus = possible_cpus().map_err(Error::Cpus)?;
        let ports = OWN_PORTS + outbound.exclude_ports.len() + inbound.exclude_ports.len();
        let of_maps = [
            ("COUNTERS", cpus * PER_CPU),
            ("FLOWS", capture.maps.flows),
            ("PRESENTED_FLOWS", entries(connections)),
            ("APP_LISTENERS", capture.maps.listeners),
            ("SEEDED_LISTENERS", capture.maps.listeners),
            ("SENDERS", accelerated),
            ("RECEIVERS", accelerated),
            ("CANDIDATES", accelerated),
            ("MIXED", if capture.acceleration == Acceleration::Off { 1 } else { mixed::PLACES }),
            ("PORTS", entries(ports.max(SOME))),
            ("EXCLUDED_CIDRS", entries(outbound.exclude_cidrs.len().max(SOME))),
        ];
        Ok(Self { of_maps, cpus })
    }

    /// The maps that a store has are as large as this configuration asks for.
    pub(super) fn fit(&self, store: &Store) -> Result<(), Error> {
        for (map, needed) in self.of_maps {
            let Ok(pinned) = bpf::get(&store.map(map)) else { continue };
            let room = bpf::max_entries(pinned.as_fd()).map_err(store.error("read the maps of"))?;
            if room < needed {
                return Err(Error::Room { path: store.shown(), map, room, needed });
            }
        }
        Ok(())
    }
}

/// Outbound, inbound, admin, metrics, health, tunnels.
const OWN_PORTS: usize = 6;

/// Room for what another configuration may exclude, so that maps which are there will do for it.
const SOME: usize = 32;

/// A map for so many entries; the kernel refuses empty ones.
fn entries(count: usize) -> u32 {
    u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use object::{Object, ObjectSection, ObjectSymbol};

    use super::*;
    use crate::redirect::programs::object;

    /// One that is forgotten here would be another one after an upgrade, and connections would lose what it knows of them.
    #[test]
    fn a_store_keeps_every_map_of_the_object() {
        let file = object::File::parse(object(false)).unwrap();
        let sections: Vec<_> =
            ["maps", ".maps"].iter().filter_map(|name| file.section_by_name(name)).map(|found| found.index()).collect();
        let maps = file.symbols().filter(|symbol| symbol.section_index().is_some_and(|at| sections.contains(&at)));
        let names: BTreeSet<_> =
            maps.map(|symbol| symbol.name().unwrap().to_owned()).filter(|n| !n.is_empty()).collect();
        assert_eq!(names, KEPT.iter().map(|name| (*name).to_owned()).collect());
    }
}
