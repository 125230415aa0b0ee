//! An application in non-blocking mode, as everything on an event loop is.

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    thread,
    time::Duration,
};

use nix::poll::PollFlags;
use socket2::Socket;

use super::{pattern::Pattern, sys};

/// How long nothing may move.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that may be out before their echo is back: more than a relay keeps, less than would stop for ever.
const WINDOW: u64 = 1 << 20;

/// Sends so many bytes in pieces of at most `piece` and expects them back, both at the same time. The socket stays in non-blocking
/// mode.
pub(super) fn stream(mut socket: &Socket, total: u64, piece: usize) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let (mut sends, mut expects) = (Pattern::new(total | 1), Pattern::new(total | 1));
    let (mut sent, mut received) = (0, 0);
    let mut buffer = vec![0; 256 * 1024];
    while received < total {
        let may_send = sent < total && sent - received < WINDOW;
        let wanted = if may_send { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
        if sys::poll(socket, wanted, PATIENCE)?.is_empty() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{sent} bytes sent, {received} came back")));
        }
        if may_send {
            let room = (total - sent).min(WINDOW - (sent - received)).min(piece as u64) as usize;
            sent += unless_it_would_block(sends.send_some(&mut socket, room))?.unwrap_or(0) as u64;
        }
        match unless_it_would_block(socket.read(&mut buffer))? {
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(bytes) if !expects.accept(&buffer[..bytes]) => {
                return Err(io::Error::other(format!("wrong bytes after {received}")));
            }
            Some(bytes) => received += bytes as u64,
            None => {}
        }
    }
    Ok(())
}

/// Sends until nothing more is taken for a while, in pieces of `piece`; says how many bytes. The socket stays in non-blocking mode.
pub(super) fn flood(mut socket: &Socket, piece: usize, most: u64) -> io::Result<u64> {
    /// Room that comes later than this comes from nobody who reads.
    const QUIET: Duration = Duration::from_millis(100);
    socket.set_nonblocking(true)?;
    let (bytes, mut sent) = (vec![b'x'; piece], 0);
    while sent < most && sys::poll(socket, PollFlags::POLLOUT, QUIET)?.contains(PollFlags::POLLOUT) {
        sent += unless_it_would_block(socket.write(&bytes))?.unwrap_or(0) as u64;
    }
    Ok(sent)
}

/// Answers every connection with what it sends, without ever blocking.
pub(super) fn serve(listener: Socket) {
    thread::spawn(move || {
        for socket in TcpListener::from(listener).incoming().flatten().map(Socket::from) {
            thread::spawn(move || answer(&socket));
        }
    });
}

/// Sends back what comes, without ever blocking. A reset ends it like an end.
fn answer(mut socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let Some(received) = unless_it_would_block(socket.read(&mut buffer))? else {
            sys::poll(socket, PollFlags::POLLIN, PATIENCE)?;
            continue;
        };
        if received == 0 {
            return Ok(());
        }
        let mut sent = 0;
        while sent < received {
            match unless_it_would_block(socket.write(&buffer[sent..received]))? {
                Some(bytes) => sent += bytes,
                None => drop(sys::poll(socket, PollFlags::POLLOUT, PATIENCE)?),
            }
        }
    }
}

/// Sends until nothing more is taken, and goes back to blocking mode.
pub(super) fn fill(mut socket: &Socket) -> io::Result<u64> {
    /// Room that comes later than this comes from nobody who reads.
    const QUIET: Duration = Duration::from_millis(20);
    socket.set_nonblocking(true)?;
    let (bytes, mut sent) = (vec![b'x'; 64 * 1024], 0);
    while sys::poll(socket, PollFlags::POLLOUT, QUIET)?.contains(PollFlags::POLLOUT) {
        match socket.write(&bytes) {
            Ok(taken) => sent += taken as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    socket.set_nonblocking(false)?;
    Ok(sent)
}

/// Reads until the end, in whichever mode the socket is.
pub(super) fn await_end(mut socket: &Socket) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match unless_it_would_block(socket.read(&mut buffer))? {
            Some(0) => return Ok(()),
            Some(_) => {}
            None if sys::poll(socket, PollFlags::POLLIN, PATIENCE)?.is_empty() => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            None => {}
        }
    }
}

/// `None`: it would have blocked.
pub(super) fn unless_it_would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}
