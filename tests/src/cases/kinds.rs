//! Other kinds of sockets, and other ways to come by one.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use nix::{
    libc::MSG_WAITALL,
    poll::PollFlags,
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    Case, InStrict,
    net::{
        ANY, ANY_V4, LIMIT, TO_V4, TO_V6, accept, address, connect, limit, no_server, serve_one, start_listening, tcp,
        wait_for_end,
    },
};
use crate::agent::{Seen, sys};

pub(super) const CASES: &[Case] = &[
    Case::new("io_uring_connect_send_receive", answer, by_ring),
    Case::new("multipath_client", answer, multipath).bypassed("mptcp", 1, 1).in_strict(InStrict::Captured),
    Case::new("multipath_listener", serve_multipath, |seen| ask(seen, &connect(TO_V4)?)),
    Case::new("socket_passed_to_another_process", answer, passed),
    Case::new("socket_used_by_two_descriptors", answer, duplicated),
    Case::new("listeners_that_share_a_port_serve_all", serve_shared, |seen| many(seen, SHARED))
        .counts(SHARED as u64, SHARED as u64),
    Case::new("icmp_is_left_alone", no_server, ping).counts(0, 0),
    Case::new("udp_is_left_alone", serve_udp, ask_udp).bypassed("not_tcp", 1, 0),
    Case::new("connected_datagrams_are_left_alone_v6", serve_datagrams, exchange_datagrams).bypassed("not_tcp", 1, 0),
    Case::new("sctp_is_left_alone", serve_sctp, ask_sctp).counts(0, 0),
];

/// One request of four bytes and its answer.
fn answer(seen: &mut Seen) -> Result<()> {
    answer_on(&serve_one(seen, ANY)?)
}

fn answer_on(mut socket: &Socket) -> Result<()> {
    let request = sys::recv(socket, 4, MSG_WAITALL)?;
    socket.write_all(&request)?;
    Ok(wait_for_end(socket)?)
}

fn ask(seen: &mut Seen, mut socket: &Socket) -> Result<()> {
    socket.write_all(b"ping")?;
    seen.note("answer", String::from_utf8(sys::recv(socket, 4, MSG_WAITALL)?)?);
    seen.addr("getpeername", address(&socket.peer_addr()?)?);
    seen.addr("getsockname", address(&socket.local_addr()?)?);
    Ok(())
}

/// Connections to listeners that share a port.
const SHARED: usize = 20;

fn serve_shared(seen: &mut Seen) -> Result<()> {
    let shared = || -> Result<Socket> {
        let socket = tcp(ANY)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        start_listening(socket, ANY)
    };
    let listeners = [shared()?, shared()?];
    seen.ready();
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| serve_share(listener, &served));
        }
    });
    seen.note("served", served.into_inner());
    Ok(())
}

/// Answers connections until all that are expected have been served, here or by the other listener.
fn serve_share(listener: &Socket, served: &AtomicUsize) {
    /// Between two looks at what the other has served.
    const PAUSE: Duration = Duration::from_millis(20);
    let start = Instant::now();
    while served.load(Ordering::Relaxed) < SHARED && start.elapsed() < LIMIT {
        let comes = sys::poll(listener, PollFlags::POLLIN, PAUSE).is_ok_and(|events| !events.is_empty());
        if comes && accept(listener).and_then(|(socket, _)| answer_on(&socket)).is_ok() {
            served.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn many(seen: &mut Seen, count: usize) -> Result<()> {
    for _ in 0..count {
        let mut socket = connect(TO_V4)?;
        socket.write_all(b"ping")?;
        ensure!(sys::recv(&socket, 4, MSG_WAITALL)? == b"ping", "another answer");
    }
    seen.note("answered", count);
    Ok(())
}

/// An ICMP echo request (RFC 792) and its reply.
fn ping(seen: &mut Seen) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    limit(&socket)?;
    // Type 8, code 0, its checksum, identifier 0, sequence 0, no data.
    socket.send_to(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0], &TO_V4.into())?;
    // The IPv4 header of 20 bytes comes with it.
    let reply = sys::recv(&socket, 100, 0)?;
    seen.note("reply", reply.get(20).copied());
    Ok(())
}

fn by_ring(seen: &mut Seen) -> Result<()> {
    let mut ring = match IoUring::new(4) {
        Ok(ring) => ring,
        Err(error) => {
            seen.skip(format!("io_uring_setup: {error}"));
            return Ok(());
        }
    };
    let socket = tcp(TO_V4)?;
    let fd = types::Fd(socket.as_raw_fd());
    let to = SockAddr::from(TO_V4);
    let connected = submit(&mut ring, opcode::Connect::new(fd, to.as_ptr().cast(), to.len()).build());
    seen.result("connect", &connected);
    let sent = submit(&mut ring, opcode::Send::new(fd, b"ping".as_ptr(), 4).build());
    seen.note("sent", sent?);
    let mut answer = [0_u8; 4];
    let received = submit(&mut ring, opcode::Recv::new(fd, answer.as_mut_ptr(), 4).build());
    seen.note("received", received?);
    seen.note("answer", String::from_utf8(answer.to_vec())?);
    seen.addr("getpeername", address(&socket.peer_addr()?)?);
    Ok(())
}

/// Submits one operation and waits for its end.
fn submit(ring: &mut IoUring, operation: squeue::Entry) -> io::Result<i32> {
    // SAFETY: the callers' buffers and addresses outlive this function, which waits until the operation is over.
    unsafe { ring.submission().push(&operation) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map(|entry| entry.result());
    match result {
        Some(result) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
        Some(result) => Ok(result),
        None => Err(io::Error::other("no completion")),
    }
}

/// An MPTCP socket, or `None` with the reason announced.
fn multipath_socket(seen: &mut Seen) -> Option<Socket> {
    match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
        Ok(socket) => Some(socket),
        Err(error) => {
            seen.skip(format!("socket(IPPROTO_MPTCP): {error}"));
            None
        }
    }
}

fn multipath(seen: &mut Seen) -> Result<()> {
    let Some(socket) = multipath_socket(seen) else { return Ok(()) };
    limit(&socket)?;
    socket.connect(&TO_V4.into())?;
    ask(seen, &socket)
}

fn serve_multipath(seen: &mut Seen) -> Result<()> {
    let Some(listener) = multipath_socket(seen) else { return Ok(()) };
    listener.set_reuse_address(true)?;
    let listener = start_listening(listener, ANY_V4)?;
    seen.ready();
    let (socket, peer) = accept(&listener)?;
    seen.client_addr("accept", peer);
    answer_on(&socket)
}

/// The socket goes through a unix socket to another process, which connects it.
fn passed(seen: &mut Seen) -> Result<()> {
    let (here, there) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
    // SAFETY: this program has one thread, so the child may do whatever its parent may.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let socket = Socket::from(sys::receive_descriptor(&there)?);
            limit(&socket)?;
            socket.connect(&TO_V4.into())?;
            ask(seen, &socket)
        }
        ForkResult::Parent { child } => {
            let made = tcp(TO_V4)?;
            sys::send_descriptor(&here, &made)?;
            drop(made);
            let status = waitpid(child, None)?;
            ensure!(status == WaitStatus::Exited(child, 0), "the other process ended with {status:?}");
            Ok(())
        }
    }
}

