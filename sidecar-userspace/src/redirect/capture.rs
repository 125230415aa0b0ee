//! From loaded programs to a capture in force.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError, SockMap},
    programs::{CgroupAttachMode, ProgramError, links::FdLink, loaded_programs},
};
use sidecar_common::{counter::Counter, rules::listener_slot};

use super::{
    addresses::AddressWatch,
    bpf_log::BpfLog,
    counters::Counters,
    discovery::MESH_PROGRAM,
    error::Error,
    fast_path,
    heartbeat::Heartbeat,
    listeners::{DeviceBound, ListenerMaps, ListenerWatch},
    pins::Pins,
    programs::{self, LOOKUP_PROGRAM, POD_PROGRAMS, PROXY_PROGRAMS, Programs},
    query, rules,
    uncaptured::UncapturedWatch,
};
use crate::{
    config::{Acceleration, Config, OnFailure},
    pod::Pod,
};

/// Programs that know the rules and the proxy's listeners, but do not run yet.
pub struct Prepared {
    ebpf: Ebpf,
    heartbeat: Heartbeat,
    addresses: AddressWatch,
    listeners: SockMap<MapData>,
    log: Option<BpfLog>,
    discovers: bool,
    on_failure: OnFailure,
    listener_capacity: usize,
    accelerates: bool,
}

/// What comes of attaching: the capture, and what keeps it current as long as it is polled.
pub struct Attached {
    /// The capture in force.
    pub capture: Capture,
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
pub struct Capture {
    ebpf: Arc<Mutex<Ebpf>>,
    fast_path: Option<fast_path::Maps>,
    links: Vec<FdLink>,
    pins: Pins,
    counters: Counters,
    listeners: SockMap<MapData>,
    discovers: bool,
    pod: Pod,
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
        let heartbeat = {
            let Map::Array(array) = take(&mut self.ebpf, "HEARTBEAT") else { unreachable!("declared as an array") };
            Heartbeat::map(array.fd(), config.proxy.workers)?
        };
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
            heartbeat,
            addresses,
            listeners,
            log: self.log,
            discovers: self.discovery.is_ok(),
            on_failure: config.capture.on_failure,
            listener_capacity: config.capture.maps.listeners as usize,
            accelerates: config.capture.acceleration != Acceleration::Off,
        })
    }
}

impl Prepared {
    /// The heartbeat that the workers must keep going from now on.
    pub fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }

    /// Attaches every program. Names and notes come before connects, so that no captured socket lacks them.
    ///
    /// # Errors
    /// The kernel's answer for the program that it refused. With `on_failure: closed` what was pinned stays in force.
    pub fn attach(mut self, pod: Pod, device_bound: DeviceBound) -> Result<Attached, Error> {
        refuse_second_sidecar(&pod)?;
        if self.on_failure == OnFailure::Closed {
            Pins::require_bpffs()?;
        }
        let mut links = attach_to_cgroups(&mut self.ebpf, &pod)?;
        let uncaptured = UncapturedWatch::start(pod.cgroup_path(), pod.own_cgroup_id())?;
        let listener_maps = ListenerMaps {
            counted: take(&mut self.ebpf, "APP_LISTENERS"),
            seeded: take(&mut self.ebpf, "SEEDED_LISTENERS"),
            v6_only: take(&mut self.ebpf, "V6_ONLY"),
            lost: take(&mut self.ebpf, "LISTENERS_LOST"),
            events: take(&mut self.ebpf, "LISTENING"),
        };
        let mut listener_watch = ListenerWatch::new(
            listener_maps,
            self.listener_capacity,
            device_bound,
            pod.cgroup_path(),
            pod.own_cgroup_id(),
        )?;
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
        let counters = Counters::new(take(&mut self.ebpf, "COUNTERS"))?;
        let fast_path = self.accelerates.then(|| fast_path::Maps::take(&mut self.ebpf)).transpose()?;
        let Self { ebpf, listeners, discovers, .. } = self;
        let ebpf = Arc::new(Mutex::new(ebpf));
        let capture = Capture { ebpf, fast_path, links, pins, counters, listeners, discovers, pod };
        Ok(Attached { capture, addresses: self.addresses, listeners: listener_watch, uncaptured, log: self.log })
    }
}

/// `CgroupAttachMode::Single` leaves the flags of the link zero; the kernel runs all links of a cgroup all the same, and
/// refuses the flag that the name of the other mode suggests.
pub(super) const LINK: CgroupAttachMode = CgroupAttachMode::Single;

/// `BPF_CGROUP_SOCK_OPS`.
const SOCK_OPS: u32 = 3;

/// Two sidecars in one pod would capture what the other dials, without end. Another one's programs are known by name; those
/// that a dead predecessor left pinned are about to be replaced.
fn refuse_second_sidecar(pod: &Pod) -> Result<(), Error> {
    let (name, attach_type) = LOOKUP_PROGRAM;
    let running = query::program_ids(pod.netns(), attach_type, 0).unwrap_or_default();
    let pinned = Pins::of(pod).program_id(name);
    let others = running.into_iter().filter(|id| Some(*id) != pinned);
    let (connect, connect_type) = POD_PROGRAMS[5];
    let effective = File::open(pod.cgroup_path())
        .and_then(|cgroup| query::program_ids(&cgroup, connect_type, query::EFFECTIVE))
        .unwrap_or_default();
    let pinned = Pins::of(pod).program_id(connect);
    let others: Vec<_> = others.chain(effective.into_iter().filter(|id| Some(*id) != pinned)).collect();
    if others.is_empty() {
        return Ok(());
    }
    // Names are told to CAP_SYS_ADMIN only; without it the port that is in use says the same, as a rule.
    let named = loaded_programs().flatten().filter(|program| others.contains(&program.id()));
    match named
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .find(|found| found == connect || found == name)
    {
        Some(program) => Err(Error::Taken { program }),
        None => Ok(()),
    }
}

