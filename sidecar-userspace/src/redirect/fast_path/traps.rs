//! What an application could notice: each trap is played on a connection that is enrolled and on one that is not, and what is
//! seen must be equal.
//!
//! `app` is the application's end, whose messages are redirected; `proxy` the proxy's, of which nobody but us sees anything.

use std::{io, time::Duration};

use nix::poll::PollFlags;

use crate::net::scratch::Scratch;

/// Both ends of a connection.
pub(super) struct Ends {
    pub(super) app: Scratch,
    pub(super) proxy: Scratch,
}

/// What was seen, in order.
pub(super) type Seen = io::Result<Vec<i64>>;

/// A way in which applications were found to break.
pub(super) struct Trap {
    /// Its name in metrics and reports.
    pub(super) name: &'static str,
    /// What the application's end is like.
    pub(super) end: End,
    /// Plays it.
    pub(super) play: fn(Ends) -> Seen,
}

/// What an application's end is like before anything is enrolled.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum End {
    /// To be enrolled.
    Willing,
    /// In blocking mode, so that it must have been left alone.
    Blocking,
    /// With `SO_ZEROCOPY`, so that it must have been left alone.
    ZeroCopy,
}

const fn trap(name: &'static str, play: fn(Ends) -> Seen) -> Trap {
    Trap { name, end: End::Willing, play }
}

/// All of them. The sources are in the notes on each: selftests, reports of other projects, and reading the kernel.
pub(super) const TRAPS: &[Trap] = &[
    trap("fionread", fionread),
    trap("peek", peek),
    trap("wait_all", wait_all),
    trap("low_water", low_water),
    trap("splice", splice),
    trap("urgent_in", urgent_in),
    trap("urgent_out", urgent_out),
    trap("edges", edges),
    Trap { name: "zero_copy", end: End::ZeroCopy, play: zero_copy },
    trap("send_file", send_file),
    trap("half_close", half_close),
    trap("write_after_end", write_after_end),
    trap("end_after_last_byte", end_after_last_byte),
    trap("reset", reset),
    trap("order", order),
    trap("back_pressure", back_pressure),
    trap("writable", writable),
    Trap { name: "blocking_half_close", end: End::Blocking, play: blocking_half_close },
    Trap { name: "blocking_receive", end: End::Blocking, play: blocking_receive },
];

/// How a call ended: bytes, or the negative error. What has not ended in time says nothing.
fn outcome<T>(result: io::Result<T>, value: impl Fn(T) -> usize) -> io::Result<i64> {
    match result {
        Ok(done) => Ok(value(done) as i64),
        Err(error) if is_late(&error) => Err(error),
        Err(error) => Ok(-i64::from(error.raw_os_error().unwrap_or(i32::MAX))),
    }
}

