//! A client pod whose sidecar uses the fast path whatever the probe says, and a server that answers with what it is sent.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    agent::puppet::{Handle, Order},
    cases::net::{ANY, TO_V4},
    harness::{self, PATIENCE, Pod, Puppet, Sidecar, World, bpf, eventually, patient},
};
use socket2::Socket;

/// Bytes after which a connection is worth it.
pub(crate) const ENOUGH: u64 = 300_000;

/// Says in a pod what `sidecar fastpath` says.
pub(crate) fn command(pod: &Pod, verb: &str) -> Result<String> {
    let mut command = Sidecar::program()?;
    command.args(["fastpath", verb]);
    pod.spawn_beside_sidecar(command)?.finish(PATIENCE)
}

/// Who plays.
pub(crate) struct Stage {
    pub(crate) app: Puppet,
    pub(crate) server: Puppet,
    pub(crate) sidecar: Sidecar,
    pub(crate) world: World,
}

impl Stage {
    /// With `acceleration: force`; `None` on a kernel without a fast path, which is said.
    pub(crate) fn forced() -> Result<Option<Self>> {
        Self::with("acceleration: force\n")
    }

    /// With this configuration.
    pub(crate) fn with(config: &str) -> Result<Option<Self>> {
        let stage = Self::started(World::new()?, config)?;
        let status = stage.sidecar.fast_path_probed()?;
        if status["redirects"] == false || status["redirects"].is_null() {
            harness::skip("fastpath", status["why"].as_str().unwrap_or("no reason"));
            return Ok(None);
        }
        ensure!(status["on"] == true, "{status}");
        Ok(Some(stage))
    }

    /// With this configuration, whatever becomes of the fast path.
    pub(crate) fn started(world: World, config: &str) -> Result<Self> {
        let sidecar = Sidecar::start(&world.client, config)?;
        let server = Puppet::serving(&world.server, ANY)?;
        let app = Puppet::start(&world.client)?;
        Ok(Self { app, server, sidecar, world })
    }

    /// A connection on the fast path.
    pub(crate) fn enrolled(&mut self) -> Result<Handle> {
        let (socket, _) = self.app.open(TO_V4)?;
        self.await_enrolled(socket)?;
        Ok(socket)
    }

    /// A copy of the application's own socket with this port.
    pub(crate) fn own(&self, local: SocketAddr) -> Result<Socket> {
        let is_it = |end: &_| harness::address(Socket::local_addr(end)).is_some_and(|end| end.port() == local.port());
        harness::sockets_of(self.app.process().pid(), is_it)?.pop().context("the application's socket")
    }

    /// Has a connection carry enough, and waits until it is on the fast path.
    pub(crate) fn await_enrolled(&mut self, socket: Handle) -> Result<()> {
        self.app.must(Order::Stream(socket, ENOUGH, 20_000))?;
        self.await_connections(1)
    }

    /// Waits until so many connections are on the fast path.
    pub(crate) fn await_connections(&self, wanted: u64) -> Result<()> {
        let there = || self.connections().is_ok_and(|connections| connections == wanted);
        let met = eventually(patient(PATIENCE), there);
        ensure!(met, "not {wanted}: {}\n{}", self.sidecar.fast_path()?, self.sidecar.verdicts());
        Ok(())
    }

    /// Connections on the fast path now.
    pub(crate) fn connections(&self) -> Result<u64> {
        self.sidecar.fast_path()?["connections"].as_u64().context("a number of connections")
    }

    /// Messages redirected so far, those of the probe among them.
    pub(crate) fn redirected(&self) -> Result<u64> {
        self.sidecar.verdict("sk_msg", "redirect", "fast")
    }

    /// Says what `sidecar fastpath` says.
    pub(crate) fn command(&self, verb: &str) -> Result<String> {
        command(&self.world.client, verb)
    }

    /// Every map is empty.
    pub(crate) fn nothing_is_enrolled(&self) -> Result<()> {
        for map in ["SENDERS", "RECEIVERS", "CANDIDATES"] {
            let entries = || bpf::map_entries(self.sidecar.process.pid(), map);
            ensure!(
                eventually(patient(PATIENCE), || entries().is_ok_and(|entries| entries == 0)),
                "{} in {map}",
                entries()?
            );
        }
        Ok(())
    }
}
