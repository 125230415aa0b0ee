//! One mode set up between the two pods.

use super::{
    envoy::{self, Iptables},
    haproxy, identity,
    mode::Mode,
};
use crate::{
    load::{READY, latency, now_us, probe::Path as Way, serve},
    world::{
        CLIENT, SERVER, World,
        memory::Memory,
        pod::{Place, Pod},
        process::Process,
        sidecar::{self, Plan},
    },
};
use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// What the modes need.
pub(super) struct Kit {
    /// This program, which is client and server.
    xtask: String,
    /// The sidecar's binary.
    pub(super) sidecar: Option<PathBuf>,
    /// Envoy and what redirects to it, or why there is none.
    pub(super) envoy: Result<(PathBuf, Iptables), String>,
}

impl Kit {
    /// Fetches and builds what these modes need. Without Envoy or iptables the others are measured all the same.
    pub(super) fn assemble(modes: &[Mode], given: Option<PathBuf>) -> Result<Self> {
        let xtask = std::env::current_exe().context("cannot find this program's own file")?.display().to_string();
        let sidecar = modes.iter().any(|mode| mode.needs_sidecar()).then(|| super::sidecar(given)).transpose()?;
        let envoy = if modes.iter().any(|mode| mode.is_envoy()) {
            envoy::fetch().and_then(|binary| Ok((binary, Iptables::find()?))).map_err(|err| format!("{err:#}"))
        } else {
            Err("not asked for".to_owned())
        };
        Ok(Self { xtask, sidecar, envoy })
    }

    /// The sidecar's binary, which the chosen modes need.
    pub(super) fn sidecar(&self) -> Result<&Path> {
        self.sidecar.as_deref().context("no sidecar was built")
    }
}

/// A cold start on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(15);
/// What clients need on top of the measured span: start, connections, warm-up, on a loaded machine.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// The pods, the bench's servers, and the mode's proxies.
pub(super) struct Rig<'a> {
    kit: &'a Kit,
    pub(super) world: &'a World,
    pub(super) mode: Mode,
    /// The proxy in the client pod.
    pub(super) client: Option<Process>,
    /// The proxy in the server pod.
    pub(super) server: Option<Process>,
    _servers: Process,
}

impl<'a> Rig<'a> {
    /// The bench's servers run, no proxy does.
    pub(super) fn set(kit: &'a Kit, world: &'a World, mode: Mode) -> Result<Self> {
        for pod in [&world.client, &world.server] {
            // A connection per request for seconds on end: ports, and their reuse a second after TIME_WAIT began.
            pod.netns.sysctl("ipv4/ip_local_port_range", "20000 64999")?;
            pod.netns.sysctl("ipv4/tcp_tw_reuse", "1")?;
        }
        let line = [&kit.xtask, "load", "serve", "--at", &SERVER.to_string()];
        let mut servers = Process::start(&world.server, Place::App, &world.folder, "servers", &line)?;
        servers.line(0, START_LIMIT, "their readiness", |line| line == READY)?;
        if mode.is_mtls() {
            identity::issue(kit.sidecar()?, &world.folder, &[&world.client, &world.server])?;
        }
        Ok(Self { kit, world, mode, client: None, server: None, _servers: servers })
    }

    /// Where the client dials to reach a port of the server.
    fn to(&self, port: u16) -> SocketAddr {
        match self.mode {
            Mode::Loopback => (Ipv4Addr::LOCALHOST, haproxy::port(port)).into(),
            _ => (SERVER, port).into(),
        }
    }

    /// Starts the proxies, and proves that they are in the way; says how many milliseconds the client's took from its
    /// start to the first captured byte.
    pub(super) fn start(&mut self) -> Result<Option<f64>> {
        if self.mode == Mode::Direct {
            return Ok(None);
        }
        // With mutual TLS the client's proxy reaches nothing before the server's is there.
        if self.mode.is_mtls() {
            self.start_server()?;
        }
        let client = &self.world.client;
        self.redirect(client)?;
        let mut probe = self.probe("probe-start", self.way())?;
        let begin = now_us();
        let mut proxy = self.proxy(client)?;
        let captured = proxy.until(START_LIMIT, "a captured connection", || time_told(&mut probe))?;
        self.client = Some(proxy);
        if self.mode != Mode::Loopback {
            if self.server.is_none() {
                self.start_server()?;
            }
            self.prove_both()?;
        }
        Ok(Some(captured.saturating_sub(begin) as f64 / 1000.0))
    }

