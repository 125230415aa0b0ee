//! Connections at a rate of their own choosing: the next comes when it is due, not when the one before has ended.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::puppet::churn;

/// Connections that are open at once. More of them are late when the other side is slower than the rate.
const THREADS: usize = 32;

/// Makes `count` connections, `per_second` of them each second as far as the other side lets it, to each of `to` in turn.
/// Each is used to the end; an error ends it.
pub(super) fn rush(to: [SocketAddr; 2], count: u32, per_second: u32) -> io::Result<()> {
    let (begun, next) = (Instant::now(), AtomicU32::new(0));
    let some = || -> io::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            let due = Duration::from_secs(number.into()) / per_second;
            thread::sleep(due.saturating_sub(begun.elapsed()));
            churn(to[number as usize % 2], number / 2).inspect_err(|_| next.store(count, Ordering::Relaxed))?;
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(some)).collect();
        let ended =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("panicked"))));
        // Every thread is waited for before the first error is told.
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}
