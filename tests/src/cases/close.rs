//! How connections end.

use std::{
    io::{self, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::poll::PollFlags;
use socket2::Socket;

use super::{
    Case,
    net::{ANY, LIMIT, TO_V4, connect, serve_one, wait_for_end},
};
use crate::{
    agent::{Seen, pattern::Pattern, sys},
    harness::patient,
};

/// A reply that does not fit in the buffers between two applications.
const LONG_REPLY: usize = 10 << 20;
/// A reset must arrive this soon.
const SOON: Duration = Duration::from_secs(1);

pub(super) const CASES: &[Case] = &[
    Case::new("half_close_then_long_reply", reply_after_end, end_then_hear),
    Case::new("half_close_by_the_server", end_then_hear_as_server, reply_after_end_as_client),
    Case::new("half_close_shows_as_pollrdhup", half_close_and_wait, watch_half_close),
    Case::new("both_ends_close_at_once", close_when_told, close_when_told_as_client),
    Case::new(
        "reset_by_the_server",
        |seen| reset(&serve_one(seen, ANY)?, seen),
        |seen| suffer_reset(&connect(TO_V4)?, seen),
    ),
    Case::new(
        "reset_by_the_client",
        |seen| suffer_reset(&serve_one(seen, ANY)?, seen),
        |seen| reset(&connect(TO_V4)?, seen),
    ),
    Case::new(
        "server_closes_with_unread_bytes",
        |seen| close_unread(&serve_one(seen, ANY)?, seen),
        |seen| suffer_unread(&connect(TO_V4)?, seen),
    ),
    Case::new(
        "client_closes_with_unread_bytes",
        |seen| suffer_unread(&serve_one(seen, ANY)?, seen),
        |seen| close_unread(&connect(TO_V4)?, seen),
    ),
    Case::new("reset_after_half_close", reset_after_their_end, end_then_suffer_reset),
    Case::new("writing_after_a_reset_is_a_broken_pipe", |seen| reset(&serve_one(seen, ANY)?, seen), write_after_reset),
    Case::new("bytes_before_the_end_arrive", send_and_close, count_bytes),
];

fn reply_after_end(seen: &mut Seen) -> Result<()> {
    reply(&serve_one(seen, ANY)?, seen)
}

fn reply_after_end_as_client(seen: &mut Seen) -> Result<()> {
    reply(&connect(TO_V4)?, seen)
}

fn end_then_hear(seen: &mut Seen) -> Result<()> {
    hear(&connect(TO_V4)?, seen)
}

fn end_then_hear_as_server(seen: &mut Seen) -> Result<()> {
    hear(&serve_one(seen, ANY)?, seen)
}

/// Reads to the end, then sends a long reply.
fn reply(mut socket: &Socket, seen: &mut Seen) -> Result<()> {
    seen.note("request", Pattern::new(1).receive(&mut socket, usize::MAX)?);
    Pattern::new(2).send(&mut socket, LONG_REPLY, 64 * 1024)?;
    Ok(())
}

/// Sends a request and ends its direction; then hears the reply.
fn hear(mut socket: &Socket, seen: &mut Seen) -> Result<()> {
    Pattern::new(1).send(&mut socket, 1000, 1000)?;
    socket.shutdown(Shutdown::Write)?;
    let written = socket.write(b"too late");
    seen.result("write after shutdown", &written);
    seen.note("reply", Pattern::new(2).receive(&mut socket, usize::MAX)?);
    Ok(())
}

fn half_close_and_wait(seen: &mut Seen) -> Result<()> {
    let mut socket = serve_one(seen, ANY)?;
    socket.write_all(b"last words")?;
    socket.shutdown(Shutdown::Write)?;
    seen.note("answer", sys::recv(&socket, 6, nix::libc::MSG_WAITALL)?.len());
    Ok(())
}

fn watch_half_close(seen: &mut Seen) -> Result<()> {
    let mut socket = connect(TO_V4)?;
    let events = sys::poll(&socket, PollFlags::from_bits_retain(nix::libc::POLLRDHUP), LIMIT)?;
    seen.note("events", events.bits());
    seen.note("words", sys::recv(&socket, 100, nix::libc::MSG_WAITALL)?.len());
    seen.note("then", sys::recv(&socket, 100, 0)?.len());
    socket.write_all(b"answer")?;
    Ok(wait_for_end(&socket)?)
}

fn close_when_told(seen: &mut Seen) -> Result<()> {
    let mut socket = serve_one(seen, ANY)?;
    socket.write_all(b"x")?;
    socket.shutdown(Shutdown::Write)?;
    seen.result("end", &wait_for_end(&socket));
    Ok(())
}

fn close_when_told_as_client(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    socket.shutdown(Shutdown::Write)?;
    seen.result("end", &wait_for_end(&socket));
    Ok(())
}

/// Hears that the other side waits, then resets the connection.
fn reset(mut socket: &Socket, seen: &mut Seen) -> Result<()> {
    socket.write_all(b"hello")?;
    seen.note("waits", sys::recv(socket, 5, nix::libc::MSG_WAITALL)?.len());
    Ok(socket.set_linger(Some(Duration::ZERO))?)
}

fn suffer_reset(mut socket: &Socket, seen: &mut Seen) -> Result<()> {
    seen.note("hello", sys::recv(socket, 5, nix::libc::MSG_WAITALL)?.len());
    socket.write_all(b"ready")?;
    note_reset(socket, seen)
}

/// A blocked read ends with the reset, soon; what follows is the end of the stream.
fn note_reset(socket: &Socket, seen: &mut Seen) -> Result<()> {
    let waiting = Instant::now();
    let read = sys::recv(socket, 100, 0);
    seen.result("read", &read);
    seen.note("soon", waiting.elapsed() < patient(SOON));
    seen.result("read again", &sys::recv(socket, 100, 0));
    Ok(())
}

/// Closes when it knows that bytes have come which it has not read.
fn close_unread(mut socket: &Socket, seen: &mut Seen) -> Result<()> {
    let events = sys::poll(socket, PollFlags::POLLIN, LIMIT)?;
    seen.note("events", format!("{events:?}"));
    socket.write_all(b"bye")?;
    // The goodbye must be read before the reset that follows, which would destroy it.
    seen.note("unread", sys::recv(socket, 5, nix::libc::MSG_PEEK | nix::libc::MSG_WAITALL)?.len());
    seen.note("read", sys::recv(socket, 5, nix::libc::MSG_WAITALL)?.len());
    sys::poll(socket, PollFlags::POLLIN, LIMIT)?;
    Ok(())
}

fn suffer_unread(mut socket: &Socket, seen: &mut Seen) -> Result<()> {
    socket.write_all(b"first")?;
    seen.note("bye", sys::recv(socket, 3, nix::libc::MSG_WAITALL)?.len());
    socket.write_all(b"unread")?;
    note_reset(socket, seen)
}

fn reset_after_their_end(seen: &mut Seen) -> Result<()> {
    let socket = serve_one(seen, ANY)?;
    wait_for_end(&socket)?;
    Ok(socket.set_linger(Some(Duration::ZERO))?)
}

fn end_then_suffer_reset(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    socket.shutdown(Shutdown::Write)?;
    note_reset(&socket, seen)
}

fn write_after_reset(seen: &mut Seen) -> Result<()> {
    let mut socket = connect(TO_V4)?;
    suffer_reset(&socket, seen)?;
    let written = socket.write(b"x");
    ensure!(written.is_err(), "a write on a reset connection succeeded");
    seen.result("write", &written);
    Ok(())
}

fn send_and_close(seen: &mut Seen) -> Result<()> {
    let mut socket = serve_one(seen, ANY)?;
    Pattern::new(3).send(&mut socket, 100_000, 4096)?;
    Ok(())
}

fn count_bytes(seen: &mut Seen) -> Result<()> {
    let mut socket = connect(TO_V4)?;
    let received: io::Result<usize> = Pattern::new(3).receive(&mut socket, usize::MAX).map_err(io::Error::other);
    seen.note("bytes", received?);
    Ok(())
}
