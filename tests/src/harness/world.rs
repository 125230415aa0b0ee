//! A world: two pods joined by a veth pair.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{Cgroup, MountNs, PATIENCE, Pod, Process, Spawn, cgroup::FILES};
use crate::cases::net::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6};

/// Two pods, `client` and `server`. Addresses may repeat from world to world: every pod has a namespace of its own.
#[derive(Debug)]
pub struct World {
    /// The pod whose applications connect: `10.77.0.1`, `fd77::1`.
    pub client: Arc<Pod>,
    /// The pod whose applications listen: `10.77.0.2`, `fd77::2`.
    pub server: Arc<Pod>,
    // Removed in this order, after the pods' own descriptors are closed.
    _cgroup: Cgroup,
    _directory: Directory,
}

impl World {
    /// Makes a world in a few tens of milliseconds.
    pub fn new() -> Result<Self> {
        require_root()?;
        let cgroup = Cgroup::new_world()?;
        let directory = Directory::new(&cgroup)?;
        let mounts = Arc::new(MountNs::new()?);
        let client = Arc::new(Pod::new("client", &cgroup, &directory.0, (CLIENT_V4, CLIENT_V6), &mounts)?);
        let server = Arc::new(Pod::new("server", &cgroup, &directory.0, (SERVER_V4, SERVER_V6), &mounts)?);
        let world = Self { client, server, _cgroup: cgroup, _directory: directory };
        world.join()?;
        Ok(world)
    }

    /// Joins the pods, and routes `10.88.0.0/16`, `fd88::/64` and `169.254.169.254` of either to the other: addresses
    /// that a test can give to a pod, or that nobody answers.
    fn join(&self) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["link", "add", "eth0", "netns"]).arg(self.client.netns().path());
        command.args(["type", "veth", "peer", "name", "eth0", "netns"]).arg(self.server.netns().path());
        spawn_here(command)?.finish(PATIENCE)?;
        thread::scope(|scope| {
            let other = scope.spawn(|| configure(&self.server, self.client.v4(), self.client.v6()));
            configure(&self.client, self.server.v4(), self.server.v6())?;
            other.join().map_err(|_| anyhow!("the thread that configures a pod panicked"))?
        })
    }
}

fn spawn_here(command: Command) -> Result<Process> {
    Spawn::default().start(command)
}

fn configure(pod: &Pod, via4: Ipv4Addr, via6: Ipv6Addr) -> Result<()> {
    let (v4, v6) = (pod.v4(), pod.v6());
    pod.ip(&format!(
        "link set lo up\n\
         link set eth0 addrgenmode none\n\
         link set eth0 up\n\
         addr add {v4}/24 dev eth0\n\
         addr add {v6}/64 dev eth0 nodad\n\
         route add 10.88.0.0/16 via {via4}\n\
         route add 169.254.169.254/32 via {via4}\n\
         route add fd88::/64 via {via6}"
    ))
}

/// An error unless the tests run as root: a suite that silently does nothing is worse than one that fails.
pub fn require_root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "these tests make namespaces and cgroups: run them as root");
    Ok(())
}

/// The files of a world, removed with it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new(cgroup: &Cgroup) -> Result<Self> {
        let name = cgroup.path().file_name().context("a cgroup without a name")?;
        let path = Path::new(FILES).join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove what an earlier run left at {}", path.display()));
            }
            _ => fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?,
        }
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays behind: {error}", self.0.display());
        }
    }
}
