//! What a scanner of TLS servers, sslscan, finds on the ports.

use std::{net::SocketAddr, process::Command};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    cases::net::{TO_V4, TO_V6},
    harness::{PATIENCE, Spawn},
};

use super::{
    STRICT,
    stage::{End, Stage},
};

/// Where tunnels end.
const TUNNELS: u16 = 15008;

/// What sslscan says about `at`, which it visits from the client's pod: with the client's certificate, or with none.
fn scan(stage: &Stage, at: SocketAddr, with_certificate: bool) -> Result<Vec<String>> {
    stage.authority.issue(&stage.world.client, "client")?;
    let mut command = Command::new("sslscan");
    command.args(["--no-colour", "--no-check-certificate", "--timeout=2", "--xml=-"]);
    if with_certificate {
        command.args(["--certs=cert.pem", "--pk=key.pem"]);
    }
    command.arg(at.to_string()).current_dir(stage.world.client.directory().join("identity"));
    let netns = Some(stage.world.client.netns());
    let mut sslscan = Spawn { netns, ..Spawn::default() }.start(command).context("run `cargo xtask setup`")?;
    let status = sslscan.wait(PATIENCE)?;
    ensure!(status.success(), "{status}{}", sslscan.output());
    Ok(sslscan.out.lines())
}

/// The values of `attribute` in the elements `element` of which `has` is part.
fn values(scan: &[String], element: &str, has: &str, attribute: &str) -> Vec<String> {
    let (begins, before) = (format!("<{element} "), format!(" {attribute}=\""));
    let elements = scan.iter().filter(|line| line.trim_start().starts_with(&begins) && line.contains(has));
    elements.filter_map(|line| Some(line.split_once(&before)?.1.split_once('"')?.0.to_owned())).collect()
}

#[test]
fn a_scanner_finds_tls_1_3_alone_and_nothing_weak_on_the_port_of_tunnels() -> Result<()> {
    let mut stage = Stage::new(End::Bare, End::Known(STRICT))?;
    for (ip, with_certificate) in [(TO_V4.ip(), true), (TO_V4.ip(), false), (TO_V6.ip(), true), (TO_V6.ip(), false)] {
        let scan = scan(&stage, SocketAddr::new(ip, TUNNELS), with_certificate)?;
        ensure!(values(&scan, "protocol", "enabled=\"1\"", "version") == ["1.3"], "{scan:#?}");
        // SSL 2 and 3, TLS 1.0 to 1.2: asked for, and refused.
        ensure!(values(&scan, "protocol", "enabled=\"0\"", "version") == ["2", "3", "1.0", "1.1", "1.2"], "{scan:#?}");
        let mut suites = values(&scan, "cipher", "sslversion=\"TLSv1.3\"", "cipher");
        suites.sort();
        let expected = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
        ensure!(suites == expected && values(&scan, "cipher", "", "cipher").len() == 3, "{scan:#?}");
        ensure!(values(&scan, "heartbleed", "", "vulnerable") == ["0"], "{scan:#?}");
        ensure!(values(&scan, "renegotiation", "", "supported") == ["0"], "{scan:#?}");
        // Elliptic curves of 128 bits and more.
        let groups = values(&scan, "group", "", "name");
        ensure!(groups == ["secp256r1 (NIST P-256)", "x25519"], "{scan:#?}");
    }
    // With a certificate or without, a scanner speaks no HTTP/2.
    ensure!(closed_any(&stage)? > 0 && stage.service.accepted()?.is_empty(), "{}", stage.logs());
    serves_on(&mut stage)
}

#[test]
fn a_scanner_finds_no_tls_at_all_on_a_port_where_mutual_tls_is_a_must() -> Result<()> {
    let mut stage = Stage::new(End::Bare, End::Known(STRICT))?;
    for (to, with_certificate) in [(TO_V4, true), (TO_V6, false)] {
        let scan = scan(&stage, to, with_certificate)?;
        ensure!(values(&scan, "protocol", "enabled=\"0\"", "version").len() == 6, "{scan:#?}");
        ensure!(values(&scan, "protocol", "enabled=\"1\"", "version").is_empty(), "{scan:#?}");
        ensure!(values(&scan, "cipher", "", "cipher").is_empty(), "{scan:#?}");
    }
    let refused = stage.server()?.closed("plaintext_refused")?;
    ensure!(refused > 0 && stage.service.accepted()?.is_empty(), "{refused}{}", stage.logs());
    serves_on(&mut stage)
}

/// Connections that were no tunnels: the handshake failed, or what followed it was no HTTP/2.
fn closed_any(stage: &Stage) -> Result<u64> {
    Ok(stage.server()?.closed("handshake_failed")? + stage.server()?.closed("bad_request")?)
}

/// The scan has harmed nobody.
fn serves_on(stage: &mut Stage) -> Result<()> {
    let config = stage.authority.issue(&stage.world.client, "client")? + STRICT;
    stage.start_client(&config)?;
    stage.app.visit(TO_V4).with_context(|| stage.logs())?;
    stage.app.visit(TO_V6).with_context(|| stage.logs()).map(drop)
}
