//! The last state: both sides are connected, and bytes move until the end.

use std::pin::Pin;

use super::{Accepted, Connected, Shared};
use crate::{
    native::{Role, TlsStream},
    net::{Side, Stream},
    relay::relay,
    telemetry::{CloseReason, ConnectionRecord},
    tls::Contexts,
};

impl<D, U> Connected<D, U> {
    /// The same with each side taken out, to become something else.
    pub fn split(self) -> (D, U, Connected<(), ()>) {
        let Self { accepted, record, upstream, permit } = self;
        let (downstream, accepted) = accepted.split();
        (downstream, upstream, Connected { accepted, record, upstream: (), permit })
    }
}

impl Connected<(), ()> {
    /// The same with sides again.
    pub fn with<D, U>(self, downstream: D, upstream: U) -> Connected<D, U> {
        let Self { accepted, record, upstream: (), permit } = self;
        Connected { accepted: accepted.with(downstream), record, upstream, permit }
    }

    /// Back to the beginning: `downstream` turned out to be something else. The record goes on.
    pub fn accepted_again<D>(self, downstream: D) -> Accepted<D> {
        let Self { accepted, record, .. } = self;
        Accepted { record: Some(record), ..accepted.with(downstream) }
    }

    /// Resolves when somebody wants it closed.
    pub async fn told_to_close(&self) -> CloseReason {
        self.record.told_to_close().await
    }

    /// It ends here.
    pub fn finish(self, reason: CloseReason) {
        let Self { accepted, record, .. } = self;
        drop(accepted);
        record.finish(reason);
    }

    /// Its record.
    pub fn record(&mut self) -> &mut ConnectionRecord {
        &mut self.record
    }
}

/// What is left of a connection to do when both sides are connected.
pub type Relay = Pin<Box<dyn Future<Output = ()>>>;

/// What an identity may have been proved for.
pub trait Proved {
    /// Whether nobody proved anything.
    const NOTHING: bool = true;

    /// Whether the proof has been revoked by what is believed now.
    fn is_revoked(&self, _: &Contexts) -> bool {
        false
    }
}

impl Proved for Stream {}

impl<R: Role> Proved for TlsStream<R> {
    const NOTHING: bool = false;

    fn is_revoked(&self, contexts: &Contexts) -> bool {
        contexts.identity().revoked(self.peer_certificates().as_deref().unwrap_or_default())
    }
}

impl<D: Side + Proved + 'static, U: Side + Proved + 'static> Connected<D, U> {
    /// The connection to whoever dialled.
    pub fn downstream(&self) -> &D {
        &self.accepted.downstream
    }

    /// Moves bytes until both sides have finished, one is gone, or somebody wants it closed. On the heap, for it is to be
    /// awaited where what it took to connect is gone already: that is several kilobytes, and this is for life.
    pub fn relay(self) -> Relay {
        Box::pin(self.until_the_end())
    }

    async fn until_the_end(self) {
        let Self { accepted: Accepted { downstream, shared, slot, .. }, record, upstream, permit } = self;
        let reason = tokio::select! {
            // In this order: not one byte of whom it is no longer allowed for.
            biased;
            () = revoked(&shared, &downstream, &upstream), if !(D::NOTHING && U::NOTHING) => CloseReason::Revoked,
            reason = record.told_to_close() => {
                if reason == CloseReason::Completed {
                    // What was sent is not lost by a reset.
                    downstream.end_cleanly();
                    upstream.end_cleanly();
                }
                reason
            }
            reason = relay(&downstream, &upstream, record.traffic(), shared.limits.max_buffer) => reason,
        };
        // The record tells of the end when the sockets are closed, so that who sees it sees them gone.
        drop((downstream, upstream, slot, permit));
        record.finish(reason);
    }
}

/// Waits until a revocation list comes that names one of them.
async fn revoked(shared: &Shared, downstream: &impl Proved, upstream: &impl Proved) {
    let names = |contexts: &Contexts| downstream.is_revoked(contexts) || upstream.is_revoked(contexts);
    shared.mtls.current.others(names).await;
}
