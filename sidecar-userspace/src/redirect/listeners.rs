//! What sockops cannot see of the application's listening sockets: those from before the capture, and, on some kernels,
//! whether one at `::` serves IPv4 as well. Also repairs what sockops miscounted.

use std::{
    collections::HashSet,
    hash::Hash,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, Map, MapData, RingBuf};
use netlink_packet_core::Nla as _;
use netlink_packet_sock_diag::inet::{InetResponse, StateFlags, nlas::Nla};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use sidecar_common::addr::{Endpoint, Ip, PortBe};

use super::{capture::map_error, error::Error, maps::Maps, netlink::Netlink, rules::ip, socket_table, v6_only::V6Only};
use crate::pod;

/// Keeps `SEEDED_LISTENERS` equal to what the kernel's socket table has and `APP_LISTENERS` has not, and `V6_ONLY` to what
/// the table says of sockets at `::`.
pub struct ListenerWatch {
    sockets: Netlink,
    pod_cgroup: PathBuf,
    proxy_cgroup: u64,
    counted: HashMap<MapData, Endpoint, u64>,
    seeded: HashMap<MapData, Endpoint, u64>,
    v6_only: V6Only,
    lost: Array<MapData, u32>,
    warned: bool,
    device_bound: HashSet<u16>,
    capacity: usize,
    /// Speaks when a socket begins to listen at `::`.
    events: RingBuf<MapData>,
    /// Counted by sockops but not in the table at the last comparison: seen twice, the count is wrong.
    doubtful: HashSet<Endpoint>,
    /// Something is not as sockops says, or was not at the last comparison.
    unsettled: bool,
    /// When it compares although nothing asked for it.
    next: Instant,
    /// An application that opens and closes listeners all the time costs at most a fifth of a core: no comparison before this.
    rest: Instant,
}

/// Time between two comparisons with the kernel's socket table that nothing asked for. The end of a listener from before
/// the capture is noticed this late; until then its clients are accepted and reset instead of refused.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// The same while sockops has counted every listener, so that its word is as good as the table's.
const COMPARE_SELDOM: Duration = Duration::from_secs(15);

/// The maps of listening sockets.
pub(super) struct ListenerMaps {
    counted: Map,
    seeded: Map,
    v6_only: Map,
    lost: Map,
    events: Map,
}

impl ListenerMaps {
    pub(super) fn take(maps: &mut Maps) -> Self {
        Self {
            counted: maps.take("APP_LISTENERS"),
            seeded: maps.take("SEEDED_LISTENERS"),
            v6_only: maps.take("V6_ONLY"),
            lost: maps.take("LISTENERS_LOST"),
            events: maps.take("LISTENING"),
        }
    }
}

impl ListenerWatch {
    pub(super) fn new(
        maps: ListenerMaps,
        capacity: usize,
        pod_cgroup: &Path,
        proxy_cgroup: u64,
    ) -> Result<Self, Error> {
        let ListenerMaps { counted, seeded, v6_only, lost, events } = maps;
        Ok(Self {
            v6_only: V6Only::open(v6_only)?,
            lost: lost.try_into().map_err(map_error("LISTENERS_LOST", "opened"))?,
            warned: false,
            device_bound: HashSet::new(),
            capacity,
            events: events.try_into().map_err(map_error("LISTENING", "opened"))?,
            sockets: Netlink::open(NETLINK_SOCK_DIAG).map_err(unreadable)?,
            pod_cgroup: pod_cgroup.to_owned(),
            proxy_cgroup,
            counted: counted.try_into().map_err(map_error("APP_LISTENERS", "opened"))?,
            seeded: seeded.try_into().map_err(map_error("SEEDED_LISTENERS", "opened"))?,
            doubtful: HashSet::new(),
            unsettled: true,
            next: Instant::now() + COMPARE_EVERY,
            rest: Instant::now(),
        })
    }

