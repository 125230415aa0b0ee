//! Requests on connections of their own: connect, one request, one answer, close.

use super::{cpu, latency::Latencies};
use anyhow::{Context, Result, bail};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Arguments of `load connect`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An echo server
    #[arg(long)]
    to: SocketAddr,
    /// How many clients at the same time
    #[arg(long)]
    clients: usize,
    /// Length of the measured span
    #[arg(long)]
    seconds: f64,
    #[command(flatten)]
    cpu: cpu::Cgroups,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (meter, begin) = (cpu::Meter::begin(&args.cpu)?, Instant::now());
    let end = begin + Duration::from_secs_f64(args.seconds);
    let mut all = Latencies::default();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..args.clients).map(|_| scope.spawn(|| client(args.to, end))).collect();
        clients.into_iter().try_for_each(|client| {
            let Ok(latencies) = client.join() else { bail!("a client panicked") };
            all.append(latencies?);
            Ok(())
        })
    })?;
    let (span, cpu) = (begin.elapsed(), meter.end()?);
    println!("{}", serde_json::to_string(&all.report(span, cpu))?);
    Ok(())
}

fn client(to: SocketAddr, end: Instant) -> Result<Latencies> {
    let mut latencies = Latencies::default();
    loop {
        let begin = Instant::now();
        if begin >= end {
            return Ok(latencies);
        }
        exchange(to)?;
        latencies.add(begin.elapsed());
    }
}

fn exchange(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    let mut buffer = [0x5a; 128];
    stream.write_all(&buffer).context("send a request")?;
    stream.read_exact(&mut buffer).context("receive an answer")?;
    stream.shutdown(Shutdown::Write).context("close")?;
    match stream.read(&mut buffer).context("await the end")? {
        0 => Ok(()),
        _ => bail!("the server said more than it was asked"),
    }
}
