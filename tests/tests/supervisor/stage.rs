//! A pod with a sidecar, one without, and what is asked of the first.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sidecar_tests::{
    cases::net::{ANY, TO_V4},
    harness::{PATIENCE, Puppet, Sidecar, World, eventually},
};

/// A test of the client's sidecar needs a server without one, which sees where connections come from.
pub(crate) struct Stage {
    pub(crate) app: Puppet,
    pub(crate) server: Puppet,
    pub(crate) world: World,
}

pub(crate) fn stage() -> Result<Stage> {
    let world = World::new()?;
    Ok(Stage { app: Puppet::start(&world.client)?, server: Puppet::serving(&world.server, ANY)?, world })
}

impl Stage {
    /// Whether a new connection goes without a proxy: the server sees the application's own port.
    pub(crate) fn goes_direct(&mut self) -> Result<bool> {
        let local = self.app.visit(TO_V4)?;
        Ok(self.server.accepted()?.last().map(SocketAddr::port) == Some(local.port()))
    }
}

/// Kills the worker, waits for the next one, and returns it.
pub(crate) fn killed(sidecar: &Sidecar) -> Result<Pid> {
    let worker = sidecar.worker()?;
    kill(worker, Signal::SIGKILL)?;
    successor(sidecar, worker)
}

pub(crate) fn successor(sidecar: &Sidecar, of: Pid) -> Result<Pid> {
    let mut found = None;
    eventually(PATIENCE, || {
        found = sidecar.worker().ok().filter(|worker| *worker != of);
        found.is_some()
    });
    found.with_context(|| format!("worker {of} has no successor{}", sidecar.process.output()))
}

pub(crate) fn restarts(sidecar: &Sidecar, reason: &str) -> Result<u64> {
    Ok(sidecar.metrics()?.sum("sidecar_worker_restarts_total", &[("reason", reason)]) as u64)
}
