//! A newer configuration, on SIGHUP.
//!
//! The supervisor reads it whole, from the same file, variables and flags. A configuration with a fault changes nothing. Of one
//! without, `authorization` is put in force; other keys that changed are named in the log and wait for the next start.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use metrics::Gauge;

use super::{Error, inherited};
use crate::{
    config::Loaded,
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

/// Takes newer configurations.
pub(super) struct Reload {
    in_force: InForce,
    permits: Permits,
    generation: Gauge,
    success: Gauge,
}

impl Reload {
    pub(super) fn new(loaded: Loaded, generation: u64, permits: Permits, telemetry: &Telemetry) -> Self {
        let (count, success) = telemetry.within(|| {
            const GENERATION: &str = "sidecar_config_generation";
            const SUCCESS: &str = "sidecar_config_last_reload_success";
            metrics::describe_gauge!(GENERATION, "Configurations that were put in force, counted from 1 at the start.");
            metrics::describe_gauge!(
                SUCCESS,
                "Whether the configuration could be read, and was without fault, when it was last asked for."
            );
            (metrics::gauge!(GENERATION), metrics::gauge!(SUCCESS))
        });
        count.set(generation as f64);
        success.set(1.0);
        Self { in_force: InForce(Arc::new(Mutex::new(loaded))), permits, generation: count, success }
    }

    /// The configuration in force.
    pub(super) fn in_force(&self) -> InForce {
        self.in_force.clone()
    }

    /// It could not be read; the supervisor has said why.
    pub(super) fn failed(&self) {
        self.success.set(0.0);
    }

    /// Takes the configuration in this memory; answers whether it is in force.
    pub(super) fn take(&self, memory: OwnedFd) -> bool {
        let newer = match inherited::load(memory) {
            Ok(newer) => newer,
            Err(Error::Configuration(faults)) => {
                self.success.set(0.0);
                for fault in faults.iter() {
                    tracing::error!(%fault, "the configuration is wrong; the one before stays in force");
                }
                return false;
            }
            Err(error) => {
                self.success.set(0.0);
                tracing::error!(%error, "the configuration could not be read again; the one before stays in force");
                return false;
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
        true
    }
}
