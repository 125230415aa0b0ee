//! A sidecar under test.

use std::{env, fs, path::PathBuf, process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Metrics, PATIENCE, Pod, Process, Sample, eventually,
    family::{children, wait_for_end},
    lacking::without_helper,
    patient,
};

/// The binary under test: `$SIDECAR_BIN`, else the one built beside this test.
fn sidecar_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SIDECAR_BIN") {
        let path = PathBuf::from(path);
        return path
            .is_file()
            .then_some(path.clone())
            .with_context(|| format!("SIDECAR_BIN={}: no such file", path.display()));
    }
    let beside = built_beside("sidecar")?;
    if !beside.is_file() {
        bail!(
            "{}: no such file. Build it with `cargo build -p sidecar`, or name another in SIDECAR_BIN",
            beside.display()
        );
    }
    Ok(beside)
}

/// A binary of the same build: tests are in `target/<profile>/deps`, binaries one level up.
pub(super) fn built_beside(name: &str) -> Result<PathBuf> {
    let test = env::current_exe().context("path of the running test")?;
    let profile =
        test.ancestors().nth(2).with_context(|| format!("{} is not in a target directory", test.display()))?;
    Ok(profile.join(name))
}

/// A running sidecar; killed when dropped.
#[derive(Debug)]
pub struct Sidecar {
    pod: Arc<Pod>,
    /// Its supervisor: the process that was started, and whose output is that of both.
    pub process: Process,
}

impl Sidecar {
    /// Starts a sidecar in its place in `pod`, with this configuration, and waits until it is ready.
    pub fn start(pod: &Arc<Pod>, config: &str) -> Result<Self> {
        let mut sidecar = Self::spawn(pod, config)?;
        sidecar.wait_until_ready(patient(PATIENCE))?;
        Ok(sidecar)
    }

    /// Starts a sidecar of this configuration through another program, which gets the sidecar's command line as its last
    /// arguments.
    pub fn spawn_through(pod: &Arc<Pod>, config: &str, program: &str, args: &[&str]) -> Result<Self> {
        let sidecar = Self::command(pod, config)?;
        let mut command = Command::new(program);
        command.args(args).arg(sidecar.get_program());
        pass_on(&sidecar, &mut command);
        Ok(Self { pod: Arc::clone(pod), process: pod.spawn_beside_sidecar(command)? })
    }

    /// Starts a sidecar as on a kernel that lacks this helper, a number of `enum bpf_func_id` (linux/bpf.h).
    pub fn spawn_without_helper(pod: &Arc<Pod>, config: &str, helper: u32) -> Result<Self> {
        let mut command = Command::new(without_helper(&sidecar_binary()?, pod.directory(), helper)?);
        pass_on(&Self::command(pod, config)?, &mut command);
        Ok(Self { pod: Arc::clone(pod), process: pod.spawn_beside_sidecar(command)? })
    }

    /// Starts a sidecar without waiting.
    pub fn spawn(pod: &Arc<Pod>, config: &str) -> Result<Self> {
        Ok(Self { pod: Arc::clone(pod), process: pod.spawn_beside_sidecar(Self::command(pod, config)?)? })
    }

    /// The command that runs a sidecar for `pod` with this configuration.
    pub fn command(pod: &Pod, config: &str) -> Result<Command> {
        let file = pod.directory().join("sidecar.yaml");
        fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
        let mut command = Self::program()?;
        command.arg("run").arg("--config").arg(file);
        Ok(command)
    }

    /// The binary under test, without the variables of this process that it would take for configuration.
    pub fn program() -> Result<Command> {
        let mut command = Command::new(sidecar_binary()?);
        Self::unconfigured(&mut command);
        Ok(command)
    }

