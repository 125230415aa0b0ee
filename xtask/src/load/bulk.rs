//! One stream, as fast as it goes.

use super::{cpu, serve::CHUNK};
use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, ErrorKind, Read, Write},
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
    /// Have the sender send as an event loop does: without blocking, waiting for room with poll(2)
    #[arg(long)]
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
    let arrived = if args.down { receive(&mut stream, args)? } else { send(&mut stream, args)? };
    let report = Report { seconds: begin.elapsed().as_secs_f64(), cpu_us: meter.end()? };
    ensure!(arrived == args.bytes, "{arrived} of {} bytes arrived", args.bytes);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn send(stream: &mut TcpStream, args: &Args) -> Result<u64> {
    pour(stream, args.bytes, args.non_blocking).context("send")?;
    stream.shutdown(Shutdown::Write).context("end the stream")?;
    // To the end without blocking: going back would be another application.
    let (mut count, mut got) = ([0; 8], 0);
    while got < count.len() {
        match stream.read(&mut count[got..]) {
            Ok(0) => bail!("the stream ended before the count of bytes that arrived"),
            Ok(more) => got += more,
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                await_event(stream, PollFlags::POLLIN).context("wait for the count")?
            }
            Err(err) => return Err(err).context("receive the count of bytes that arrived"),
        }
    }
    Ok(u64::from_be_bytes(count))
}

/// Sends so many bytes.
pub(super) fn pour(stream: &mut TcpStream, bytes: u64, non_blocking: bool) -> io::Result<()> {
    let (chunk, mut left) = (vec![0x5a; CHUNK], bytes);
    stream.set_nonblocking(non_blocking)?;
    while left > 0 {
        let size = left.min(CHUNK as u64);
        match stream.write(&chunk[..size as usize]) {
            Ok(sent) => left -= sent as u64,
            Err(err) if err.kind() == ErrorKind::WouldBlock => await_event(stream, PollFlags::POLLOUT)?,
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

fn await_event(stream: &TcpStream, events: PollFlags) -> io::Result<()> {
    poll(&mut [PollFd::new(stream.as_fd(), events)], PollTimeout::NONE)?;
    Ok(())
}

/// In the count of bytes that a source is asked for: it is to send without blocking.
pub(super) const WITHOUT_BLOCKING: u64 = 1 << 63;

fn receive(stream: &mut TcpStream, args: &Args) -> Result<u64> {
    let how = if args.non_blocking { WITHOUT_BLOCKING } else { 0 };
    stream.write_all(&(args.bytes | how).to_be_bytes()).context("ask for bytes")?;
    let (mut chunk, mut arrived) = (vec![0; CHUNK], 0);
    loop {
        match stream.read(&mut chunk).context("receive")? {
            0 => return Ok(arrived),
            count => arrived += count as u64,
        }
    }
}
