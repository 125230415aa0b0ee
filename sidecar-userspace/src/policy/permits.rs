//! Connections that were allowed, so that new rules reach them too.

use std::{
    array, fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use metrics::Counter;
use slab::Slab;

use crate::{
    id::SpiffeId,
    telemetry::{CloseReason, Closer},
};

use super::{Decision, Policy, Request, Verdict, Why};

/// Locks over which permits are spread, so that new rules that are checked against 100 000 connections stop a worker only
/// for the sixteenth part of them.
const SHARDS: usize = 16;

/// Entries that an empty shard may keep room for.
const SMALL_SHARD: usize = 64;

/// The rules in force, and the connections that they allowed. Clones share them.
///
/// No connection slips through between the check and a replacement of the rules: it is registered *before* it is
/// checked, and a replacement looks at what is registered *after* the new rules are in force. Whichever comes first, one of
/// the two sees the other.
#[derive(Clone)]
pub struct Permits(Arc<Inner>);

struct Inner {
    policy: RwLock<Policy>,
    /// Held while rules are replaced, so that two replacements do not mix.
    replacing: Mutex<()>,
    shards: [Mutex<Slab<Held>>; SHARDS],
    next: AtomicUsize,
    counted: Counted,
}

/// What must be known of an open connection to check it again.
struct Held {
    client: IpAddr,
    principal: Option<SpiffeId>,
    port: u16,
    closer: Closer,
}

/// Leave to carry one connection. Made only by [`Permits::check`]; kept as long as the connection is open.
///
/// When rules come that do not allow the connection, it is told to close ([`CloseReason::NoLongerAuthorized`]) through
/// its record, whose `told_to_close` resolves.
#[must_use = "the connection is no longer checked against new rules once its permit is dropped"]
pub struct Permit {
    permits: Permits,
    shard: usize,
    slot: usize,
}

/// The rules do not allow a connection. It has been counted and logged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("denied by {0}")]
pub struct Refused(
    /// What decided.
    pub Why,
);

impl Permits {
    /// Puts `policy` in force. The counters are registered with the recorder of the calling thread, or of the process.
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(Inner {
            policy: RwLock::new(policy),
            replacing: Mutex::default(),
            shards: array::from_fn(|_| Mutex::default()),
            next: AtomicUsize::new(0),
            counted: Counted::register(),
        }))
    }

    /// Asks whether a connection may go on; `closer` tells it to close when that is no longer so. Counts the decision,
    /// and logs a denial at `info`.
    ///
    /// # Errors
    /// [`Refused`]: the connection is to be closed with [`CloseReason::Unauthorized`].
    pub fn check(&self, request: &Request<'_>, closer: Closer) -> Result<Permit, Refused> {
        let permit = self.register(request, closer);
        let decision = self.decide(request);
        self.0.counted.count(&decision);
        if let Some(other) = &decision.dry_run {
            let verdict = other.verdict.label();
            tracing::info!(%request, verdict, by = %other.by, "dry run: the verdict would be another");
        }
        if decision.verdict == Verdict::Deny {
            tracing::info!(%request, by = %decision.by, "denied");
            return Err(Refused(decision.by));
        }
        Ok(permit)
    }

    /// Whether a connection could go on, without asking for leave: nothing is counted, logged or remembered.
    pub fn would_allow(&self, request: &Request<'_>) -> bool {
        self.decide(request).verdict == Verdict::Allow
    }

    /// Puts other rules in force and tells the open connections that they do not allow to close. Returns how many.
    pub fn replace(&self, policy: Policy) -> usize {
        let _replacing = lock(&self.0.replacing);
        *self.0.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
        let mut told = 0;
        for shard in &self.0.shards {
            for (_, held) in lock(shard).iter() {
                let request = held.request();
                let decision = self.decide(&request);
                if decision.verdict == Verdict::Deny {
                    tracing::info!(%request, by = %decision.by, "no longer allowed");
                    held.closer.close(CloseReason::NoLongerAuthorized);
                    told += 1;
                }
            }
        }
        told
    }

    /// Connections that hold a permit.
    pub fn held(&self) -> usize {
        self.0.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn register(&self, request: &Request<'_>, closer: Closer) -> Permit {
        let held = Held { client: request.client, principal: request.principal.cloned(), port: request.port, closer };
        let shard = self.0.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let slot = lock(&self.0.shards[shard]).insert(held);
        Permit { permits: self.clone(), shard, slot }
    }

    fn decide(&self, request: &Request<'_>) -> Decision {
        self.0.policy.read().unwrap_or_else(PoisonError::into_inner).decide(request)
    }
}

impl Held {
    fn request(&self) -> Request<'_> {
        Request { client: self.client, principal: self.principal.as_ref(), port: self.port }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut shard = lock(&self.permits.0.shards[self.shard]);
        shard.try_remove(self.slot);
        // A burst of connections does not keep its memory for ever.
        if shard.is_empty() && shard.capacity() > SMALL_SHARD {
            *shard = Slab::new();
        }
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permits").field("held", &self.held()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.principal {
            Some(id) => write!(f, "{id} at {} to port {}", self.client, self.port),
            None => write!(f, "{} without an identity to port {}", self.client, self.port),
        }
    }
}

/// `sidecar_authorization_total`: with `dry_run="false"` what was decided of each connection; with `dry_run="true"` what the
/// dry-run rules would have made of those for which that is something else.
struct Counted {
    allowed: Counter,
    denied: Counter,
    would_allow: Counter,
    would_deny: Counter,
}

impl Counted {
    fn register() -> Self {
        const NAME: &str = "sidecar_authorization_total";
        metrics::describe_counter!(NAME, "Inbound connections by what the rules decided, or would have in a dry run.");
        let counter = |verdict: Verdict, dry_run: &'static str| {
            let counter = metrics::counter!(NAME, "verdict" => verdict.label(), "dry_run" => dry_run);
            // So that the series is there before it first happens.
            counter.increment(0);
            counter
        };
        Self {
            allowed: counter(Verdict::Allow, "false"),
            denied: counter(Verdict::Deny, "false"),
            would_allow: counter(Verdict::Allow, "true"),
            would_deny: counter(Verdict::Deny, "true"),
        }
    }

    fn count(&self, decision: &Decision) {
        match decision.verdict {
            Verdict::Allow => self.allowed.increment(1),
            Verdict::Deny => self.denied.increment(1),
        }
        match decision.dry_run.as_ref().map(|other| other.verdict) {
            Some(Verdict::Allow) => self.would_allow.increment(1),
            Some(Verdict::Deny) => self.would_deny.increment(1),
            None => {}
        }
    }
}

/// A panic while a lock was held leaves what it guards whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
