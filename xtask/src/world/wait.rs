//! Waiting that Ctrl-C ends, so that everything is taken down in order.

use crate::interrupt;
use anyhow::{Result, bail};
use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a signal, or the answer that is waited for, may go unnoticed.
pub(crate) const STEP: Duration = Duration::from_millis(5);

/// Waits for that long, or until a signal comes.
pub(crate) fn pause(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    loop {
        interrupt::check()?;
        match end.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => thread::sleep(left.min(STEP)),
            _ => return Ok(()),
        }
    }
}

/// Asks again and again until there is an answer, for things outside this process that cannot be awaited.
pub(crate) fn until<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        interrupt::check()?;
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("{what} did not happen within {limit:?}");
        }
        thread::sleep(STEP);
    }
}
