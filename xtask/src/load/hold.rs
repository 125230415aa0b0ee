//! Connections that were used once and stay open.

use super::READY;
use anyhow::{Context, Result};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
};

/// Arguments of `load hold`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An echo server
    #[arg(long)]
    to: SocketAddr,
    /// How many
    #[arg(long)]
    connections: usize,
}

/// Opens them, uses each once, and keeps them until it is killed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let open = || -> Result<TcpStream> {
        let mut stream = TcpStream::connect(args.to).with_context(|| format!("connect to {}", args.to))?;
        let mut buffer = [0x5a; 128];
        stream.write_all(&buffer).context("send a request")?;
        stream.read_exact(&mut buffer).context("receive an answer")?;
        Ok(stream)
    };
    let streams = (0..args.connections).map(|_| open()).collect::<Result<Vec<_>>>()?;
    println!("{READY}");
    loop {
        thread::park();
        // A spurious wake-up; the connections stay.
        std::hint::black_box(&streams);
    }
}
