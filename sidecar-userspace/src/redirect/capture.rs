//! From loaded programs to a capture in force.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError, SockMap},
    programs::{cgroup_sockopt::CgroupSockoptLink, links::FdLink, sock_ops::SockOpsLink},
};
use sidecar_common::{counter::Counter, rules::listener_slot};

use super::{
    addresses::AddressWatch,
    attach::{attach_to_cgroup, attach_to_netns, attach_to_own_cgroup, refuse_second_sidecar},
    bpf_log::BpfLog,
    discovery::MESH_PROGRAM,
    error::Error,
    fast_path,
    listeners::{ListenerMaps, ListenerWatch},
    pins::Pins,
    programs::{self, LOOKUP_PROGRAM, POD_PROGRAMS, PROXY_PROGRAMS, Programs},
    query, rules,
    uncaptured::UncapturedWatch,
};
use crate::{
    config::{Acceleration, Config, OnFailure},
    lifecycle::{beats::Pulse, counters::Counters},
    pod::Pod,
};

/// Programs that know the rules and the proxy's listeners, but do not run yet.
pub struct Prepared {
    ebpf: Ebpf,
    shared: SharedMaps,
    addresses: AddressWatch,
    listeners: SockMap<MapData>,
    log: Option<BpfLog>,
    discovery_link: Option<SockOpsLink>,
    on_failure: OnFailure,
    listener_capacity: usize,
    accelerates: bool,
}

/// The maps that the worker sees as memory.
pub struct SharedMaps {
    heartbeat: MapData,
    counters: MapData,
    cpus: u32,
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

