//! What the supervisor says while the worker serves.

use std::{future::pending, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

use super::{Error, reload::Reload};
use crate::{
    control::{self, Channel, Condition, Order, Report},
    lifecycle::{board::BoardReader, readiness},
};

/// Why to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// There is no reason.
    Not,
    /// What is open gets so much time to end; why.
    Drain(String, Duration),
    /// Another worker serves; what is open gets so much time to end.
    HandOver(Duration),
    /// At once; why.
    Now(String),
    /// The supervisor is gone, and the programs with it: nothing new will come, and nobody would be told.
    Orphaned,
}

/// Waits for a reason of this kind.
pub(super) async fn stopped(stop: &mut watch::Receiver<Stop>, is: impl Fn(&Stop) -> bool) -> Stop {
    match stop.wait_for(|stop| is(stop)).await {
        Ok(stop) => stop.clone(),
        // Its sender lives as long as the thread that waits.
        Err(_) => pending().await,
    }
}

/// The worker's end of the channel.
#[derive(Clone)]
pub(super) struct Orders(Arc<AsyncFd<Channel>>);

/// Who is told of what.
pub(super) struct Told {
    pub(super) programs: readiness::Condition,
    pub(super) addresses: readiness::Condition,
    /// True: the programs are attached, effective or not.
    pub(super) attached: watch::Sender<bool>,
    pub(super) stop: watch::Sender<Stop>,
    pub(super) board: BoardReader,
}

impl Orders {
    /// Watches the channel.
    pub(super) fn watch(channel: Channel) -> Result<Self, Error> {
        let failed = |source| Error::Runtime { what: "watch the control channel", source };
        // SAFETY: the descriptor is owned by the `AsyncFd` and therefore open as long as it is registered.
        let channel = unsafe { AsyncFd::register_with_interest(channel, Interest::READABLE) };
        channel.map(|channel| Self(Arc::new(channel))).map_err(|error| failed(error.into()))
    }

    /// Tells the supervisor something.
    pub(super) fn report(&self, report: &Report) {
        match self.0.get_ref().send(report, &[]) {
            Ok(()) | Err(control::Error::Gone) => {}
            Err(error) => tracing::warn!(%error, ?report, "the supervisor was not told"),
        }
    }

    /// Does what the supervisor says. Ends when it is gone.
    pub(super) async fn follow(&self, told: &Told, reload: &Reload) {
        loop {
            match self.next().await {
                Ok((order, descriptors)) => self.obey(order, descriptors, told, reload),
                Err(control::Error::Gone) => break,
                Err(error) => tracing::error!(%error, "the supervisor says what is not understood; please report"),
            }
        }
        told.stop.send_replace(Stop::Orphaned);
    }

    async fn next(&self) -> Result<(Order, Vec<OwnedFd>), control::Error> {
        loop {
            match self.0.get_ref().receive() {
                Err(control::Error::Busy) => {}
                received => return received,
            }
            let ready = self.0.readable().await;
            let mut ready = ready.map_err(|source| control::Error::Call { call: "epoll_wait", source })?;
            ready.clear_ready();
        }
    }

    fn obey(&self, order: Order, descriptors: Vec<OwnedFd>, told: &Told, reload: &Reload) {
        match order {
            Order::Ping(number) => self.report(&Report::Pong(number)),
            Order::Condition { condition, unready } => {
                let holder = match condition {
                    Condition::Programs => &told.programs,
                    Condition::Addresses => &told.addresses,
                };
                match unready {
                    None => holder.ready(),
                    Some(why) => holder.unready(why),
                }
                // It tells of them only when they are attached.
                told.attached.send_replace(true);
            }
            Order::Reload(offer) => {
                let in_force = descriptors.into_iter().next().is_some_and(|memory| reload.take(memory));
                self.report(&Report::Reloaded { offer, in_force });
            }
            Order::ReloadFailed => reload.failed(),
            Order::Drain { why, left } => told.stop.send_modify(|stop| {
                if *stop == Stop::Not {
                    *stop = Stop::Drain(why, left);
                }
            }),
            Order::HandOver { left } => told.stop.send_modify(|stop| {
                if *stop == Stop::Not {
                    *stop = Stop::HandOver(left);
                }
            }),
            Order::Board => {
                let replaced = descriptors.into_iter().next().map(|board| told.board.replace(board));
                if !matches!(replaced, Some(Ok(()))) {
                    tracing::warn!(?replaced, "the supervisor's figures stay what they were");
                }
            }
            Order::End { signal } => drop(told.stop.send_replace(Stop::Now(signal))),
            Order::Start(_) => tracing::error!("a second order to start; please report"),
        }
    }
}
