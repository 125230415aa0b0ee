//! From loaded programs to a capture in force.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, SockMap},
};
use sidecar_common::rules::{CaptureRules, listener_slot};

use super::{
    addresses::AddressWatch,
    attach::{Attaching, Code, Named, require_alone},
    bpf,
    bpf_log::BpfLog,
    error::Error,
    fast_path,
    listeners::{ListenerMaps, ListenerWatch},
    maps::{Maps, SharedMaps},
    pins::Pins,
    programs::{LOOKUP_PROGRAM, POD_PROGRAMS, PROXY_PROGRAMS, Programs},
    rules,
    store::{Marker, Store},
    uncaptured::UncapturedWatch,
};
use crate::{
    config::{Acceleration, Config},
    lifecycle::{beats::Pulse, counters::Counters},
    pod::Pod,
};

/// Programs that know the rules and the proxy's listeners, but do not run yet.
pub struct Prepared {
    ebpf: Option<Ebpf>,
    maps: Maps,
    code: Code,
    store: Option<Store>,
    marker: Marker,
    shared: SharedMaps,
    addresses: AddressWatch,
    listeners: SockMap<MapData>,
    log: Option<BpfLog>,
    mesh_link: Option<Named>,
    listener_capacity: usize,
    accelerates: bool,
    refused: Option<String>,
}

/// What comes of attaching: the capture, and what keeps it current as long as it is polled.
pub struct Attached {
    /// The capture in force.
    pub capture: Capture,
    /// What every worker sees as memory.
    pub shared: SharedMaps,
    /// Follows the pod's addresses.
    pub addresses: AddressWatch,
    /// Follows the application's listening sockets.
    pub listeners: ListenerWatch,
    /// Counts the connections that run past the capture.
    pub uncaptured: UncapturedWatch,
    /// Passes on what the programs say.
    pub log: Option<BpfLog>,
}

/// The capture in force. [`Capture::detach`] ends it on purpose; dropping it is like dying, and `on_failure` decides.
///
/// The object that the programs came from is gone unless the fast path needs it: links keep the programs, programs their maps,
/// and what is held here of the maps is for whoever looks at them from outside.
pub struct Capture {
    fast_path: Option<fast_path::Parts>,
    pub(super) links: Vec<Named>,
    store: Option<Store>,
    marker: Marker,
    pub(super) counters: Counters,
    listeners: SockMap<MapData>,
    rules: Array<MapData, CaptureRules>,
    pub(super) pod: Pod,
    /// Names of programs and their ids in the kernel.
    pub(super) ids: Vec<(&'static str, u32)>,
    _maps: Maps,
}

/// Where the programs find the proxy's listeners.
const LISTENERS: &str = "PROXY_LISTENERS";

impl Programs {
    /// Tells the kernel side the rules and the pod's addresses.
    pub fn prepare(mut self, pod: &Pod, config: &Config) -> Result<Prepared, Error> {
        self.tell_of_discovery(config);
        let [heartbeat, counters] = ["HEARTBEAT", "COUNTERS"].map(|name| {
            let Map::Array(array) = self.maps.take(name) else { unreachable!("declared as an array") };
            array
        });
        let shared = SharedMaps { heartbeat, counters, mixed: self.maps.lend("MIXED")?, cpus: self.cpus };
        let addresses = AddressWatch::start(self.maps.take("OWN_ADDRESSES"), self.maps.take("SOURCES"))?;
        let listeners = self.maps.take(LISTENERS).try_into().map_err(map_error(LISTENERS, "opened"))?;
        rules::write(&mut self.maps, pod.netns_cookie(), pod.own_cgroup_id(), config)?;
        Ok(Prepared {
            ebpf: self.ebpf,
            maps: self.maps,
            code: self.code,
            store: self.store,
            marker: self.marker,
            shared,
            addresses,
            listeners,
            log: self.log,
            mesh_link: self.mesh_link,
            listener_capacity: config.capture.maps.listeners as usize,
            accelerates: config.capture.acceleration != Acceleration::Off,
            refused: self.refused,
        })
    }
}

impl Prepared {
    /// What the worker sees as memory.
    pub fn shared(&self) -> &SharedMaps {
        &self.shared
    }

