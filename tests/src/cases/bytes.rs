//! Every byte, in order, whatever the amount and the pieces.

use std::{io::Write, net::Shutdown, thread, time::Duration};

use anyhow::{Result, anyhow};
use nix::poll::PollFlags;
use socket2::Socket;

use super::{
    Case,
    net::{ANY, TO_V4, TO_V6, accept, connect, listen, serve_one},
};
use crate::agent::{Seen, pattern::Pattern, sys};

/// More than all buffers between two applications hold, with a sidecar on each side.
const UNBOUNDED: usize = 48 << 20;

pub(super) const CASES: &[Case] = &[
    Case::new("one_byte_each_way", |seen| server(seen, 1, 1), |seen| client(seen, 1, 1)),
    Case::new("kilobytes_in_single_bytes", |seen| server(seen, 3000, 1), |seen| client(seen, 3000, 1)),
    Case::new("odd_amount_in_odd_pieces", |seen| server(seen, 1_000_003, 997), |seen| client(seen, 1_000_003, 997)),
    Case::new("megabyte_each_way", |seen| server(seen, 1 << 20, 65_536), |seen| client(seen, 1 << 20, 65_536)),
    Case::new(
        "64_mib_each_way_at_once",
        |seen| server(seen, 64 << 20, 1 << 20),
        |seen| client(seen, 64 << 20, 1 << 20),
    ),
    Case::new("upload_then_answer", upload_server, upload_client),
    Case::new("slow_reader_gets_everything", slow_server, slow_client).counts(2, 2),
    Case::new(
        "v6_megabytes",
        |seen| server(seen, 8 << 20, 65_536),
        |seen| both(&connect(TO_V6)?, seen, 8 << 20, 65_536),
    ),
];

fn server(seen: &mut Seen, total: usize, piece: usize) -> Result<()> {
    both(&serve_one(seen, ANY)?, seen, total, piece)
}

fn client(seen: &mut Seen, total: usize, piece: usize) -> Result<()> {
    both(&connect(TO_V4)?, seen, total, piece)
}

/// Sends and receives at the same time.
fn both(socket: &Socket, seen: &mut Seen, total: usize, piece: usize) -> Result<()> {
    let received = thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<()> {
            let mut socket = socket;
            Pattern::new(11).send(&mut socket, total, piece)?;
            Ok(socket.shutdown(Shutdown::Write)?)
        });
        let mut socket = socket;
        let received = Pattern::new(11).receive(&mut socket, usize::MAX);
        sender.join().map_err(|_| anyhow!("the sending thread panicked"))??;
        received
    })?;
    seen.note("received", received);
    Ok(())
}

fn upload_server(seen: &mut Seen) -> Result<()> {
    let mut socket = serve_one(seen, ANY)?;
    seen.note("received", Pattern::new(5).receive(&mut socket, 16 << 20)?);
    Ok(Pattern::new(6).send(&mut socket, 2, 1)?)
}

fn upload_client(seen: &mut Seen) -> Result<()> {
    let mut socket = connect(TO_V4)?;
    Pattern::new(5).send(&mut socket, 16 << 20, 200_000)?;
    seen.note("answer", Pattern::new(6).receive(&mut socket, usize::MAX)?);
    Ok(())
}

/// Fills every buffer on the way until its own writes block, which must not lose anything. Says so on another
/// connection, which it answers first: sidecars may change the order of connections that are made at once.
fn slow_server(seen: &mut Seen) -> Result<()> {
    let listener = listen(ANY)?;
    seen.ready();
    let (mut control, _) = accept(&listener)?;
    control.write_all(b"?")?;
    let (mut socket, _) = accept(&listener)?;
    socket.set_nonblocking(true)?;
    let mut pattern = Pattern::new(8);
    let mut sent = 0_usize;
    // The buffers grow while they fill: they are full when nothing could be written for a while.
    while sent < UNBOUNDED && !sys::poll(&socket, PollFlags::POLLOUT, Duration::from_millis(100))?.is_empty() {
        sent += pattern.send_some(&mut socket, 64 * 1024)?;
    }
    seen.note("bounded", sent < UNBOUNDED);
    control.write_all(b"!")?;
    socket.set_nonblocking(false)?;
    Ok(pattern.send(&mut socket, 2 * UNBOUNDED - sent, 4096)?)
}

fn slow_client(seen: &mut Seen) -> Result<()> {
    let control = connect(TO_V4)?;
    sys::recv(&control, 1, 0)?;
    let mut socket = connect(TO_V4)?;
    sys::recv(&control, 1, 0)?;
    seen.note("received", Pattern::new(8).receive(&mut socket, usize::MAX)?);
    Ok(())
}
