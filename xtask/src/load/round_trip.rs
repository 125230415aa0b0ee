//! Requests on connections that stay open: each sends, waits for the echo, sends again.

use super::{cpu, latency::Latencies};
use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Arguments of `load round-trip`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An echo server
    #[arg(long)]
    to: SocketAddr,
    /// Connections with one request on its way each
    #[arg(long)]
    connections: usize,
    /// Size of a request
    #[arg(long, default_value_t = 128)]
    bytes: usize,
    /// Size of the requests before the measured span, if it is another one
    #[arg(long)]
    warm_up_bytes: Option<usize>,
    /// Seconds before the measured span: caches fill, congestion windows open
    #[arg(long, default_value_t = 0.2)]
    warm_up: f64,
    /// Length of the measured span
    #[arg(long)]
    seconds: f64,
    #[command(flatten)]
    cpu: cpu::Cgroups,
}

struct Connection {
    stream: TcpStream,
    sent: Instant,
    /// Bytes of the answer that have come.
    got: usize,
    /// Bytes of the answer.
    whole: usize,
}

/// Measures and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut clients = Clients::connect(args)?;
    clients.turn_until(Instant::now() + Duration::from_secs_f64(args.warm_up))?;
    // What is under way is answered as it was asked for.
    clients.request.truncate(args.bytes);
    clients.latencies = Latencies::default();
    let (meter, begin) = (cpu::Meter::begin(&args.cpu)?, Instant::now());
    clients.turn_until(begin + Duration::from_secs_f64(args.seconds))?;
    let (span, cpu) = (begin.elapsed(), meter.end()?);
    println!("{}", serde_json::to_string(&clients.latencies.report(span, cpu))?);
    Ok(())
}

struct Clients {
    epoll: Epoll,
    connections: Vec<Connection>,
    request: Vec<u8>,
    buffer: Vec<u8>,
    latencies: Latencies,
}

impl Clients {
    fn connect(args: &Args) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create1")?;
        let request = vec![0x5a; args.bytes.max(args.warm_up_bytes.unwrap_or_default())];
        let mut connections = Vec::with_capacity(args.connections);
        for index in 0..args.connections {
            let mut stream = TcpStream::connect(args.to).with_context(|| format!("connect to {}", args.to))?;
            stream.set_nodelay(true).context("TCP_NODELAY")?;
            stream.set_nonblocking(true).context("make a connection non-blocking")?;
            epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, index as u64)).context("epoll_ctl")?;
            stream.write_all(&request).context("send a first request")?;
            connections.push(Connection { stream, sent: Instant::now(), got: 0, whole: request.len() });
        }
        Ok(Self { epoll, connections, buffer: request.clone(), request, latencies: Latencies::default() })
    }

    fn turn_until(&mut self, end: Instant) -> Result<()> {
        let mut events = vec![EpollEvent::empty(); 512];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            // Rounded up, so that the last wait does not spin.
            let limit = EpollTimeout::try_from(left + Duration::from_millis(1)).context("epoll's time limit")?;
            let count = self.epoll.wait(&mut events, limit).context("epoll_wait")?;
            for event in &events[..count] {
                self.answer(event.data() as usize)?;
            }
        }
    }

    /// Takes what has come of an answer; when it is whole, sends the next request.
    fn answer(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        match connection.stream.read(&mut self.buffer[connection.got..connection.whole]) {
            Ok(0) => bail!("a connection was closed before its answer"),
            Ok(count) => connection.got += count,
            Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(err) => return Err(err).context("receive an answer"),
        }
        if connection.got == connection.whole {
            let now = Instant::now();
            self.latencies.add(now - connection.sent);
            (connection.got, connection.sent, connection.whole) = (0, now, self.request.len());
            connection.stream.write_all(&self.request).context("send a request")?;
        }
        Ok(())
    }
}
