//! Ways to move many bytes that are not read and write.

use std::{
    fs::File,
    io,
    net::Shutdown,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    libc::{MSG_ZEROCOPY, SO_ZEROCOPY, SOL_SOCKET},
    poll::PollFlags,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        memfd::{MFdFlags, memfd_create},
        sendfile::sendfile,
    },
    unistd::pipe,
};

use super::{
    Case,
    net::{ANY, LIMIT, TO_V4, connect, serve_one, wait_for_end},
};
use crate::agent::{Seen, pattern::Pattern, sys};

/// More than the buffers on the way hold.
const LONG: usize = 8 << 20;

pub(super) const CASES: &[Case] = &[
    Case::new("splice_from_the_socket", send_long, splice_out),
    Case::new("splice_into_the_socket", receive_long, splice_in),
    Case::new("sendfile_into_the_socket", receive_long, send_file),
    Case::new("edge_triggered_epoll", send_long, edge_triggered),
    Case::new("zero_copy_sends_complete", receive_long, zero_copy),
];

fn send_long(seen: &mut Seen) -> Result<()> {
    Ok(Pattern::new(21).send(&mut serve_one(seen, ANY)?, LONG, 30_000)?)
}

fn receive_long(seen: &mut Seen) -> Result<()> {
    let received = Pattern::new(21).receive(&mut serve_one(seen, ANY)?, usize::MAX)?;
    seen.note("received", received);
    Ok(())
}

/// Socket to pipe to file, as proxies do.
fn splice_out(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    let (from, to) = pipe()?;
    let mut file = File::from(memory("received")?);
    let mut received = 0;
    loop {
        let n = sys::splice(socket.as_fd(), to.as_fd(), 64 * 1024).context("splice from the socket")?;
        if n == 0 {
            break;
        }
        received += n;
        let mut left = n;
        while left > 0 {
            left -= sys::splice(from.as_fd(), file.as_fd(), left).context("splice to the file")?;
        }
    }
    seen.note("spliced", received);
    io::Seek::rewind(&mut file)?;
    seen.note("intact", Pattern::new(21).receive(&mut file, usize::MAX)?);
    Ok(())
}

fn splice_in(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    let (from, mut to) = pipe().map(|(from, to)| (from, File::from(to)))?;
    let sent = thread::scope(|scope| -> Result<usize> {
        let writer = scope.spawn(move || Pattern::new(21).send(&mut to, LONG, 50_000));
        let mut sent = 0;
        loop {
            let n = sys::splice(from.as_fd(), socket.as_fd(), 64 * 1024).context("splice to the socket")?;
            if n == 0 {
                break;
            }
            sent += n;
        }
        writer.join().map_err(|_| anyhow!("the writing thread panicked"))??;
        Ok(sent)
    })?;
    seen.note("spliced", sent);
    Ok(())
}

fn send_file(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    let mut file = File::from(memory("to send")?);
    Pattern::new(21).send(&mut file, LONG, 1 << 20)?;
    let mut offset = 0;
    while (offset as usize) < LONG {
        let n = sendfile(&socket, &file, Some(&mut offset), LONG)?;
        ensure!(n > 0, "sendfile sent nothing at {offset}");
    }
    seen.note("sent", offset);
    Ok(())
}

/// The kernel tells on the error queue when it no longer needs the sender's pages.
fn zero_copy(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    sys::set_int(&socket, SOL_SOCKET, SO_ZEROCOPY, 1).context("SO_ZEROCOPY")?;
    let mut bytes = Vec::new();
    Pattern::new(21).send(&mut bytes, LONG, LONG)?;
    let mut sent = 0;
    while sent < bytes.len() {
        sent += socket.send_with_flags(&bytes[sent..], MSG_ZEROCOPY)?;
    }
    seen.note("events", format!("{:?}", sys::poll(&socket, PollFlags::empty(), LIMIT)?));
    // Closing earlier would be a reset of what still waits.
    socket.shutdown(Shutdown::Write)?;
    Ok(wait_for_end(&socket)?)
}

fn memory(name: &str) -> Result<OwnedFd> {
    memfd_create(name, MFdFlags::MFD_CLOEXEC).context("memfd_create")
}

/// Reads only when told, and then until the socket is empty: a lost wake-up would end in the time limit.
fn edge_triggered(seen: &mut Seen) -> Result<()> {
    let socket = connect(TO_V4)?;
    socket.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET, 0))?;
    let mut pattern = Pattern::new(21);
    let mut received = 0;
    let timeout = EpollTimeout::try_from(LIMIT)?;
    loop {
        let mut events = [EpollEvent::empty()];
        ensure!(epoll.wait(&mut events, timeout)? == 1, "no event after {received} bytes");
        loop {
            match sys::recv(&socket, 50_000, 0) {
                Ok(bytes) if bytes.is_empty() => {
                    seen.note("received", received);
                    return Ok(());
                }
                Ok(bytes) => {
                    ensure!(pattern.accept(&bytes), "wrong bytes after {received}");
                    received += bytes.len();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
