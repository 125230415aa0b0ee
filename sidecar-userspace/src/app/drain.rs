//! The end, in order: inbound first, outbound when the application needs it no longer, then what is still open.
//!
//! An application that is told to end together with its sidecar goes on working for a while: it answers what it has begun to,
//! and for that opens connections. So these are captured and carried until its last process is gone. New connections of
//! others are not: whoever told us to end wants them elsewhere.

use std::{
    cell::Cell,
    convert::Infallible,
    net::TcpListener,
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::watch;

use super::{
    orders::{Orders, Stop, stopped},
    start::{Waiting, millis},
};
use crate::{
    control::{Report, Withdrawn},
    lifecycle::{beats::Heartbeat, board::BoardReader, readiness::Condition},
    net,
    serve::UnderWay,
    telemetry::{CloseReason, Direction, Telemetry},
};

/// Time between two looks at what the supervisor, which looks as often, says of who is in the pod.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A client whose SYN was answered before the listeners were withdrawn completes its handshake a round trip later, and the
/// kernel shows nobody that it is under way.
const HANDSHAKE: Duration = Duration::from_millis(100);

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

/// By which a drain is watched from outside. Clones share it.
#[derive(Clone)]
pub(super) struct Switch {
    stage: watch::Sender<Stage>,
    board: BoardReader,
    telemetry: Telemetry,
    supervisor: u32,
}

impl Switch {
    pub(super) fn new(board: BoardReader, supervisor: u32, telemetry: &Telemetry) -> Self {
        Self { stage: watch::Sender::new(Stage::Serving), board, telemetry: telemetry.clone(), supervisor }
    }

    /// What remains, for people and `sidecar drain`.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let stage = *self.stage.borrow();
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        let table = self.telemetry.connections();
        json!({
            "process": self.supervisor,
            "stage": stage.label(),
            "applications": self.board.applications(),
            "inbound": table.count(Direction::Inbound),
            "outbound": table.count(Direction::Outbound),
            "seconds_left": stage.deadline().map(left),
        })
    }
}

/// Ends a worker.
pub(super) struct Drain {
    pub(super) orders: Orders,
    pub(super) telemetry: Telemetry,
    /// Whether it serves.
    pub(super) serving: Condition,
    pub(super) queues: [TcpListener; 2],
    pub(super) under_way: UnderWay,
    pub(super) waiting: Waiting,
    pub(super) tunnels: Cell<Option<TcpListener>>,
    /// True: no more tunnels.
    pub(super) no_more_tunnels: watch::Sender<bool>,
    /// True: nothing more at all.
    pub(super) handed_over: watch::Sender<bool>,
    pub(super) heartbeat: Heartbeat,
    pub(super) board: BoardReader,
    /// `proxy.drain_deadline`: of a worker that nobody tells what is left of it.
    pub(super) deadline: Duration,
    pub(super) switch: Switch,
}

impl Drain {
    /// Waits for the order to end, and ends what is carried. The order to end at once may come at any time.
    pub(super) async fn follow(&self, mut stop: watch::Receiver<Stop>) -> ExitCode {
        let left = match stopped(&mut stop, |stop| *stop != Stop::Not).await {
            Stop::Drain(why, left) => {
                self.stop_inbound(&why);
                left
            }
            Stop::HandOver(left) => return self.hand_over(left, stop).await,
            Stop::Now(signal) => return at_once(&signal),
            Stop::Orphaned | Stop::Not => return self.end_as_orphan().await,
        };
        tokio::select! {
            () = self.drain(left) => ExitCode::SUCCESS,
            stop = stopped(&mut stop, |stop| !matches!(stop, Stop::Not | Stop::Drain(..))) => match stop {
                Stop::Now(signal) => at_once(&signal),
                _ => self.end_as_orphan().await,
            }
        }
    }

    fn stop_inbound(&self, why: &str) {
        let applications = self.board.applications();
        tracing::info!(why, open = self.telemetry.connections().len(), applications, "draining");
        self.serving.unready(format!("draining after {why}"));
        self.orders.report(&Report::Withdraw(Withdrawn::Inbound));
        self.no_more_tunnels();
    }

    /// Those that open tunnels are told, and go on with those that they have. The workers close their descriptors too.
    fn no_more_tunnels(&self) {
        self.no_more_tunnels.send_replace(true);
        drop(self.tunnels.take());
    }

    /// The programs have gone with the supervisor, and whoever comes after it needs the ports.
    async fn end_as_orphan(&self) -> ExitCode {
        tracing::error!(
            open = self.telemetry.connections().len(),
            "the supervisor is gone; what is open may end, nothing new is taken"
        );
        self.serving.unready("the supervisor is gone");
        // A successor may have taken over what `sidecar init` pinned, the heartbeat among it.
        self.heartbeat.hand_over();
        self.queues.iter().for_each(net::stop_listening);
        self.no_more_tunnels();
        self.end_open(Instant::now(), Instant::now() + self.deadline, false).await;
        ExitCode::FAILURE
    }

