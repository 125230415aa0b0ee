//! The way from leave to go on to a connection to the destination: how many at once, how long, and why not.

use std::{cell::Cell, io};

use tokio::sync::SemaphorePermit;

use super::Shared;
use crate::telemetry::{CloseReason, Limit, shortage};

/// Dials within the time limit, of which waiting for a free dial is part.
pub(super) async fn within<T>(
    shared: &Shared,
    leaves_pod: bool,
    dial: impl Future<Output = Result<T, CloseReason>>,
) -> Result<T, CloseReason> {
    let waits = Cell::new(false);
    let dialling = async {
        // The pod's own application answers at once or not at all; only dials that leave the pod queue up.
        let _dial = if leaves_pod { free_dial(shared, &waits).await } else { None };
        dial.await
    };
    let dialled = tokio::time::timeout(shared.limits.connect_timeout, dialling).await;
    if waits.get() {
        Limit::Connecting.refused();
    }
    dialled.unwrap_or(Err(CloseReason::ConnectTimeout))
}

/// One of the dials that may run at once; `waits` as long as none is free.
async fn free_dial<'a>(shared: &'a Shared, waits: &Cell<bool>) -> Option<SemaphorePermit<'a>> {
    if let Ok(dial) = shared.dials.try_acquire() {
        return Some(dial);
    }
    Limit::Connecting.waited();
    waits.set(true);
    let dial = shared.dials.acquire().await.ok();
    waits.set(false);
    dial
}

/// What a failed connect means.
pub fn why_not_connected(error: &io::Error) -> CloseReason {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => CloseReason::ConnectRefused,
        Some(libc::ETIMEDOUT) => CloseReason::ConnectTimeout,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN) => {
            CloseReason::ConnectUnreachable
        }
        _ => {
            tracing::debug!(%error, "connect failed for a reason of this machine");
            metrics::counter!("sidecar_connect_errors_total", "reason" => shortage(error)).increment(1);
            CloseReason::ConnectFailed
        }
    }
}
