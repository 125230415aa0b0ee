//! Work that goes on until somebody has something else to say: short connections at a rate, and long streams whose bytes must come
//! back as they were sent.

use std::{
    io::{self, Read as _},
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{pattern::Pattern, puppet::churn};
use crate::cases::net::connect;

/// Threads that make short connections: one that waits must not hold up all others.
const THREADS: u32 = 8;
/// A connection that takes longer stalls.
const STALLED: Duration = Duration::from_secs(5);
/// What a stream sends at once, and the pause after it came back: it is open all the time and seldom idle.
const PIECE: usize = 10_000;
const PAUSE: Duration = Duration::from_millis(5);

/// Makes `per_second` connections to `to` and carries so many streams, until there is another order on standard input. Says how many
/// connections there were and how many bytes the streams have moved.
pub(super) fn toil(to: SocketAddr, streams: u32, per_second: u32) -> io::Result<(u64, u64)> {
    let (over, connections, bytes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    // The answer has only the kind of an error.
    let ends = |result: io::Result<()>| {
        result.inspect_err(|error| {
            eprintln!("{error}");
            over.store(true, Ordering::Relaxed);
        })
    };
    thread::scope(|scope| {
        let (over, connections, bytes, ends) = (&over, &connections, &bytes, &ends);
        let streams = (0..streams).map(|number| scope.spawn(move || ends(stream(to, number, over, bytes))));
        let short = (0..THREADS).map(|number| {
            let every = Duration::from_secs(THREADS.into()) / per_second.max(1);
            scope.spawn(move || ends(if per_second == 0 { Ok(()) } else { rap(to, number, every, over, connections) }))
        });
        let threads: Vec<_> = streams.chain(short).collect();
        await_order(over)?;
        over.store(true, Ordering::Relaxed);
        let ended =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("panicked"))));
        ended.collect::<Vec<_>>().into_iter().collect::<io::Result<()>>()
    })?;
    Ok((connections.into_inner(), bytes.into_inner()))
}

/// Waits for the next order, which is left where it is, or for an error.
fn await_order(over: &AtomicBool) -> io::Result<()> {
    let stdin = io::stdin();
    while !over.load(Ordering::Relaxed) {
        let mut waits = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waits, PollTimeout::from(20_u8))? > 0 {
            break;
        }
    }
    Ok(())
}

fn rap(to: SocketAddr, number: u32, every: Duration, over: &AtomicBool, connections: &AtomicU64) -> io::Result<()> {
    let begun = Instant::now();
    for nth in 0.. {
        thread::sleep((every * nth).saturating_sub(begun.elapsed()));
        if over.load(Ordering::Relaxed) {
            break;
        }
        let started = Instant::now();
        churn(to, number + nth)
            .map_err(|error| io::Error::new(error.kind(), format!("connection {nth} of {number}: {error}")))?;
        if started.elapsed() > STALLED {
            return Err(io::Error::other(format!("connection {nth} of {number} took {:?}", started.elapsed())));
        }
        connections.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn stream(to: SocketAddr, number: u32, over: &AtomicBool, bytes: &AtomicU64) -> io::Result<()> {
    let mut socket = connect(to).map_err(io::Error::other)?;
    let (mut sends, mut expects) = (Pattern::new(u64::from(number) + 1), Pattern::new(u64::from(number) + 1));
    let mut total = 0_u64;
    let failed = |error: String, total| io::Error::other(format!("stream {number} after {total} bytes: {error}"));
    while !over.load(Ordering::Relaxed) {
        let started = Instant::now();
        sends.send(&mut socket, PIECE, PIECE).map_err(|error| failed(error.to_string(), total))?;
        let came = expects.receive(&mut socket, PIECE).map_err(|error| failed(error.to_string(), total))?;
        if came < PIECE || started.elapsed() > STALLED {
            return Err(failed(format!("{came} of {PIECE} came back in {:?}", started.elapsed()), total));
        }
        total += PIECE as u64;
        bytes.fetch_add(PIECE as u64, Ordering::Relaxed);
        thread::sleep(PAUSE);
    }
    socket.shutdown(std::net::Shutdown::Write)?;
    let rest = socket.read(&mut [0; 1])?;
    if rest == 0 { Ok(()) } else { Err(failed("more comes than was sent".to_owned(), total)) }
}
