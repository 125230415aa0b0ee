//! The pod's own addresses, and which of them the kernel chooses for which destination: told to the kernel side and kept
//! current by the kernel's notifications.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use aya::maps::{HashMap, LpmTrie, Map, MapData};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use sidecar_common::{addr::Ip, rules::Source};

use super::{
    capture::map_error,
    error::Error,
    netlink::Netlink,
    rules::{ip, others, trie_key},
};

/// A network: address and prefix length.
type Network = (IpAddr, u8);

/// Keeps `OWN_ADDRESSES` and `SOURCES` equal to the kernel's tables.
pub struct AddressWatch {
    requests: Netlink,
    notifications: Notifications,
    own_map: HashMap<MapData, Ip, u32>,
    sources_map: LpmTrie<MapData, Ip, Source>,
    own: BTreeMap<IpAddr, u32>,
    sources: BTreeMap<Network, IpAddr>,
    /// When the tables are read again.
    due: Option<Instant>,
}

/// Changes come in bursts (an address brings routes with it): one reading serves them all.
const SETTLE: Duration = Duration::from_millis(5);
/// After a failure.
const TRY_AGAIN: Duration = Duration::from_secs(1);

impl AddressWatch {
    /// Subscribes to changes, then reads the tables, so that no change falls between.
    pub(super) fn start(own_map: Map, sources_map: Map) -> Result<Self, Error> {
        let mut watch = Self {
            notifications: Notifications::subscribe().map_err(netlink("subscribe to addresses and routes"))?,
            requests: Netlink::open(NETLINK_ROUTE).map_err(netlink("open"))?,
            own_map: own_map.try_into().map_err(map_error("OWN_ADDRESSES", "opened"))?,
            sources_map: sources_map.try_into().map_err(map_error("SOURCES", "opened"))?,
            own: BTreeMap::new(),
            sources: BTreeMap::new(),
            due: None,
        };
        watch.refresh()?;
        watch.forget_what_others_wrote()?;
        Ok(watch)
    }

    /// The maps may be those of a predecessor, which knew addresses and routes that are gone.
    fn forget_what_others_wrote(&mut self) -> Result<(), Error> {
        let wanted: HashSet<Ip> = self.own.keys().map(|address| ip(*address)).collect();
        let found: Vec<Ip> =
            self.own_map.keys().collect::<Result<_, _>>().map_err(map_error("OWN_ADDRESSES", "read"))?;
        for address in found.iter().filter(|address| !wanted.contains(address)) {
            let _ = self.own_map.remove(address);
        }
        let wanted: Vec<_> = self.sources.keys().map(|(network, prefix)| trie_key(*network, *prefix)).collect();
        let found = self.sources_map.keys().collect::<Result<_, _>>().map_err(map_error("SOURCES", "read"))?;
        for network in others(found, &wanted) {
            let _ = self.sources_map.remove(&network);
        }
        Ok(())
    }

    /// The pod's addresses, loopback not among them.
    pub fn own(&self) -> impl Iterator<Item = IpAddr> {
        self.own.keys().copied().filter(|address| !address.is_loopback())
    }

