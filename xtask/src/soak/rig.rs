//! Two pods, an identity for each, their sidecars, and the load between them.

use crate::{
    load::{READY, serve},
    process,
    world::{
        SERVER, World, cgroup,
        folder::Folder,
        http,
        pod::{Place, Pod},
        process::Process,
        sidecar::{self, Plan},
        wait,
    },
};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const START_LIMIT: Duration = Duration::from_secs(15);
/// Where the sidecar tells whether it is ready: the default of its configuration.
const HEALTH: u16 = 15021;

/// Everything that runs. The load goes first.
pub(crate) struct Rig<'a> {
    load: Process,
    pub(crate) sides: [Side<'a>; 2],
    servers: Process,
    world: &'a World,
    binary: PathBuf,
}

/// A pod and its sidecar.
pub(crate) struct Side<'a> {
    pub(crate) pod: &'a Pod,
    plan: Plan,
    pub(crate) sidecar: Process,
    /// Starts of it so far.
    runs: u32,
}

impl<'a> Rig<'a> {
    /// Starts everything, and waits until the first request is answered. `extra`: more lines of the sidecars' configuration.
    pub(crate) fn set(world: &'a World, binary: &Path, rate: u64, streams: u64, extra: &str) -> Result<Self> {
        let (client, server) = (&world.client, &world.server);
        let servers = serve(world, "1")?;
        authority(binary, world, "init", &["--trust-domain", "soak.example"])?;
        let side = |pod: &'a Pod| -> Result<Side<'a>> {
            issue(binary, world, pod)?;
            let plan = Plan::new(binary, pod, &world.folder, "off", &(settings(world, pod) + extra))?;
            let (sidecar, _) = plan.serve(pod, &world.folder, "run-1")?;
            Ok(Side { pod, plan, sidecar, runs: 1 })
        };
        let sides = [side(client)?, side(server)?];
        let (to, rate, streams) = (format!("{SERVER}:{}", serve::ECHO), rate.to_string(), streams.to_string());
        let line = [&xtask()?, "load", "steady", "--to", &to, "--rate", &rate, "--streams", &streams];
        let mut load = Process::start(client, Place::App, &world.folder, "load", &line)?;
        load.line(0, START_LIMIT, "an answered request", |line| line.starts_with("request ") && line.ends_with(" ok"))?;
        Ok(Self { load, sides, servers, world, binary: binary.to_owned() })
    }

    /// Where the load writes its outcomes.
    pub(crate) fn load_output(&self) -> PathBuf {
        self.load.output_path().to_owned()
    }

    /// Whether the binary has the verb.
    pub(crate) fn upgrades(&self) -> bool {
        process::output(Command::new(&self.binary).args(["upgrade", "--help"])).is_ok()
    }

