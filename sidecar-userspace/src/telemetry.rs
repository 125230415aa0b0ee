//! What is measured and told: the record of every connection, metrics, access log, the sidecar's own log.
//!
//! A connection costs one short lock when it is accepted and one when it ends, and an atomic addition per relayed
//! chunk; everything else happens when somebody scrapes. One with mutual TLS costs one more, when its peer is known.
//! Labels come from closed sets (direction, reason, flags), and peers with series of their own have a limit, so that no
//! client can make the metrics grow.

mod access_log;
mod connection;
mod families;
mod istio;
mod limit;
mod live;
pub mod log;
mod mtls;
pub mod process;
mod record;
mod security;
mod table;
mod timestamp;

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::{addr::ClientAddr, config, id::SpiffeId};

use access_log::{AccessLog, Own, Stdout};
use families::Families;
use process::Usage;

pub use connection::{CloseReason, Direction, End, ResponseFlags, Traffic};
pub use limit::{Limit, shortage};
pub use live::{ConnectionRow, ConnectionState};
pub use mtls::{InProgress, Role, Spare};
pub use record::{Closer, ConnectionRecord};
pub use security::{NotEncrypted, Security};
pub use table::ConnectionTable;

/// Upper bounds of `sidecar_connect_seconds`: from a neighbour on the same node to the default connect timeout.
const CONNECT_BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 3.0, 10.0];

/// Connects and handshakes between two clean-ups of the exporter: some 16 KiB of samples.
const UPKEEP_EVERY: usize = 1024;

/// How long the last clone waits for the access log to reach standard output.
const FLUSH_AT_EXIT: Duration = Duration::from_secs(1);

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The exporter refused the bucket bounds.
    #[error("metrics exporter: {0}")]
    Exporter(#[from] BuildError),
    /// The access log has no thread to write it.
    #[error(
        "clone() of the access log's thread: {0}; raise the pod's pids limit, or what it may have of memory (memory.max, ulimit -v)"
    )]
    Thread(#[source] std::io::Error),
}

/// Everything that is counted and told. Clones are cheap and share the same figures.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    recorder: Arc<PrometheusRecorder>,
    exporter: PrometheusHandle,
    families: Families,
    mtls: mtls::Mtls,
    own_identity: Mutex<Option<SpiffeId>>,
    connections: ConnectionTable,
    samples: AtomicUsize,
    access_log: Option<AccessLog>,
    sources: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
    supervisor: OnceLock<Box<dyn Fn() -> Usage + Send + Sync>>,
}

impl Telemetry {
    /// Starts counting, and the thread that writes the access log to standard output.
    ///
    /// The first one of a process also receives what is said through the macros of the `metrics` crate.
    ///
    /// # Errors
    /// The access log's thread could not be started.
    pub fn start(config: &config::Telemetry, pod: &config::Pod) -> Result<Self, Error> {
        Self::with_output(config, pod, Stdout)
    }

    fn with_output(
        config: &config::Telemetry,
        pod: &config::Pod,
        output: impl std::io::Write + Send + 'static,
    ) -> Result<Self, Error> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(families::CONNECT_SECONDS.to_owned()), &CONNECT_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full(mtls::HANDSHAKE_SECONDS.to_owned()), &mtls::HANDSHAKE_BUCKETS)?
            .build_recorder();
        let exporter = recorder.handle();
        let recorder = Arc::new(recorder);
        // Refused when another one is there already (tests start many): then the macros feed that one, and this one
        // still has its own figures, because its handles come from its own recorder.
        let _ = metrics::set_global_recorder(Arc::clone(&recorder));
        let families = Families::register(&recorder, pod);
        let mtls = mtls::Mtls::register(&recorder);
        let own = Own { workload: pod.workload.clone(), namespace: pod.namespace.clone() };
        let access_log =
            AccessLog::start(config.access_log, own, families.lost_lines(), output).map_err(Error::Thread)?;
        Ok(Self(Arc::new(Inner {
            recorder,
            exporter,
            families,
            mtls,
            own_identity: Mutex::default(),
            connections: ConnectionTable::default(),
            samples: AtomicUsize::new(0),
            access_log,
            sources: Mutex::default(),
            supervisor: OnceLock::new(),
        })))
    }

    /// A connection that was accepted at `accepted` is one of the application's: its record is born. A connection between
    /// sidecars may wait for that for long; its age counts from the accept, its idle time from now.
    pub fn accepted_at(&self, direction: Direction, client: ClientAddr, accepted: Instant) -> ConnectionRecord {
        ConnectionRecord::new(self.clone(), direction, client, accepted)
    }

    /// Who this sidecar is from now on; what is open keeps the identity that it began with.
    pub fn own_identity(&self, own: Option<SpiffeId>) {
        *self.0.own_identity.lock().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// The connections that are open now.
    pub fn connections(&self) -> &ConnectionTable {
        &self.0.connections
    }

    /// Has `source` called before each rendering, to set figures that are kept elsewhere
    /// (`metrics::counter!(…).absolute(n)`); inside it the macros of the `metrics` crate reach this telemetry.
    pub fn add_source(&self, source: Box<dyn Fn() + Send + Sync>) {
        self.0.sources.lock().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// Has the other process's figures rendered too, as `usage` tells them. The first one stays.
    pub fn show_supervisor(&self, usage: Box<dyn Fn() -> Usage + Send + Sync>) {
        let _ = self.0.supervisor.set(usage);
    }

    /// Calls `register` so that the macros of the `metrics` crate reach this telemetry; the handles that they return go on
    /// reaching it.
    pub fn within<T>(&self, register: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.0.recorder, register)
    }

    /// All metrics in Prometheus' text format 0.0.4. Includes what live connections have moved so far, so that a
    /// connection that is open for days is on every scrape.
    pub fn render_metrics(&self) -> String {
        let inner = &*self.0;
        inner.connections.for_each(|live| inner.families.flush(live));
        inner.families.log_lost(log::lost());
        let sources = inner.sources.lock().unwrap_or_else(PoisonError::into_inner);
        metrics::with_local_recorder(&inner.recorder, || sources.iter().for_each(|source| source()));
        drop(sources);
        let mut text = inner.exporter.render();
        inner.families.render_istio(&mut text);
        process::render(&mut text, inner.supervisor.get().map(|supervisor| supervisor()));
        text
    }

    /// A connection reached its destination.
    fn connected(&self, direction: Direction, took: Duration) {
        self.0.families.connected(direction, took);
        self.sampled();
    }

    /// A histogram got a sample. The exporter keeps every sample until it is asked to sort them into buckets, so this asks
    /// once in a while: without a scraper, and without a timer, memory stays bounded.
    fn sampled(&self) {
        if self.0.samples.fetch_add(1, Ordering::Relaxed) % UPKEEP_EVERY == UPKEEP_EVERY - 1 {
            self.0.exporter.run_upkeep();
        }
    }

    /// Waits until the access log of all connections finished so far has been written; `false`: not within `limit`
    /// (nobody reads standard output).
    pub fn flush(&self, limit: Duration) -> bool {
        self.0.access_log.as_ref().is_none_or(|log| log.flush(limit))
    }
}

impl Inner {
    fn own_identity(&self) -> Option<SpiffeId> {
        self.own_identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(access_log) = &self.access_log {
            access_log.flush(FLUSH_AT_EXIT);
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("connections", &self.0.connections.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
