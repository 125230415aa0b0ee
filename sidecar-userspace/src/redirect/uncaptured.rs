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
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::ifaddrs::getifaddrs;

use super::{
    error::Error,
    listeners::{cgroup_of, socket_table},
    netlink::Netlink,
};
use crate::pod;

/// Time between two readings of the socket table.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A reading may take this part of a core: a node with very many sockets is read less often.
const SHARE: u32 = 100;

/// Why nothing of ours runs for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its socket was made by a process outside the pod's cgroup, in the pod's network namespace.
    OtherCgroup,
    /// It was open when the capture began.
    Older,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::OtherCgroup, Self::Older];

    /// Label `origin` of the metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::OtherCgroup => "other_cgroup",
            Self::Older => "older",
        }
    }
}

/// How many connections run past the sidecar. Clones share the figures.
#[derive(Clone, Default)]
pub struct Uncaptured(Arc<[Figures; Origin::ALL.len()]>);

#[derive(Default)]
struct Figures {
    open: AtomicU64,
    seen: AtomicU64,
}

impl Uncaptured {
    /// Open at the last reading.
    pub fn open(&self, origin: Origin) -> u64 {
        self.0[origin as usize].open.load(Relaxed)
    }

    /// Seen since the capture began, each once.
    pub fn seen(&self, origin: Origin) -> u64 {
        self.0[origin as usize].seen.load(Relaxed)
    }

    fn set(&self, origin: Origin, open: usize, more: usize) {
        let figures = &self.0[origin as usize];
        figures.open.store(open as u64, Relaxed);
        figures.seen.fetch_add(more as u64, Relaxed);
    }
}

/// Reads the kernel's socket table from time to time.
pub struct UncapturedWatch {
    sockets: Netlink,
    pod_cgroup: PathBuf,
    proxy_cgroup: u64,
    /// By the kernel's cookie, which no other socket ever gets.
    older: HashSet<Cookie>,
    foreign: HashSet<Cookie>,
    warned: bool,
    figures: Uncaptured,
}

type Cookie = [u8; 8];

impl UncapturedWatch {
    /// Takes what the pod has open now for older than the capture: called when the programs have just been attached.
    pub(super) fn start(pod_cgroup: &Path, proxy_cgroup: u64) -> Result<Self, Error> {
        let mut watch = Self {
            sockets: Netlink::open(NETLINK_SOCK_DIAG).map_err(socket_table)?,
            pod_cgroup: pod_cgroup.to_owned(),
            proxy_cgroup,
            older: HashSet::new(),
            foreign: HashSet::new(),
            warned: false,
            figures: Uncaptured::default(),
        };
        let found = watch.read().map_err(socket_table)?;
        watch.older = found.in_pod;
        watch.figures.set(Origin::Older, watch.older.len(), watch.older.len());
        watch.note_foreign(found.foreign);
        Ok(watch)
    }

    /// The figures that it keeps.
    pub fn figures(&self) -> Uncaptured {
        self.figures.clone()
    }

    /// Reads for ever. A failure is told once, and tried again.
    pub async fn follow(mut self) {
        let (mut failed, mut pause) = (false, LOOK_EVERY);
        loop {
            tokio::time::sleep(pause).await;
            let started = Instant::now();
            match self.look() {
                Ok(()) => failed = false,
                Err(error) if !failed => {
                    failed = true;
                    tracing::warn!(%error, "connections past the sidecar could not be counted; trying again");
                }
                Err(_) => {}
            }
            pause = LOOK_EVERY.max(started.elapsed() * SHARE);
        }
    }

    fn look(&mut self) -> io::Result<()> {
        let found = self.read()?;
        self.older.retain(|cookie| found.in_pod.contains(cookie));
        self.figures.set(Origin::Older, self.older.len(), 0);
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
        self.figures.set(Origin::OtherCgroup, now.len(), more);
        self.foreign = now;
    }

    /// The connections of this network namespace that lead out of it, but for the proxy's own.
    fn read(&self) -> io::Result<Found> {
        let cgroups = pod::descendants(&self.pod_cgroup)?;
        let own = own_addresses()?;
        let mut found = Found::default();
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let request = InetRequest {
                family,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::empty(),
                // What can still carry bytes in both directions, or is about to.
                states: StateFlags::SYN_SENT | StateFlags::ESTABLISHED | StateFlags::CLOSE_WAIT,
                socket_id,
            };
            for answer in self.sockets.dump(SockDiagMessage::InetRequest(request))? {
                let SockDiagMessage::InetResponse(socket) = answer else { continue };
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
                    Some(_) => found.foreign.push(*socket),
                }
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
