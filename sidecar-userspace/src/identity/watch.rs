//! The identity as others see it: the current one, and word of the next.

use std::{
    convert::Infallible,
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use super::{Identity, Refused};

/// What the identity is worth now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// There is none yet, because of this.
    None(String),
    /// It can be used.
    Valid,
    /// Its certificate's validity has ended, and no new one could be had, because of this.
    Expired(String),
}

impl State {
    /// Why the sidecar is not ready; `None`: it is.
    pub fn unready(&self) -> Option<String> {
        match self {
            Self::Valid => None,
            Self::None(why) => Some(format!("no identity: {why}")),
            Self::Expired(why) => Some(format!("the workload's certificate has expired: {why}")),
        }
    }
}

#[derive(Default)]
struct Snapshot {
    current: Option<Arc<Identity>>,
    refused: Option<Refused>,
}

impl Snapshot {
    fn why(&self, otherwise: &str) -> String {
        self.refused.as_ref().map_or_else(|| otherwise.to_owned(), ToString::to_string)
    }
}

/// Sees each identity. Cheap to clone; used from any thread.
#[derive(Clone)]
pub struct IdentityWatch(watch::Receiver<Snapshot>);

impl IdentityWatch {
    /// The identity to use for what begins now.
    pub fn current(&self) -> Option<Arc<Identity>> {
        self.0.borrow().current.clone()
    }

    /// Waits until [`current`](Self::current) or [`state`](Self::state) may answer otherwise than before. For ever, when
    /// nobody provides identities any more.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            pending().await
        }
    }

    /// What the identity is worth at `now`.
    pub fn state(&self, now: SystemTime) -> State {
        let snapshot = self.0.borrow();
        match &snapshot.current {
            None => State::None(snapshot.why("none was provided yet")),
            Some(identity) if identity.expired(now) => State::Expired(snapshot.why("no new one was provided")),
            Some(_) => State::Valid,
        }
    }
}

/// Provides identities to every [`IdentityWatch`], counts them, and says what was refused.
pub struct Publisher {
    sender: watch::Sender<Snapshot>,
    generation: u64,
}

impl Publisher {
    /// A publisher that has published nothing, and a first watch on it.
    pub fn new() -> (Self, IdentityWatch) {
        let (sender, receiver) = watch::channel(Snapshot::default());
        describe();
        (Self { sender, generation: 0 }, IdentityWatch(receiver))
    }

    /// From now on this is the identity.
    pub fn accept(&mut self, identity: Identity) -> Arc<Identity> {
        let identity = Arc::new(identity);
        self.generation += 1;
        counted("accepted");
        metrics::gauge!("sidecar_identity_generation").set(self.generation as f64);
        let end = identity.not_after().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::gauge!("sidecar_identity_not_after_timestamp_seconds").set(end.as_secs_f64());
        tracing::info!(id = %identity.id(), generation = self.generation, not_after = end.as_secs(), "new identity");
        if identity.revoked(&identity.certified().cert) {
            tracing::error!(id = %identity.id(), "a revocation list names the workload's own certificate");
        }
        self.sender.send_replace(Snapshot { current: Some(Arc::clone(&identity)), refused: None });
        identity
    }

    /// The newest set cannot be used; the identity stays what it is. Said once for the same reason.
    pub fn refuse(&self, refused: Refused) {
        counted(refused.label());
        self.sender.send_if_modified(|snapshot| {
            if snapshot.refused.as_ref() == Some(&refused) {
                return false;
            }
            let kept = snapshot.current.as_ref().map(|identity| identity.id().to_string());
            tracing::error!(reason = %refused, kept, "identity refused");
            snapshot.refused = Some(refused);
            true
        });
    }

    /// Tells the watches when time alone ends what the identity is worth.
    pub(super) fn tell_of_expiry(&self) -> impl Future<Output = Infallible> + use<> {
        /// The wall clock may be set meanwhile.
        const LOOK_AGAIN: Duration = Duration::from_secs(60);
        let sender = self.sender.clone();
        async move {
            let mut published = sender.subscribe();
            loop {
                let current = published.borrow_and_update().current.clone();
                let Some(identity) = current else {
                    // Cannot fail: `sender` is alive.
                    let _ = published.changed().await;
                    continue;
                };
                let Ok(left) = identity.usable_until().duration_since(SystemTime::now()) else {
                    tracing::error!(id = %identity.id(), "the workload's certificate has expired; no handshake succeeds");
                    sender.send_modify(|_| {});
                    published.mark_unchanged();
                    let _ = published.changed().await;
                    continue;
                };
                tokio::select! {
                    _ = published.changed() => {}
                    () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
                }
            }
        }
    }
}

fn describe() {
    metrics::describe_gauge!("sidecar_identity_generation", "Identities used so far.");
    let text = "End of the validity of the workload's certificate, in seconds since 1970.";
    metrics::describe_gauge!("sidecar_identity_not_after_timestamp_seconds", metrics::Unit::Seconds, text);
    let text = "Sets of certificate, key and roots, by what became of them: accepted, or why refused.";
    metrics::describe_counter!("sidecar_identity_updates_total", text);
}

fn counted(result: &'static str) {
    metrics::counter!("sidecar_identity_updates_total", "result" => result).increment(1);
}
