//! Clients, a relay and a server on loopback, and what the kernel is told to do with the sockets between them.

use super::bpf::{SockHash, accepted};
use anyhow::{Context, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::fd::AsFd,
    thread::{self, JoinHandle},
};

/// Bytes per system call.
pub(super) const CHUNK: usize = 64 * 1024;

/// How bytes come from a client to the server and back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// A relay reads and writes them.
    Relay,
    /// The same, and what the client sends goes past TCP into the relay's queue: the fast path without its guards.
    Message,
    /// The kernel passes them on between the relay's two sockets: the relay never sees them.
    Verdict,
    /// There is no relay.
    Direct,
}

impl Way {
    pub(super) const ALL: [Self; 4] = [Self::Relay, Self::Message, Self::Verdict, Self::Direct];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Message => "sk_msg to the relay",
            Self::Verdict => "sk_skb past the relay",
            Self::Direct => "no relay",
        }
    }
}

/// Connections of one way.
pub(super) struct Lane {
    pub(super) clients: Vec<TcpStream>,
    others: Vec<TcpStream>,
    threads: Vec<JoinHandle<Result<()>>>,
    _maps: Vec<SockHash>,
}

impl Lane {
    /// So many connections, whose server echoes, or takes so many bytes and answers with one.
    pub(super) fn open(way: Way, connections: usize, takes: Option<u64>) -> Result<Self> {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback");
        let (relay, server) = (listen()?, listen()?);
        let front = if way == Way::Direct { server.local_addr()? } else { relay.local_addr()? };
        let (mut clients, mut pairs, mut served) = (vec![], vec![], vec![]);
        for _ in 0..connections {
            let client = TcpStream::connect(front).context("connect over loopback")?;
            if way != Way::Direct {
                let upstream = TcpStream::connect(server.local_addr()?).context("connect over loopback")?;
                pairs.push((relay.accept()?.0, upstream));
            }
            served.push(server.accept()?.0);
            clients.push(client);
        }
        for stream in clients.iter().chain(&served).chain(pairs.iter().flat_map(|(a, b)| [a, b])) {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
        }
        let maps = enrol(way, relay.local_addr()?.port(), &clients, &pairs)?;
        let all = served.iter().chain(pairs.iter().flat_map(|(a, b)| [a, b]));
        let others = all.map(TcpStream::try_clone).collect::<io::Result<_>>()?;
        let mut threads = vec![thread::spawn(move || serve(served, takes))];
        if !pairs.is_empty() {
            threads.push(thread::spawn(move || carry(pairs)));
        }
        Ok(Self { clients, others, threads, _maps: maps })
    }

    /// Ends them all.
    pub(super) fn close(self) {
        // Those that are closed already are as good.
        self.others.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn enrol(way: Way, listener: u16, clients: &[TcpStream], pairs: &[(TcpStream, TcpStream)]) -> Result<Vec<SockHash>> {
    match way {
        Way::Relay | Way::Direct => Ok(vec![]),
        Way::Message => {
            let (senders, receivers) = (SockHash::new()?, SockHash::new()?);
            senders.send_into(&receivers)?;
            for (client, (end, _)) in clients.iter().zip(pairs) {
                let port = u32::from(client.local_addr()?.port());
                receivers.insert(port, end)?;
                senders.insert(port, client)?;
            }
            Ok(vec![senders, receivers])
        }
        Way::Verdict => {
            let map = SockHash::new()?;
            map.pass_on(listener)?;
            for (end, upstream) in pairs {
                map.insert(accepted(end.peer_addr()?.port()), upstream)?;
                map.insert(upstream.local_addr()?.port().into(), end)?;
            }
            Ok(vec![map])
        }
    }
}

/// Writes all, waiting where there is no room.
pub(super) fn send(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads what is there; `None`: nothing yet.
pub(super) fn receive(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match stream.read(buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some),
    }
}

/// Calls `ready` with the number of each stream that can be read, until it says that this was the last.
pub(super) fn turn<'a>(
    streams: impl Iterator<Item = &'a TcpStream>,
    mut ready: impl FnMut(usize) -> Result<bool>,
) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
    for (number, stream) in streams.enumerate() {
        epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64)).context("epoll_ctl")?;
    }
    let mut events = vec![EpollEvent::empty(); 128];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE).context("epoll_wait")?;
        for event in &events[..count] {
            if !ready(event.data() as usize)? {
                return Ok(());
            }
        }
    }
}

/// The relay: ends with the first end, which comes when everything was measured.
fn carry(pairs: Vec<(TcpStream, TcpStream)>) -> Result<()> {
    let streams: Vec<_> = pairs.into_iter().flat_map(|(a, b)| [a, b]).collect();
    let mut buffer = vec![0; CHUNK];
    turn(streams.iter(), |number| match receive(&streams[number], &mut buffer)? {
        Some(0) => Ok(false),
        Some(count) => send(&streams[number ^ 1], &buffer[..count]).map(|()| true).map_err(Into::into),
        None => Ok(true),
    })
}

fn serve(streams: Vec<TcpStream>, takes: Option<u64>) -> Result<()> {
    let (mut buffer, mut taken) = (vec![0; CHUNK], 0);
    turn(streams.iter(), |number| {
        let stream = &streams[number];
        match (receive(stream, &mut buffer)?, takes) {
            (Some(0), _) => return Ok(false),
            (Some(count), None) => send(stream, &buffer[..count])?,
            (Some(count), Some(all)) => {
                taken += count as u64;
                if taken == all {
                    send(stream, &[1])?;
                }
            }
            (None, _) => {}
        }
        Ok(true)
    })
}