    /// Becomes readable when something changed. None while it is known already that something did.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.due.is_none().then(|| self.notifications.0.as_fd())
    }

    /// When [`AddressWatch::turn`] has something to do without a change.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Does what is due. `changed`: the descriptor was readable. Returns how it went if the tables were read; after a failure
    /// they will be read again.
    pub fn turn(&mut self, changed: bool) -> Option<Result<(), Error>> {
        if changed {
            self.due.get_or_insert_with(|| Instant::now() + SETTLE);
        }
        if self.due.is_none_or(|due| due > Instant::now()) {
            return None;
        }
        self.notifications.drain();
        let refreshed = self.refresh();
        self.due = refreshed.is_err().then(|| Instant::now() + TRY_AGAIN);
        Some(refreshed)
    }

    fn refresh(&mut self) -> Result<(), Error> {
        // Addresses first: reading the routes asks one question for each.
        self.refresh_own()?;
        self.refresh_sources()
    }

    fn refresh_own(&mut self) -> Result<(), Error> {
        let own = self.read_own().map_err(netlink("dump addresses"))?;
        for (address, device) in &own {
            if self.own.get(address) != Some(device) {
                self.own_map.insert(ip(*address), *device, 0).map_err(map_error("OWN_ADDRESSES", "written"))?;
            }
        }
        for address in self.own.keys().filter(|address| !own.contains_key(address)) {
            let _ = self.own_map.remove(&ip(*address));
        }
        self.own = own;
        Ok(())
    }

    fn refresh_sources(&mut self) -> Result<(), Error> {
        let sources = self.read_sources().map_err(netlink("dump routes"))?;
        for network in self.sources.keys().filter(|network| !sources.contains_key(network)) {
            let _ = self.sources_map.remove(&trie_key(network.0, network.1));
        }
        for (network, source) in &sources {
            if self.sources.get(network) != Some(source) {
                self.sources_map
                    .insert(&trie_key(network.0, network.1), Source { ip: ip(*source) }, 0)
                    .map_err(map_error("SOURCES", "written"))?;
            }
        }
        self.sources = sources;
        Ok(())
    }

    fn read_own(&self) -> io::Result<BTreeMap<IpAddr, u32>> {
        let answers = self.requests.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(answers.into_iter().filter_map(own_address).collect())
    }

    fn read_sources(&self) -> io::Result<BTreeMap<Network, IpAddr>> {
        let mut sources = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let answers = match self.requests.dump(RouteNetlinkMessage::GetRoute(request)) {
                Ok(answers) => answers,
                // A kernel without IPv6 has no such table.
                Err(error) if family == AddressFamily::Inet6 && error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (network, usable) in answers.into_iter().filter_map(route) {
                // An unspecified source says that the kernel refuses the network, whatever a wider route allows.
                let source = if usable { self.source_towards(network) } else { None };
                sources.entry(network).or_insert(source.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
            }
        }
        Ok(sources)
    }

    /// Asks the kernel which address it would choose towards a network; `None`: it would refuse.
    fn source_towards(&self, network: Network) -> Option<IpAddr> {
        let towards = representative(network);
        let mut request = RouteMessage::default();
        request.header.address_family = if towards.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        request.header.destination_prefix_length = if towards.is_ipv4() { 32 } else { 128 };
        request.attributes.push(RouteAttribute::Destination(route_address(towards)));
        let answers = self.requests.get(RouteNetlinkMessage::GetRoute(request)).ok()?;
        answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => {
                route.attributes.into_iter().find_map(|attribute| match attribute {
                    RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => Some(IpAddr::V4(v4)),
                    RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(v6)),
                    _ => None,
                })
            }
            _ => None,
        })
    }
}

fn netlink(request: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Netlink { request, source }
}

fn own_address(message: RouteNetlinkMessage) -> Option<(IpAddr, u32)> {
    let RouteNetlinkMessage::NewAddress(address) = message else { return None };
    // IFA_LOCAL is the own end of a point-to-point address; IPv6 has IFA_ADDRESS alone.
    let local = address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(local) => Some(*local),
        _ => None,
    });
    let own = local.or_else(|| {
        address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(own) => Some(*own),
            _ => None,
        })
    })?;
    Some((own, address.header.index))
}

/// The network of a route, and whether connections can go there; the pod's own addresses (table `local`) are known
/// otherwise.
fn route(message: RouteNetlinkMessage) -> Option<(Network, bool)> {
    /// `RT_TABLE_LOCAL`.
    const LOCAL: u8 = 255;
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    let RouteHeader { kind, table, destination_prefix_length, address_family, .. } = route.header;
    let usable = match kind {
        RouteType::Unicast => true,
        RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole => false,
        _ => return None,
    };
    if table == LOCAL {
        return None;
    }
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let everything = match address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let destination = destination.unwrap_or(everything);
    let link_local_or_multicast =
        matches!(destination, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast());
    (!link_local_or_multicast).then_some(((destination, destination_prefix_length), usable))
}

/// An address that stands for a whole network in a question to the kernel: its first one that may be a host; for a
/// default route an address of the networks for documentation (RFC 5737, RFC 3849), which no other route covers.
fn representative((network, prefix): Network) -> IpAddr {
    match network {
        IpAddr::V4(_) if prefix == 0 => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) if prefix == 0 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        IpAddr::V4(v4) if prefix < 31 => Ipv4Addr::from_bits(v4.to_bits() | 1).into(),
        IpAddr::V6(v6) if prefix < 127 => Ipv6Addr::from_bits(v6.to_bits() | 1).into(),
        host => host,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

/// A netlink socket that tells when an address or a route changed. What changed is read anew.
struct Notifications(Socket);

impl Notifications {
    fn subscribe() -> io::Result<Self> {
        /// `RTNLGRP_LINK`, then addresses, routes and rules of IPv4 (5, 7, 8) and of IPv6 (9, 11, 19) (linux/rtnetlink.h).
        const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Forgets what has arrived. An overflow (`ENOBUFS`) is but another sign that something changed.
    fn drain(&self) {
        loop {
            match self.0.recv_from_full() {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}
