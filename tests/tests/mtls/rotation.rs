//! New certificates, new roots and revocations, under load.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, ensure};
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{TO_V4, TO_V6},
    harness::{Authority, PATIENCE, Pod, Puppet, work},
};

use super::{
    STRICT,
    stage::{End, Stage, becomes, closed, failures, renew},
};

/// Connections that are asked for in a second. What a machine reaches is printed, and no matter.
const PER_SECOND: u32 = 500;
/// Connections that there are at least while something changes.
const ENOUGH: u32 = 2000;

/// Connects [`PER_SECOND`] times a second while `change` is made, and until there have been [`ENOUGH`]; no connection fails.
fn under_load(stage: &Stage, change: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let mut app = Puppet::start(&stage.world.client)?;
    let (mut count, mut took) = (0, Duration::ZERO);
    thread::scope(|scope| {
        let change = scope.spawn(change);
        while !change.is_finished() || count < work(ENOUGH) {
            app.begin(Order::Rush([TO_V4, TO_V6], PER_SECOND / 2, PER_SECOND))?;
            let answer = app.answer(PATIENCE).with_context(|| stage.logs())?;
            ensure!(answer.outcome == "ok", "{answer:?}{}", stage.logs());
            (count, took) = (count + PER_SECOND / 2, took + answer.took);
        }
        change.join().map_err(|_| anyhow!("the change panicked"))?
    })?;
    let reached = f64::from(count) / took.as_secs_f64();
    println!("{count} connections, {reached:.0}/s of {PER_SECOND}/s");
    for (sidecar, role) in [(stage.client()?, "client"), (stage.server()?, "server")] {
        let failed = failures(sidecar, role, None)?;
        ensure!(failed == 0.0, "{failed} handshakes failed, {role}{}", stage.logs());
        let made = sidecar.metrics()?.sum("sidecar_tls_handshake_seconds_count", &[("role", role)]);
        println!("{made:.0} handshakes, {role}, {:.0}/s", made / took.as_secs_f64());
    }
    Ok(())
}

/// Both ends get new certificates.
fn renew_both(stage: &Stage) -> Result<()> {
    renew(&stage.authority, &stage.world.client, "client", stage.client()?)?;
    renew(&stage.authority, &stage.world.server, "server", stage.server()?)
}

#[test]
fn no_connection_fails_while_certificates_are_renewed() -> Result<()> {
    let stage = Stage::new(End::Known(STRICT), End::Known(STRICT))?;
    under_load(&stage, || (0..4).try_for_each(|_| renew_both(&stage)))
}

#[test]
fn no_connection_fails_while_the_root_is_replaced() -> Result<()> {
    let stage = Stage::new(End::Known(STRICT), End::Known(STRICT))?;
    under_load(&stage, || {
        for step in [&[][..], &[], &["--finish"]] {
            stage.authority.command("rotate", step)?;
            renew_both(&stage)?;
        }
        Ok(())
    })
}

/// A list of the authority's that revokes what `pod` has, if anything.
fn revocation_list(authority: &Authority, pod: Option<&Pod>) -> Result<String> {
    let mut revoked_certs = Vec::new();
    if let Some(pod) = pod {
        let mut openssl = Command::new("openssl");
        openssl.args(["x509", "-noout", "-serial", "-in"]).arg(pod.directory().join("identity/cert.pem"));
        let text = String::from_utf8(openssl.output()?.stdout)?;
        let hex = text.trim().strip_prefix("serial=").with_context(|| text.clone())?;
        let serial = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
        revoked_certs.push(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&serial.collect::<Result<Vec<u8>, _>>()?),
            revocation_time: SystemTime::now().into(),
            reason_code: None,
            invalidity_date: None,
        });
    }
    let read =
        |name: &str| fs::read_to_string(authority.directory().join(name)).with_context(|| format!("read {name}"));
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem")?, KeyPair::from_pem(&read("ca.key")?)?)?;
    let list = CertificateRevocationListParams {
        this_update: SystemTime::now().into(),
        next_update: (SystemTime::now() + Duration::from_secs(3600)).into(),
        crl_number: SerialNumber::from_slice(&[1]),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(list.signed_by(&issuer)?.pem()?)
}

/// A stage in which the sidecar of `learns` believes a list that revokes nobody yet; the other end's is what `other` says.
fn with_list(learns: &str, other: &str) -> Result<Stage> {
    let mut stage = Stage::new(End::Known(other), End::Known(other))?;
    let pod = if learns == "client" { &stage.world.client } else { &stage.world.server };
    let list = pod.directory().join("crl.pem");
    fs::write(&list, revocation_list(&stage.authority, None)?)?;
    let files = stage.authority.issue(pod, pod.name())?;
    let config = files.replace(" } }", &format!(", crl: {} }} }}", list.display())) + STRICT;
    if learns == "client" {
        stage.start_client(&config)?
    } else {
        stage.start_server(&config)?
    }
    Ok(stage)
}

/// The certificate of `revoked` is revoked, and `learns` believes it.
fn revoke(stage: &Stage, revoked: &Pod, learns: &Pod) -> Result<()> {
    let fresh = learns.directory().join("crl.new");
    fs::write(&fresh, revocation_list(&stage.authority, Some(revoked))?)?;
    Ok(fs::rename(&fresh, learns.directory().join("crl.pem"))?)
}

#[test]
fn a_revocation_resets_the_open_connections_of_the_revoked_peer_and_lets_no_new_one_in() -> Result<()> {
    for (learns, revoked) in [("server", "client"), ("client", "server")] {
        // None is made ready, which would be refused as well.
        let mut stage = with_list(learns, "mtls: { mode: strict, spare: { per_destination: 0 } }\n")?;
        let (v4, v6) = (stage.app.open(TO_V4)?.0, stage.app.open(TO_V6)?.0);
        stage.app.echo(v4)?;
        stage.app.echo(v6)?;
        let pod = |name| if name == "client" { &stage.world.client } else { &stage.world.server };
        revoke(&stage, pod(revoked), pod(learns))?;
        stage.ends_in_a_reset(v4)?;
        stage.ends_in_a_reset(v6)?;
        let heard = stage.service.accepted()?.len();
        let end = stage.end_of(TO_V4)?;
        ensure!(end == "ECONNRESET" || end == "EPIPE", "{end}");
        ensure!(stage.service.accepted()?.len() == heard, "the application heard of it");
        let sidecar = if learns == "server" { stage.server()? } else { stage.client()? };
        ensure!(failures(sidecar, learns, Some("revoked"))? >= 1.0, "{}", stage.logs());
        closed(sidecar, "revoked", 3)?;
    }
    Ok(())
}

#[test]
fn a_revoked_client_cannot_use_the_connection_that_it_had_ready() -> Result<()> {
    let mut stage = with_list("server", "mtls: { mode: strict }\nproxy: { workers: 1 }\n")?;
    stage.app.visit(TO_V4)?;
    stage.app.visit(TO_V4)?;
    becomes(stage.server()?, "sidecar_spare_connections_waiting", &[("side", "server")], 1.0)?;
    revoke(&stage, &stage.world.client, &stage.world.server)?;
    becomes(stage.server()?, "sidecar_identity_generation", &[], 2.0)?;
    let end = stage.end_of(TO_V4)?;
    ensure!(end == "ECONNRESET" || end == "EPIPE", "{end}");
    becomes(stage.client()?, "sidecar_spare_connections_total", &[("result", "hit")], 1.0)?;
    // That one, and the one that was to be ready next.
    closed(stage.server()?, "revoked", 2)?;
    ensure!(stage.service.accepted()?.len() == 2, "the application heard of it");
    Ok(())
}
