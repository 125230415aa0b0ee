//! HTTP requests, each on a connection of its own, one line of outcome for each.

use super::now_us;
use anyhow::{Context, Result, bail};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

/// Arguments of `load http`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The server's address
    #[arg(long)]
    to: SocketAddr,
    /// How many clients ask at the same time
    #[arg(long)]
    clients: usize,
    /// Milliseconds between a client's requests
    #[arg(long)]
    pause: u64,
    /// What the answer's body must be
    #[arg(long)]
    expect: String,
}

/// A request that is not answered within this time has failed.
const LIMIT: Duration = Duration::from_secs(2);

/// How one request went.
pub(crate) struct Outcome {
    /// When it began, on the clock of [`now_us`].
    pub(crate) begin: u64,
    /// When it was answered or failed.
    pub(crate) end: u64,
    /// What went wrong, if anything did.
    pub(crate) fault: Option<String>,
}

impl Outcome {
    /// As one line.
    fn line(&self) -> String {
        format!("{} {} {}\n", self.begin, self.end, self.fault.as_deref().unwrap_or("ok"))
    }

    /// Reads what [`Self::line`] wrote; a line that is not complete yet is none.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.splitn(3, ' ');
        let (begin, end) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let fault = words.next().filter(|word| *word != "ok").map(str::to_owned);
        Some(Self { begin, end, fault })
    }
}

/// Asks until it is killed.
pub(crate) fn run(args: &Args) -> Result<()> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..args.clients).map(|_| scope.spawn(|| client(args))).collect();
        clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")))
    })
}

fn client(args: &Args) -> Result<()> {
    loop {
        let begin = now_us();
        let fault = request(args).err().map(|err| format!("{err:#}").replace('\n', " "));
        let line = Outcome { begin, end: now_us(), fault }.line();
        // One write for one line, so that a kill cannot cut a line that was begun in two.
        std::io::stdout().lock().write_all(line.as_bytes()).context("cannot report an outcome")?;
        thread::sleep(Duration::from_millis(args.pause));
    }
}

fn request(args: &Args) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&args.to, LIMIT).context("connect")?;
    stream.set_read_timeout(Some(LIMIT)).context("set a time limit")?;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", args.to);
    stream.write_all(request.as_bytes()).context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    if !answer.starts_with("HTTP/1.1 200 ") {
        bail!("the answer is not a 200: {:?}", answer.lines().next().unwrap_or_default());
    }
    if answer.split_once("\r\n\r\n").map(|(_, body)| body.trim_end()) != Some(&args.expect) {
        bail!("the answer's body is not what nginx serves");
    }
    Ok(())
}