    /// CPUs that count there.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }
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
    links: Vec<FdLink>,
    pins: Pins,
    counters: Counters,
    listeners: SockMap<MapData>,
    pod: Pod,
    /// Names of programs and their ids in the kernel.
    ids: Vec<(&'static str, u32)>,
    /// Those of the proxy's own sockets: aya cannot pin them, and they may die with the process.
    _own: (Vec<CgroupSockoptLink>, Option<SockOpsLink>),
    _maps: Vec<Map>,
}

impl Programs {
    /// Tells the kernel side the rules, the pod's addresses and the listeners to which it hands connections.
    pub fn prepare(
        mut self,
        pod: &Pod,
        config: &Config,
        outbound: &impl AsRawFd,
        inbound: &impl AsRawFd,
    ) -> Result<Prepared, Error> {
        self.tell_of_discovery(config);
        let [heartbeat, counters] = ["HEARTBEAT", "COUNTERS"].map(|name| {
            let Map::Array(array) = take(&mut self.ebpf, name) else { unreachable!("declared as an array") };
            array
        });
        let shared = SharedMaps { heartbeat, counters, cpus: self.cpus };
        let addresses = AddressWatch::start(take(&mut self.ebpf, "OWN_ADDRESSES"), take(&mut self.ebpf, "SOURCES"))?;
        const LISTENERS: &str = "PROXY_LISTENERS";
        let mut listeners: SockMap<_> =
            take(&mut self.ebpf, LISTENERS).try_into().map_err(map_error(LISTENERS, "opened"))?;
        for (slot, listener) in
            [(listener_slot::OUTBOUND, outbound.as_raw_fd()), (listener_slot::INBOUND, inbound.as_raw_fd())]
        {
            listeners.set(slot, &listener, 0).map_err(map_error(LISTENERS, "written"))?;
        }
        rules::write(&mut self.ebpf, pod.netns_cookie(), pod.own_cgroup_id(), config)?;
        Ok(Prepared {
            ebpf: self.ebpf,
            shared,
            addresses,
            listeners,
            log: self.log,
            discovery_link: self.discovery_link,
            on_failure: config.capture.on_failure,
            listener_capacity: config.capture.maps.listeners as usize,
            accelerates: config.capture.acceleration != Acceleration::Off,
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

    /// Attaches every program. Names and notes come before connects, so that no captured socket lacks them.
    ///
    /// # Errors
    /// The kernel's answer for the program that it refused. With `on_failure: closed` what was pinned stays in force.
    pub fn attach(mut self, pod: Pod) -> Result<Attached, Error> {
        refuse_second_sidecar(&pod)?;
        if self.on_failure == OnFailure::Closed {
            Pins::require_bpffs()?;
        }
        let ids = self.ids()?;
        let counters = Counters::map(self.shared.counters(), self.shared.cpus()).map_err(mapping("COUNTERS"))?;
        let own = (attach_to_own_cgroup(&mut self.ebpf, &pod)?, self.discovery_link.take());
        let mut links = attach_to_cgroup(&mut self.ebpf, &pod)?;
        let uncaptured = UncapturedWatch::start(pod.cgroup_path(), pod.own_cgroup_id())?;
        let listener_maps = ListenerMaps {
            counted: take(&mut self.ebpf, "APP_LISTENERS"),
            seeded: take(&mut self.ebpf, "SEEDED_LISTENERS"),
            v6_only: take(&mut self.ebpf, "V6_ONLY"),
            lost: take(&mut self.ebpf, "LISTENERS_LOST"),
            events: take(&mut self.ebpf, "LISTENING"),
        };
        let mut listener_watch =
            ListenerWatch::new(listener_maps, self.listener_capacity, pod.cgroup_path(), pod.own_cgroup_id())?;
        listener_watch.compare()?;
        links.push(attach_to_netns(&mut self.ebpf, &pod)?);
        Pins::sweep();
        // Ours run by now: what a killed predecessor left need not refuse any longer.
        let pins = Pins::of(&pod);
        let links = match self.on_failure {
            OnFailure::Open => {
                pins.remove()?;
                links.into_iter().map(|(_, link)| link).collect()
            }
            OnFailure::Closed => {
                tracing::info!(directory = %pins.directory().display(), "a killed sidecar goes on refusing by what is pinned here");
                pins.replace(links)?
            }
        };
        let fast_path = self.accelerates.then(|| fast_path::Maps::take(&mut self.ebpf)).transpose()?;
        let maps = self.other_maps();
        let Self { ebpf, shared, addresses, listeners, log, .. } = self;
        let netns = pod.netns_cookie();
        let fast_path = fast_path.map(|maps| fast_path::Parts { ebpf, maps, netns });
        let capture = Capture { fast_path, links, pins, counters, listeners, pod, ids, _own: own, _maps: maps };
        Ok(Attached { capture, shared, addresses, listeners: listener_watch, uncaptured, log })
    }

    /// The ids of all programs that [`Capture::check`] will look for.
    fn ids(&self) -> Result<Vec<(&'static str, u32)>, Error> {
        let discovery = self.discovery_link.is_some().then_some(MESH_PROGRAM);
        let all = POD_PROGRAMS.into_iter().chain(PROXY_PROGRAMS).chain([LOOKUP_PROGRAM]).chain(discovery);
        all.map(|(name, _)| Ok((name, programs::id(&self.ebpf, name)?))).collect()
    }

    fn other_maps(&mut self) -> Vec<Map> {
        let names: Vec<String> = self.ebpf.maps().map(|(name, _)| name.to_owned()).collect();
        names.iter().filter_map(|name| self.ebpf.take_map(name)).collect()
    }
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
            cleared => cleared.map_err(map_error("PROXY_LISTENERS", "cleared")),
        }
    }

    /// Detaches every program: connections go direct from now on.
    ///
    /// # Errors
    /// Pins cannot be removed; their directory is named.
    pub fn detach(self) -> Result<(), Error> {
        drop(self.links);
        self.pins.remove()
    }

    /// Where a process of the sidecar is, if somebody has moved it: see [`Pod::moved`].
    pub fn moved(&self, process: u32) -> Option<String> {
        self.pod.moved(process)
    }

    /// Checks that the sidecar is where it was, that the kernel runs every program where it should, and that a real
    /// connection passes them.
    pub fn check(&self) -> Result<(), Error> {
        self.pod.verify()?;
        self.check_effective()?;
        self.check_probe()
    }

    fn check_effective(&self) -> Result<(), Error> {
        let mesh = [MESH_PROGRAM];
        let own = self.pod.own_cgroup_path();
        let discovers = usize::from(self.ids.iter().any(|(name, _)| *name == mesh[0].0));
        let mut targets = vec![(own, PROXY_PROGRAMS.as_slice()), (own, &mesh[..discovers])];
        let leaves = self.pod.leaves();
        targets.extend(leaves.iter().map(|leaf| (leaf.as_path(), POD_PROGRAMS.as_slice())));
        for (path, programs) in targets {
            // A cgroup that went away in the meantime has no tasks to serve.
            let Ok(directory) = File::open(path) else { continue };
            for (name, attach_type) in programs {
                self.require_effective(&directory, path, name, *attach_type, query::EFFECTIVE)?;
            }
        }
        let (name, attach_type) = LOOKUP_PROGRAM;
        self.require_effective(self.pod.netns(), Path::new("the pod's network namespace"), name, attach_type, 0)
    }

    fn require_effective(
        &self,
        target: &impl AsRawFd,
        path: &Path,
        program: &'static str,
        attach_type: u32,
        flags: u32,
    ) -> Result<(), Error> {
        let running = query::program_ids(target, attach_type, flags)
            .map_err(|source| Error::Query { target: path.to_owned(), source })?;
        if self.ids.iter().any(|(name, id)| *name == program && running.contains(id)) {
            return Ok(());
        }
        Err(Error::NotEffective { program, target: path.to_owned() })
    }

    /// Listens on loopback and connects to that: every kind of program must have counted something.
    fn check_probe(&self) -> Result<(), Error> {
        const WITNESSES: [(&str, Counter); 3] = [
            ("on_connect4", Counter::ConnectBypassProxy),
            ("on_lookup", Counter::LookupPassOwnAddress),
            ("on_tcp_event", Counter::ListenerAdded),
        ];
        let before = WITNESSES.map(|(_, counter)| self.counters.get(counter));
        probe(Ipv4Addr::LOCALHOST.into()).map_err(Error::Probe)?;
        for ((program, counter), before) in WITNESSES.into_iter().zip(before) {
            if self.counters.get(counter) <= before {
                return Err(Error::ProbeMissed { program });
            }
        }
        let before = self.counters.get(Counter::ConnectBypassProxy);
        // A pod without IPv6 has nothing to check there.
        if probe(Ipv6Addr::LOCALHOST.into()).is_ok() && self.counters.get(Counter::ConnectBypassProxy) <= before {
            return Err(Error::ProbeMissed { program: "on_connect6" });
        }
        Ok(())
    }
}

fn probe(loopback: IpAddr) -> io::Result<()> {
    /// Loopback answers in microseconds; a pod that is starved of CPU gets time.
    const PATIENCE: Duration = Duration::from_secs(2);
    let listener = TcpListener::bind(SocketAddr::new(loopback, 0))?;
    TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE).map(drop)
}

fn take(ebpf: &mut Ebpf, map: &str) -> Map {
    ebpf.take_map(map).expect("build.rs builds the object from the same tree")
}

/// Says which map cannot be seen as memory.
fn mapping(map: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Mapping { map, source }
}

/// Says which map failed at what.
pub(super) fn map_error(map: &'static str, action: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| Error::Map { map, action, source: Box::new(source) }
}
