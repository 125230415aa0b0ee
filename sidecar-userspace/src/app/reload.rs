//! Reading the configuration again, on SIGHUP.
//!
//! It is read whole, from the same file, variables and flags. A configuration with a fault changes nothing. Of one without,
//! `authorization` is put in force; other keys that changed are named in the log and wait for the next start.

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use metrics::Gauge;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Error;
use crate::{
    config::{Faults, Loaded},
    policy::{Permits, Policy},
    telemetry::Telemetry,
};

/// The one key that changes in a running sidecar.
const AUTHORIZATION: &str = "authorization";

/// The configuration in force. Clones share it.
#[derive(Clone)]
pub(super) struct InForce(Arc<Mutex<Loaded>>);

impl InForce {
    pub(super) fn get(&self) -> MutexGuard<'_, Loaded> {
        // A panic elsewhere leaves a configuration that is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests to read the configuration again.
pub(super) struct Hangups(Signal);

impl Hangups {
    /// From here on SIGHUP does not end the process.
    pub(super) fn listen() -> Result<Self, Error> {
        let what = "listen for SIGHUP";
        signal(SignalKind::hangup()).map(Self).map_err(|source| Error::Runtime { what, source })
    }
}

/// Reads the configuration again.
pub(super) struct Reload {
    in_force: InForce,
    permits: Permits,
    generation: Gauge,
    success: Gauge,
}

impl Reload {
    pub(super) fn new(loaded: Loaded, permits: Permits, telemetry: &Telemetry) -> Self {
        let (generation, success) = telemetry.within(|| {
            const GENERATION: &str = "sidecar_config_generation";
            const SUCCESS: &str = "sidecar_config_last_reload_success";
            metrics::describe_gauge!(GENERATION, "Configurations that were put in force, counted from 1 at the start.");
            metrics::describe_gauge!(SUCCESS, "Whether the configuration was without fault when it was last read.");
            (metrics::gauge!(GENERATION), metrics::gauge!(SUCCESS))
        });
        generation.set(1.0);
        success.set(1.0);
        Self { in_force: InForce(Arc::new(Mutex::new(loaded))), permits, generation, success }
    }

    /// The configuration in force.
    pub(super) fn in_force(&self) -> InForce {
        self.in_force.clone()
    }

    /// Reads the configuration again whenever it is asked to. Never ends.
    pub(super) async fn follow(&self, mut hangups: Hangups) {
        while hangups.0.recv().await.is_some() {
            let again = self.in_force.get().clone();
            // A file on a volume that does not answer must not keep this thread from anything else.
            let read = tokio::task::spawn_blocking(move || again.read_again()).await;
            match read.map_err(io::Error::from) {
                Ok(read) => self.take(read),
                Err(error) => {
                    self.success.set(0.0);
                    tracing::error!(%error, "the configuration could not be read again; the one before stays in force");
                }
            }
        }
        tracing::warn!("SIGHUP is no longer noticed");
        pending().await
    }

    fn take(&self, read: Result<Loaded, Faults>) {
        let newer = match read {
            Ok(newer) => newer,
            Err(faults) => {
                self.success.set(0.0);
                for fault in faults.iter() {
                    tracing::error!(%fault, "the configuration is wrong; the one before stays in force");
                }
                return;
            }
        };
        let mut in_force = self.in_force.get();
        let changed = newer.changed(&in_force);
        in_force.take_authorization(&newer);
        let policy = Policy::new(&in_force.config.authorization);
        let rules = policy.rules().count();
        for denial in in_force.config.denials_past_plaintext() {
            tracing::warn!("{denial}");
        }
        drop(in_force);
        let closed = self.permits.replace(policy);
        self.generation.increment(1.0);
        self.success.set(1.0);
        let waiting: Vec<&str> = changed.into_iter().filter(|key| *key != AUTHORIZATION).collect();
        if !waiting.is_empty() {
            tracing::warn!(keys = waiting.join(", "), "these keys have changed and take effect at the next start only");
        }
        tracing::info!(rules, closed, "the configuration was read again");
    }
}