    fn start_server(&mut self) -> Result<()> {
        let server = &self.world.server;
        self.redirect(server)?;
        let mut proxy = self.proxy(server)?;
        if self.mode.is_envoy() {
            proxy.until(START_LIMIT, "listening", || Ok(server.netns.listens(envoy::INBOUND)?.then_some(())))?;
        } else {
            sidecar::ready(&mut proxy, server)?;
        }
        self.server = Some(proxy);
        Ok(())
    }

    fn prove_both(&mut self) -> Result<()> {
        let mut probe = self.probe("probe-server", self.way())?;
        let proxy = self.server.as_mut().context("the server's proxy does not run")?;
        proxy.until(START_LIMIT, "an answer through both proxies", || time_told(&mut probe))?;
        ensure!(self.inbound_captured()? > 0.0, "no connection was captured in the server pod");
        Ok(())
    }

    /// What tells that connections go through the proxies.
    fn way(&self) -> Way {
        if self.mode.is_mtls() { Way::Any } else { Way::Captured }
    }

    fn redirect(&self, pod: &Pod) -> Result<()> {
        if self.mode.is_envoy() { self.envoy()?.1.redirect(&pod.netns) } else { Ok(()) }
    }

    fn inbound_captured(&self) -> Result<f64> {
        let server = &self.world.server;
        if self.mode.is_envoy() {
            return Ok(self.envoy()?.1.redirected(&server.netns, "PREROUTING")? as f64);
        }
        Ok(sidecar::metrics(server)?.sum(sidecar::VERDICTS, &sidecar::INBOUND))
    }

    /// Messages that went past TCP in both pods so far; `None` where there is no fast path.
    pub(super) fn past_tcp(&self) -> Result<Option<f64>> {
        if self.mode != Mode::SidecarFast {
            return Ok(None);
        }
        self.redirected().map(Some)
    }

    fn redirected(&self) -> Result<f64> {
        let labels = [("hook", "sk_msg"), ("verdict", "redirect")];
        let of = |pod| anyhow::Ok(sidecar::metrics(pod)?.sum(sidecar::VERDICTS, &labels));
        Ok(of(&self.world.client)? + of(&self.world.server)?)
    }

    /// Fails when the mode's messages went by TCP all the same, or past it where they should not.
    pub(super) fn prove_fast_path(&self) -> Result<()> {
        if !self.mode.is_sidecar() {
            return Ok(());
        }
        let redirected = self.redirected()?;
        // The probe itself redirects some hundred.
        ensure!((redirected > 1000.0) == (self.mode == Mode::SidecarFast), "{redirected} messages went past TCP");
        Ok(())
    }

    fn envoy(&self) -> Result<(&Path, Iptables)> {
        let (binary, iptables) = self.kit.envoy.as_ref().map_err(|reason| anyhow!("unavailable: {reason}"))?;
        Ok((binary, *iptables))
    }

    /// Starts the mode's proxy in a pod.
    fn proxy(&self, pod: &Pod) -> Result<Process> {
        let folder = &self.world.folder;
        if self.mode == Mode::Loopback {
            let config = haproxy::configure(folder)?.display().to_string();
            return Process::start(pod, Place::Sidecar, folder, "haproxy", &["haproxy", "-db", "-f", &config]);
        }
        if self.mode.is_envoy() {
            return self.start_envoy(pod);
        }
        let mut settings = self.mode.settings().to_owned();
        if self.mode.is_mtls() {
            settings += &identity::settings(folder, pod);
        }
        Plan::new(self.kit.sidecar()?, pod, folder, "off", &settings)?.start(pod, folder, "bench", &[])
    }

