//! Programs that are there already: what `sidecar init` made for every sidecar of the pod, and what a killed one left pinned.

use super::{
    attach::Code,
    capabilities::missing_capabilities,
    discovery::MESH_PROGRAM,
    error::Error,
    maps::{Maps, Rooms},
    pins::Pins,
    programs::{LOOKUP_PROGRAM, POD_PROGRAMS, PROXY_PROGRAMS, Programs, Subflows, object},
    store::{Marker, Store, fingerprint},
};
use crate::{
    config::{Acceleration, Config, OnFailure},
    pod::Pod,
};

/// The maps that a sidecar uses whose programs are there.
const USED: [&str; 14] = [
    "RULES",
    "HEARTBEAT",
    "COUNTERS",
    "PORTS",
    "EXCLUDED_CIDRS",
    "OWN_ADDRESSES",
    "SOURCES",
    "PROXY_LISTENERS",
    "APP_LISTENERS",
    "SEEDED_LISTENERS",
    "LISTENERS_LOST",
    "V6_ONLY",
    "LISTENING",
    "MIXED",
];

/// What a sidecar begins with.
enum Beginning {
    /// The programs that are there.
    Adopt(Store, Marker),
    /// Its own, in a store if others are to find them there. `by_init`: whoever comes next expects to.
    Load { by_init: bool },
}

impl Programs {
    /// What `sidecar run` attaches: the programs that are there, if they are those of `sidecar init` or if it has no right to load
    /// any; else its own.
    ///
    /// # Errors
    /// It may not load, and nothing that fits is there; the kernel refuses.
    pub fn for_run(pod: &Pod, config: &Config) -> Result<Self, Error> {
        match beginning(pod, config)? {
            Beginning::Adopt(store, marker) => {
                Pins::of(pod).remove_unsettled()?;
                tracing::info!(directory = %store.shown().display(), made_by = marker.owner, "using the programs that are there");
                Self::adopt(store, marker, config)
            }
            Beginning::Load { by_init } => {
                let pinned = by_init || config.capture.on_failure == OnFailure::Closed;
                let store = if pinned { Some(fresh(pod)?) } else { for_a_successor() };
                let mut programs = Self::load_all(config, store)?;
                programs.marker.by_init = by_init;
                Ok(programs)
            }
        }
    }

    /// What the next binary of a sidecar that runs attaches: its own, with the maps and links in the store; or the programs that are
    /// there, if it has no right to load any. `refused`: a program whose attachment is to fail.
    ///
    /// # Errors
    /// The store does not fit; the kernel refuses.
    pub fn take_over(store: Store, config: &Config, refused: Option<String>) -> Result<Self, Error> {
        // What is half made would be cleared, with the links that still refuse.
        let half_made = || Error::Unfit { path: store.shown(), why: "it is half made".to_owned() };
        let marker = store.marker()?.ok_or_else(half_made)?;
        if missing_capabilities().is_empty() {
            return Ok(Self { refused, ..Self::load_all(config, Some(store))? });
        }
        Ok(Self { refused, ..Self::adopt(store, marker, config)? })
    }

    pub(super) fn load_all(config: &Config, store: Option<Store>) -> Result<Self, Error> {
        Self::load(&config.capture, config.proxy.max_connections, config.telemetry.bpf_log, store)
    }

    /// What `sidecar init` begins with where something is there: that, if it fits; else its own, and what was there, which goes on
    /// working until the new programs run.
    pub(super) fn again(store: Store, pod: &Pod, config: &Config) -> Result<(Self, Option<Store>), Error> {
        match fits(&store, pod, config) {
            Ok(marker) if is_ours(&marker, config) => {
                Pins::of(pod).remove_unsettled()?;
                Ok((Self::adopt(store, marker, config)?, None))
            }
            Err(error) => {
                tracing::info!(%error, "replacing the programs that are there");
                Ok((Self::load_all(config, Some(Pins::of(pod).fresh()?))?, Some(store)))
            }
            Ok(_) => Ok((Self::load_all(config, Some(Pins::of(pod).fresh()?))?, Some(store))),
        }
    }

