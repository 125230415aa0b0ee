//! An application on edge-triggered epoll, as nginx and libraries of event loops are: an event that does not come is a connection
//! that stands still for ever.

use std::{
    io::{self, Read},
    time::Duration,
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

use super::{pattern::Pattern, stream::unless_it_would_block};

/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends so many requests of `bytes` one after the other, each when the answer to the one before has come back whole. The socket
/// stays in non-blocking mode.
pub(super) fn exchange(mut socket: &Socket, count: u32, bytes: usize) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    epoll.add(socket, EpollEvent::new(edges, 0))?;
    let limit = EpollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
    let (mut sends, mut expects) = (Pattern::new(1 + u64::from(count)), Pattern::new(1 + u64::from(count)));
    let mut buffer = vec![0; bytes];
    for number in 0..count {
        let (mut to_send, mut to_come) = (bytes, bytes);
        loop {
            // Either way to its end: what is left has no edge any more.
            while to_send > 0 {
                let Some(sent) = unless_it_would_block(sends.send_some(&mut socket, to_send))? else { break };
                to_send -= sent;
            }
            while to_come > 0 {
                match unless_it_would_block(socket.read(&mut buffer[..to_come]))? {
                    Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Some(came) if !expects.accept(&buffer[..came]) => {
                        return Err(io::Error::other(format!("wrong bytes in answer {number}")));
                    }
                    Some(came) => to_come -= came,
                    None => break,
                }
            }
            if to_come == 0 {
                break;
            }
            if epoll.wait(&mut [EpollEvent::empty()], limit)? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no event in exchange {number}")));
            }
        }
    }
    Ok(())
}
