//! An echo server on one thread, so that it adds as little as possible to what is measured.

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
};

/// Marks the listener among the events; no descriptor has this number.
const LISTENER: u64 = u64::MAX;

/// Echoes until something fails that is not a connection's own fault.
pub(super) fn serve(listener: TcpListener) -> Result<()> {
    listener.set_nonblocking(true).context("make the echo listener non-blocking")?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).context("epoll_ctl")?;
    let mut streams: HashMap<u64, TcpStream> = HashMap::new();
    let (mut events, mut buffer) = (vec![EpollEvent::empty(); 512], vec![0; 64 * 1024]);
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE).context("epoll_wait")?;
        for event in &events[..count] {
            if event.data() == LISTENER {
                accept(&listener, &epoll, &mut streams)?;
            } else if streams.get_mut(&event.data()).is_some_and(|stream| !echo(stream, &mut buffer)) {
                // Closing it takes it out of the epoll set.
                streams.remove(&event.data());
            }
        }
    }
}

fn accept(listener: &TcpListener, epoll: &Epoll, streams: &mut HashMap<u64, TcpStream>) -> Result<()> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true).context("make a connection non-blocking")?;
                stream.set_nodelay(true).context("TCP_NODELAY")?;
                let key = stream.as_raw_fd() as u64;
                epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key)).context("epoll_ctl")?;
                streams.insert(key, stream);
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(err) if err.kind() == ErrorKind::ConnectionAborted => {}
            Err(err) => return Err(err).context("accept"),
        }
    }
}

/// Echoes what has come; `false` when the connection is over. Requests are far smaller than a socket's send buffer, so
/// an answer that does not fit is a defect of the client.
fn echo(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    match stream.read(buffer) {
        Ok(0) => false,
        Ok(count) => stream.write_all(&buffer[..count]).is_ok(),
        Err(err) => err.kind() == ErrorKind::WouldBlock,
    }
}
