//! What a sidecar says of itself in the TCP handshake, in other words than its own.

use std::net::TcpListener;

use anyhow::{Context, Result};
use sidecar::net::{Transports, mesh_answer};
use sidecar_tests::harness::{Sidecar, address, sockets_of};
use socket2::Socket;

/// Tells the sidecar's inbound listener with what to answer.
pub(crate) fn answer_with(sidecar: &Sidecar, transports: Transports) -> Result<()> {
    let listens = |socket: &Socket| address(socket.local_addr()).is_some_and(|local| local.port() == 15006);
    let listener = sockets_of(sidecar.process.pid(), listens)?.into_iter().next().context("no inbound listener")?;
    mesh_answer(&TcpListener::from(listener), transports).context("answer")
}
