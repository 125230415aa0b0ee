//! Tells the kernel side the rules of the configuration.

use std::net::IpAddr;

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, MapData, lpm_trie::Key},
};
use sidecar_common::{
    addr::{Ip, PortBe},
    rules::{CAPTURE_INBOUND, CAPTURE_OUTBOUND, CaptureRules, FAIL_CLOSED, STRICT_INBOUND, STRICT_OUTBOUND, port_role},
};

use super::{capture::map_error, error::Error};
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

/// Writes everything that does not change while the sidecar runs. `RULES` comes last: without it every program passes.
pub(super) fn write(ebpf: &mut Ebpf, netns: u64, proxy_cgroup: u64, config: &Config) -> Result<(), Error> {
    let capture = &config.capture;
    write_ports(ebpf, config)?;
    write_excluded_cidrs(ebpf, &capture.outbound.exclude_cidrs)?;
    let rules = CaptureRules {
        netns,
        proxy_cgroup,
        heartbeat_max_age: u64::try_from(capture.heartbeat_max_age.as_nanos()).unwrap_or(u64::MAX),
        flags: flags(config),
        outbound_port: PortBe::from_host(capture.outbound.port),
        _pad: 0,
    };
    let mut map: Array<&mut MapData, CaptureRules> =
        ebpf.map_mut("RULES").expect("in the object").try_into().map_err(map_error("RULES", "opened"))?;
    map.set(0, rules, 0).map_err(map_error("RULES", "written"))
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

fn write_ports(ebpf: &mut Ebpf, config: &Config) -> Result<(), Error> {
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
    let mut map: HashMap<&mut MapData, PortBe, u32> =
        ebpf.map_mut("PORTS").expect("in the object").try_into().map_err(map_error("PORTS", "opened"))?;
    for (port, roles) in roles {
        map.insert(PortBe::from_host(port), roles, 0).map_err(map_error("PORTS", "written"))?;
    }
    Ok(())
}

fn write_excluded_cidrs(ebpf: &mut Ebpf, cidrs: &[Cidr]) -> Result<(), Error> {
    const MAP: &str = "EXCLUDED_CIDRS";
    let mut map: LpmTrie<&mut MapData, Ip, u32> =
        ebpf.map_mut(MAP).expect("in the object").try_into().map_err(map_error(MAP, "opened"))?;
    for cidr in cidrs {
        map.insert(&trie_key(cidr.network, cidr.prefix), 1, 0).map_err(map_error(MAP, "written"))?;
    }
    Ok(())
}
