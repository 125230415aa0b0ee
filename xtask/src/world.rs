//! Two pods on one machine, joined by a veth: what `demo` and `bench` stand on.
//!
//! A pod is a network namespace and a cgroup v2 with two children, `app` and `sidecar`. Everything here is removed when
//! it is dropped, also after an error or Ctrl-C. The network namespaces have no name: they live as long as a file
//! descriptor or a process holds them, so not even `kill -9` of xtask leaves one behind. What such a kill does leave
//! (empty cgroups, a folder of logs) is removed by the next run.

pub(crate) mod cgroup;
pub(crate) mod folder;
pub(crate) mod http;
pub(crate) mod memory;
pub(crate) mod metrics;
pub(crate) mod netns;
pub(crate) mod pod;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod sidecar;
pub(crate) mod wait;
pub(crate) mod wire;

use crate::interrupt::{self, Caught};
use anyhow::{Context, Result};
use cgroup::Cgroup;
use folder::Folder;
use pod::Pod;
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// A client pod and a server pod.
pub(crate) struct World {
    /// Where requests come from.
    pub(crate) client: Pod,
    /// Where they are answered.
    pub(crate) server: Pod,
    /// Configurations and logs of everything that runs in the pods. Dropped last: the processes write there.
    pub(crate) folder: Folder,
    // Signals end the process again only after everything above is gone.
    _caught: Caught,
}

/// The client pod's address. The namespaces are joined to nothing else, so every world may use the same.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The server pod's address.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// What every name begins with that a world gives to something outside its namespaces.
pub(crate) const PREFIX: &str = "sidecar-xtask-";

impl World {
    /// Builds both pods and the veth between them.
    pub(crate) fn new(purpose: &str) -> Result<Self> {
        let caught = interrupt::catch()?;
        let cgroups = cgroup::mount_point()?;
        remove_abandoned(&cgroups);
        let id = format!("{PREFIX}{}-{purpose}", std::process::id());
        let folder = Folder::new(&std::env::temp_dir().join(&id))?;
        let pod = |name: &str, address| Pod::new(name, address, &cgroups.join(format!("{id}-{name}")));
        let world = Self { client: pod("client", CLIENT)?, server: pod("server", SERVER)?, folder, _caught: caught };
        world.join()?;
        Ok(world)
    }

    /// Takes the veth between the pods away, and their addresses with it.
    pub(crate) fn part(&self) -> Result<()> {
        self.client.netns.ip(&["link", "delete", "eth0"])
    }

    /// Joins the pods by a veth.
    pub(crate) fn join(&self) -> Result<()> {
        self.veth().context("cannot join the two pods by a veth")
    }

    fn veth(&self) -> Result<()> {
        let (client, server) = (&self.client.netns, &self.server.netns);
        let there = server.path();
        client.ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &there])?;
        // The client's last: what it asks at once for the server's hardware address is answered, and not asked again after a second.
        for pod in [&self.server, &self.client] {
            let address = format!("{}/24", pod.address);
            pod.netns.ip(&["address", "add", &address, "dev", "eth0"])?;
            pod.netns.ip(&["link", "set", "lo", "up"])?;
            pod.netns.ip(&["link", "set", "eth0", "up"])?;
        }
        Ok(())
    }

    /// What exists outside the pods' namespaces and must be gone once this world is dropped.
    pub(crate) fn traces(&self) -> Vec<PathBuf> {
        let cgroups = [&self.client, &self.server].map(|pod| pod.cgroup.path().to_owned());
        cgroups.into_iter().chain([self.folder.path().to_owned()]).collect()
    }
}

/// Removes what worlds of killed xtask processes have left. Best effort: a failure here is no reason not to start.
pub(crate) fn remove_abandoned(cgroups: &Path) {
    for dir in [cgroups, &std::env::temp_dir()] {
        let Ok(entries) = fs::read_dir(dir) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let owner =
                name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split('-').next());
            let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
            if Path::new("/proc").join(owner.to_string()).exists() {
                continue;
            }
            if dir == cgroups {
                drop(Cgroup::adopt(entry.path()));
            } else {
                drop(Folder::adopt(entry.path()));
            }
        }
    }
}
