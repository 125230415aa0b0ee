//! Connections made and ended in every way there is, as fast as the machine does it.

use std::{
    io::{self, Write},
    net::{Shutdown, SocketAddr},
    time::{Duration, Instant},
};

use socket2::Socket;

use super::puppet::echo;
use crate::cases::net::{limit, tcp, wait_for_end};

/// Connects to `to`, which answers with what it is sent, and ends each connection in another way until `time` is over.
/// An error that is not of its own making ends it at once.
pub(super) fn storm(to: SocketAddr, time: Duration) -> io::Result<()> {
    let mut random = Random(u64::from(std::process::id()) | 1);
    let start = Instant::now();
    while start.elapsed() < time {
        let way = random.next() % 8;
        let bytes = 1 + (random.next() % 5000) as usize;
        one(to, way, bytes).map_err(|error| io::Error::new(error.kind(), format!("way {way}: {error}")))?;
    }
    Ok(())
}

fn one(to: SocketAddr, way: u64, bytes: usize) -> io::Result<()> {
    let socket = tcp(to)?;
    limit(&socket)?;
    if way == 0 {
        return abandon(&socket, to);
    }
    socket.connect(&to.into())?;
    match way {
        // Gone at once, with and without a reset.
        1 => reset(&socket),
        2 => Ok(()),
        // Gone with the answer unread or on its way.
        3 => send(&socket, bytes),
        4 => send(&socket, bytes).and_then(|()| reset(&socket)),
        // Half closed, and not waited for.
        5 => send(&socket, bytes).and_then(|()| socket.shutdown(Shutdown::Write)),
        // To the end.
        6 => {
            echo(&socket, bytes)?;
            socket.shutdown(Shutdown::Write)?;
            wait_for_end(&socket)
        }
        _ => echo(&socket, bytes).and_then(|()| reset(&socket)),
    }
}

/// Gives the connect up before it is known to have succeeded.
fn abandon(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
        _ => reset(socket),
    }
}

/// Its close, which follows, is a reset.
fn reset(socket: &Socket) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))
}

fn send(mut socket: &Socket, bytes: usize) -> io::Result<()> {
    socket.write_all(&vec![b'x'; bytes])
}

/// Marsaglia's xorshift: the tests need variety, not quality.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }
}