    fn start_envoy(&self, pod: &Pod) -> Result<Process> {
        let folder = &self.world.folder;
        let binary = self.envoy()?.0.display().to_string();
        let config =
            if self.mode.is_mtls() { envoy::config::mtls(folder, pod)? } else { envoy::config::plaintext(folder)? };
        let config = config.display().to_string();
        // setpriv replaces itself by Envoy: the process that is measured is Envoy's.
        let line = ["setpriv", "--regid", envoy::GROUP, "--clear-groups", &binary, "-c", &config, "--concurrency", "1"];
        let line = [&line[..], &["--disable-hot-restart", "-l", "error"]].concat();
        Process::start(pod, Place::Sidecar, folder, &format!("envoy-{}", pod.name), &line)
    }

    /// Starts a client in the client pod's application cgroup.
    pub(super) fn start_client(&self, name: &str, port: u16, args: &[&str]) -> Result<Process> {
        let to = self.to(port).to_string();
        let line = [&[&self.kit.xtask, "load"], args, &["--to", &to]].concat();
        Process::start(&self.world.client, Place::App, &self.world.folder, name, &line)
    }

    /// Runs a client that measures and gives its report.
    pub(super) fn client<T: DeserializeOwned>(&self, port: u16, args: &[&str], limit: Duration) -> Result<T> {
        let cgroups = self.cgroups();
        let cpu: Vec<_> = cgroups.iter().flat_map(|path| ["--cpu", path]).collect();
        let output = self.start_client("client", port, &[args, &cpu].concat())?.finish(limit)?;
        serde_json::from_str(&output).with_context(|| format!("the report of a client is not JSON: {output}"))
    }

    /// The same with requests, for so many seconds.
    pub(super) fn latencies(&self, args: &[&str], seconds: f64) -> Result<latency::Report> {
        let (span, limit) = (seconds.to_string(), Duration::from_secs_f64(seconds) + GRACE);
        let report: latency::Report = self.client(serve::ECHO, &[args, &["--seconds", &span]].concat(), limit)?;
        ensure!(report.operations > 0, "no request was answered within {seconds} s");
        Ok(report)
    }

    /// Starts a client that tells when connections go that way, and waits until it tries.
    pub(super) fn probe(&self, name: &str, way: Way) -> Result<Process> {
        let way = way.to_possible_value().context("a way without a name")?;
        let mut probe = self.start_client(name, serve::WHO, &["probe", "--until", way.get_name()])?;
        probe.line(0, START_LIMIT, "its readiness", |line| line == READY)?;
        Ok(probe)
    }

    /// Anonymous memory of all proxies, in bytes.
    pub(super) fn anonymous(&self) -> Result<f64> {
        let proxies = [(&self.client, &self.world.client), (&self.server, &self.world.server)];
        let running = proxies.into_iter().filter(|(proxy, _)| proxy.is_some());
        running.map(|(_, pod)| Ok(Memory::of_cgroup(pod.container(Place::Sidecar).path())?.anonymous)).sum()
    }

    /// Fails when a proxy has ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        [&mut self.client, &mut self.server].into_iter().flatten().try_for_each(Process::check)
    }

    /// The proxies' cgroups and then the whole pods', for a client that measures CPU time.
    pub(super) fn cgroups(&self) -> [String; 4] {
        let (client, server) = (&self.world.client, &self.world.server);
        [client.container(Place::Sidecar), server.container(Place::Sidecar), &client.cgroup, &server.cgroup]
            .map(|cgroup| cgroup.path().display().to_string())
    }
}

/// What a probe has told: a time on the clock of [`now_us`].
pub(super) fn time_told(probe: &mut Process) -> Result<Option<u64>> {
    Ok(probe.lines()?.iter().find_map(|line| line.parse().ok()))
}

/// The addresses, for the record.
pub(super) fn pods() -> String {
    format!("{CLIENT} and {SERVER} on a veth")
}
