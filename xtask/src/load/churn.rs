//! Connections made and ended in every way there is, at a given rate.

use crate::random::Random;
use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Arguments of `load churn`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An echo server
    #[arg(long)]
    to: SocketAddr,
    /// How many clients at the same time
    #[arg(long)]
    clients: usize,
    /// For how long
    #[arg(long)]
    seconds: f64,
    /// Connections per second; fewer when the machine is not able to
    #[arg(long)]
    rate: f64,
}

/// What came of it.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Connections made.
    pub(crate) connections: u64,
    /// Those of them that ended with a reset by the client.
    pub(crate) reset: u64,
    /// In how many seconds.
    pub(crate) seconds: f64,
    /// Failures that the client did not bring about: how often each.
    pub(crate) failures: BTreeMap<String, u64>,
}

/// Churns and reports.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (begin, next) = (Instant::now(), AtomicU64::new(0));
    let pace = Pace { begin, end: begin + Duration::from_secs_f64(args.seconds), each: 1.0 / args.rate, next: &next };
    let mut all = Report::default();
    thread::scope(|scope| {
        let clients: Vec<_> =
            (1..=args.clients).map(|seed| scope.spawn(move || client(args.to, pace, seed as u64))).collect();
        clients.into_iter().try_for_each(|client| {
            let Ok(report) = client.join() else { bail!("a client panicked") };
            all.add(report);
            Ok(())
        })
    })?;
    all.seconds = begin.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&all).context("write the report")?);
    Ok(())
}

impl Report {
    fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.reset += other.reset;
        for (failure, times) in other.failures {
            *self.failures.entry(failure).or_default() += times;
        }
    }
}

/// When connections begin: one after the other at even intervals, shared by all clients.
#[derive(Clone, Copy)]
struct Pace<'a> {
    begin: Instant,
    end: Instant,
    each: f64,
    next: &'a AtomicU64,
}

impl Pace<'_> {
    /// Waits for the next turn; `false`: the time is over. Who is late begins at once.
    fn wait(&self) -> bool {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let due = self.begin + Duration::from_secs_f64(turn as f64 * self.each);
        thread::sleep(due.min(self.end).saturating_duration_since(Instant::now()));
        due < self.end && Instant::now() < self.end
    }
}

fn client(to: SocketAddr, pace: Pace<'_>, seed: u64) -> Report {
    let (mut report, mut random) = (Report::default(), Random::new(seed));
    while pace.wait() {
        let way = *random.choose(&Way::ALL);
        report.connections += 1;
        report.reset += u64::from(way.resets());
        if let Err(error) = one(to, way) {
            *report.failures.entry(format!("{way:?}: {error}")).or_default() += 1;
        }
    }
    report
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Reset as soon as it is there.
    ResetAtOnce,
    /// Closed as soon as it is there.
    CloseAtOnce,
    /// Reset with the request on its way.
    AskAndReset,
    /// Closed with the answer on its way.
    AskAndClose,
    /// Reset after the answer.
    ExchangeAndReset,
    /// To the end of both directions.
    Exchange,
}

impl Way {
    const ALL: [Self; 6] = [
        Self::ResetAtOnce,
        Self::CloseAtOnce,
        Self::AskAndReset,
        Self::AskAndClose,
        Self::ExchangeAndReset,
        Self::Exchange,
    ];

    fn resets(self) -> bool {
        matches!(self, Self::ResetAtOnce | Self::AskAndReset | Self::ExchangeAndReset)
    }
}

fn one(to: SocketAddr, way: Way) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    if way.resets() {
        // Its close is a reset (tcp(7), SO_LINGER with a time of zero).
        setsockopt(&stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    let mut buffer = [0x5a; 128];
    if !matches!(way, Way::ResetAtOnce | Way::CloseAtOnce) {
        stream.write_all(&buffer)?;
    }
    if matches!(way, Way::ExchangeAndReset | Way::Exchange) {
        stream.read_exact(&mut buffer)?;
    }
    if way == Way::Exchange {
        stream.shutdown(Shutdown::Write)?;
        if stream.read(&mut buffer)? != 0 {
            return Err(io::Error::other("the server said more than it was asked"));
        }
    }
    Ok(())
}