/// A link and the name of its program.
type Named = (&'static str, FdLink);

fn attach_to_cgroups(ebpf: &mut Ebpf, pod: &Pod) -> Result<Vec<Named>, Error> {
    for (name, _) in PROXY_PROGRAMS {
        // These serve the proxy's own sockets: aya keeps their links, and they may die with the process.
        programs::sockopt(ebpf, name)
            .and_then(|program| program.attach(pod.own_cgroup(), LINK).map(drop))
            .map_err(attach_error(name, pod.own_cgroup_path().display()))?;
    }
    POD_PROGRAMS
        .into_iter()
        .map(|(name, attach_type)| {
            let attached = match attach_type {
                SOCK_OPS => attach_sock_ops(ebpf, name, pod),
                _ => attach_sock_addr(ebpf, name, pod),
            };
            attached.map(|link| (name, link)).map_err(attach_error(name, pod.cgroup_path().display()))
        })
        .collect()
}

fn attach_sock_ops(ebpf: &mut Ebpf, name: &str, pod: &Pod) -> Result<FdLink, ProgramError> {
    let program = programs::sock_ops(ebpf, name)?;
    let id = program.attach(pod.cgroup(), LINK)?;
    fd_link(program.take_link(id)?)
}

fn attach_sock_addr(ebpf: &mut Ebpf, name: &str, pod: &Pod) -> Result<FdLink, ProgramError> {
    let program = programs::sock_addr(ebpf, name)?;
    let id = program.attach(pod.cgroup(), LINK)?;
    fd_link(program.take_link(id)?)
}

/// Only kernels before 5.7 attach to a cgroup without a link, and they lack more than that.
fn fd_link(link: impl TryInto<FdLink>) -> Result<FdLink, ProgramError> {
    link.try_into().map_err(|_| ProgramError::NotAttached)
}

fn attach_to_netns(ebpf: &mut Ebpf, pod: &Pod) -> Result<Named, Error> {
    let (name, _) = LOOKUP_PROGRAM;
    let attached = programs::sk_lookup(ebpf, name).and_then(|program| {
        let id = program.attach(pod.netns())?;
        Ok(program.take_link(id)?.into())
    });
    attached.map(|link| (name, link)).map_err(attach_error(name, "the pod's network namespace"))
}

impl Capture {
    /// Whether other sidecars can be discovered on this kernel.
    pub fn discovers(&self) -> bool {
        self.discovers
    }

    /// What the fast path is made of, once; `None`: it is not configured.
    pub fn fast_path(&mut self) -> Option<fast_path::Parts> {
        let maps = self.fast_path.take()?;
        Some(fast_path::Parts { ebpf: Arc::clone(&self.ebpf), maps, netns: self.pod.netns_cookie() })
    }

    /// What the kernel side counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// No new connection comes to the proxy from now on: `on_failure` decides what becomes of them. Connections that
    /// the proxy already has keep their names and notes.
    pub fn stop(&mut self) -> Result<(), Error> {
        for slot in [listener_slot::OUTBOUND, listener_slot::INBOUND] {
            match self.listeners.clear_index(&slot) {
                Ok(()) => {}
                Err(MapError::SyscallError(call)) if call.io_error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(map_error("PROXY_LISTENERS", "cleared")(error)),
            }
        }
        Ok(())
    }

    /// Detaches every program: connections go direct from now on.
    ///
    /// # Errors
    /// Pins cannot be removed; their directory is named.
    pub fn detach(self) -> Result<(), Error> {
        drop(self.links);
        self.pins.remove()
    }

    /// Checks that the kernel runs every program where it should, and that a real connection passes them.
    pub fn check(&self) -> Result<(), Error> {
        self.check_effective()?;
        self.check_probe()
    }

    fn check_effective(&self) -> Result<(), Error> {
        let mesh = [MESH_PROGRAM];
        let own = self.pod.own_cgroup_path();
        let mut targets = vec![(own, PROXY_PROGRAMS.as_slice()), (own, &mesh[..usize::from(self.discovers)])];
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
        // A panic elsewhere leaves programs that still work.
        let ebpf = self.ebpf.lock().unwrap_or_else(PoisonError::into_inner);
        if running.contains(&programs::id(&ebpf, program)?) {
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
            if self.counters.get(counter)? <= before? {
                return Err(Error::ProbeMissed { program });
            }
        }
        let before = self.counters.get(Counter::ConnectBypassProxy)?;
        // A pod without IPv6 has nothing to check there.
        if probe(Ipv6Addr::LOCALHOST.into()).is_ok() && self.counters.get(Counter::ConnectBypassProxy)? <= before {
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

pub(super) fn attach_error(program: &'static str, target: impl ToString) -> impl FnOnce(ProgramError) -> Error {
    let target = target.to_string();
    move |source| Error::Attach { program, target, source: Box::new(source) }
}

/// Says which map failed at what.
pub(super) fn map_error(map: &'static str, action: &'static str) -> impl FnOnce(MapError) -> Error {
    move |source| Error::Map { map, action, source: Box::new(source) }
}
