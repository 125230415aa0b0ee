//! The end, in order: inbound first, outbound when the application needs it no longer, then what is still open.
//!
//! An application that is told to end together with its sidecar goes on working for a while: it answers what it has begun to,
//! and for that opens connections. So these are captured and carried until its last process is gone. New connections of
//! others are not: whoever told us to end wants them elsewhere.

use std::{
    cell::Cell,
    future::pending,
    io,
    net::TcpListener,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use super::{Error, start::millis};
use crate::{
    lifecycle::readiness::Condition,
    net,
    pod::Applications,
    redirect::Capture,
    serve::UnderWay,
    telemetry::{CloseReason, Direction, Telemetry},
};

/// Time between two looks at who is in the pod. The kernel tells when a cgroup empties, but not for a pod with the sidecar in
/// it, and a watch on each cgroup would need one for each that comes. A look takes some ten microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A client whose SYN was answered before the listeners were withdrawn completes its handshake a round trip later, and the
/// kernel shows nobody that it is under way.
const HANDSHAKE: Duration = Duration::from_millis(100);

/// Signals that end the sidecar.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Error> {
        let listen =
            |kind| signal(kind).map_err(|source: io::Error| Error::Runtime { what: "listen for signals", source });
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// What a sidecar carries of what is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Everything.
    Serving,
    /// What the application opens, and what is open; until then at the latest.
    Outbound(Instant),
    /// What is open; until then at the latest.
    Open(Instant),
}

impl Stage {
    fn label(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Outbound(_) => "outbound",
            Self::Open(_) => "open",
        }
    }

    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Serving => None,
            Self::Outbound(deadline) | Self::Open(deadline) => Some(deadline),
        }
    }
}

/// By which a drain is asked for and watched from outside. Clones share it.
#[derive(Clone)]
pub(super) struct Switch {
    asked: watch::Sender<bool>,
    stage: watch::Sender<Stage>,
    applications: Applications,
    telemetry: Telemetry,
}

impl Switch {
    pub(super) fn new(applications: &Applications, telemetry: &Telemetry) -> Self {
        let (asked, stage) = (watch::Sender::new(false), watch::Sender::new(Stage::Serving));
        Self { asked, stage, applications: applications.clone(), telemetry: telemetry.clone() }
    }

    /// Begins the drain, unless it has begun.
    pub(super) fn ask(&self) {
        self.asked.send_replace(true);
    }

    /// What remains, for people and `sidecar drain`.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let stage = *self.stage.borrow();
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let table = self.telemetry.connections();
        json!({
            "process": std::process::id(),
            "stage": stage.label(),
            "applications": self.applications.count().ok(),
            "inbound": table.count(Direction::Inbound),
            "outbound": table.count(Direction::Outbound),
            "seconds_left": stage.deadline().map(left),
        })
    }

    async fn asked(&self) {
        // Cannot fail: `self` keeps the sender alive.
        let _ = self.asked.subscribe().wait_for(|asked| *asked).await;
    }
}

/// Ends a sidecar.
pub(super) struct Drain {
    pub(super) capture: Arc<Mutex<Capture>>,
    pub(super) telemetry: Telemetry,
    /// Whether it serves.
    pub(super) serving: Condition,
    pub(super) queues: [TcpListener; 2],
    pub(super) under_way: UnderWay,
    pub(super) tunnels: Cell<Option<TcpListener>>,
    /// True: no more tunnels.
    pub(super) no_more_tunnels: watch::Sender<bool>,
    pub(super) applications: Applications,
    /// `proxy.drain_deadline`.
    pub(super) deadline: Duration,
    /// `lifecycle.exit_with_application`.
    pub(super) follows_application: bool,
    pub(super) switch: Switch,
}

