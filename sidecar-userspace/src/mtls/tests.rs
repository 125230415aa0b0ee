//! Every choice, as tables.

use std::time::{Duration, SystemTime};

use super::*;
use crate::identity::{
    Identity,
    mint::{Root, workload},
};

const ID: &str = "spiffe://td/ns/shop/sa/web";
const MODES: [Mode; 3] = [Mode::Disable, Mode::Permissive, Mode::Strict];

/// What a sidecar has to show.
#[derive(Clone, Copy, Debug)]
enum Shows {
    Nothing,
    Expired,
    Good,
}

const SHOWS: [Shows; 3] = [Shows::Nothing, Shows::Expired, Shows::Good];

fn contexts(shows: Shows) -> Option<Arc<Contexts>> {
    const HOUR: Duration = Duration::from_secs(3600);
    let root = Root::new("root");
    let (mut params, now) = (workload(ID), SystemTime::now());
    let mut parts = root.parts(ID);
    let identity = match shows {
        Shows::Nothing => return None,
        Shows::Good => Identity::verify(parts, now),
        Shows::Expired => {
            // It was good when it came.
            (params.not_before, params.not_after) = ((now - 3 * HOUR).into(), (now - HOUR).into());
            let minted = root.mint(&params);
            (parts.chain, parts.key) = (minted.chain, minted.key);
            Identity::verify(parts, now - 2 * HOUR)
        }
    };
    Some(Arc::new(Contexts::new(Arc::new(identity.unwrap()), &config::Mtls::default()).unwrap()))
}

fn of(config: config::Mtls, shows: Shows) -> Mtls {
    let mtls = Mtls { config, current: Current::default() };
    mtls.current.set(contexts(shows));
    mtls
}

fn outbound(mode: Mode, workloads: Vec<Workload>) -> config::Mtls {
    config::Mtls { outbound: config::Modes { mode, ..config::Modes::default() }, workloads, ..config::Mtls::default() }
}

fn inbound(mode: Mode) -> config::Mtls {
    config::Mtls { inbound: config::Modes { mode, ..config::Modes::default() }, ..config::Mtls::default() }
}

#[test]
fn what_leaves_the_pod_is_protected_by_mode_workload_and_identity() {
    let to: SocketAddr = "10.0.0.1:80".parse().unwrap();
    let transports = [None, Some(Transport::Native), Some(Transport::Hbone), Some(Transport::Plaintext)];
    for (mode, shows) in MODES.into_iter().flat_map(|mode| SHOWS.map(|shows| (mode, shows))) {
        let unlisted = [Vec::new()].into_iter();
        let listed = transports.map(|transport| {
            vec![Workload { addresses: vec!["10.0.0.0/8".parse().unwrap()], identity: None, transport }]
        });
        for workloads in unlisted.chain(listed) {
            let transport = workloads.first().map(|workload| workload.transport);
            let mtls = of(outbound(mode, workloads), shows);
            let what = match mtls.outward(to) {
                Outward::Plaintext(reason) => reason.label(),
                Outward::Refused(reason) => reason.label(),
                Outward::Encrypted { workload, strict, .. } => {
                    assert_eq!(workload.map(|workload| workload.transport), transport, "{mode:?} {shows:?}");
                    if strict { "strict" } else { "encrypted" }
                }
            };
            let expected = match (mode, transport, shows) {
                (Mode::Disable, ..) => "disabled",
                (Mode::Permissive, Some(Some(Transport::Plaintext)), _) => "workload_plaintext",
                (Mode::Permissive, _, Shows::Good) => "encrypted",
                (Mode::Permissive, ..) => "no_identity",
                (Mode::Strict, Some(Some(Transport::Plaintext)), _) => "not_encryptable",
                (Mode::Strict, _, Shows::Good) => "strict",
                (Mode::Strict, ..) => "not_encryptable",
            };
            assert_eq!(what, expected, "{mode:?} {transport:?} {shows:?}");
        }
    }
}

#[test]
fn what_comes_into_the_pod_is_protected_by_mode_discovery_and_identity() {
    let client: SocketAddr = "10.0.0.1:4711".parse().unwrap();
    for (mode, shows) in MODES.into_iter().flat_map(|mode| SHOWS.map(|shows| (mode, shows))) {
        let mtls = of(inbound(mode), shows);
        for meshed in [false, true] {
            let what = match mtls.inward(client, 80, meshed) {
                Inward::Plaintext(reason) => reason.label(),
                Inward::Refused(reason) => reason.label(),
                Inward::Encrypted(_) => "encrypted",
                Inward::Either(_) => "either",
            };
            let expected = match (mode, meshed, shows) {
                (Mode::Disable, true, Shows::Good) | (Mode::Permissive, _, Shows::Good) => "either",
                (Mode::Disable, ..) => "disabled",
                (Mode::Permissive, ..) => "no_identity",
                (Mode::Strict, _, Shows::Good) => "encrypted",
                (Mode::Strict, ..) => "not_encryptable",
            };
            assert_eq!(what, expected, "{mode:?} meshed: {meshed} {shows:?}");
        }
    }
}

#[test]
fn a_destination_is_reached_as_it_says_and_as_it_must() {
    let both = Transports::NATIVE.union(Transports::HBONE);
    for (spoken, known, expected) in [
        (Transports::NONE, false, Way::Plaintext),
        (Transports::NONE, true, Way::Native),
        (Transports::NATIVE, false, Way::Native),
        (Transports::NATIVE, true, Way::Native),
        (Transports::HBONE, false, Way::Tunnel),
        (Transports::HBONE, true, Way::Tunnel),
        (both, false, Way::Native),
        (both, true, Way::Native),
    ] {
        assert_eq!(Way::to(spoken, known), expected, "{spoken:?} known: {known}");
    }
}

#[test]
fn others_are_told_of_what_can_be_kept() {
    let both = Transports::NATIVE.union(Transports::HBONE);
    for shows in SHOWS {
        for (hbone_port, expected) in [(None, Transports::NATIVE), (Some(15008), both)] {
            let offered = of(config::Mtls { hbone_port, ..config::Mtls::default() }, shows).offer();
            let expected = if matches!(shows, Shows::Good) { expected } else { Transports::NONE };
            assert_eq!(offered, expected, "{hbone_port:?} {shows:?}");
        }
    }
}
