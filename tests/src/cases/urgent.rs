//! Urgent data.

use std::io::{Read, Write};

use anyhow::Result;
use nix::{
    libc::{MSG_OOB, MSG_WAITALL},
    poll::PollFlags,
};
use socket2::Socket;

use super::{
    Barred, Case,
    net::{ANY, LIMIT, TO_V4, accept, connect, listen, serve_one, wait_for_end},
};
use crate::agent::{Seen, sys};

/// `urgent_bytes_one_after_the_other` shows that they arrive in their places all the same.
const IN_LINE: &str =
    "HTTP/2 knows no urgent data: the byte arrives in its place in the stream, and nobody is told of it";

pub(super) const CASES: &[Case] = &[
    Case::new(
        "urgent_byte_to_the_server",
        |seen| read_around(&serve_one(seen, ANY)?, seen),
        |_| send_urgent(&connect(TO_V4)?),
    )
    .not_through(Barred::Tunnels, IN_LINE),
    Case::new(
        "urgent_byte_to_the_client",
        |seen| send_urgent(&serve_one(seen, ANY)?),
        |seen| read_around(&connect(TO_V4)?, seen),
    )
    .not_through(Barred::Tunnels, IN_LINE),
    Case::new("urgent_byte_inline", read_inline, |_| send_urgent(&connect(TO_V4)?))
        .not_through(Barred::Tunnels, IN_LINE),
    Case::new("urgent_bytes_one_after_the_other", count_inline, |_| send_many_urgent()),
    Case::new("no_urgent_byte", no_urgent, |_| connect(TO_V4).map(drop)),
];

/// `abc`, urgent `X`, and when the reader has answered `def`.
fn send_urgent(mut socket: &Socket) -> Result<()> {
    socket.write_all(b"abc")?;
    socket.send_out_of_band(b"X")?;
    sys::recv(socket, 1, 0)?;
    socket.write_all(b"def")?;
    Ok(wait_for_end(socket)?)
}

fn read_around(mut socket: &Socket, seen: &mut Seen) -> Result<()> {
    seen.note("events", format!("{:?}", sys::poll(socket, PollFlags::POLLPRI, LIMIT)?));
    seen.note("at mark", sys::at_mark(socket)?);
    seen.note("urgent", sys::recv(socket, 1, MSG_OOB)?);
    seen.result("urgent again", &sys::recv(socket, 1, MSG_OOB));
    seen.note("before the mark", String::from_utf8(sys::recv(socket, 100, 0)?)?);
    seen.note("at mark then", sys::at_mark(socket)?);
    socket.write_all(b"!")?;
    seen.note("after the mark", String::from_utf8(sys::recv(socket, 3, MSG_WAITALL)?)?);
    seen.note("at mark at last", sys::at_mark(socket)?);
    Ok(())
}

fn read_inline(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    // Inherited by the accepted socket, so that no urgent byte can come before it is set.
    listener.set_out_of_band_inline(true)?;
    seen.ready();
    let (mut socket, _) = accept(&listener)?;
    seen.note("events", format!("{:?}", sys::poll(&socket, PollFlags::POLLPRI, LIMIT)?));
    seen.result("as urgent", &sys::recv(&socket, 1, MSG_OOB));
    seen.note("before the mark", String::from_utf8(sys::recv(&socket, 100, 0)?)?);
    seen.note("at mark", sys::at_mark(&socket)?);
    socket.write_all(b"!")?;
    seen.note("after the mark", String::from_utf8(sys::recv(&socket, 4, MSG_WAITALL)?)?);
    Ok(())
}

/// Rounds of [`send_many_urgent`].
const ROUNDS: usize = 400;
/// Bytes before an urgent one: the size of a first read of the relay, so that reads end at the mark.
const BEFORE: usize = 16 * 1024;

/// Urgent bytes overtake each other and meet reads that end at their mark: none may be lost from the stream.
fn send_many_urgent() -> Result<()> {
    let mut socket = connect(TO_V4)?;
    for round in 0..ROUNDS {
        socket.write_all(&vec![b'.'; if round % 3 == 0 { 1 } else { BEFORE }])?;
        socket.send_out_of_band(b"!")?;
    }
    socket.shutdown(std::net::Shutdown::Write)?;
    Ok(wait_for_end(&socket)?)
}

fn count_inline(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    listener.set_out_of_band_inline(true)?;
    seen.ready();
    let (mut socket, _) = accept(&listener)?;
    let mut all = Vec::new();
    socket.read_to_end(&mut all)?;
    seen.note("bytes", all.len());
    seen.note("urgent ones", all.iter().filter(|byte| **byte == b'!').count());
    Ok(())
}

fn no_urgent(seen: &mut Seen) -> Result<()> {
    let socket = serve_one(seen, ANY)?;
    seen.result("urgent", &sys::recv(&socket, 1, MSG_OOB));
    seen.note("at mark", sys::at_mark(&socket)?);
    Ok(wait_for_end(&socket)?)
}