    /// Takes from a command that runs a sidecar what is meant for the tests: a sidecar would take it for configuration.
    pub fn unconfigured(command: &mut Command) {
        for (name, _) in env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"SIDECAR_") {
                command.env_remove(name);
            }
        }
    }

    /// Waits until its health endpoint says ready.
    pub fn wait_until_ready(&mut self, limit: Duration) -> Result<()> {
        let (pod, process) = (&self.pod, &mut self.process);
        let mut exited = false;
        let ready = eventually(limit, || {
            exited = !process.is_running();
            exited || is_ready(pod)
        });
        match (ready, exited) {
            (true, false) => Ok(()),
            (_, true) => bail!("the sidecar of {} has exited{}", pod.name(), process.output()),
            (false, false) => bail!("the sidecar of {} is not ready after {limit:?}{}", pod.name(), process.output()),
        }
    }

    /// Whether its health endpoint says ready now.
    pub fn is_ready(&self) -> bool {
        is_ready(&self.pod)
    }

    /// What it measures now.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = self.pod.get(15020, "/metrics").with_context(|| self.process.output())?;
        Metrics::parse(&answer.body)
    }

    /// How often this verdict was given so far.
    pub fn verdict(&self, hook: &str, verdict: &str, reason: &str) -> Result<u64> {
        Ok(self.metrics()?.verdict(hook, verdict, reason))
    }

    /// Every verdict given so far, for a failure message.
    pub fn verdicts(&self) -> String {
        let describe = |sample: Sample| {
            let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
            format!("{} {} {}: {}", label("hook"), label("verdict"), label("reason"), sample.value)
        };
        match self.metrics() {
            Ok(metrics) => {
                let given = metrics.0.into_iter().filter(|sample| sample.name == "sidecar_verdicts_total");
                given.filter(|sample| sample.value > 0.0).map(describe).collect::<Vec<_>>().join("\n")
            }
            Err(error) => format!("{error:#}"),
        }
    }

    /// How many connections ended for this reason so far.
    pub fn closed(&self, reason: &str) -> Result<u64> {
        Ok(self.metrics()?.sum("sidecar_connections_closed_total", &[("reason", reason)]) as u64)
    }

    /// The connections it carries now.
    pub fn connections(&self) -> Result<serde_json::Value> {
        let answer = self.pod.get(15000, "/connections").with_context(|| self.process.output())?;
        serde_json::from_str(&answer.body).with_context(|| format!("not JSON: {}", answer.body))
    }

    /// What it says of its fast path, and whether messages are redirected now.
    pub fn fast_path(&self) -> Result<serde_json::Value> {
        let answer = self.pod.get(15000, "/fastpath").with_context(|| self.process.output())?;
        serde_json::from_str(&answer.body).with_context(|| format!("not JSON: {}", answer.body))
    }

    /// The same once the probe is over.
    pub fn fast_path_probed(&self) -> Result<serde_json::Value> {
        let known = || self.fast_path().is_ok_and(|status| status["why"] != "the kernel is being probed");
        ensure!(eventually(patient(PATIENCE), known), "the probe goes on{}", self.process.output());
        self.fast_path()
    }

    /// How many that are.
    pub fn live(&self) -> Result<usize> {
        let table = self.connections()?;
        let list = table.as_array().or_else(|| table.get("connections")?.as_array());
        list.map(Vec::len).with_context(|| format!("no list of connections: {table}"))
    }

    /// Its worker, if there is one now.
    pub fn worker(&self) -> Result<Pid> {
        children(self.process.pid())
            .first()
            .copied()
            .with_context(|| format!("it has no worker{}", self.process.output()))
    }

    /// A line of its worker's `/proc/PID/status`, such as `CapEff:`.
    pub fn worker_status(&self, key: &str) -> Result<String> {
        status(self.worker()?, key)
    }

    /// Its processes.
    pub fn pids(&self) -> Vec<Pid> {
        [vec![self.process.pid()], children(self.process.pid())].concat()
    }

    fn sum<T: std::iter::Sum>(&self, of: impl FnMut(Pid) -> Result<T>) -> Result<T> {
        self.pids().into_iter().map(of).sum()
    }

    /// Descriptors that both have open.
    pub fn descriptors(&self) -> Result<usize> {
        self.sum(descriptors)
    }

    /// Descriptors that its worker has open.
    pub fn descriptors_of_worker(&self) -> Result<usize> {
        descriptors(self.worker()?)
    }

    /// Descriptors that its supervisor has open.
    pub fn descriptors_of_supervisor(&self) -> Result<usize> {
        descriptors(self.process.pid())
    }

    /// Memory of its own, in KiB: neither shared nor mapped from files.
    pub fn anonymous_kib(&self) -> Result<u64> {
        self.sum(|pid| Ok(status(pid, "RssAnon:")?.trim_end_matches(" kB").parse::<u64>()?))
    }

    /// Processor time that its threads have used so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        self.sum(|pid| {
            let mut total = 0;
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                // The first field: nanoseconds on a processor (proc_pid_schedstat(5)).
                let text = fs::read_to_string(task?.path().join("schedstat"))?;
                total += text.split(' ').next().context("an empty schedstat")?.parse::<u64>()?;
            }
            Ok(Duration::from_nanos(total))
        })
    }

    /// Pages that it has in memory.
    pub fn resident_pages(&self) -> Result<u64> {
        self.sum(|pid| {
            let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
            Ok(statm.split(' ').nth(1).context("a short statm")?.parse::<u64>()?)
        })
    }

    /// Sends a signal: those that stop and go on, and the one that kills, to both; any other to the supervisor, which is who
    /// is meant.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let workers = match signal {
            Signal::SIGSTOP | Signal::SIGCONT | Signal::SIGKILL => children(self.process.pid()),
            _ => Vec::new(),
        };
        self.process.signal(signal)?;
        for worker in workers {
            // One that was about to end has ended.
            let _ = kill(worker, signal);
        }
        Ok(())
    }

    /// Kills both and waits for their end.
    pub fn kill(&mut self) -> Result<()> {
        let workers = children(self.process.pid());
        self.signal(Signal::SIGKILL)?;
        for worker in workers {
            wait_for_end(worker, PATIENCE)?;
        }
        self.process.wait(PATIENCE).map(drop)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if self.process.is_running() {
            // Its output says what went wrong, if something did.
            let _ = self.kill();
        }
    }
}

fn descriptors(pid: Pid) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// A line of `/proc/PID/status`, without its name.
fn status(pid: Pid, key: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    Ok(line.with_context(|| format!("no {key} in {status}"))?.trim().to_owned())
}

/// Arguments and variables of one command for another.
fn pass_on(from: &Command, to: &mut Command) {
    to.args(from.get_args());
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
}

fn is_ready(pod: &Pod) -> bool {
    pod.get(15021, "/healthz/ready").is_ok_and(|answer| answer.status == 200)
}
