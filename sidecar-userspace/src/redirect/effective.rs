//! Whether the capture does what it should: the kernel is asked, and a real connection is made.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    time::Duration,
};

use sidecar_common::counter::Counter;

use super::{
    bpf,
    capture::Capture,
    changes,
    discovery::MESH_PROGRAM,
    error::Error,
    programs::{LOOKUP_PROGRAM, POD_PROGRAMS, PROXY_PROGRAMS},
    query,
};
use crate::pod;

impl Capture {
    /// Checks that the sidecar is where it was, that the kernel runs every program where it should, and that a real
    /// connection passes them.
    pub fn check(&self) -> Result<(), Error> {
        self.check_place()?;
        self.check_effective()?;
        self.check_probe()
    }

    /// Where it was at the start, for the next binary.
    pub fn known_pod(&self) -> pod::Known {
        self.pod.known()
    }

    /// Checks that the sidecar is where it was.
    pub fn check_place(&self) -> Result<(), Error> {
        Ok(self.pod.verify()?)
    }

    fn check_effective(&self) -> Result<(), Error> {
        let mesh = [MESH_PROGRAM];
        let own = self.pod.own_cgroup_path();
        let discovers = usize::from(self.ids.iter().any(|(name, _)| *name == mesh[0].0));
        let mut targets = vec![(own, PROXY_PROGRAMS.as_slice()), (own, &mesh[..discovers])];
        let leaves = self.pod.leaves();
        targets.extend(leaves.iter().map(|leaf| (leaf.as_path(), POD_PROGRAMS.as_slice())));
        for (path, programs) in targets {
            // A cgroup that went away in the meantime has no tasks to serve.
            let Ok(directory) = File::open(path) else { continue };
            for (name, attach_type) in programs {
                self.require_effective(&directory, path, name, *attach_type, query::EFFECTIVE)?;
            }
        }
        let (name, attach_type) = LOOKUP_PROGRAM;
        self.require_effective(self.pod.netns(), Path::new("the pod's network namespace"), name, attach_type, 0)
    }

    fn require_effective(
        &self,
        target: &impl AsRawFd,
        path: &Path,
        program: &'static str,
        attach_type: u32,
        flags: u32,
    ) -> Result<(), Error> {
        let running = match query::program_ids(target, attach_type, flags) {
            // A sidecar without CAP_NET_ADMIN is not told; whether the link still leads somewhere is told to whoever holds it.
            Err(source) if source.raw_os_error() == Some(libc::EPERM) => return self.require_linked(path, program),
            asked => asked.map_err(|source| Error::Query { target: path.to_owned(), source })?,
        };
        if self.ids.iter().any(|(name, id)| *name == program && running.contains(id)) {
            return Ok(());
        }
        Err(Error::NotEffective { program, target: path.to_owned() })
    }

    fn require_linked(&self, path: &Path, program: &'static str) -> Result<(), Error> {
        let link = self.links.iter().find(|(name, _)| *name == program);
        let attached =
            link.and_then(|(_, link)| bpf::link_info(link.as_fd()).ok()).is_some_and(|info| info.target != 0);
        if attached { Ok(()) } else { Err(Error::NotEffective { program, target: path.to_owned() }) }
    }

    /// Listens on loopback and connects to that: every kind of program must have counted something.
    fn check_probe(&self) -> Result<(), Error> {
        const WITNESSES: [(&str, Counter); 3] = [
            ("on_connect4", Counter::ConnectBypassProxy),
            ("on_lookup", Counter::LookupPassOwnAddress),
            ("on_tcp_event", Counter::ListenerAdded),
        ];
        let before = WITNESSES.map(|(_, counter)| self.counters.get(counter));
        probe(Ipv4Addr::LOCALHOST.into()).map_err(Error::Probe)?;
        for ((program, counter), before) in WITNESSES.into_iter().zip(before) {
            if self.counters.get(counter) <= before {
                return Err(Error::ProbeMissed { program });
            }
        }
        let before = self.counters.get(Counter::ConnectBypassProxy);
        // A pod without IPv6 has nothing to check there.
        if probe(Ipv6Addr::LOCALHOST.into()).is_ok() && self.counters.get(Counter::ConnectBypassProxy) <= before {
            return Err(Error::ProbeMissed { program: "on_connect6" });
        }
        Ok(())
    }
}

fn probe(loopback: IpAddr) -> io::Result<()> {
    /// Loopback answers in microseconds; a pod that is starved of CPU gets time.
    const PATIENCE: Duration = Duration::from_secs(2);
    let listener = TcpListener::bind(SocketAddr::new(loopback, 0))?;
    TcpStream::connect_timeout(&listener.local_addr()?, PATIENCE).map(drop)?;
    changes::count_probe();
    Ok(())
}
