//! The fast path as the worker sees it: the supervisor has it and writes how it stands on the board, and is told what an operator
//! wants.

use std::{
    convert::Infallible,
    future::pending,
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};

use super::orders::Orders;
use crate::{
    config::Acceleration,
    control,
    lifecycle::{
        beats::Heartbeat,
        board::{BoardReader, Figure},
        fast_path::{Phase, Report, TRAPS},
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
    /// The number of the last question. Locked while it is sent: the supervisor hears them in their order.
    asked: Arc<Mutex<u64>>,
    /// What an answer may take.
    patience: Duration,
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
        /// It answers in microseconds, or after a pass over many sockets. No thread that carries connections waits.
        const PATIENCE: Duration = Duration::from_millis(500);
        // Around an upgrade there are two workers, and one that takes the place of a dead one begins anew: each has numbers of its own.
        let asked = Arc::new(Mutex::new(u64::from(process::id()) << 32));
        Self { acceleration, board, orders, asked, patience: PATIENCE }
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
        const A_MOMENT: Duration = Duration::from_micros(200);
        let (number, asked) = (self.send(wanted), Instant::now());
        while !is_answered(number, self.board.get(Figure::FastPathAnswered)) {
            if asked.elapsed() > self.patience {
                return false;
            }
            thread::sleep(A_MOMENT);
        }
        true
    }

    /// Sends a question; its number.
    fn send(&self, wanted: Option<bool>) -> u64 {
        // A panic elsewhere leaves a number that still holds.
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked += 1;
        self.orders.report(&control::Report::FastPath { wanted, number: *asked });
        *asked
    }

    /// What the admin interface tells.
    pub(super) fn to_json(&self) -> Json {
        let mut phase = Phase::read(&self.board);
        // Of the connections the board has what was seen half a second ago.
        if matches!(phase, Phase::Present { .. }) && self.ask(None) {
            phase = Phase::read(&self.board);
        }
        let why = phase.why();
        let (on, connections, found) = match phase {
            Phase::Present { report, both, on, connections, .. } => (on, connections, Some((report, both))),
            _ => (false, 0, None),
        };
        let (report, both) = found.map_or((None, None), |(report, both)| (Some(report), both));
        json!({
            "on": on,
            "why": why,
            "connections": connections,
            "redirects": report.as_ref().map(|report| report.redirects),
            "sprung": report.as_ref().map(|report| &report.sprung),
            "untried": report.as_ref().map(|report| &report.untried),
            "both": both.map(|both| json!({
                "redirects": both.report.redirects,
                "sprung": both.report.sprung,
                "untried": both.report.untried,
                "loses_unread": both.loses_unread,
            })),
        })
    }
}

/// Whether a question is answered, when the last one that was has this number: it, or a later one of the same worker.
fn is_answered(number: u64, last: u64) -> bool {
    last >> 32 == number >> 32 && last >= number
}

/// What is known of it joins every rendering of the metrics.
pub(super) fn export(telemetry: &Telemetry, board: BoardReader) {
    telemetry.add_source(Box::new(move || {
        let present = match Phase::read(&board) {
            Phase::Present { report, both, on, .. } => Some((report, both, on)),
            _ => None,
        };
        let on = present.as_ref().is_some_and(|(_, _, on)| *on);
        metrics::gauge!("sidecar_fast_path_on").set(f64::from(u8::from(on)));
        metrics::counter!("sidecar_fast_path_failed_looks_total").absolute(board.get(Figure::FastPathFailures));
        let Some((report, both, _)) = present else { return };
        for trap in TRAPS {
            let sprung = report.sprung.iter().any(|name| name == trap);
            metrics::gauge!("sidecar_fast_path_trap", "trap" => trap).set(f64::from(u8::from(sprung)));
        }
        export_variant("to_proxy", &report, report.is_clean());
        if let Some(both) = both {
            export_variant("both", &both.report, both.is_clean());
        }
    }));
}

/// What the probe came to with these directions.
fn export_variant(variant: &'static str, report: &Report, clean: bool) {
    metrics::gauge!("sidecar_fast_path_clean", "variant" => variant).set(f64::from(u8::from(clean)));
    for trap in TRAPS {
        let is_in = |names: &[String]| names.iter().any(|name| name == trap);
        let found = if is_in(&report.untried) { 2.0 } else { f64::from(u8::from(is_in(&report.sprung))) };
        metrics::gauge!("sidecar_fast_path_probe", "variant" => variant, "trap" => trap).set(found);
    }
}

#[cfg(test)]
mod tests;
