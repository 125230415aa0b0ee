//! The pods with nginx in one and a sidecar in each.

use super::{nginx, story::Story};
use crate::world::{
    CLIENT, World,
    pod::{Place, Pod},
    process::Process,
    sidecar::Plan,
};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Everything that runs.
pub(super) struct Stage<'a> {
    /// The pods.
    pub(super) world: &'a World,
    /// The service.
    pub(super) nginx: Process,
    /// The sidecar beside curl.
    pub(super) client: Side<'a>,
    /// The sidecar beside nginx.
    pub(super) server: Side<'a>,
    sidecar: PathBuf,
}

/// One pod and its sidecar.
pub(super) struct Side<'a> {
    /// The pod.
    pub(super) pod: &'a Pod,
    plan: Plan,
    runs: u32,
    running: Option<Process>,
}

/// More than `proxy.drain_deadline`.
const STOP_LIMIT: Duration = Duration::from_secs(8);

impl<'a> Stage<'a> {
    /// The pods as they are before there is a sidecar.
    pub(super) fn set(story: &mut Story, world: &'a World, sidecar: &Path) -> Result<Self> {
        story.chapter("Two pods, joined by a veth");
        for pod in [&world.client, &world.server] {
            story.say(format!("{}  {}  {}/{{app,sidecar}}", pod.name, pod.address, pod.cgroup.path().display()));
        }
        let nginx = nginx::start(world)?;
        story.say(format!("nginx (pid {}) serves in the server pod on port {}", nginx.pid(), nginx::PORT));
        let side = |pod| -> Result<Side<'a>> {
            Ok(Side { pod, plan: Plan::new(sidecar, pod, &world.folder, "json", "")?, runs: 0, running: None })
        };
        let (client, server) = (side(&world.client)?, side(&world.server)?);
        Ok(Self { world, nginx, client, server, sidecar: sidecar.to_owned() })
    }

    /// The binary that is shown.
    pub(super) fn sidecar(&self) -> &Path {
        &self.sidecar
    }

    /// Has both sidecars start with these lines of configuration from now on.
    pub(super) fn reconfigure(&mut self, client: &str, server: &str) -> Result<()> {
        for (side, extra) in [(&mut self.client, client), (&mut self.server, server)] {
            side.plan = Plan::new(&self.sidecar, side.pod, &self.world.folder, "json", extra)?;
        }
        Ok(())
    }

    /// Starts both.
    pub(super) fn start_sidecars(&mut self, story: &mut Story) -> Result<()> {
        story.chapter("A sidecar starts in each pod; nginx and curl know nothing of it");
        for side in [&mut self.client, &mut self.server] {
            let (pid, took) = side.start(self.world)?;
            story.say(format!("sidecar of the {} pod (pid {pid}) ready after {} ms", side.pod.name, took.as_millis()));
        }
        Ok(())
    }

    /// Stops both as an orchestrator would.
    pub(super) fn stop_sidecars(&mut self, story: &mut Story) -> Result<()> {
        story.chapter("SIGTERM to both sidecars");
        for side in [&mut self.client, &mut self.server] {
            let (status, took) = side.process()?.end(Signal::SIGTERM, STOP_LIMIT)?;
            side.running = None;
            let claim = format!(
                "sidecar of the {} pod drained and left: {status} after {} ms",
                side.pod.name,
                took.as_millis()
            );
            story.check(status.success(), claim);
        }
        Ok(())
    }

    /// Runs curl in the client pod to its end and gives its output.
    pub(super) fn curl(&self, name: &str, args: &[&str]) -> Result<String> {
        self.start_curl(name, args)?.finish(Duration::from_secs(10))
    }

    /// Starts curl in the client pod.
    pub(super) fn start_curl(&self, name: &str, args: &[&str]) -> Result<Process> {
        let line = [&["curl", "--silent", "--show-error", "--fail"], args].concat();
        Process::start(&self.world.client, Place::App, &self.world.folder, name, &line)
    }

    /// Waits until nginx has logged more than `seen` requests, and gives the next line.
    pub(super) fn nginx_line(&mut self, seen: usize) -> Result<String> {
        self.nginx.line(seen, Duration::from_secs(2), "a line in its access log", |_| true)
    }
}

impl Side<'_> {
    /// Starts it and waits until it is ready; says its pid and how long that took.
    pub(super) fn start(&mut self, world: &World) -> Result<(u32, Duration)> {
        self.runs += 1;
        let (process, took) = self.plan.serve(self.pod, &world.folder, &self.runs.to_string())?;
        let pid = process.pid();
        self.running = Some(process);
        Ok((pid, took))
    }

    /// The running sidecar.
    pub(super) fn process(&mut self) -> Result<&mut Process> {
        self.running.as_mut().with_context(|| format!("no sidecar runs in the {} pod", self.pod.name))
    }
}

/// Whether a line of nginx's access log names the client pod.
pub(super) fn names_client(line: &str) -> bool {
    line.starts_with(&format!("client={CLIENT}:"))
}