    /// Becomes readable when a socket begins to listen at `::` or on a device. None while it rests.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: `self` holds the ring buffer, which keeps the descriptor open.
        (self.rest <= Instant::now()).then(|| unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) })
    }

    /// When it compares.
    pub fn due(&self) -> Instant {
        self.next
    }

    /// When it listens again, if it does not.
    pub fn rests_until(&self) -> Option<Instant> {
        (self.rest > Instant::now()).then_some(self.rest)
    }

    /// Compares from time to time, and at once when a socket begins to listen at `::`: `spoke` says that the descriptor was
    /// readable. Returns whether [`ListenerWatch::device_bound`] may have changed.
    pub fn turn(&mut self, spoke: bool) -> bool {
        let started = Instant::now();
        if self.rest > started || !spoke && self.next > started {
            return false;
        }
        while self.events.next().is_some() {}
        if let Err(error) = self.compare() {
            tracing::warn!(%error, "listening sockets could not be compared with the kernel's table; trying again");
        }
        let ended = Instant::now();
        self.next = ended + if self.unsettled { COMPARE_EVERY } else { COMPARE_SELDOM };
        self.rest = ended + (ended - started) * 4;
        true
    }

    /// Ports on which the application listens on a certain device (`SO_BINDTODEVICE`): what comes from a loopback address
    /// never reaches such a socket.
    pub fn device_bound(&self) -> &HashSet<u16> {
        &self.device_bound
    }

    /// Seeds what sockops has not counted, forgets what is gone.
    pub(super) fn compare(&mut self) -> Result<(), Error> {
        self.unsettled = true;
        let v6_only = self.v6_only.noted();
        let table = self.listening().map_err(unreadable)?;
        self.v6_only.compare(&v6_only, &table);
        let device_bound = table.iter().filter(|(_, how)| how.device_bound);
        self.device_bound = device_bound.map(|(at, _)| at.port.host()).collect();
        let listening: HashSet<Endpoint> = table.into_keys().collect();
        let (counted, idle) = self.counted()?;
        let seeded = keys(&self.seeded, "SEEDED_LISTENERS")?;
        for at in listening.difference(&counted).filter(|at| !seeded.contains(at)) {
            if self.seeded.insert(at, 1, 0).is_err() {
                self.lost.set(0, 1, 0).map_err(map_error("LISTENERS_LOST", "written"))?;
                break;
            }
        }
        self.warn_if_lost();
        for at in seeded.iter().filter(|at| !listening.contains(at) || counted.contains(at)) {
            let _ = self.seeded.remove(at);
        }
        // What sockops counted but the table has not is gone if it is missed twice. Addresses that nobody listens on any
        // more are deleted only when room gets short, for one of them may be listened on again at any moment.
        let crowded = (counted.len() + idle.len()) * 2 > self.capacity;
        let missing: HashSet<_> =
            counted.difference(&listening).copied().chain(idle.into_iter().filter(|_| crowded)).collect();
        let gone: Vec<_> = missing.intersection(&self.doubtful).copied().collect();
        self.doubtful = missing;
        self.delete(&gone)?;
        self.unsettled = self.warned || !self.doubtful.is_empty() || !listening.is_subset(&counted);
        Ok(())
    }

    /// Deletes entries, then looks whether somebody has begun to listen there in the meantime.
    fn delete(&mut self, gone: &[Endpoint]) -> Result<(), Error> {
        if gone.is_empty() {
            return Ok(());
        }
        for at in gone {
            let _ = self.counted.remove(at);
        }
        let table = self.listening().map_err(unreadable)?;
        for at in gone.iter().filter(|at| table.contains_key(at)) {
            self.seeded.insert(at, 1, 0).map_err(map_error("SEEDED_LISTENERS", "written"))?;
        }
        Ok(())
    }

    /// Where sockops counted sockets, and where it counted them back to none.
    fn counted(&self) -> Result<(HashSet<Endpoint>, HashSet<Endpoint>), Error> {
        let (mut counted, mut idle) = (HashSet::new(), HashSet::new());
        for entry in self.counted.iter() {
            let (at, sockets) = entry.map_err(map_error("APP_LISTENERS", "read"))?;
            if sockets == 0 {
                idle.insert(at)
            } else {
                counted.insert(at)
            };
        }
        Ok((counted, idle))
    }

    fn warn_if_lost(&mut self) {
        if !self.warned && self.lost.get(&0, 0).is_ok_and(|lost| lost != 0) {
            self.warned = true;
            tracing::error!(
                "the application listens on more sockets than capture.maps.listeners has room for: with on_failure open \
                 clients of the others go direct, with closed every port counts as listened on; raise it and restart"
            );
        }
    }

    /// Where tasks of the pod's cgroup listen in this network namespace.
    fn listening(&self) -> io::Result<Table> {
        let mut cgroups = pod::descendants(&self.pod_cgroup)?;
        cgroups.remove(&self.proxy_cgroup);
        let mut found = Table::new();
        for socket in socket_table::read(&self.sockets, StateFlags::LISTEN)? {
            if cgroup_of(&socket).is_none_or(|cgroup| cgroups.contains(&cgroup)) {
                let how = found.entry(endpoint(&socket)).or_insert(How { v6_only: true, device_bound: false });
                how.v6_only &= is_v6_only(&socket);
                how.device_bound |= socket.header.socket_id.interface_id != 0;
            }
        }
        Ok(found)
    }
}

/// Where sockets listen, and how.
pub(super) type Table = std::collections::HashMap<Endpoint, How>;

/// How the sockets that share an address listen.
#[derive(Clone, Copy)]
pub(super) struct How {
    /// All of them for IPv6 alone.
    pub(super) v6_only: bool,
    /// One of them on a certain device.
    device_bound: bool,
}

fn is_v6_only(socket: &InetResponse) -> bool {
    socket.nlas.iter().any(|attribute| matches!(attribute, Nla::SkV6Only(true)))
}

fn keys<K: aya::Pod + Eq + Hash, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<HashSet<K>, Error> {
    map.keys().collect::<Result<_, _>>().map_err(map_error(name, "read"))
}

pub(super) fn unreadable(source: io::Error) -> Error {
    Error::Netlink { request: "dump sockets (is the kernel module inet_diag/tcp_diag there?)", source }
}

/// The cgroup in which a socket was made; `None` where the kernel does not tell (before 5.9).
pub(super) fn cgroup_of(socket: &InetResponse) -> Option<u64> {
    /// `INET_DIAG_CGROUP_ID` (linux/inet_diag.h).
    const CGROUP_ID: u16 = 21;
    socket.nlas.iter().find_map(|attribute| match attribute {
        Nla::Other(attribute) if attribute.kind() == CGROUP_ID => {
            let mut value = [0; 8];
            (attribute.value_len() == value.len()).then(|| attribute.emit_value(&mut value))?;
            Some(u64::from_ne_bytes(value))
        }
        _ => None,
    })
}

fn endpoint(socket: &InetResponse) -> Endpoint {
    let id = &socket.header.socket_id;
    // An IPv6 socket bound to `::ffff:0.0.0.0` listens as an IPv4 one; `::` stays `::`.
    let address = match id.source_address {
        IpAddr::V6(v6) => Ip::from_octets(v6.octets()),
        v4 => ip(v4),
    };
    Endpoint::new(address, PortBe::from_host(id.source_port))
}