impl Drain {
    /// Waits for a reason to end, and ends what is carried. The second signal ends it at once; so does the first one, if it was
    /// a signal that began.
    pub(super) async fn follow(&self, mut signals: Signals) -> ExitCode {
        let why = tokio::select! {
            name = signals.next() => name,
            () = self.switch.asked() => "sidecar drain",
            () = self.application_ended() => "the end of the application",
        };
        let by_signal = why.starts_with("SIG");
        self.stop_inbound(why);
        tokio::select! {
            () = self.drain() => {}
            name = one_more(&mut signals, by_signal) => tracing::warn!(signal = name, "ending at once"),
        }
        ExitCode::SUCCESS
    }

    fn stop_inbound(&self, why: &'static str) {
        let applications = self.applications.count().ok();
        tracing::info!(why, open = self.telemetry.connections().len(), applications, "draining");
        self.serving.unready(format!("draining after {why}"));
        self.withdraw(Capture::stop_inbound);
        // Those that open tunnels are told, and go on with those that they have. The workers close their descriptors too.
        self.no_more_tunnels.send_replace(true);
        drop(self.tunnels.take());
    }

    async fn drain(&self) {
        let started = Instant::now();
        let deadline = started + self.deadline;
        self.switch.stage.send_replace(Stage::Outbound(deadline));
        let left = tokio::time::timeout_at(deadline.into(), self.nobody_left()).await;
        if left.is_err() {
            tracing::warn!(
                applications = self.applications.count().ok(),
                "the drain deadline has passed before the application has ended"
            );
        }
        self.withdraw(Capture::stop);
        // What was captured at the last moment is not reset for that.
        let deadline = deadline.max(Instant::now() + 2 * HANDSHAKE);
        self.switch.stage.send_replace(Stage::Open(deadline));
        let open = async {
            tokio::select! {
                () = self.nothing_open() => {}
                () = self.end_without_application(), if left.is_ok() => {}
            }
        };
        if tokio::time::timeout_at(deadline.into(), open).await.is_ok() {
            tracing::info!(ms = millis(started.elapsed()), "drained");
            return;
        }
        let table = self.telemetry.connections();
        if !table.is_empty() {
            tracing::warn!(open = table.len(), "the drain deadline has passed; resetting what is open");
        }
        table.close_all(CloseReason::DrainDeadline);
        // Closing is a matter of each worker's next turn; a worker that hangs must not keep the sidecar from ending.
        let _ = tokio::time::timeout(Duration::from_secs(1), table.empty()).await;
    }

    fn withdraw(&self, stop: impl FnOnce(&mut Capture) -> Result<(), crate::redirect::Error>) {
        // A panic elsewhere leaves a capture that still works.
        let stopped = stop(&mut self.capture.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = stopped {
            tracing::warn!(%error, "the kernel goes on handing over connections while draining");
        }
    }

    /// The application has no process. A pod that cannot be asked may have some.
    async fn nobody_left(&self) {
        while self.applications.are_there().unwrap_or(true) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Where the sidecar is to end with its application: there was one, and it has ended.
    async fn application_ended(&self) {
        if !self.follows_application {
            return pending().await;
        }
        while !self.applications.were_there() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.nobody_left().await;
    }

    /// Ends what the application, which is gone, had finished: peers that keep their ends open, for whatever reason, must not
    /// keep a job from ending.
    async fn end_without_application(&self) {
        loop {
            tokio::time::sleep(HANDSHAKE).await;
            self.telemetry.connections().end_without_application();
        }
    }

    /// No connection is open, and none waits that the kernel handed over before it stopped.
    async fn nothing_open(&self) {
        /// Workers empty the queues in microseconds; one that hangs keeps them filled until the deadline.
        const LOOK_AGAIN: Duration = Duration::from_millis(1);
        tokio::time::sleep(HANDSHAKE).await;
        loop {
            self.telemetry.connections().empty().await;
            if self.under_way.is_none() && self.queues.iter().all(|queue| net::backlog(queue).unwrap_or(0) == 0) {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// The next signal, or where none has come yet the one after it: whoever asks for a drain tells the process to end as well.
async fn one_more(signals: &mut Signals, one_came: bool) -> &'static str {
    if !one_came {
        let name = signals.next().await;
        tracing::info!(signal = name, "draining already");
    }
    signals.next().await
}