fn duplicated(seen: &mut Seen) -> Result<()> {
    let mut socket = connect(TO_V4)?;
    let twin = socket.try_clone()?;
    socket.write_all(b"ping")?;
    drop(socket);
    seen.note("answer", String::from_utf8(sys::recv(&twin, 4, MSG_WAITALL)?)?);
    seen.addr("getpeername", address(&twin.peer_addr()?)?);
    Ok(())
}

fn serve_udp(seen: &mut Seen) -> Result<()> {
    let socket = UdpSocket::bind(ANY)?;
    socket.set_read_timeout(Some(LIMIT))?;
    seen.ready();
    let mut buffer = [0; 100];
    let (n, from) = socket.recv_from(&mut buffer)?;
    seen.client_addr("from", from);
    socket.send_to(&buffer[..n], from)?;
    Ok(())
}

fn ask_udp(seen: &mut Seen) -> Result<()> {
    let socket = UdpSocket::bind((IpAddr::from([0, 0, 0, 0]), 0))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(TO_V4)?;
    seen.addr("getpeername", socket.peer_addr()?);
    socket.send(b"ping")?;
    let mut buffer = [0; 100];
    seen.note("answer", socket.recv(&mut buffer)?);
    Ok(())
}

/// Datagrams of a QUIC exchange: many, as large as QUIC makes them (RFC 9000, 14), by connected sockets.
const DATAGRAMS: u32 = 100;
const DATAGRAM: usize = 1200;

fn serve_datagrams(seen: &mut Seen) -> Result<()> {
    let socket = UdpSocket::bind(ANY)?;
    socket.set_read_timeout(Some(LIMIT))?;
    seen.ready();
    let mut buffer = [0; 2 * DATAGRAM];
    let (first, from) = socket.recv_from(&mut buffer)?;
    seen.client_addr("from", from);
    socket.connect(from)?;
    socket.send(&buffer[..first])?;
    for _ in 1..DATAGRAMS {
        let n = socket.recv(&mut buffer)?;
        socket.send(&buffer[..n])?;
    }
    Ok(())
}

fn exchange_datagrams(seen: &mut Seen) -> Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect(TO_V6)?;
    seen.addr("getpeername", socket.peer_addr()?);
    let mut buffer = [0; 2 * DATAGRAM];
    for number in 0..DATAGRAMS {
        let sent = [number as u8; DATAGRAM];
        socket.send(&sent)?;
        let n = socket.recv(&mut buffer)?;
        ensure!(buffer[..n] == sent, "datagram {number} came back as {n} other bytes");
    }
    seen.note("exchanged", DATAGRAMS);
    Ok(())
}

/// A one-to-one SCTP socket, or `None` with the reason announced.
fn sctp_socket(seen: &mut Seen) -> Option<Socket> {
    match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::SCTP)) {
        Ok(socket) => Some(socket),
        Err(error) => {
            seen.skip(format!("socket(IPPROTO_SCTP): {error}"));
            None
        }
    }
}

fn serve_sctp(seen: &mut Seen) -> Result<()> {
    let Some(listener) = sctp_socket(seen) else { return Ok(()) };
    let listener = start_listening(listener, ANY_V4)?;
    seen.ready();
    let (socket, peer) = accept(&listener)?;
    seen.client_addr("accept", peer);
    answer_on(&socket)
}

fn ask_sctp(seen: &mut Seen) -> Result<()> {
    let Some(socket) = sctp_socket(seen) else { return Ok(()) };
    limit(&socket)?;
    socket.connect(&TO_V4.into())?;
    ask(seen, &socket)
}