    /// The heartbeat that the worker must keep going from now on.
    ///
    /// # Errors
    /// The map cannot be mapped.
    pub fn pulse(&self) -> Result<Pulse, Error> {
        Pulse::map(self.shared.heartbeat()).map_err(mapping("HEARTBEAT"))
    }

    /// Attaches every program, and hands connections to these listeners. Names and notes come before connects, so that no captured
    /// socket lacks them; before the listeners too, for the programs of `sidecar init` capture from the moment that these are there.
    ///
    /// # Errors
    /// The kernel's answer for the program that it refused. What an earlier process pinned stays in force; where there was nothing,
    /// nothing stays.
    pub fn attach(mut self, pod: Pod, outbound: &impl AsRawFd, inbound: &impl AsRawFd) -> Result<Attached, Error> {
        require_alone(&pod, self.store.as_ref())?;
        let counters = Counters::map(self.shared.counters(), self.shared.cpus()).map_err(mapping("COUNTERS"))?;
        let attaching =
            Attaching { code: &self.code, store: self.store.as_ref(), pod: &pod, refused: self.refused.as_deref() };
        let mut links = attaching.to_own_cgroup(&PROXY_PROGRAMS)?;
        links.extend(self.mesh_link.take());
        for (slot, listener) in
            [(listener_slot::OUTBOUND, outbound.as_raw_fd()), (listener_slot::INBOUND, inbound.as_raw_fd())]
        {
            self.listeners.set(slot, &listener, 0).map_err(map_error(LISTENERS, "written"))?;
        }
        links.extend(attaching.to_pod_cgroup(&POD_PROGRAMS)?);
        let uncaptured = UncapturedWatch::start(pod.cgroup_path(), pod.own_cgroup_id())?;
        let mut listener_watch = ListenerWatch::new(
            ListenerMaps::take(&mut self.maps),
            self.listener_capacity,
            pod.cgroup_path(),
            pod.own_cgroup_id(),
        )?;
        listener_watch.compare()?;
        links.extend(attaching.to_netns(&[LOOKUP_PROGRAM])?);
        self.settle(&pod)?;
        let fast_path = self.fast_path(&pod)?;
        let Self { mut maps, store, marker, shared, addresses, listeners, log, .. } = self;
        let rules = maps.take("RULES").try_into().map_err(map_error("RULES", "opened"))?;
        let ids = ids(&links)?;
        let capture = Capture { fast_path, links, store, marker, counters, listeners, rules, pod, ids, _maps: maps };
        Ok(Attached { capture, shared, addresses, listeners: listener_watch, uncaptured, log })
    }

    /// Ours run by now: what a dead predecessor left need not refuse any longer.
    fn settle(&self, pod: &Pod) -> Result<(), Error> {
        let pins = Pins::of(pod);
        let Some(store) = &self.store else { return pins.remove() };
        store.complete(&self.marker)?;
        pins.settle(store)
    }

    fn fast_path(&mut self, pod: &Pod) -> Result<Option<fast_path::Parts>, Error> {
        let Some(ebpf) = self.ebpf.take() else {
            if self.accelerates {
                tracing::warn!("no fast path: the programs are those of `sidecar init`, which loads none for it");
            }
            return Ok(None);
        };
        // Whatever becomes of the fast path from here on, and where there is to be none.
        fast_path::Maps::turn_off(&mut self.maps)?;
        if !self.accelerates {
            return Ok(None);
        }
        let maps = fast_path::Maps::take(&mut self.maps)?;
        Ok(Some(fast_path::Parts { ebpf, maps, netns: pod.netns_cookie() }))
    }
}

/// The ids of all programs that [`Capture::check`] will look for.
fn ids(links: &[Named]) -> Result<Vec<(&'static str, u32)>, Error> {
    let id = |(program, link): &Named| {
        let info = bpf::link_info(link.as_fd());
        info.map(|info| (*program, info.program)).map_err(|source| Error::Link { program, source })
    };
    links.iter().map(id).collect()
}

impl Capture {
    /// What the fast path is made of, once; `None`: it is not configured.
    pub fn fast_path(&mut self) -> Option<fast_path::Parts> {
        self.fast_path.take()
    }

