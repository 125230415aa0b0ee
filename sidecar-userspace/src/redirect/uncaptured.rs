//! Connections that run past the sidecar although nothing let them: no hook of ours ran for them, so nothing in the kernel
//! counts them.
//!
//! A socket belongs to the cgroup of the process that made it, wherever it is passed to. The programs of the pod's cgroup do
//! not run for one that was made outside, not even in the pod's network namespace and by the pod's own tasks. What would see
//! it is a program on every device of the namespace, at the price of a run for every packet; the kernel's socket table shows
//! the same for one reading in seconds. Connections that come and go between two readings stay unseen.

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use netlink_packet_sock_diag::inet::{InetResponse, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::ifaddrs::getifaddrs;

use super::{
    changes::Changes,
    error::Error,
    listeners::{cgroup_of, unreadable},
    netlink::Netlink,
    socket_table,
};
use crate::pod;

/// Time between two readings of the socket table.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// No less often than this.
const LOOK_SELDOM: Duration = Duration::from_secs(10);
/// A reading may take this part of a core: the table is that of all pods of the node, so one with many of them, or with very many
/// sockets, is read less often.
const SHARE: u32 = 4000;

/// How many connections run past the sidecar, for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Open at the last reading.
    pub open: u64,
    /// Seen since the capture began, each once.
    pub seen: u64,
}

impl Figures {
    fn set(&mut self, open: usize, more: usize) {
        self.open = open as u64;
        self.seen += more as u64;
    }
}

/// How many connections run past the sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uncaptured {
    /// Their sockets were made by processes outside the pod's cgroup, in the pod's network namespace.
    pub other_cgroup: Figures,
    /// They were open when the capture began.
    pub older: Figures,
}

/// Reads the kernel's socket table from time to time.
pub struct UncapturedWatch {
    sockets: Netlink,
    changes: Changes,
    pod_cgroup: PathBuf,
    proxy_cgroup: u64,
    /// By the kernel's cookie, which no other socket ever gets.
    older: HashSet<Cookie>,
    foreign: HashSet<Cookie>,
    warned: bool,
    figures: Uncaptured,
    failed: bool,
    due: Instant,
}

type Cookie = [u8; 8];

impl UncapturedWatch {
    /// Takes what the pod has open now for older than the capture: called when the programs have just been attached.
    pub(super) fn start(pod_cgroup: &Path, proxy_cgroup: u64) -> Result<Self, Error> {
        let mut watch = Self {
            sockets: Netlink::open(NETLINK_SOCK_DIAG).map_err(unreadable)?,
            changes: Changes::here(),
            pod_cgroup: pod_cgroup.to_owned(),
            proxy_cgroup,
            older: HashSet::new(),
            foreign: HashSet::new(),
            warned: false,
            figures: Uncaptured::default(),
            failed: false,
            due: Instant::now() + LOOK_EVERY,
        };
        let found = watch.read().map_err(unreadable)?;
        watch.older = found.in_pod;
        watch.figures.older.set(watch.older.len(), watch.older.len());
        watch.note_foreign(found.foreign);
        Ok(watch)
    }

    /// The figures that it keeps.
    pub fn figures(&self) -> Uncaptured {
        self.figures
    }

    /// When it reads next.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Reads if that is due and something has changed, and returns whether it has. A failure is told once, and tried again.
    pub fn turn(&mut self) -> bool {
        let started = Instant::now();
        if self.due > started {
            return false;
        }
        if !self.changes.any() && !self.failed {
            self.due = started + LOOK_EVERY;
            return false;
        }
        match self.look() {
            Ok(()) => self.failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(%error, "connections past the sidecar could not be counted; trying again");
                }
            }
        }
        self.due = Instant::now() + LOOK_EVERY.max((started.elapsed() * SHARE).min(LOOK_SELDOM));
        true
    }

    fn look(&mut self) -> io::Result<()> {
        let found = self.read()?;
        self.older.retain(|cookie| found.in_pod.contains(cookie));
        self.figures.older.set(self.older.len(), 0);
        self.note_foreign(found.foreign);
        Ok(())
    }

    fn note_foreign(&mut self, sockets: Vec<InetResponse>) {
        if let Some(first) = sockets.first().filter(|_| !self.warned) {
            self.warned = true;
            let id = &first.header.socket_id;
            tracing::warn!(
                peer = %std::net::SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
                local_port = id.source_port,
                cgroup = cgroup_of(first),
                "a connection of the pod's network namespace runs past the sidecar: its socket was made outside the pod's \
                 cgroup; sidecar_uncaptured_connections counts on"
            );
        }
        let now: HashSet<Cookie> = sockets.iter().map(|socket| socket.header.socket_id.cookie).collect();
        let more = now.difference(&self.foreign).count();
        self.figures.other_cgroup.set(now.len(), more);
        self.foreign = now;
    }

    /// The connections of this network namespace that lead out of it, but for the proxy's own.
    fn read(&self) -> io::Result<Found> {
        let cgroups = pod::descendants(&self.pod_cgroup)?;
        let own = own_addresses()?;
        let mut found = Found::default();
        // What can still carry bytes in both directions, or is about to.
        let states = StateFlags::SYN_SENT | StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT;
        for socket in socket_table::read(&self.sockets, states)? {
            let peer = socket.header.socket_id.destination_address.to_canonical();
            if peer.is_loopback() || own.contains(&peer) {
                continue;
            }
            match cgroup_of(&socket) {
                None => {}
                Some(cgroup) if cgroup == self.proxy_cgroup => {}
                Some(cgroup) if cgroups.contains(&cgroup) => {
                    found.in_pod.insert(socket.header.socket_id.cookie);
                }
                Some(_) => found.foreign.push(socket),
            }
        }
        Ok(found)
    }
}

#[derive(Default)]
struct Found {
    in_pod: HashSet<Cookie>,
    foreign: Vec<InetResponse>,
}

/// The addresses of this network namespace: what a captured connection leads to is one of them or loopback.
fn own_addresses() -> io::Result<HashSet<IpAddr>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(getifaddrs()?.filter_map(address).collect())
}
