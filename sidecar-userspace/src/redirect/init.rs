//! `sidecar init`: everything is loaded, attached and pinned for the sidecars that come, and the process ends.

use std::{
    io,
    net::{Ipv6Addr, TcpListener},
    path::PathBuf,
};

use super::{
    addresses::AddressWatch,
    attach::{Attaching, require_alone},
    capabilities::missing_capabilities,
    error::Error,
    listeners::{ListenerMaps, ListenerWatch},
    pins::Pins,
    programs::{LOOKUP_PROGRAM, POD_PROGRAMS, Programs},
    rules,
};
use crate::{config::Config, lifecycle::predecessor, net, pod::Pod};

/// No task is in it: there is no proxy yet.
const NO_CGROUP: u64 = 0;

/// What has been done. A process that dies after one of these leaves what the next one repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Step {
    /// Maps and programs are there.
    Load,
    /// The rules are written.
    Rules,
    /// The programs of the pod's cgroup are attached, that of its network namespace is not.
    Half,
    /// Everything is attached and pinned.
    Attach,
    /// The store says that it is complete.
    Mark,
    /// What was there before is gone, and the new store not yet in its place.
    Clear,
}

/// What `sidecar init` has made.
#[derive(Debug)]
pub struct Pinned {
    /// Where.
    pub directory: PathBuf,
    /// The programs were there already, and have got the rules of this configuration.
    pub kept: bool,
}

/// Loads, attaches and pins, or brings up to date what is there and fits. From then on connections follow `on_failure`, until a
/// sidecar serves.
///
/// # Errors
/// Capabilities or bpffs are missing, a sidecar runs already, the kernel refuses: then all is as it was. After a `stop_after`, that it
/// stopped, and what it had made stays.
pub fn init(pod: &Pod, config: &Config, stop_after: Option<Step>) -> Result<Pinned, Error> {
    let missing = missing_capabilities();
    if !missing.is_empty() {
        return Err(Error::Capabilities(missing));
    }
    Pins::require_bpffs()?;
    let pins = Pins::of(pod);
    // Held to the end: nobody else may work at it, and no sidecar begin.
    let found = pins.found()?;
    let _ports = take_ports(config)?;
    let (mut programs, _before) = match found {
        Some(store) => Programs::again(store, pod, config)?,
        None => (Programs::load_all(config, Some(pins.first()?))?, None),
    };
    let kept = programs.ebpf.is_none();
    programs.marker.by_init = true;
    let Some(store) = programs.store.take() else { return Err(Error::NoBpffs) };
    let done = |step| match stop_after == Some(step) {
        true => {
            store.keep();
            Err(Error::Stopped { step })
        }
        false => Ok(()),
    };
    done(Step::Load)?;

    require_alone(pod, Some(&store))?;
    AddressWatch::start(programs.maps.take("OWN_ADDRESSES"), programs.maps.take("SOURCES"))?;
    rules::write(&mut programs.maps, pod.netns_cookie(), NO_CGROUP, config)?;
    done(Step::Rules)?;

    let attaching = Attaching { code: &programs.code, store: Some(&store), pod, refused: None };
    attaching.to_pod_cgroup(&POD_PROGRAMS)?;
    done(Step::Half)?;
    let (listeners, room) = (ListenerMaps::take(&mut programs.maps), config.capture.maps.listeners as usize);
    ListenerWatch::new(listeners, room, pod.cgroup_path(), pod.own_cgroup_id())?.compare()?;
    attaching.to_netns(&[LOOKUP_PROGRAM])?;
    done(Step::Attach)?;

    store.complete(&programs.marker)?;
    done(Step::Mark)?;
    if !kept {
        pins.clear_place(&store)?;
        done(Step::Clear)?;
    }
    pins.settle(&store)?;
    store.keep();
    Ok(Pinned { directory: store.shown(), kept })
}

/// Takes the ports of the sidecar that is to come: that of one which runs is taken, also where its programs are not to be known by
/// name ([`require_alone`]). What else is amiss with a port the sidecar will say.
fn take_ports(config: &Config) -> Result<Vec<TcpListener>, Error> {
    let ports = [
        ("capture.outbound.port", config.capture.outbound.port),
        ("capture.inbound.port", config.capture.inbound.port),
    ];
    let take = |(key, port)| match net::listen((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Some(Err(Error::PortTaken { key, port })),
        taken => taken.ok().map(Ok),
    };
    predecessor::given_time(
        || ports.into_iter().filter_map(take).collect(),
        |error| matches!(error, Error::PortTaken { .. }),
    )
}