    /// No new connection of others comes to the proxy from now on: `on_failure` decides what becomes of them. What the
    /// application opens is captured as before.
    pub fn stop_inbound(&mut self) -> Result<(), Error> {
        self.withdraw(listener_slot::INBOUND)
    }

    /// No new connection comes to the proxy from now on: `on_failure` decides what becomes of them. Connections that
    /// the proxy already has keep their names and notes.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.withdraw(listener_slot::OUTBOUND)?;
        self.withdraw(listener_slot::INBOUND)
    }

    fn withdraw(&mut self, slot: u32) -> Result<(), Error> {
        use io::ErrorKind::{InvalidInput, NotFound};
        match self.listeners.clear_index(&slot) {
            // It is empty already (net/core/sock_map.c, `__sock_map_delete`, says EINVAL).
            Err(MapError::SyscallError(call)) if matches!(call.io_error.kind(), InvalidInput | NotFound) => Ok(()),
            cleared => cleared.map_err(map_error(LISTENERS, "cleared")),
        }
    }

    /// Connections go direct from now on: every program is detached, but those of `sidecar init`, which let everything pass.
    ///
    /// # Errors
    /// Pins cannot be removed; their directory is named.
    pub fn detach(mut self) -> Result<(), Error> {
        if self.marker.by_init {
            return rules::lift(&mut self.rules);
        }
        for (_, link) in &self.links {
            // Where it is attached may be gone already.
            let _ = bpf::detach(link.as_fd());
        }
        match &self.store {
            Some(store) => Pins::of(&self.pod).discard(store),
            None => Ok(()),
        }
    }

    /// Has it outlive this process, if it is pinned: from here on nothing of the start can fail.
    pub fn keep(&self) {
        self.store.iter().for_each(Store::keep);
    }

    /// What a successor needs to go on with these maps and links.
    ///
    /// # Errors
    /// It could not: why.
    pub fn store(&self) -> Result<Option<&Store>, String> {
        self.store.as_ref().map(|store| store.refresh(&self.marker).map(|()| store)).transpose()
    }

    /// Keeps the links in a store that goes with this process, until [`Self::hold_links`]: for a successor that is about to take over.
    ///
    /// # Errors
    /// The kernel's answer for the link that it does not pin.
    pub fn offer_links(&self) -> Result<(), Error> {
        let store = self.store.as_ref().filter(|store| store.has_no_place());
        let pin =
            |store: &Store| self.links.iter().try_for_each(|(program, link)| store.pin_link(program, link.as_fd()));
        store.map_or(Ok(()), pin)
    }

    /// Holds the links by their descriptors alone, unless they are to outlive this process: the kernel cuts a link at once when its
    /// last descriptor is closed, but its last pin some time after the file system has gone.
    pub fn hold_links(&self) {
        if let Some(store) = self.store.as_ref().filter(|store| store.has_no_place()) {
            self.links.iter().for_each(|(program, _)| store.unpin_link(program));
        }
    }

    /// Where a process of the sidecar is, if somebody has moved it: see [`Pod::moved`].
    pub fn moved(&self, process: u32) -> Option<String> {
        self.pod.moved(process)
    }
}

/// Says which map cannot be seen as memory.
pub(super) fn mapping(map: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Mapping { map, source }
}

/// Says which map failed at what.
pub(super) fn map_error(map: &'static str, action: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| Error::Map { map, action, source: Box::new(source) }
}
