//! An application that does what a test tells it, step by step.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    num::NonZeroU32,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{self as unix, UnixStream},
    },
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::libc;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    edges, outcome,
    rush::rush,
    storm::storm,
    stream::{self, await_end, fill, flood},
    sys,
    toil::toil,
};
use crate::cases::net::{accept, address, limit, listen, listen_v6_only, tcp};

/// Number of a socket that the application holds.
pub type Handle = u32;

/// One step.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Listen, and answer every connection with what it sends.
    Serve(SocketAddr),
    /// The same with sockets that never block.
    ServeEvents(SocketAddr),
    /// The same for IPv6 alone.
    ServeV6Only(SocketAddr),
    /// Listen, greet every connection with [`GREETING`], and answer it with what it sends.
    Greet(SocketAddr),
    /// Make a socket for addresses like this one.
    Make(SocketAddr),
    /// Make an MPTCP socket for addresses like this one.
    MakeMultipath(SocketAddr),
    /// Bind a socket to an address, which need not be the pod's.
    Bind(Handle, SocketAddr),
    /// Bind a socket to the device of this index.
    BindDevice(Handle, NonZeroU32),
    /// Connect a socket.
    Connect(Handle, SocketAddr),
    /// Send this many bytes and expect them back.
    Echo(Handle, usize),
    /// Expect [`GREETING`].
    Hear(Handle),
    /// Send without expecting anything.
    Send(Handle, usize),
    /// Read until the end.
    AwaitEnd(Handle),
    /// End the direction to the other side.
    Finish(Handle),
    /// Close.
    Close(Handle),
    /// Close with a reset.
    Reset(Handle),
    /// Make, use and close this many connections, every second one with a reset.
    Churn(SocketAddr, u32),
    /// The same so many times, so often in a second, to one and the other in turn.
    Rush([SocketAddr; 2], u32, u32),
    /// Make so many short connections each second and carry so many streams, until there is another order; say how many
    /// connections that were.
    Toil(SocketAddr, u32, u32),
    /// Make connections in as many ways as there are to end them, for this long.
    Storm(SocketAddr, Duration),
    /// Begin to connect a socket without waiting for it.
    Begin(Handle, SocketAddr),
    /// Send until nothing more is taken.
    Fill(Handle),
    /// Go over to non-blocking mode, send so many bytes in pieces of at most so many, and expect them back.
    Stream(Handle, u64, usize),
    /// Go over to edge-triggered epoll and make so many exchanges of so many bytes, one after the other.
    Edges(Handle, u32, usize),
    /// Go over to non-blocking mode and send in pieces of so many bytes until nothing more is taken, or so many were.
    Flood(Handle, usize, u64),
    /// Go back to blocking mode.
    Block(Handle),
    /// Listen with this backlog, and never accept but when told.
    Ignore(SocketAddr, i32),
    /// Accept one of those that were ignored, and read all that it sends.
    Drain,
    /// Take a socket from the test, which gives it at [`meeting_point`] of this number.
    Adopt(u32),
    /// Say who has connected to what it serves.
    Accepted,
}

/// What a server says before its client has said anything.
pub const GREETING: &[u8] = b"the server speaks first, and says this";

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// `ok` or the name of the error.
    pub outcome: String,
    /// How long it took.
    pub took: Duration,
    /// The socket's local address, of [`Order::Connect`].
    pub local: Option<SocketAddr>,
    /// The clients, of [`Order::Accepted`].
    pub accepted: Vec<SocketAddr>,
    /// Bytes that [`Order::Fill`] and [`Order::Flood`] have sent and [`Order::Drain`] has read so far.
    pub moved: u64,
}

