//! Where identities come from. Each source is a future of the control thread that publishes one set after the other.

mod authority;
mod files;
mod folders;
mod proto;
mod workload_api;

use std::{
    convert::Infallible,
    time::{Duration, SystemTime},
};

use rustls::crypto::aws_lc_rs;

use super::{Publisher, Refused};
use crate::config;

/// Where identities come from: one of the configuration's.
pub enum Source {
    /// Files that somebody renews.
    Files(config::IdentityFiles),
    /// A SPIFFE Workload API.
    WorkloadApi(std::path::PathBuf),
    /// The embedded authority.
    Authority(config::Authority),
}

impl Source {
    /// The source that the configuration names; `None`: there is no mutual TLS.
    pub fn of(config: &config::Identity) -> Option<Self> {
        let files = config.files.clone().map(Self::Files);
        let api = || config.workload_api.clone().map(Self::WorkloadApi);
        files.or_else(api).or_else(|| config.ca.clone().map(Self::Authority))
    }

    /// Publishes for ever. Needs a runtime with I/O and time.
    pub async fn run(self, mut publisher: Publisher) -> Infallible {
        let expiry = publisher.tell_of_expiry();
        let publish = async {
            match self {
                Self::Files(files) => files::run(&files, &mut publisher).await,
                Self::WorkloadApi(socket) => workload_api::run(&socket, &mut publisher).await,
                Self::Authority(authority) => authority::run(&authority, &mut publisher).await,
            }
        };
        tokio::select! {
            never = publish => never,
            never = expiry => never,
        }
    }
}

/// `base`, longer or shorter by up to a tenth: sidecars that started together do not renew together.
fn jitter(base: Duration) -> Duration {
    let mut random = [0; 4];
    // Without random bytes they do renew together, which is not worth failing for.
    let _ = aws_lc_rs::default_provider().secure_random.fill(&mut random);
    let share = f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX);
    base.mul_f64(0.9 + 0.2 * share)
}

/// Pauses between attempts that fail: doubling, with jitter.
struct BackOff(Duration);

impl BackOff {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(30);

    fn new() -> Self {
        Self(Self::FIRST)
    }

    fn next(&mut self) -> Duration {
        let pause = jitter(self.0);
        self.0 = (self.0 * 2).min(Self::LONGEST);
        pause
    }
}

/// Verifies a set and publishes it, or its refusal; answers whether it was accepted.
fn publish(publisher: &mut Publisher, parts: Result<super::Parts, Refused>) -> bool {
    match parts.and_then(|parts| super::Identity::verify(parts, SystemTime::now())) {
        Ok(identity) => {
            publisher.accept(identity);
            true
        }
        Err(refused) => {
            publisher.refuse(refused);
            false
        }
    }
}