    /// Another worker serves on the same listeners, and answers whoever asks: nothing is withdrawn, and nothing is said of
    /// being ready.
    async fn hand_over(&self, left: Duration, mut stop: watch::Receiver<Stop>) -> ExitCode {
        tracing::info!(
            open = self.telemetry.connections().len(),
            "another worker takes what is new; what is open may end"
        );
        self.handed_over.send_replace(true);
        self.heartbeat.hand_over();
        self.no_more_tunnels();
        tokio::select! {
            () = self.end_what_was_open(Instant::now() + left) => ExitCode::SUCCESS,
            never = self.tell_what_is_open() => match never {},
            stop = stopped(&mut stop, |stop| matches!(stop, Stop::Now(_) | Stop::Orphaned)) => match stop {
                Stop::Now(signal) => at_once(&signal),
                _ => self.end_as_orphan().await,
            }
        }
    }

    async fn tell_what_is_open(&self) -> Infallible {
        const EVERY: Duration = Duration::from_secs(1);
        let mut told = None;
        loop {
            let open = self.telemetry.connections().len() as u64;
            if told.replace(open) != Some(open) {
                self.orders.report(&Report::Open(open));
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// What waits in the listeners' queues is for the other one. What another sidecar has made ready for its next connection is not
    /// taken away from it before it uses it or gives it up, unless the application is gone.
    async fn end_what_was_open(&self, deadline: Instant) {
        let started = Instant::now();
        let table = self.telemetry.connections();
        let ended = async |spares: bool| {
            tokio::time::sleep(HANDSHAKE).await;
            table.empty().await;
            while !self.under_way.is_none() || (spares && !self.waiting.is_none()) || !table.is_empty() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let alone = async {
            self.nobody_left().await;
            tokio::select! {
                () = ended(false) => {}
                () = self.end_without_application() => {}
            }
        };
        let open = async {
            tokio::select! {
                () = ended(true) => {}
                () = alone => {}
            }
        };
        if tokio::time::timeout_at(deadline.into(), open).await.is_ok() {
            tracing::info!(ms = millis(started.elapsed()), "drained");
            return;
        }
        self.reset_what_is_open().await;
    }

    async fn drain(&self, left: Duration) {
        let started = Instant::now();
        let deadline = started + left;
        self.switch.stage.send_replace(Stage::Outbound(deadline));
        let left = tokio::time::timeout_at(deadline.into(), self.nobody_left()).await;
        if left.is_err() {
            tracing::warn!(
                applications = self.board.applications(),
                "the drain deadline has passed before the application has ended"
            );
        }
        self.orders.report(&Report::Withdraw(Withdrawn::Everything));
        // What was captured at the last moment is not reset for that.
        self.end_open(started, deadline.max(Instant::now() + 2 * HANDSHAKE), left.is_ok()).await;
    }

    /// `alone`: the application is gone.
    async fn end_open(&self, started: Instant, deadline: Instant, alone: bool) {
        self.switch.stage.send_replace(Stage::Open(deadline));
        let open = async {
            tokio::select! {
                () = self.nothing_open() => {}
                () = self.end_without_application(), if alone => {}
            }
        };
        if tokio::time::timeout_at(deadline.into(), open).await.is_ok() {
            tracing::info!(ms = millis(started.elapsed()), "drained");
            return;
        }
        self.reset_what_is_open().await;
    }

    async fn reset_what_is_open(&self) {
        let table = self.telemetry.connections();
        if !table.is_empty() {
            tracing::warn!(open = table.len(), "the drain deadline has passed; resetting what is open");
        }
        table.close_all(CloseReason::DrainDeadline);
        // Closing is a matter of each worker's next turn; a worker that hangs must not keep the sidecar from ending.
        let _ = tokio::time::timeout(Duration::from_secs(1), table.empty()).await;
    }

    /// The application has no process. A pod that cannot be asked may have some.
    async fn nobody_left(&self) {
        while self.board.applications() != Some(0) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
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
            let table = self.telemetry.connections();
            table.empty().await;
            // In the order in which a connection goes: one that is not seen here any more is seen there.
            let none_waits = self.queues.iter().all(|queue| net::backlog(queue).unwrap_or(0) == 0);
            if none_waits && self.under_way.is_none() && table.is_empty() {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn at_once(signal: &str) -> ExitCode {
    tracing::warn!(signal, "ending at once");
    ExitCode::SUCCESS
}