/// Follows orders from standard input until it ends.
pub fn follow_orders() -> Result<()> {
    let mut puppet = Puppet::default();
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?).context("not an order")?;
        let start = Instant::now();
        let done = puppet.follow(order);
        let answer = Answer {
            outcome: outcome(&done),
            took: start.elapsed(),
            local: done.ok().flatten(),
            accepted: puppet.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            moved: puppet.moved,
        };
        writeln!(io::stdout(), "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

#[derive(Default)]
struct Puppet {
    sockets: HashMap<Handle, Socket>,
    next: Handle,
    ignored: Vec<Socket>,
    accepted: Arc<Mutex<Vec<SocketAddr>>>,
    moved: u64,
}

impl Puppet {
    fn follow(&mut self, order: Order) -> io::Result<Option<SocketAddr>> {
        match order {
            Order::Serve(at) => self.serve(listen(at), &[])?,
            Order::ServeEvents(at) => stream::serve(listen(at).map_err(io::Error::other)?),
            Order::ServeV6Only(at) => self.serve(listen_v6_only(at), &[])?,
            Order::Greet(at) => self.serve(listen(at), GREETING)?,
            Order::Make(like) => self.keep(tcp(like)?),
            Order::MakeMultipath(like) => {
                self.keep(Socket::new(Domain::for_address(like), Type::STREAM, Some(Protocol::MPTCP))?);
            }
            Order::Bind(handle, to) => {
                let socket = self.socket(handle)?;
                socket.set_ip_transparent_v4(true)?;
                socket.bind(&to.into())?;
            }
            Order::BindDevice(handle, index) => self.socket(handle)?.bind_device_by_index_v4(Some(index))?,
            Order::Connect(handle, to) => return self.connect(handle, to).map(Some),
            Order::Echo(handle, bytes) => echo(self.socket(handle)?, bytes)?,
            Order::Hear(handle) => hear(self.socket(handle)?)?,
            Order::Send(handle, bytes) => self.socket(handle)?.write_all(&vec![b'x'; bytes])?,
            Order::AwaitEnd(handle) => await_end(self.socket(handle)?)?,
            Order::Finish(handle) => self.socket(handle)?.shutdown(std::net::Shutdown::Write)?,
            Order::Close(handle) => drop(self.sockets.remove(&handle)),
            Order::Reset(handle) => {
                self.socket(handle)?.set_linger(Some(Duration::ZERO))?;
                self.sockets.remove(&handle);
            }
            Order::Churn(to, count) => (0..count).try_for_each(|number| churn(to, number))?,
            Order::Rush(to, count, per_second) => rush(to, count, per_second)?,
            Order::Toil(to, streams, per_second) => self.moved += toil(to, streams, per_second)?.0,
            Order::Storm(to, time) => storm(to, time)?,
            Order::Begin(handle, to) => begin(self.socket(handle)?, to)?,
            Order::Fill(handle) => self.moved += fill(self.socket(handle)?)?,
            Order::Stream(handle, bytes, piece) => stream::stream(self.socket(handle)?, bytes, piece)?,
            Order::Edges(handle, count, bytes) => edges::exchange(self.socket(handle)?, count, bytes)?,
            Order::Flood(handle, piece, most) => self.moved += flood(self.socket(handle)?, piece, most)?,
            Order::Block(handle) => self.socket(handle)?.set_nonblocking(false)?,
            Order::Drain => self.moved += self.drain()?,
            Order::Ignore(at, backlog) => self.ignored.push(ignore(at, backlog)?),
            Order::Adopt(number) => self.keep(adopt(number)?),
            Order::Accepted => {}
        }
        Ok(None)
    }

    fn keep(&mut self, socket: Socket) {
        self.sockets.insert(self.next, socket);
        self.next += 1;
    }

    fn socket(&self, handle: Handle) -> io::Result<&Socket> {
        self.sockets.get(&handle).ok_or_else(|| io::Error::other("no such socket"))
    }

    fn connect(&self, handle: Handle, to: SocketAddr) -> io::Result<SocketAddr> {
        let socket = self.socket(handle)?;
        limit(socket)?;
        socket.connect(&to.into())?;
        address(&socket.local_addr()?).map_err(io::Error::other)
    }

    fn drain(&self) -> io::Result<u64> {
        let listener = self.ignored.last().ok_or_else(|| io::Error::other("nothing is ignored"))?;
        let (mut socket, _) = accept(listener).map_err(io::Error::other)?;
        io::copy(&mut socket, &mut io::sink())
    }

    fn serve(&self, listener: Result<Socket>, greeting: &'static [u8]) -> io::Result<()> {
        let listener = TcpListener::from(listener.map_err(io::Error::other)?);
        let accepted = Arc::clone(&self.accepted);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(peer) = stream.peer_addr() {
                    accepted.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
                }
                thread::spawn(move || answer(stream, greeting));
            }
        });
        Ok(())
    }
}

/// Sends back what comes. A reset ends it like an end.
fn answer(mut stream: TcpStream, greeting: &[u8]) {
    if stream.write_all(greeting).is_err() {
        return;
    }
    let mut buffer = [0; 16 * 1024];
    while let Ok(n) = stream.read(&mut buffer) {
        if n == 0 || stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

fn hear(mut socket: &Socket) -> io::Result<()> {
    let mut heard = vec![0; GREETING.len()];
    socket.read_exact(&mut heard)?;
    if heard == GREETING { Ok(()) } else { Err(io::Error::other("another greeting")) }
}

pub(super) fn echo(mut socket: &Socket, bytes: usize) -> io::Result<()> {
    let sent: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
    socket.write_all(&sent)?;
    let mut back = vec![0; bytes];
    socket.read_exact(&mut back)?;
    if back == sent { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

/// Makes, uses and closes a connection, every second one with a reset.
pub(super) fn churn(to: SocketAddr, number: u32) -> io::Result<()> {
    let socket = tcp(to)?;
    limit(&socket)?;
    socket.connect(&to.into())?;
    echo(&socket, 10)?;
    if number.is_multiple_of(2) { socket.set_linger(Some(Duration::ZERO)) } else { Ok(()) }
}

/// The socket blocks again afterwards: sending on it waits for the connection.
fn begin(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    limit(socket)?;
    socket.set_nonblocking(true)?;
    let begun = socket.connect(&to.into());
    socket.set_nonblocking(false)?;
    match begun {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

fn ignore(at: SocketAddr, backlog: i32) -> io::Result<Socket> {
    let socket = tcp(at)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(backlog)?;
    Ok(socket)
}

/// Where the test waits with a socket: a name that ends with the pod's network namespace.
pub fn meeting_point(number: u32) -> io::Result<unix::SocketAddr> {
    unix::SocketAddr::from_abstract_name(format!("sidecar-test-{number}"))
}

fn adopt(number: u32) -> io::Result<Socket> {
    let stream = UnixStream::connect_addr(&meeting_point(number)?)?;
    sys::receive_descriptor(&stream).map(Socket::from)
}
