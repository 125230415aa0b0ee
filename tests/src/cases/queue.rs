//! What can be learnt about bytes that have come, and how reads wait for them.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    libc::{MSG_DONTWAIT, MSG_PEEK, MSG_WAITALL, SO_RCVLOWAT, SOL_SOCKET},
    poll::PollFlags,
};
use socket2::Socket;

use super::{
    Case,
    net::{ANY, LIMIT, TO_V4, connect, serve_one, wait_for_end},
};
use crate::agent::{Seen, sys};

/// Long enough for the other side's bytes to arrive while this one is blocked, which sends no event.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) const CASES: &[Case] = &[
    Case::new("fionread_counts_what_has_come", send_on_request, count_readable),
    Case::new("peek_leaves_the_bytes", send_on_request, peek),
    Case::new("waitall_waits_for_all", send_in_two_parts, wait_for_all),
    Case::new("waitall_ends_short_at_the_end", send_and_end, wait_for_more_than_all),
    Case::new("rcvlowat_holds_the_wake_up_back", send_on_request, low_water),
    Case::new("rcvtimeo_ends_a_read", send_on_request, time_out),
    Case::new("discarding_reads_skip_bytes", send_on_request, skip_bytes),
    Case::new("reading_nothing_would_block", send_on_request, would_block),
];

/// Sends 1000 bytes for every byte it gets, until the client goes: by a reset, if it leaves bytes unread.
fn send_on_request(seen: &mut Seen) -> Result<()> {
    let mut socket = serve_one(seen, ANY)?;
    let thousand: Vec<u8> = (0..1000_u32).map(|i| (i % 251) as u8).collect();
    while sys::recv(&socket, 1, 0).is_ok_and(|request| !request.is_empty()) {
        socket.write_all(&thousand)?;
    }
    Ok(())
}

fn request(mut socket: &Socket) -> Result<()> {
    Ok(socket.write_all(b"x")?)
}

/// Waits until at least `n` bytes can be read, without reading them.
fn wait_until_come(socket: &Socket, n: usize) -> Result<()> {
    sys::recv(socket, n, MSG_PEEK | MSG_WAITALL)?;
    Ok(())
}

fn count_readable(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    seen.note("before", sys::readable_bytes(&socket)?);
    request(&socket)?;
    wait_until_come(&socket, 1000)?;
    seen.note("after", sys::readable_bytes(&socket)?);
    sys::recv(&socket, 400, 0)?;
    seen.note("after 400", sys::readable_bytes(&socket)?);
    request(&socket)?;
    wait_until_come(&socket, 1600)?;
    seen.note("after 1000 more", sys::readable_bytes(&socket)?);
    Ok(())
}

fn peek(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    request(&socket)?;
    wait_until_come(&socket, 1000)?;
    seen.note("peek", sys::recv(&socket, 4, MSG_PEEK)?);
    seen.note("peek again", sys::recv(&socket, 8, MSG_PEEK)?);
    seen.note("read", sys::recv(&socket, 4, 0)?);
    seen.note("peek further", sys::recv(&socket, 4, MSG_PEEK)?);
    seen.note("all", sys::recv(&socket, 5000, MSG_PEEK)?.len());
    Ok(())
}

fn send_in_two_parts(seen: &mut Seen) -> Result<()> {
    let mut socket = serve_one(seen, ANY)?;
    socket.write_all(b"0123456789")?;
    std::thread::sleep(PAUSE);
    socket.write_all(b"abcdefghij")?;
    Ok(wait_for_end(&socket)?)
}

fn wait_for_all(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    seen.note("bytes", String::from_utf8(sys::recv(&socket, 20, MSG_WAITALL)?)?);
    Ok(())
}

fn send_and_end(seen: &mut Seen) -> Result<()> {
    let mut socket = serve_one(seen, ANY)?;
    Ok(socket.write_all(b"0123456789")?)
}

fn wait_for_more_than_all(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    seen.note("bytes", sys::recv(&socket, 20, MSG_WAITALL)?.len());
    seen.note("then", sys::recv(&socket, 20, MSG_WAITALL)?.len());
    Ok(())
}

fn low_water(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    sys::set_int(&socket, SOL_SOCKET, SO_RCVLOWAT, 1500)?;
    request(&socket)?;
    seen.note("with 1000", format!("{:?}", sys::poll(&socket, PollFlags::POLLIN, PAUSE * 3)?));
    seen.note("readable", sys::readable_bytes(&socket)?);
    request(&socket)?;
    seen.note("with 2000", format!("{:?}", sys::poll(&socket, PollFlags::POLLIN, LIMIT)?));
    Ok(())
}

fn time_out(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    let limit = Duration::from_millis(100);
    socket.set_read_timeout(Some(limit))?;
    let start = Instant::now();
    seen.result("read", &sys::recv(&socket, 1, 0));
    let waited = start.elapsed();
    // The kernel counts in jiffies, of up to 10 ms.
    seen.note("in time", waited + Duration::from_millis(10) >= limit && waited < limit * 20);
    Ok(())
}

fn skip_bytes(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    request(&socket)?;
    wait_until_come(&socket, 1000)?;
    seen.note("skipped", sys::discard(&socket, 600)?);
    seen.note("left", sys::readable_bytes(&socket)?);
    seen.note("next", sys::recv(&socket, 4, 0)?);
    Ok(())
}

fn would_block(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    seen.result("recv", &sys::recv(&socket, 1, MSG_DONTWAIT));
    seen.note("events", format!("{:?}", sys::poll(&socket, PollFlags::POLLIN | PollFlags::POLLOUT, LIMIT)?));
    request(&socket)?;
    wait_until_come(&socket, 1)?;
    seen.result("recv then", &sys::recv(&socket, 1, MSG_DONTWAIT));
    Ok(())
}