/// Whether we have waited long enough. It may be the fast path that lost something, or a machine that has other things to do.
pub(super) fn is_late(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

fn count(result: io::Result<usize>) -> io::Result<i64> {
    outcome(result, |bytes| bytes)
}

fn length(result: io::Result<Vec<u8>>) -> io::Result<i64> {
    outcome(result, |bytes| bytes.len())
}

/// nginx, Java and .NET size their reads by it.
fn fionread(Ends { app, proxy }: Ends) -> Seen {
    proxy.write(&[1; 1000])?;
    app.await_event(PollFlags::POLLIN)?;
    Ok(vec![i64::from(app.unread()?), length(app.receive(400, 0))?, i64::from(app.unread()?)])
}

fn peek(Ends { app, proxy }: Ends) -> Seen {
    proxy.write(b"0123456789")?;
    app.await_event(PollFlags::POLLIN)?;
    let peeked = length(app.receive(20, libc::MSG_PEEK))?;
    Ok(vec![peeked, length(app.receive(20, 0))?, length(app.receive(20, libc::MSG_PEEK))?])
}

fn wait_all(Ends { app, proxy }: Ends) -> Seen {
    proxy.write(b"0123456789")?;
    app.await_event(PollFlags::POLLIN)?;
    Ok(vec![length(app.receive(20, libc::MSG_WAITALL))?])
}

fn low_water(Ends { app, proxy }: Ends) -> Seen {
    /// Long enough for loopback to have delivered, short enough for a start.
    const SETTLE: Duration = Duration::from_millis(2);
    app.set_low_water(100)?;
    proxy.write(&[1; 10])?;
    let early = app.wait(PollFlags::POLLIN, SETTLE)?;
    proxy.write(&[1; 100])?;
    let late = app.await_event(PollFlags::POLLIN)?;
    Ok(vec![i64::from(early.bits()), i64::from(late.bits()), length(app.receive(200, 0))?])
}

/// Go's `io.Copy` and HAProxy.
fn splice(Ends { app, proxy }: Ends) -> Seen {
    proxy.write(&[1; 1000])?;
    app.await_event(PollFlags::POLLIN)?;
    Ok(vec![length(app.splice(1000))?, length(app.splice(1000))?])
}

fn urgent_in(Ends { app, proxy }: Ends) -> Seen {
    proxy.write(b"ab")?;
    proxy.send(b"c", libc::MSG_OOB)?;
    let seen = app.await_event(PollFlags::POLLPRI)?;
    let before = app.await_all(2)?.len() as i64;
    let at_mark = i64::from(app.is_at_mark()?);
    Ok(vec![i64::from(seen.bits()), before, at_mark, length(app.receive(1, libc::MSG_OOB))?])
}

fn urgent_out(Ends { app, proxy }: Ends) -> Seen {
    app.write(b"ab")?;
    app.send(b"c", libc::MSG_OOB)?;
    let seen = proxy.await_event(PollFlags::POLLPRI)?.contains(PollFlags::POLLPRI);
    let before = proxy.await_all(2)?.len() as i64;
    Ok(vec![i64::from(seen), before, i64::from(proxy.is_at_mark()?), length(proxy.receive(1, libc::MSG_OOB))?])
}

/// Node.js and everything on epoll's edges; both ends, for ours waits in the same way.
fn edges(Ends { app, proxy }: Ends) -> Seen {
    let mut told = [0, 0];
    for ((from, to), told) in [(&proxy, &app), (&app, &proxy)].into_iter().zip(&mut told) {
        let edges = to.watch()?;
        for _ in 0..50 {
            from.write(b"x")?;
            edges.await_next()?;
            *told += length(to.receive(2, 0))?;
        }
    }
    Ok(told.to_vec())
}

/// Too large for one piece of memory. An application counts its calls, and an enrolled socket's completions are counted by the pieces
/// (`tcp_bpf_push`, since 6.5).
fn zero_copy(Ends { app, proxy }: Ends) -> Seen {
    const BYTES: usize = 192 << 10;
    let (mut sent, mut received, mut calls) = (0, 0, 0);
    while sent < BYTES {
        match app.send(&[1; BYTES][sent..], libc::MSG_ZEROCOPY) {
            Ok(bytes) => (sent, calls) = (sent + bytes, calls + 1),
            // As much as fits at once hangs on the moment.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                app.await_event(PollFlags::POLLOUT)?;
            }
            refused => return Ok(vec![count(refused)?]),
        }
        received += proxy.await_all(sent - received)?.len();
    }
    Ok(vec![received as i64, i64::from(app.await_completions()?) - calls])
}

fn send_file(Ends { app, proxy }: Ends) -> Seen {
    let sent = count(app.send_file(&[7; 5000]))?;
    let received = proxy.await_all(5000)?;
    Ok(vec![sent, received.iter().map(|byte| i64::from(*byte)).sum()])
}

fn half_close(Ends { app, proxy }: Ends) -> Seen {
    app.write(&[1; 1000])?;
    app.finish()?;
    let request = proxy.await_all(1001)?.len() as i64;
    proxy.write(b"answer")?;
    proxy.finish()?;
    Ok(vec![request, app.await_all(7)?.len() as i64, length(app.receive(1, 0))?])
}

