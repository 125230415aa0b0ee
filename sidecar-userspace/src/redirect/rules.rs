//! Tells the kernel side the rules of the configuration.

use std::{collections::HashSet, net::IpAddr};

use aya::maps::{Array, HashMap, LpmTrie, MapData, lpm_trie::Key};
use sidecar_common::{
    addr::{Ip, PortBe},
    rules::{CAPTURE_INBOUND, CAPTURE_OUTBOUND, CaptureRules, FAIL_CLOSED, STRICT_INBOUND, STRICT_OUTBOUND, port_role},
};

use super::{capture::map_error, error::Error, maps::Maps};
use crate::config::{Cidr, Config, OnFailure};

/// An address as the kernel side holds it.
pub(super) fn ip(address: IpAddr) -> Ip {
    match address {
        IpAddr::V4(v4) => Ip::from_v4(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => Ip::from_octets(v6.octets()),
    }
}

/// A network as the key of a trie of 16-byte addresses.
pub(super) fn trie_key(network: IpAddr, prefix: u8) -> Key<Ip> {
    /// Bits that an IPv4-mapped address has before the IPv4 address.
    const MAPPED: u32 = 96;
    let before = if network.is_ipv4() { MAPPED } else { 0 };
    Key::new(before + u32::from(prefix), ip(network))
}

/// Writes everything that does not change while the sidecar runs, in the place of what others wrote. `RULES` comes last: without it
/// every program passes.
pub(super) fn write(maps: &mut Maps, netns: u64, proxy_cgroup: u64, config: &Config) -> Result<(), Error> {
    let capture = &config.capture;
    write_ports(maps, config)?;
    write_excluded_cidrs(maps, &capture.outbound.exclude_cidrs)?;
    let rules = CaptureRules {
        netns,
        proxy_cgroup,
        heartbeat_max_age: u64::try_from(capture.heartbeat_max_age.as_nanos()).unwrap_or(u64::MAX),
        flags: flags(config),
        outbound_port: PortBe::from_host(capture.outbound.port),
        _pad: 0,
    };
    let mut map: Array<&mut MapData, CaptureRules> = maps.get("RULES")?;
    map.set(0, rules, 0).map_err(map_error("RULES", "written"))
}

/// Has every program pass everything, until rules are written again.
pub(super) fn lift(map: &mut Array<MapData, CaptureRules>) -> Result<(), Error> {
    map.set(0, CaptureRules::default(), 0).map_err(map_error("RULES", "written"))
}

/// What is strict for one connection is strict for the kernel side: it does not know the modes of ports and networks.
fn flags(Config { capture, mtls, .. }: &Config) -> u32 {
    let flags = [
        (CAPTURE_OUTBOUND, capture.outbound.enabled),
        (CAPTURE_INBOUND, capture.inbound.enabled),
        (FAIL_CLOSED, capture.on_failure == OnFailure::Closed),
        (STRICT_OUTBOUND, capture.outbound.enabled && mtls.outbound.any_strict()),
        (STRICT_INBOUND, capture.inbound.enabled && mtls.inbound.any_strict()),
    ];
    flags.into_iter().filter(|(_, set)| *set).fold(0, |flags, (flag, _)| flags | flag)
}

fn write_ports(maps: &mut Maps, config: &Config) -> Result<(), Error> {
    let Config { capture, telemetry, .. } = config;
    let own_private = [capture.outbound.port, capture.inbound.port, telemetry.admin.port()];
    let own_public: Vec<u16> =
        [telemetry.metrics.port(), telemetry.health.port()].into_iter().chain(config.tunnel_port()).collect();
    let mut roles = std::collections::HashMap::<u16, u32>::new();
    for (ports, role) in [
        (own_private.as_slice(), port_role::OWN_PRIVATE),
        (&own_public, port_role::OWN_PUBLIC),
        (&capture.outbound.exclude_ports, port_role::EXCLUDED_OUTBOUND),
        (&capture.inbound.exclude_ports, port_role::EXCLUDED_INBOUND),
    ] {
        for port in ports {
            *roles.entry(*port).or_default() |= role;
        }
    }
    let mut map: HashMap<&mut MapData, PortBe, u32> = maps.get("PORTS")?;
    let before: Vec<PortBe> = map.keys().collect::<Result<_, _>>().map_err(map_error("PORTS", "read"))?;
    for port in before.iter().filter(|port| !roles.contains_key(&port.host())) {
        map.remove(port).map_err(map_error("PORTS", "written"))?;
    }
    for (port, roles) in roles {
        map.insert(PortBe::from_host(port), roles, 0).map_err(map_error("PORTS", "written"))?;
    }
    Ok(())
}

fn write_excluded_cidrs(maps: &mut Maps, cidrs: &[Cidr]) -> Result<(), Error> {
    const MAP: &str = "EXCLUDED_CIDRS";
    let mut map: LpmTrie<&mut MapData, Ip, u32> = maps.get(MAP)?;
    let wanted: Vec<Key<Ip>> = cidrs.iter().map(|cidr| trie_key(cidr.network, cidr.prefix)).collect();
    let before: Vec<Key<Ip>> = map.keys().collect::<Result<_, _>>().map_err(map_error(MAP, "read"))?;
    for key in others(before, &wanted) {
        map.remove(&key).map_err(map_error(MAP, "written"))?;
    }
    for key in wanted {
        map.insert(&key, 1, 0).map_err(map_error(MAP, "written"))?;
    }
    Ok(())
}

/// Those that are not wanted.
pub(super) fn others(found: Vec<Key<Ip>>, wanted: &[Key<Ip>]) -> Vec<Key<Ip>> {
    let plain = |key: &Key<Ip>| (key.prefix_len(), key.data());
    let wanted: HashSet<_> = wanted.iter().map(plain).collect();
    found.into_iter().filter(|key| !wanted.contains(&plain(key))).collect()
}
