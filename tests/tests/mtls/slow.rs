//! Clients that begin a handshake and do not go on.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sidecar_tests::{
    cases::net::TO_V4,
    harness::{PATIENCE, eventually, patient, work},
};

use super::{
    STRICT,
    hello::client_hello,
    stage::{End, Stage, becomes},
};

/// 35
#[test]
fn thousands_of_clients_that_do_not_go_on_keep_no_other_from_being_served_and_are_reset() -> Result<()> {
    let count = may_begin(work(5000))?;
    println!("{count} clients");
    let limit = patient(Duration::from_secs(6));
    let most = count / 4;
    let (limit_ms, config) = (limit.as_millis(), "mode: strict, handshake_timeout");
    let config = format!("mtls: {{ {config}: {limit_ms}ms, max_handshakes: {most} }}\n");
    let mut stage = Stage::new(End::Known(STRICT), End::Known(&config))?;
    let netns = stage.world.server.netns();
    let hello = client_hello(netns, &["-alpn", "sidecar/1"])?;

    let begun = Instant::now();
    let mut streams = stage
        .world
        .client
        .netns()
        .run(|| (0..count).map(|_| TcpStream::connect(TO_V4)).collect::<std::io::Result<Vec<_>>>())??;
    // Of eight, three send all of their first flight and nothing of the second, four a part of the first, and one a byte
    // from time to time.
    for (number, stream) in streams.iter_mut().enumerate() {
        let part = if number % 8 < 3 { hello.len() } else { number % 8 };
        stream.write_all(&hello[..part])?;
    }
    // No turn is left.
    becomes(stage.server()?, "sidecar_handshakes_in_progress", &[("role", "server")], most as f64)?;
    let (mut longest, mut served) = (Duration::ZERO, 0);
    while begun.elapsed() < limit {
        let start = Instant::now();
        stage.app.visit(TO_V4).with_context(|| format!("{served} were served{}", stage.logs()))?;
        longest = longest.max(start.elapsed());
        served += 1;
        let next = (7 + served).min(hello.len() - 2);
        for stream in streams.iter_mut().skip(7).step_by(8) {
            // It may have been reset by now.
            let _ = stream.write_all(&hello[next..=next]);
        }
    }
    ensure!(longest < patient(Duration::from_secs(3)), "{served} were served, one after {longest:?}");
    for stream in &mut streams {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = [0; 4096];
        let end = loop {
            match stream.read(&mut answer) {
                Ok(0) => break ErrorKind::UnexpectedEof,
                Ok(_) => {}
                Err(error) => break error.kind(),
            }
        };
        ensure!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof), "{end:?}{}", stage.logs());
    }
    drop(streams);
    let server = stage.server()?;
    for outcome in ["waited", "refused"] {
        let labels = [("limit", "mtls.max_handshakes"), ("outcome", outcome)];
        ensure!(server.metrics()?.sum("sidecar_limit_reached_total", &labels) > 0.0, "nobody is counted: {outcome}");
    }
    ensure!(eventually(PATIENCE, || server.live().is_ok_and(|live| live == 0)), "{} are left", server.live()?);
    ensure!(stage.service.accepted()?.len() == served, "the application heard of others");
    stage.app.visit(TO_V4).map(drop)
}

/// As many of `wanted` as there are descriptors for. A sidecar, which inherits the limit, counts six for each connection
/// that may be open; whoever comes after as many as that waits for their end.
fn may_begin(wanted: u32) -> Result<usize> {
    const EACH: u64 = 6;
    const OTHERS: u64 = 1000;
    let needed = u64::from(wanted) * EACH + OTHERS;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Who may raise the hard limit does.
    let limit = if hard < needed && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_ok() { needed } else { hard };
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
    ensure!(limit >= 2 * OTHERS, "ulimit -Hn is {limit}; {needed} are needed for {wanted} clients");
    Ok(needed.min(limit).saturating_sub(OTHERS) as usize / EACH as usize)
}
