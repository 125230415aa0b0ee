//! A sidecar in a pod.

use super::{
    folder::Folder,
    http,
    metrics::Metrics,
    pod::{Place, Pod},
    process::Process,
};
use anyhow::Result;
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where the sidecar says what it does. The defaults of its configuration.
const ADMIN: u16 = 15000;
const METRICS: u16 = 15020;
const HEALTH: u16 = 15021;

/// A cold start with BPF verification on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(15);

/// What it takes to start a sidecar, once or again.
pub(crate) struct Plan {
    binary: PathBuf,
    config: PathBuf,
    name: String,
}

impl Plan {
    /// Writes the configuration: the defaults, but for names, an admin socket of this world, the access log's format,
    /// and `extra` lines of YAML.
    pub(crate) fn new(binary: &Path, pod: &Pod, folder: &Folder, access_log: &str, extra: &str) -> Result<Self> {
        let name = format!("sidecar-{}", pod.name);
        let socket = folder.path().join(format!("{name}.sock"));
        let config = format!(
            "pod: {{ workload: {}, namespace: pods }}\ntelemetry: {{ access_log: {access_log}, admin_socket: {} }}\n{extra}",
            pod.name,
            socket.display()
        );
        let config = folder.write(&format!("{name}.yaml"), &config)?;
        Ok(Self { binary: binary.to_owned(), config, name })
    }

    /// The file with its configuration.
    pub(crate) fn config(&self) -> &Path {
        &self.config
    }

    /// Starts it; `run` says which run this is, so that each has its own output, and `through` what starts it.
    pub(crate) fn start(&self, pod: &Pod, folder: &Folder, run: &str, through: &[&str]) -> Result<Process> {
        let own = [self.binary.as_os_str(), OsStr::new("run"), OsStr::new("--config"), self.config.as_os_str()];
        let line: Vec<_> = through.iter().map(OsStr::new).chain(own).collect();
        Process::start(pod, Place::Sidecar, folder, &format!("{}-{run}", self.name), &line)
    }

    /// Starts it and waits until it is ready; says how long that took.
    pub(crate) fn serve(&self, pod: &Pod, folder: &Folder, run: &str) -> Result<(Process, Duration)> {
        let begin = Instant::now();
        let mut process = self.start(pod, folder, run, &[])?;
        ready(&mut process, pod)?;
        Ok((process, begin.elapsed()))
    }
}

/// Waits until the sidecar in this pod is ready.
pub(crate) fn ready(process: &mut Process, pod: &Pod) -> Result<()> {
    process.until(START_LIMIT, "readiness", || Ok(http::get(pod, HEALTH, "/healthz/ready").ok())).map(drop)
}

/// The counter of what the eBPF programs decided.
pub(crate) const VERDICTS: &str = "sidecar_verdicts_total";
/// Its labels for a captured outbound connection, decided at connect(2).
pub(crate) const OUTBOUND: [(&str, &str); 2] = [("hook", "connect"), ("verdict", "capture")];
/// Its labels for a captured inbound connection, decided at the socket lookup.
pub(crate) const INBOUND: [(&str, &str); 2] = [("hook", "sk_lookup"), ("verdict", "capture")];

/// The metrics of the sidecar in this pod.
pub(crate) fn metrics(pod: &Pod) -> Result<Metrics> {
    Metrics::scrape(pod, METRICS)
}

/// The table of live connections of the sidecar in this pod, as JSON.
pub(crate) fn connections(pod: &Pod) -> Result<String> {
    http::get(pod, ADMIN, "/connections")
}
