//! A pod: a network namespace, and a cgroup with one child for the application and one for the sidecar.

use super::{cgroup::Cgroup, netns::Netns};
use anyhow::Result;
use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl, signal::Signal},
    unistd,
};
use std::{
    ffi::OsStr,
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

/// One pod.
pub(crate) struct Pod {
    /// What it is called in messages and files.
    pub(crate) name: String,
    /// Its address on the veth.
    pub(crate) address: Ipv4Addr,
    /// Its network namespace.
    pub(crate) netns: Netns,
    // The children are declared, hence dropped and removed, before their parent.
    app: Cgroup,
    sidecar: Cgroup,
    /// The cgroup of the whole pod.
    pub(crate) cgroup: Cgroup,
}

/// In which of the pod's containers a process runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The application: its connections are captured.
    App,
    /// The sidecar: its connections are exempt.
    Sidecar,
}

impl Pod {
    /// A pod whose network has no link yet.
    pub(crate) fn new(name: &str, address: Ipv4Addr, path: &Path) -> Result<Self> {
        let cgroup = Cgroup::new(path)?;
        let [app, sidecar] = [Cgroup::new(&path.join("app"))?, Cgroup::new(&path.join("sidecar"))?];
        Ok(Self { name: name.to_owned(), address, netns: Netns::new()?, app, sidecar, cgroup })
    }

    /// The cgroup of one of its containers.
    pub(crate) fn container(&self, place: Place) -> &Cgroup {
        match place {
            Place::App => &self.app,
            Place::Sidecar => &self.sidecar,
        }
    }

    /// A command that will run inside the pod: in its network namespace only (`ip netns exec` would hide cgroup2 and
    /// bpffs behind a fresh /sys), and in the container's cgroup from before its exec, because a socket belongs for life
    /// to the cgroup of the process that made it. It dies with the thread that starts it.
    pub(crate) fn command(&self, place: Place, program: impl AsRef<OsStr>) -> Result<Command> {
        let (namespace, entrance) = (self.netns.descriptor()?, self.container(place).entrance()?);
        let mut command = Command::new(program);
        // A group of its own: Ctrl-C at the terminal reaches xtask alone, which then takes things down in order.
        command.stdin(Stdio::null()).process_group(0);
        // SAFETY: between fork and exec the closure only makes system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                unistd::write(&entrance, b"0")?;
                Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
            });
        }
        Ok(command)
    }
}