    /// Has a running sidecar replace itself, with the command that an operator has for that.
    pub(crate) fn upgrade(&self, side: usize) -> Result<String> {
        let side = &self.sides[side];
        let mut command = side.pod.command(Place::Sidecar, &self.binary)?;
        command.args(["upgrade", "--config"]).arg(side.plan.config());
        Ok(process::output(&mut command)?.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Kills the sidecar of a side, and starts it again at once, as an orchestrator does when no process of a container is left.
    pub(crate) fn replace(&mut self, side: usize) -> Result<()> {
        let side = &mut self.sides[side];
        side.kill()?;
        side.start(&self.world.folder)
    }

    /// The server pod loses its network namespace: first the link, with the addresses of both its ends, then everything that
    /// runs in it. After `span` an orchestrator makes the pod anew, in a namespace that is another one.
    pub(crate) fn lose_namespace(&mut self, span: Duration) -> Result<()> {
        let side = &mut self.sides[1];
        self.world.part()?;
        wait::pause(span)?;
        side.kill()?;
        self.servers.end(Signal::SIGKILL, START_LIMIT)?;
        side.pod.netns.replace()?;
        self.world.join()?;
        side.start(&self.world.folder)?;
        self.servers = serve(self.world, &side.runs.to_string())?;
        Ok(())
    }

    /// Renews the identity of a side in place.
    pub(crate) fn issue(&self, side: usize) -> Result<()> {
        let metric = "sidecar_identity_generation";
        let side = &self.sides[side];
        self.grows(side, metric, || issue(&self.binary, self.world, side.pod))
    }

    /// A step of the authority's change of root.
    pub(crate) fn rotate(&self, args: &[&str]) -> Result<()> {
        authority(&self.binary, self.world, "rotate", args)
    }

    /// Does something, and waits until the sidecar has taken note of it.
    pub(crate) fn grows(&self, side: &Side<'_>, metric: &str, what: impl FnOnce() -> Result<()>) -> Result<()> {
        let read = || anyhow::Ok(sidecar::metrics(side.pod)?.sum(metric, &[]));
        let before = read()?;
        what()?;
        let named = format!("the growth of {metric} in the {} pod from {before}", side.pod.name);
        wait::until(START_LIMIT, &named, || Ok((read()? > before).then_some(())))
    }

    /// Waits until both sidecars are ready.
    pub(crate) fn ready(&mut self, limit: Duration) -> Result<()> {
        self.sides.iter_mut().try_for_each(|Side { pod, sidecar, .. }| {
            sidecar.until(limit, "readiness", || Ok(http::get(pod, HEALTH, "/healthz/ready").ok())).map(drop)
        })?;
        self.load.check()
    }

    /// What the sidecars wrote last, for a failure.
    pub(crate) fn last_words(&self) -> String {
        self.sides.iter().map(|side| format!("{}:\n{}\n", side.pod.name, side.sidecar.last_words())).collect()
    }
}

impl Side<'_> {
    /// Kills the sidecar, and waits until none of its processes is left.
    fn kill(&mut self) -> Result<()> {
        self.sidecar.end(Signal::SIGKILL, START_LIMIT)?;
        let place = self.pod.container(Place::Sidecar).path();
        wait::until(START_LIMIT, "the end of the sidecar's processes", || {
            Ok(cgroup::members(place)?.is_empty().then_some(()))
        })
    }

    /// Starts one again.
    fn start(&mut self, folder: &Folder) -> Result<()> {
        self.runs += 1;
        self.sidecar = self.plan.start(self.pod, folder, &format!("run-{}", self.runs), &[])?;
        Ok(())
    }

    /// The newest worker.
    pub(crate) fn worker(&self) -> Result<u32> {
        self.sidecar.pids()[1..]
            .iter()
            .max()
            .copied()
            .with_context(|| format!("no worker in the {} pod", self.pod.name))
    }
}

/// Sends a signal to processes of a sidecar, which live: xtask has not waited for them, and they are not waited for while it
/// does.
pub(crate) fn signal(processes: &[u32], signal: Signal) -> Result<()> {
    ensure!(!processes.is_empty(), "nobody to send {signal} to");
    processes.iter().try_for_each(|pid| {
        kill(Pid::from_raw(pid.cast_signed()), signal).with_context(|| format!("send {signal} to process {pid}"))
    })
}

fn xtask() -> Result<String> {
    Ok(std::env::current_exe().context("cannot find this program's own file")?.display().to_string())
}

/// The application of the server pod; `run` names its output.
fn serve(world: &World, run: &str) -> Result<Process> {
    let line = [&xtask()?, "load", "serve", "--at", &SERVER.to_string()];
    let mut servers = Process::start(&world.server, Place::App, &world.folder, &format!("servers-{run}"), &line)?;
    servers.line(0, START_LIMIT, "their readiness", |line| line == READY)?;
    Ok(servers)
}

fn authority(binary: &Path, world: &World, verb: &str, args: &[&str]) -> Result<()> {
    let directory = world.folder.path().join("ca");
    process::output(Command::new(binary).arg("ca").arg(verb).arg(directory).args(args)).map(drop)
}

fn identity(world: &World, pod: &Pod) -> String {
    world.folder.path().join(format!("identity-{}", pod.name)).display().to_string()
}

fn issue(binary: &Path, world: &World, pod: &Pod) -> Result<()> {
    let to = identity(world, pod);
    authority(binary, world, "issue", &["--namespace", "pods", "--service-account", &pod.name, "--out", &to])
}

fn settings(world: &World, pod: &Pod) -> String {
    let at = identity(world, pod);
    // Strict refuses what goes past a dead sidecar, at the other end; and nothing is left on a bpffs.
    format!(
        "identity: {{ files: {{ cert: {at}/cert.pem, key: {at}/key.pem, roots: {at}/roots.pem }} }}\n\
         mtls: {{ mode: strict }}\ncapture: {{ on_failure: open }}\n"
    )
}
