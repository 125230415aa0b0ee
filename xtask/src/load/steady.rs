//! Requests at a steady rate, each on a connection of its own, and streams that stay open: one line for the outcome of each.
//!
//! A request begins when it is due, whatever has become of those before it, and its time counts from then: who waits for the
//! slow ones measures the fast ones only.

use super::now_us;
use anyhow::{Context, Result, bail, ensure};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Arguments of `load steady`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An echo server
    #[arg(long)]
    to: SocketAddr,
    /// Requests per second
    #[arg(long)]
    rate: u64,
    /// Streams that stay open
    #[arg(long)]
    streams: u64,
}

/// What is not answered within this time has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// Between two exchanges of a stream, and before it is opened again.
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes of a request, and of an exchange of a stream.
const SIZE: usize = 512;
/// What the text of a fault begins with when other bytes came than were sent.
pub(crate) const WRONG: &str = "wrong";
/// And when a stream ended that had been open.
pub(crate) const BROKEN: &str = "broken";

/// What an outcome is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request on a connection of its own.
    Request,
    /// An exchange on a stream, or an attempt to open it.
    Stream,
}

/// How one went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Which.
    pub(crate) kind: Kind,
    /// When it was due, on the clock of [`now_us`].
    pub(crate) due: u64,
    /// When it was answered or failed.
    pub(crate) end: u64,
    /// What went wrong, if anything did.
    pub(crate) fault: Option<String>,
}

impl Outcome {
    fn line(&self) -> String {
        let kind = if self.kind == Kind::Request { "request" } else { "stream" };
        format!("{kind} {} {} {}\n", self.due, self.end, self.fault.as_deref().unwrap_or("ok"))
    }

    /// Reads what [`Self::line`] wrote; a line that is not complete yet is none.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.splitn(4, ' ');
        let kind = if words.next()? == "request" { Kind::Request } else { Kind::Stream };
        let (due, end) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let fault = words.next().filter(|word| *word != "ok").map(str::to_owned);
        Some(Self { kind, due, end, fault })
    }

    /// Whether it went as it should.
    pub(crate) fn served(&self) -> bool {
        self.fault.is_none()
    }

    /// Whether its fault begins so.
    pub(crate) fn is(&self, fault: &str) -> bool {
        self.fault.as_deref().is_some_and(|found| found.starts_with(fault))
    }
}

/// Goes on until it is killed.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rate > 0, "--rate must be 1 or more");
    let (begin, next) = (now_us(), AtomicU64::new(0));
    // So many may be under way at once, and a few are late.
    let clients = args.rate * (LIMIT.as_secs() + 1) + 16;
    thread::scope(|scope| {
        // A thousand of them must not take the memory of which the sidecars are short then.
        let small = || thread::Builder::new().stack_size(128 * 1024);
        let mut all = Vec::new();
        for _ in 0..clients {
            all.push(small().spawn_scoped(scope, || requests(args, begin, &next)).context("start a client")?);
        }
        for number in 0..args.streams {
            all.push(small().spawn_scoped(scope, move || streams(args.to, number)).context("start a stream")?);
        }
        all.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")))
    })
}

fn report(kind: Kind, due: u64, result: Result<u64>) -> Result<()> {
    let (end, fault) = match result {
        Ok(end) => (end, None),
        Err(error) => (now_us(), Some(format!("{error:#}").replace('\n', " "))),
    };
    let line = Outcome { kind, due, end, fault }.line();
    // One write for one line, so that no other one gets into it.
    std::io::stdout().lock().write_all(line.as_bytes()).context("cannot report an outcome")
}

fn requests(args: &Args, begin: u64, next: &AtomicU64) -> Result<()> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let due = begin + number * 1_000_000 / args.rate;
        thread::sleep(Duration::from_micros(due.saturating_sub(now_us())));
        report(Kind::Request, due, request(args.to, number))?;
    }
}

fn request(to: SocketAddr, number: u64) -> Result<u64> {
    let deadline = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&to, LIMIT).context("connect")?;
    let answered = exchange(&mut stream, number, deadline)?;
    // It has been answered: how the connection ends is no part of that, but nothing else may come.
    if stream.shutdown(Shutdown::Write).is_ok() && matches!(stream.read(&mut [0; 1]), Ok(1)) {
        bail!("{WRONG}: the server said more than it was asked");
    }
    Ok(answered)
}

/// Sends bytes that are this exchange's own, and sees that they come back; says when.
fn exchange(stream: &mut TcpStream, number: u64, deadline: Instant) -> Result<u64> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left)).context("set a time limit")?;
    stream.set_write_timeout(Some(left)).context("set a time limit")?;
    let sent = bytes(number);
    stream.write_all(&sent).context("send")?;
    let mut received = [0; SIZE];
    let mut count = 0;
    while count < SIZE {
        let read = stream.read(&mut received[count..]).context("receive");
        ensure!(received[..count] == sent[..count], "{WRONG}: other bytes came back than were sent");
        match read? {
            0 => bail!("receive: it ended after {count} bytes of {SIZE}"),
            more => count += more,
        }
        ensure!(Instant::now() < deadline || count == SIZE, "receive: {count} bytes of {SIZE} within {LIMIT:?}");
    }
    ensure!(received == sent, "{WRONG}: other bytes came back than were sent");
    Ok(now_us())
}

/// Bytes that no other exchange has.
fn bytes(number: u64) -> [u8; SIZE] {
    let mut random = crate::random::Random::new(number);
    std::array::from_fn(|_| random.next() as u8)
}

fn streams(to: SocketAddr, number: u64) -> Result<()> {
    // No request has a number that high.
    let mut next = (number + 1) << 40;
    loop {
        let due = now_us();
        let mut stream = match TcpStream::connect_timeout(&to, LIMIT).context("connect") {
            Ok(stream) => stream,
            Err(error) => {
                report(Kind::Stream, due, Err(error))?;
                thread::sleep(PAUSE);
                continue;
            }
        };
        let mut exchanges = 0;
        loop {
            let due = now_us();
            next += 1;
            let outcome = exchange(&mut stream, next, Instant::now() + LIMIT);
            let ended = outcome.is_err();
            // A connection of which nothing came yet was none for the application.
            let outcome = outcome.map_err(|error| match format!("{error:#}") {
                text if exchanges == 0 || text.starts_with(WRONG) => error,
                text => anyhow::anyhow!("{BROKEN}: {text}"),
            });
            report(Kind::Stream, due, outcome)?;
            thread::sleep(PAUSE);
            if ended {
                break;
            }
            exchanges += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_read_as_it_was_written_and_half_a_line_is_none() {
        let fault = |text: &str| Some(text.to_owned());
        for (kind, fault) in [
            (Kind::Request, None),
            (Kind::Stream, fault("broken: receive: it ended")),
            (Kind::Request, fault("wrong: x")),
        ] {
            let outcome = Outcome { kind, due: 17, end: 18, fault };
            assert_eq!(Outcome::parse(&outcome.line()), Some(outcome.clone()));
            assert_eq!(Outcome::parse(outcome.line().trim_end()), None);
        }
    }

    #[test]
    fn no_two_exchanges_have_the_same_bytes() {
        assert_ne!(bytes(1), bytes(2));
        assert_ne!(bytes(1), bytes((1 << 40) + 1));
    }
}
