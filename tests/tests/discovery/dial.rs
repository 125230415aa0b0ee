//! The proxy's part: connections that offer, a listener that answers.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use sidecar::net::{Transports, mesh_offer};
use sidecar_tests::{
    agent::puppet::{Handle, Order},
    harness::{PATIENCE, Pod, Puppet, Sidecar, address, eventually, sockets_of},
};
use socket2::Socket;

/// A process in the sidecar's cgroup.
pub(crate) struct Beside(Puppet);

/// A connection of it.
pub(crate) struct Dialled {
    handle: Handle,
    /// A copy of its socket.
    pub(crate) socket: Socket,
    /// Its own end.
    pub(crate) local: SocketAddr,
}

impl Beside {
    /// Starts one.
    pub(crate) fn start(pod: &Pod) -> Result<Self> {
        Ok(Self(Puppet::of(pod.spawn_beside_sidecar(Puppet::command()?)?)))
    }

    /// Connects with an offer, as the proxy would towards the network, and exchanges bytes.
    pub(crate) fn dial(&mut self, to: SocketAddr, offer: Transports) -> Result<Dialled> {
        let handle = self.0.make(to)?;
        let fresh = |socket: &Socket| address(socket.local_addr()).is_some_and(|local| local.port() == 0);
        let mut sockets = sockets_of(self.0.process().pid(), fresh)?;
        ensure!(sockets.len() == 1, "{sockets:?}");
        let socket = sockets.remove(0);
        mesh_offer(&socket, offer).context("offer")?;
        let answer = self.0.must(Order::Connect(handle, to))?;
        self.0.echo(handle)?;
        let local = answer.local.context("a connected socket without an address")?;
        Ok(Dialled { handle, socket, local })
    }

    /// Closes the connection, of which the test holds both ends.
    pub(crate) fn end(&mut self, dialled: Dialled, accepted: Socket) -> Result<()> {
        drop((dialled.socket, accepted));
        self.0.must(Order::Close(dialled.handle)).map(drop)
    }
}

/// The sidecar's own end of the connection from `client`.
pub(crate) fn accepted_from(sidecar: &Sidecar, client: SocketAddr) -> Result<Socket> {
    let mut found = None;
    eventually(PATIENCE, || {
        let is_it = |socket: &Socket| address(socket.peer_addr()) == Some(client);
        found = sidecar
            .worker()
            .and_then(|worker| sockets_of(worker, is_it))
            .ok()
            .and_then(|sockets| sockets.into_iter().next());
        found.is_some()
    });
    found.with_context(|| format!("the sidecar holds no connection from {client}{}", sidecar.process.output()))
}