fn write_after_end(Ends { app, proxy: _proxy }: Ends) -> Seen {
    app.finish()?;
    Ok(vec![count(app.write(b"x"))?])
}

fn end_after_last_byte(Ends { app, proxy }: Ends) -> Seen {
    app.write(&[3; 1000])?;
    drop(app);
    Ok(vec![proxy.await_all(1000)?.len() as i64, length(proxy.await_bytes(1))?, length(proxy.await_bytes(1))?])
}

fn reset(Ends { app, proxy }: Ends) -> Seen {
    app.write(b"unread")?;
    proxy.reset()?;
    app.await_event(PollFlags::POLLIN)?;
    Ok(vec![length(app.receive(1, 0))?, length(app.receive(1, 0))?, count(app.write(b"x"))?])
}

/// What goes by TCP (`sendfile` does) and what goes past it.
fn order(Ends { app, proxy }: Ends) -> Seen {
    app.send_file(b"AAAA")?;
    app.write(b"BBBB")?;
    let first = proxy.await_all(8)?;
    app.write(b"CCCC")?;
    app.send_file(b"DDDD")?;
    app.write(b"EEEE")?;
    let all = [first, proxy.await_all(12)?].concat();
    Ok(vec![i64::from(all == b"AAAABBBBCCCCDDDDEEEE")])
}

/// Nobody reads: the sender must be held back, and nothing may be lost or moved.
fn back_pressure(Ends { app, proxy }: Ends) -> Seen {
    /// TCP takes some 6 MiB at most with usual settings.
    const TOO_MUCH: usize = 32 << 20;
    const CHUNK: usize = 65_536;
    let chunk: Vec<u8> = (0..CHUNK).map(|at| (at % 251) as u8).collect();
    let mut taken = 0;
    let held_back = loop {
        match app.write(&chunk[taken % CHUNK..]) {
            Ok(bytes) => taken += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break 1,
            Err(error) => return Err(error),
        }
        if taken > TOO_MUCH {
            break 0;
        }
    };
    let mut seen = 0;
    while seen < taken {
        let bytes = proxy.await_bytes(CHUNK - seen % CHUNK)?;
        if bytes.is_empty() || bytes != chunk[seen % CHUNK..][..bytes.len()] {
            return Ok(vec![held_back, -1]);
        }
        seen += bytes.len();
    }
    Ok(vec![held_back, 1])
}

fn writable(Ends { app, proxy }: Ends) -> Seen {
    let before = app.await_event(PollFlags::POLLOUT | PollFlags::POLLIN)?;
    app.write(&[1; 1000])?;
    let after = app.await_event(PollFlags::POLLOUT | PollFlags::POLLIN)?;
    Ok(vec![i64::from(before.bits()), i64::from(after.bits()), proxy.await_all(1000)?.len() as i64])
}

/// Any wake-up ends a blocking receive on an enrolled socket with EAGAIN: this one must not be enrolled. It goes by TCP, which the
/// proxy's end shows.
fn blocking_half_close(Ends { app, proxy }: Ends) -> Seen {
    app.write(&[1; 1000])?;
    app.finish()?;
    let request = proxy.await_all(1001)?.len() as i64;
    let by_tcp = proxy.received_by_tcp()? as i64;
    proxy.write(b"answer")?;
    Ok(vec![request, by_tcp, length(app.receive_in_time(6))?])
}

fn blocking_receive(Ends { app, proxy }: Ends) -> Seen {
    /// Time for the other thread to be in its receive; if it is not, the trap shows less.
    const SETTLE: Duration = Duration::from_millis(2);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| length(app.receive_in_time(6)));
        std::thread::sleep(SETTLE);
        // Every acknowledgement may wake the receiver, who must not notice.
        let taken = count(app.write(&[1; 100_000]))?;
        let arrived = proxy.await_all(100_000)?.len() as i64;
        let by_tcp = proxy.received_by_tcp()? as i64;
        proxy.write(b"answer")?;
        let received = receiver.join().map_err(|_| io::Error::other("the receiving thread has panicked"))??;
        Ok(vec![taken, arrived, by_tcp, received])
    })
}
