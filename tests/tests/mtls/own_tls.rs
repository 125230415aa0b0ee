//! Applications that speak TLS themselves, or nothing for a while, through permissive sidecars.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{LIMIT, TO_V4, TO_V6},
    harness::{PATIENCE, Pod, Process, eventually, patient, wait_for_port},
};

use super::{
    hello::client_hello,
    stage::{End, Stage, rows},
};

/// Where the TLS server listens.
const PORT: u16 = 8443;

/// `openssl s_server`, which answers each line with its reverse.
fn reverser(stage: &Stage) -> Result<Process> {
    stage.authority.issue(&stage.world.server, "server")?;
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", &PORT.to_string(), "-cert", "cert.pem", "-key", "key.pem", "-rev", "-quiet"]);
    command.current_dir(stage.world.server.directory().join("identity"));
    let server = stage.world.server.spawn(command)?;
    wait_for_port(&stage.world.server, PORT, PATIENCE).with_context(|| server.output())?;
    Ok(server)
}

/// `openssl s_client`, which believes that server only.
fn tls_client(stage: &Stage, to: SocketAddr) -> Result<Process> {
    let roots = stage.authority.directory().join("roots.pem");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error", "-connect", &to.to_string(), "-CAfile"]).arg(roots);
    stage.world.client.spawn(command)
}

fn says(process: &Process, wanted: &str) -> Result<()> {
    let said = process.out.wait_for(PATIENCE, |lines| lines.iter().any(|line| line == wanted).then_some(()));
    said.with_context(|| format!("no {wanted}{}", process.output()))
}

#[test]
fn an_applications_own_tls_is_carried_as_it_is_and_called_so() -> Result<()> {
    for (client, security, reason) in [(End::Bare, "plaintext", Some("own_tls")), (End::Known(""), "mutual_tls", None)]
    {
        let stage = Stage::new(client, End::Known(""))?;
        let _server = reverser(&stage)?;
        for to in [TO_V4, TO_V6] {
            let mut openssl = tls_client(&stage, SocketAddr::new(to.ip(), PORT))?;
            openssl.feed(b"stressed\n")?;
            says(&openssl, "desserts")?;
            let rows = rows(stage.server()?)?;
            let is = |row: &&serde_json::Value| row["security"] == security && row["not_encrypted"].as_str() == reason;
            ensure!(rows.iter().any(|row| is(&row)), "{rows:?}");
            drop(openssl);
            ensure!(eventually(PATIENCE, || stage.server().is_ok_and(|server| server.live().is_ok_and(|n| n == 0))));
        }
    }
    Ok(())
}

/// A connection from the client's pod on which every byte is a segment.
fn bytewise(pod: &Pod, to: SocketAddr, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = pod.netns().run(|| TcpStream::connect(to))??;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    for byte in bytes {
        stream.write_all(&[*byte])?;
    }
    Ok(stream)
}

#[test]
fn a_client_hello_byte_by_byte_is_recognised_and_lost_in_no_part() -> Result<()> {
    let stage = Stage::new(End::Bare, End::Known(""))?;
    let netns = stage.world.client.netns();
    let (own, native) = (client_hello(netns, &[])?, client_hello(netns, &["-alpn", "sidecar/1"])?);
    for to in [TO_V4, TO_V6] {
        // The application's own: the server, which answers with what it is sent, is sent all of it.
        let mut stream = bytewise(&stage.world.client, to, &own)?;
        let mut back = vec![0; own.len()];
        stream.read_exact(&mut back)?;
        ensure!(back == own, "{to}: other bytes came back");
        let rows = rows(stage.server()?)?;
        ensure!(rows.len() == 1 && rows[0]["not_encrypted"] == "own_tls", "{rows:?}");
        drop(stream);
        ensure!(eventually(PATIENCE, || stage.server().is_ok_and(|server| server.live().is_ok_and(|n| n == 0))));

        // A sidecar's: the sidecar answers, with a ServerHello.
        let mut stream = bytewise(&stage.world.client, to, &native)?;
        let mut answer = [0; 6];
        stream.read_exact(&mut answer)?;
        ensure!((answer[0], answer[5]) == (22, 2), "{to}: {answer:?}{}", stage.logs());
        drop(stream);
        ensure!(eventually(PATIENCE, || stage.server().is_ok_and(|server| server.live().is_ok_and(|n| n == 0))));
    }
    Ok(())
}

#[test]
fn a_client_that_says_nothing_reaches_its_server_at_once() -> Result<()> {
    for client in [End::Bare, End::Known("")] {
        let mut stage = Stage::new(client, End::Known(""))?;
        for (nth, to) in [TO_V4, TO_V6].into_iter().enumerate() {
            let begun = Instant::now();
            let (silent, _) = stage.app.open(to)?;
            let reached = eventually(patient(Duration::from_secs(1)), || {
                stage.service.accepted().is_ok_and(|heard| heard.len() == nth + 1)
            });
            ensure!(reached, "{client:?} {to}: not after {:?}{}", begun.elapsed(), stage.logs());
            stage.app.echo(silent)?;
            stage.app.must(Order::Close(silent))?;
        }
    }
    Ok(())
}
