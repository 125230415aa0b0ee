//! The bench's servers.

use super::{
    READY,
    bulk::{self, WITHOUT_BLOCKING},
    echo,
};
use anyhow::{Context, Result, bail};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    thread,
};

/// Answers every byte with itself.
pub(crate) const ECHO: u16 = 7000;
/// Reads to the end, then answers with the count of bytes (8 bytes, big endian).
pub(crate) const SINK: u16 = 7001;
/// Reads a count (8 bytes, big endian), then sends that many bytes.
pub(crate) const SOURCE: u16 = 7002;
/// Answers with the client's port as it sees it (2 bytes, big endian).
pub(crate) const WHO: u16 = 7003;
/// All of them.
pub(crate) const PORTS: [u16; 4] = [ECHO, SINK, SOURCE, WHO];

/// Bytes per system call of a stream: what iperf and most copy loops use.
pub(super) const CHUNK: usize = 128 * 1024;

type Serve = fn(TcpStream) -> io::Result<()>;

/// Arguments of `load serve`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The address to listen at
    #[arg(long)]
    at: IpAddr,
}

/// Serves until it is killed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let listen = |port| TcpListener::bind((args.at, port)).with_context(|| format!("listen at {}:{port}", args.at));
    let echo = listen(ECHO)?;
    let streams: [(TcpListener, Serve); 3] = [(listen(SINK)?, sink), (listen(SOURCE)?, source), (listen(WHO)?, who)];
    thread::scope(|scope| {
        for (listener, serve) in streams {
            // The clients measure, and report what a connection that fails here does to them.
            scope.spawn(move || {
                listener.incoming().flatten().for_each(|stream| drop(thread::spawn(move || serve(stream))))
            });
        }
        println!("{READY}");
        echo::serve(echo)
    })?;
    bail!("the echo server ended")
}

fn sink(mut stream: TcpStream) -> io::Result<()> {
    let (mut buffer, mut total) = (vec![0; CHUNK], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&u64::to_be_bytes(total)),
            count => total += count as u64,
        }
    }
}

fn source(mut stream: TcpStream) -> io::Result<()> {
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    let asked = u64::from_be_bytes(count);
    bulk::pour(&mut stream, asked & !WITHOUT_BLOCKING, asked & WITHOUT_BLOCKING != 0)
}

fn who(mut stream: TcpStream) -> io::Result<()> {
    let port = stream.peer_addr()?.port();
    stream.write_all(&port.to_be_bytes())
}
