//! One stream, as fast as it goes.

use super::{cpu, serve::CHUNK};
use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd,
    time::Instant,
};

/// Arguments of `load bulk`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A sink, or with --down a source
    #[arg(long)]
    to: SocketAddr,
    /// Receive instead of send
    #[arg(long)]
    down: bool,
    /// How many bytes
    #[arg(long)]
    bytes: u64,
    /// Send as an event loop does: without blocking, waiting for room with poll(2)
    #[arg(long, conflicts_with = "down")]
    non_blocking: bool,
    #[command(flatten)]
    cpu: cpu::Cgroups,
}

/// What it prints.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    /// From the first byte to the last, both ends having all of them.
    pub(crate) seconds: f64,
    /// CPU time of each cgroup asked for, in microseconds.
    pub(crate) cpu_us: Vec<u64>,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut stream = TcpStream::connect(args.to).with_context(|| format!("connect to {}", args.to))?;
    let (meter, begin) = (cpu::Meter::begin(&args.cpu)?, Instant::now());
    let arrived = if args.down { receive(&mut stream, args.bytes)? } else { send(&mut stream, args)? };
    let report = Report { seconds: begin.elapsed().as_secs_f64(), cpu_us: meter.end()? };
    ensure!(arrived == args.bytes, "{arrived} of {} bytes arrived", args.bytes);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn send(stream: &mut TcpStream, args: &Args) -> Result<u64> {
    let (chunk, mut left) = (vec![0x5a; CHUNK], args.bytes);
    stream.set_nonblocking(args.non_blocking).context("set the mode of the stream")?;
    while left > 0 {
        let size = left.min(CHUNK as u64);
        match stream.write(&chunk[..size as usize]) {
            Ok(sent) => left -= sent as u64,
            Err(err) if err.kind() == ErrorKind::WouldBlock => await_event(stream, PollFlags::POLLOUT)?,
            Err(err) => return Err(err).context("send"),
        }
    }
    stream.shutdown(Shutdown::Write).context("end the stream")?;
    // To the end without blocking: going back would be another application.
    let (mut count, mut got) = ([0; 8], 0);
    while got < count.len() {
        match stream.read(&mut count[got..]) {
            Ok(0) => bail!("the stream ended before the count of bytes that arrived"),
            Ok(more) => got += more,
            Err(err) if err.kind() == ErrorKind::WouldBlock => await_event(stream, PollFlags::POLLIN)?,
            Err(err) => return Err(err).context("receive the count of bytes that arrived"),
        }
    }
    Ok(u64::from_be_bytes(count))
}

fn await_event(stream: &TcpStream, events: PollFlags) -> Result<()> {
    poll(&mut [PollFd::new(stream.as_fd(), events)], PollTimeout::NONE).context("poll").map(drop)
}

fn receive(stream: &mut TcpStream, bytes: u64) -> Result<u64> {
    stream.write_all(&bytes.to_be_bytes()).context("ask for bytes")?;
    let (mut chunk, mut arrived) = (vec![0; CHUNK], 0);
    loop {
        match stream.read(&mut chunk).context("receive")? {
            0 => return Ok(arrived),
            count => arrived += count as u64,
        }
    }
}
