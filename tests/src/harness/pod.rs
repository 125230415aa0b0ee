//! A pod: a network namespace and a cgroup with a child for the application and one for the sidecar.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result};

use super::{Cgroup, MountNs, NetNs, PATIENCE, Process, Response, Spawn, http};

/// By which end a socket is looked up.
#[derive(Clone, Copy, Debug)]
pub enum SocketField {
    /// Its own.
    LocalPort(u16),
    /// The other.
    RemotePort(u16),
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    name: &'static str,
    netns: NetNs,
    cgroup: PathBuf,
    app: PathBuf,
    sidecar: PathBuf,
    directory: PathBuf,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    mounts: Arc<MountNs>,
}

impl Pod {
    /// Makes its namespace and cgroups; its addresses come with [`super::World`].
    pub(super) fn new(
        name: &'static str,
        world: &Cgroup,
        directory: &Path,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
        mounts: &Arc<MountNs>,
    ) -> Result<Self> {
        let cgroup = world.create_child(name)?;
        let app = world.create_child(&format!("{name}/app"))?;
        let sidecar = world.create_child(&format!("{name}/sidecar"))?;
        let directory = directory.join(name);
        fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        Ok(Self { name, netns: NetNs::new()?, cgroup, app, sidecar, directory, v4, v6, mounts: Arc::clone(mounts) })
    }

    /// `client` or `server`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup: what a sidecar captures.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The cgroup of its applications.
    pub fn app_cgroup(&self) -> &Path {
        &self.app
    }

    /// The cgroup of its sidecar, which is never captured.
    pub fn sidecar_cgroup(&self) -> &Path {
        &self.sidecar
    }

    /// The mount namespace of its sidecar: that of the world's other sidecar, too, as on one node.
    pub fn mounts(&self) -> &MountNs {
        &self.mounts
    }

    /// A directory for its files, removed with the world.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its first IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its first IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Starts an application.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Spawn { netns: Some(&self.netns), cgroup: Some(&self.app), ..Spawn::default() }.start(command)
    }

    /// Starts a process where the sidecar lives.
    pub fn spawn_beside_sidecar(&self, command: Command) -> Result<Process> {
        let (netns, cgroup, mounts) = (Some(&self.netns), Some(self.sidecar.as_path()), Some(&*self.mounts));
        Spawn { netns, cgroup, mounts }.start(command)
    }

    /// Runs an application to its end and returns what it wrote to standard output; an error unless it exits with 0.
    pub fn run<A: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = A>) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args);
        self.spawn(command)?.finish(6 * PATIENCE)
    }

    /// Runs the lines of an `ip -batch` script in its namespace, by a process outside its cgroup.
    pub fn ip(&self, script: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]);
        let mut ip = Spawn { netns: Some(&self.netns), ..Spawn::default() }.start(command)?;
        for line in script.lines() {
            ip.say(line)?;
        }
        ip.close_stdin();
        ip.finish(PATIENCE).map(drop)
    }

    /// Adds an address.
    pub fn add_address(&self, cidr: &str) -> Result<()> {
        let nodad = if cidr.contains(':') { " nodad" } else { "" };
        self.ip(&format!("addr add {cidr} dev eth0{nodad}"))
    }

    /// Writes a sysctl of its namespace, such as `net/ipv4/tcp_fastopen`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name);
        self.netns.run(|| fs::write(&path, value))?.with_context(|| format!("write {value} to {}", path.display()))
    }

    /// TCP sockets of its namespace that are neither closed nor only waiting for late packets.
    pub fn tcp_sockets(&self) -> Result<u64> {
        let text = self.netns.run(|| fs::read_to_string("/proc/thread-self/net/sockstat"))??;
        let in_use = text.lines().find_map(|line| line.strip_prefix("TCP: inuse ")?.split(' ').next());
        Ok(in_use.with_context(|| format!("no TCP sockets in {text}"))?.parse()?)
    }

    /// Lines of its socket table, `/proc/net/tcp` and `tcp6`, of this port and state (proc_net(5); `0A`: listens, `02`:
    /// has sent a SYN): the fields of each.
    pub fn socket_table(&self, field: SocketField, state: &str) -> Result<Vec<Vec<String>>> {
        let (index, port) = match field {
            SocketField::LocalPort(port) => (1, port),
            SocketField::RemotePort(port) => (2, port),
        };
        let text = self.netns.run(|| -> std::io::Result<String> {
            Ok(fs::read_to_string("/proc/thread-self/net/tcp")? + &fs::read_to_string("/proc/thread-self/net/tcp6")?)
        })??;
        let lines = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let suffix = format!(":{port:04X}");
        let wanted = |line: &Vec<String>| line.len() > 4 && line[index].ends_with(&suffix) && line[3] == state;
        Ok(lines.filter(wanted).collect())
    }

    /// Connections that wait to be accepted at a port.
    pub fn waiting_at(&self, port: u16) -> Result<u64> {
        let listeners = self.socket_table(SocketField::LocalPort(port), "0A")?;
        // Of a listener, the receive queue is the accept queue.
        let queued = listeners.iter().filter_map(|fields| u64::from_str_radix(fields[4].split(':').nth(1)?, 16).ok());
        Ok(queued.sum())
    }

    /// Asks an HTTP server of the pod on its loopback.
    pub fn get(&self, port: u16, path: &str) -> Result<Response> {
        self.netns.run(|| http::get(IpAddr::from(Ipv4Addr::LOCALHOST), port, path))?
    }
}
