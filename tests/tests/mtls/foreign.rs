//! The native transport as somebody else would write it: OpenSSL, and a PROXY v2 header by hand.

use std::{net::SocketAddr, process::Command};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, CLIENT_V4, SERVER_V4, TO_V4},
    harness::{PATIENCE, Process, Spawn, eventually, spiffe_id},
};

use super::{
    STRICT,
    stage::{End, Stage, becomes, closed, rows},
};

/// Where the server waits to be told to accept.
const PATIENT: u16 = 8089;
/// The client's port, as the header says.
const SOURCE: u16 = 4711;

/// The header for an IPv4 connection (PROXY protocol, version 2, §2.2).
fn header(port: u16) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(CLIENT_V4.octets());
    header.extend(SERVER_V4.octets());
    header.extend(SOURCE.to_be_bytes());
    header.extend(port.to_be_bytes());
    header
}

/// `openssl s_client` in the client's pod, past any sidecar, with an SVID.
fn openssl(stage: &Stage, to: SocketAddr) -> Result<Process> {
    stage.authority.issue(&stage.world.client, "client")?;
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-verify_return_error", "-alpn", "sidecar/1", "-connect", &to.to_string()]);
    command.args(["-cert", "cert.pem", "-key", "key.pem", "-CAfile", "roots.pem"]);
    command.current_dir(stage.world.client.directory().join("identity"));
    Spawn { netns: Some(stage.world.client.netns()), ..Spawn::default() }.start(command)
}

/// Waits until the server's sidecar knows of so many handshaked connections without a header.
fn waiting(stage: &Stage, count: f64) -> Result<()> {
    becomes(stage.server()?, "sidecar_spare_connections_waiting", &[("side", "server")], count)
}

#[test]
fn openssl_with_an_svid_reaches_the_application_when_it_says_for_whom_and_not_before() -> Result<()> {
    let mut stage = Stage::new(End::Bare, End::Known(STRICT))?;
    let mut openssl = openssl(&stage, TO_V4)?;
    waiting(&stage, 1.0)?;
    // Half a header is none.
    let header = header(TO_V4.port());
    openssl.feed(&header[..20])?;
    ensure!(stage.service.accepted()?.is_empty(), "the application heard of a connection without a header");
    openssl.feed(&header[20..])?;
    openssl.feed(b"hello through openssl\n")?;
    let back = openssl.out.wait_for(PATIENCE, |lines| lines.first().cloned());
    ensure!(back.as_deref() == Some("hello through openssl"), "{back:?}{}{}", openssl.output(), stage.logs());
    let seen = stage.service.accepted()?;
    ensure!(seen.len() == 1 && seen[0].ip().to_canonical() == CLIENT_V4 && seen[0].port() == SOURCE, "{seen:?}");
    let rows = rows(stage.server()?)?;
    ensure!(rows.len() == 1 && rows[0]["src_identity"] == spiffe_id("client"), "{rows:?}");
    Ok(())
}

#[test]
fn what_is_no_header_goes_nowhere() -> Result<()> {
    let mut stage = Stage::new(End::Bare, End::Known(STRICT))?;
    let mut openssl = openssl(&stage, TO_V4)?;
    waiting(&stage, 1.0)?;
    openssl.feed(b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n")?;
    openssl.wait(PATIENCE)?;
    waiting(&stage, 0.0)?;
    ensure!(stage.service.accepted()?.is_empty(), "the application heard of it");
    Ok(())
}

#[test]
fn a_stream_that_is_cut_without_close_notify_is_a_reset_to_the_application() -> Result<()> {
    let mut stage = Stage::new(End::Bare, End::Known(STRICT))?;
    stage.service.must(Order::Ignore(SocketAddr::new(ANY.ip(), PATIENT), 8))?;
    let mut openssl = openssl(&stage, SocketAddr::new(TO_V4.ip(), PATIENT))?;
    openssl.feed(&header(PATIENT))?;
    openssl.feed(b"not all of it")?;
    stage.service.begin(Order::Drain)?;
    let carried = || rows(stage.server()?).map(|rows| rows.len() == 1 && rows[0]["bytes_from_downstream"] == 13);
    ensure!(eventually(PATIENCE, || carried().unwrap_or(false)), "{}", stage.server()?.connections()?);
    drop(openssl);
    let end = stage.service.answer(PATIENCE).context("the application waits")?.outcome;
    ensure!(end == "ECONNRESET", "{end}{}", stage.logs());
    closed(stage.server()?, "truncated", 1)
}