    /// Opens what is in a complete store.
    fn adopt(store: Store, mut marker: Marker, config: &Config) -> Result<Self, Error> {
        let rooms = Rooms::of(&config.capture, config.proxy.max_connections)?;
        let maps = Maps::open(&store, &USED)?;
        let mut code = Code::new();
        for (name, _) in PROXY_PROGRAMS {
            code.insert(name, store.program(name).map_err(store.error("open the programs of"))?);
        }
        let discovery = store.program(MESH_PROGRAM.0).map_err(|_| {
            format!("the program that discovers is not in {}: the kernel refused it there", store.shown().display())
        });
        let discovery = discovery.map(|mesh| drop(code.insert(MESH_PROGRAM.0, mesh)));
        let reason = || "the kernel refused the program that asks when `sidecar init` loaded it".to_owned();
        let subflows = if marker.tells_subflows { Subflows::Told } else { Subflows::TakenForTcp { reason: reason() } };
        if config.telemetry.bpf_log && marker.object != fingerprint(object(true)) {
            tracing::warn!(
                "telemetry.bpf_log: the programs that are there say nothing; it counts when `sidecar init` runs"
            );
        }
        marker.owner = std::process::id();
        let (cpus, log) = (rooms.cpus, None);
        Ok(Self {
            ebpf: None,
            maps,
            code,
            store: Some(store),
            marker,
            log,
            discovery,
            mesh_link: None,
            refused: None,
            cpus,
            subflows,
        })
    }
}

/// A store that is for the next binary of this process alone. Without one there is no upgrade in place, and nothing else is amiss:
/// whoever asks for it is told ([`Store::detached`]).
fn for_a_successor() -> Option<Store> {
    Store::detached().map(|(store, _)| store).ok()
}

fn fresh(pod: &Pod) -> Result<Store, Error> {
    Pins::require_bpffs()?;
    Pins::of(pod).fresh()
}

fn beginning(pod: &Pod, config: &Config) -> Result<Beginning, Error> {
    let may_load = missing_capabilities().is_empty();
    let found = match Pins::require_bpffs() {
        Ok(()) => match Pins::of(pod).found() {
            // What is in there is not seen, or not used; and nothing is to be put there.
            Err(Error::Foreign(foreign))
                if foreign.shared && may_load && config.capture.on_failure == OnFailure::Open =>
            {
                tracing::info!(%foreign, "what earlier sidecars pinned is left alone");
                None
            }
            found => found?,
        },
        Err(_) => None,
    };
    let Some(store) = found else { return Ok(Beginning::Load { by_init: false }) };
    let fits = fits(&store, pod, config);
    let by_init = store.is_of_init();
    match fits {
        Ok(marker) if !may_load || marker.by_init && is_ours(&marker, config) => Ok(Beginning::Adopt(store, marker)),
        Err(error) if !may_load => Err(error),
        Err(error) if by_init => {
            tracing::info!(%error, "replacing the programs that are there");
            Ok(Beginning::Load { by_init })
        }
        _ => Ok(Beginning::Load { by_init }),
    }
}

/// They were loaded from what this process would load, and nothing is asked for that needs programs of its own.
fn is_ours(marker: &Marker, config: &Config) -> bool {
    let accelerates = config.capture.acceleration != Acceleration::Off;
    marker.object == fingerprint(object(config.telemetry.bpf_log)) && !accelerates
}

/// The store is complete, of this layout, of this pod, and does for this configuration.
fn fits(store: &Store, pod: &Pod, config: &Config) -> Result<Marker, Error> {
    let unfit = |why: String| Error::Unfit { path: store.shown(), why };
    let marker = store.marker()?.ok_or_else(|| unfit("it was left half made".to_owned()))?;
    Rooms::of(&config.capture, config.proxy.max_connections)?.fit(store)?;
    let port = config.capture.inbound.port;
    if marker.inbound_port != port {
        return Err(unfit(format!("its programs know capture.inbound.port {}, not {port}", marker.inbound_port)));
    }
    let (cgroup, netns) = (pod.cgroup_id(), pod.netns_inode());
    let hooks = POD_PROGRAMS.into_iter().map(|(name, _)| (name, cgroup)).chain([(LOOKUP_PROGRAM.0, netns)]);
    for (name, target) in hooks {
        if store.link_to(name, target).is_none() {
            return Err(unfit(format!("its program `{name}` is not attached to the pod")));
        }
    }
    Ok(marker)
}
