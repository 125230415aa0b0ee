//! The identity in a running sidecar: what it changes when it comes, is renewed, or expires.

use std::{
    convert::Infallible,
    net::TcpListener,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    config::Config,
    identity::{IdentityWatch, Publisher, Source},
    lifecycle::readiness::{Condition, Readiness},
    mtls::Mtls,
    net,
    telemetry::Telemetry,
    tls::{Contexts, Failure},
};

/// Provides the identity, and tells everybody of it.
pub(super) struct Trust {
    source: Pin<Box<dyn Future<Output = Infallible>>>,
    watch: IdentityWatch,
    /// Where it is put in force.
    mtls: Mtls,
    telemetry: Telemetry,
    condition: Condition,
}

impl Trust {
    /// Begins to provide the identity that the configuration names; without one there is no mutual TLS.
    pub(super) fn begin(config: &Config, telemetry: &Telemetry, mtls: &Mtls, readiness: &Readiness) -> Option<Self> {
        let source = Source::of(&config.identity)?;
        let (publisher, watch) = telemetry.within(Publisher::new);
        telemetry.expect_handshake_failures(Failure::labels());
        Some(Self {
            source: Box::pin(source.run(publisher)),
            watch,
            mtls: mtls.clone(),
            telemetry: telemetry.clone(),
            condition: readiness.condition("identity"),
        })
    }

    /// Waits until there is an identity, however long: another worker serves meanwhile.
    pub(super) async fn await_identity(&mut self) {
        while self.watch.current().is_none() {
            tokio::select! {
                never = &mut self.source => match never {},
                () = self.watch.changed() => {}
            }
        }
        self.put_in_force();
    }

    /// Waits until there is an identity, or it is known that there is none for now, but not long.
    pub(super) async fn first(&mut self) {
        /// A source that answers at all does so in milliseconds; one that does not must not keep the pod from starting.
        const LONGEST: Duration = Duration::from_secs(1);
        tokio::select! {
            never = &mut self.source => match never {},
            () = self.watch.changed() => {}
            () = tokio::time::sleep(LONGEST) => {}
        }
        self.put_in_force();
    }

    /// Keeps the identity fresh, and everybody told of it, for as long as the sidecar runs. `listener`: whose SYN-ACKs say
    /// that we have an identity.
    pub(super) async fn follow(mut self, listener: &TcpListener) -> Infallible {
        loop {
            tokio::select! {
                never = &mut self.source => match never {},
                () = self.watch.changed() => {}
            }
            self.put_in_force();
            self.tell(listener);
        }
    }

    /// What begins from now on is done with the newest identity.
    fn put_in_force(&self) {
        let identity = self.watch.current();
        let known = self.mtls.current.get();
        if identity.as_ref().map(Arc::as_ptr) == known.as_ref().map(|known| Arc::as_ptr(known.identity())) {
            return;
        }
        let id = identity.as_ref().map(|identity| identity.id().clone());
        match identity.map(|identity| Contexts::new(identity, &self.mtls.config)).transpose() {
            Ok(contexts) => {
                self.telemetry.own_identity(id);
                self.mtls.current.set(contexts.map(Arc::new));
            }
            Err(error) => tracing::error!(%error, "the new identity cannot be used; the one before stays in use"),
        }
    }

    /// Tells whoever asks about readiness, and other sidecars through the SYN-ACKs of `listener`.
    pub(super) fn tell(&self, listener: &TcpListener) {
        match self.watch.state(SystemTime::now()).unready() {
            None => self.condition.ready(),
            Some(why) => self.condition.unready(why),
        }
        if let Err(error) = net::mesh_answer(listener, self.mtls.offer()) {
            tracing::warn!(%error, "other sidecars are not told that this pod has one");
        }
    }
}
