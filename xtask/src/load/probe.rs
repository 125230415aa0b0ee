//! Whether connections are captured. The application cannot tell, but the server can: a captured connection reaches it
//! from the proxy's port instead of the application's.

use super::{READY, now_us};
use anyhow::{Context, Result};
use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

/// Arguments of `load probe`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The server that answers with the port it sees
    #[arg(long)]
    to: SocketAddr,
    /// Until connections are so
    #[arg(long)]
    until: Path,
}

/// The way of a connection.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Path {
    /// Through a proxy.
    Captured,
    /// Straight to the server.
    Direct,
    /// Whichever: where the server's proxy takes nothing but mutual TLS, an answer says that it came through both. The
    /// port would not: proxies may keep it.
    Any,
}

/// Short against every time measured with it, long against a connection: what starts or stops meanwhile needs the CPU.
const PAUSE: Duration = Duration::from_micros(300);

/// Connects again and again; prints the time, on the clock of [`now_us`], when a byte has taken the path asked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    println!("{READY}");
    // Refused or reset is neither.
    while !path(args.to).is_ok_and(|path| args.until == Path::Any || path == args.until) {
        thread::sleep(PAUSE);
    }
    println!("{}", now_us());
    Ok(())
}

fn path(to: SocketAddr) -> Result<Path> {
    let mut stream = TcpStream::connect(to).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_millis(200))).context("set a time limit")?;
    let mut port = [0; 2];
    stream.read_exact(&mut port).context("receive")?;
    let own = stream.local_addr().context("getsockname")?.port();
    Ok(if u16::from_be_bytes(port) == own { Path::Direct } else { Path::Captured })
}
