//! The fast path as the worker sees it: the supervisor has it and writes how it stands on the board, and is told what an operator
//! wants.

use std::{
    convert::Infallible,
    future::pending,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};

use super::orders::Orders;
use crate::{
    config::Acceleration,
    control::Report,
    lifecycle::{
        beats::Heartbeat,
        board::{BoardReader, Figure},
        fast_path::{Phase, TRAPS},
        mixed::Mixes,
    },
    net,
    telemetry::Telemetry,
};

/// What the endpoints say and do about it.
#[derive(Clone)]
pub(super) struct FastPath {
    acceleration: Acceleration,
    board: BoardReader,
    orders: Orders,
}

/// Before the first connection: what is accepted may be brought onto the fast path at any time.
pub(super) fn expect(acceleration: Acceleration, mixes: Option<Mixes>) {
    if acceleration != Acceleration::Off {
        net::expect_data_past_tcp(mixes);
    }
}

/// Tells the supervisor how many connections are open, so that nobody looks for them while there are none.
pub(super) async fn tell_what_is_carried(
    acceleration: Acceleration,
    telemetry: &Telemetry,
    heartbeat: Heartbeat,
) -> Infallible {
    /// As often as the supervisor looks.
    const EVERY: Duration = Duration::from_millis(500);
    if acceleration == Acceleration::Off {
        return pending().await;
    }
    let table = telemetry.connections();
    loop {
        table.not_empty().await;
        heartbeat.carries(table.len());
        tokio::time::sleep(EVERY).await;
        heartbeat.carries(table.len());
    }
}

impl FastPath {
    pub(super) fn new(acceleration: Acceleration, board: BoardReader, orders: Orders) -> Self {
        Self { acceleration, board, orders }
    }

    /// Has the supervisor switch it, and waits until it has.
    pub(super) fn switch(&self, on: bool) -> Result<(), String> {
        let phase = Phase::read(&self.board);
        if on {
            phase.allows(self.acceleration)?;
        }
        if phase == Phase::Off {
            return Ok(());
        }
        if !self.ask(Some(on)) {
            return Err("the supervisor was told and has not answered yet; ask again what it did".to_owned());
        }
        Phase::read(&self.board).has_become(on)
    }

    /// Has the supervisor write how it stands now; false: it is late.
    fn ask(&self, wanted: Option<bool>) -> bool {
        /// It answers in microseconds, or after a pass over many sockets. No thread that carries connections waits.
        const PATIENCE: Duration = Duration::from_millis(500);
        const A_MOMENT: Duration = Duration::from_micros(200);
        let answers = || self.board.get(Figure::FastPathAnswers);
        let (before, asked) = (answers(), Instant::now());
        self.orders.report(&Report::FastPath(wanted));
        while answers() == before {
            if asked.elapsed() > PATIENCE {
                return false;
            }
            thread::sleep(A_MOMENT);
        }
        true
    }

    /// What the admin interface tells.
    pub(super) fn to_json(&self) -> Json {
        let mut phase = Phase::read(&self.board);
        // Of the connections the board has what was seen half a second ago.
        if matches!(phase, Phase::Present { .. }) && self.ask(None) {
            phase = Phase::read(&self.board);
        }
        let why = phase.why();
        let (on, connections, report) = match phase {
            Phase::Present { report, on, connections, .. } => (on, connections, Some(report)),
            _ => (false, 0, None),
        };
        json!({
            "on": on,
            "why": why,
            "connections": connections,
            "redirects": report.as_ref().map(|report| report.redirects),
            "sprung": report.map(|report| report.sprung),
        })
    }
}

/// What is known of it joins every rendering of the metrics.
pub(super) fn export(telemetry: &Telemetry, board: BoardReader) {
    telemetry.add_source(Box::new(move || {
        let present = match Phase::read(&board) {
            Phase::Present { report, on, .. } => Some((report, on)),
            _ => None,
        };
        let on = present.as_ref().is_some_and(|(_, on)| *on);
        metrics::gauge!("sidecar_fast_path_on").set(f64::from(u8::from(on)));
        metrics::counter!("sidecar_fast_path_failed_looks_total").absolute(board.get(Figure::FastPathFailures));
        let Some((report, _)) = present else { return };
        for trap in TRAPS {
            let sprung = report.sprung.iter().any(|name| name == trap);
            metrics::gauge!("sidecar_fast_path_trap", "trap" => trap).set(f64::from(u8::from(sprung)));
        }
    }));
}
