//! Applications that are told who their client is by a PROXY protocol v2 header (`proxy.proxy_protocol_ports`).

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{TO_V4, TO_V6},
    harness::{PATIENCE, Process, eventually, nginx, spiffe_id},
};

use super::stage::{End, Stage};

/// Where it is told.
const TOLD: u16 = 8081;
/// Where it is not.
const UNTOLD: u16 = 8082;
const CONFIG: &str = "proxy: { proxy_protocol_ports: [8081] }\n";

/// Prints, in hexadecimal, what each connection brings until its end.
const READER: &str = r#"
import socket, sys
listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, _ = listener.accept()
    received = b""
    while chunk := connection.recv(4096):
        received += chunk
    connection.close()
    print(received.hex(), flush=True)
"#;

/// An application that reads, and prints what it has read.
fn reader(stage: &Stage, port: u16) -> Result<Process> {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", READER, &port.to_string()]);
    stage.world.server.spawn(command)
}

/// The header for a connection (PROXY protocol, version 2, §2.2), with the client's identity if it has proved one.
fn header(client: SocketAddr, server: SocketAddr, identity: Option<&str>) -> Vec<u8> {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut rest = [octets(client), octets(server)].concat();
    rest.extend(client.port().to_be_bytes());
    rest.extend(server.port().to_be_bytes());
    if let Some(identity) = identity {
        // PP2_TYPE_…: 0xD0, as Istio has it.
        rest.push(0xd0);
        rest.extend((identity.len() as u16).to_be_bytes());
        rest.extend(identity.as_bytes());
    }
    let family = if client.is_ipv4() { 0x11 } else { 0x21 };
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    header.push(family);
    header.extend((rest.len() as u16).to_be_bytes());
    header.extend(rest);
    header
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_application_is_told_its_clients_address_and_identity_before_its_first_byte_where_the_port_says_so() -> Result<()>
{
    for (client, identity) in [(End::Known(""), Some(spiffe_id("client"))), (End::Bare, None)] {
        let mut stage = Stage::new(client, End::Known(CONFIG))?;
        for (port, told) in [(TOLD, true), (UNTOLD, false)] {
            let reader = reader(&stage, port)?;
            for (number, ip) in [TO_V4.ip(), TO_V6.ip()].into_iter().enumerate() {
                let to = SocketAddr::new(ip, port);
                wait_for_listener(&stage, port)?;
                let (socket, local) = stage.app.open(to)?;
                stage.app.must(Order::Send(socket, 3))?;
                stage.app.must(Order::Finish(socket))?;
                let line = reader.out.wait_for(PATIENCE, |lines| lines.get(number).cloned());
                let header = if told { header(local, to, identity.as_deref()) } else { Vec::new() };
                let expected = hex(&[&header[..], b"xxx"].concat());
                ensure!(line.as_deref() == Some(&expected), "{to}: {line:?}, not {expected}{}", stage.logs());
                stage.app.must(Order::Close(socket))?;
            }
        }
    }
    Ok(())
}

/// Looked for in the table of sockets: to connect would be to be read.
fn wait_for_listener(stage: &Stage, port: u16) -> Result<()> {
    let listens = || {
        let sockets = stage.world.server.run("ss", ["-Hltn", &format!("sport = :{port}")]);
        sockets.is_ok_and(|sockets| !sockets.is_empty())
    };
    ensure!(eventually(PATIENCE, listens), "nobody listens on port {port}");
    Ok(())
}

#[test]
fn nginx_with_proxy_protocol_logs_the_real_client_and_its_port() -> Result<()> {
    let stage = Stage::new(End::Known(super::STRICT), End::Known(&format!("{CONFIG}{}", super::STRICT)))?;
    let pod = &stage.world.server;
    let server = format!("listen {TOLD} proxy_protocol; listen [::]:{TOLD} proxy_protocol; return 200 hello;");
    let log = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $status";
    let _nginx = nginx(pod, TOLD, log, &server)?;
    let mut expected = String::new();
    for to in [TO_V4, TO_V6] {
        let url = format!("http://{}/", SocketAddr::new(to.ip(), TOLD));
        let client = &stage.world.client;
        let answer = client.run("curl", ["-sS", "--max-time", "10", "-w", " %{local_ip} %{local_port}", &url])?;
        let local = answer.strip_prefix("hello ").with_context(|| format!("{answer}{}", stage.logs()))?;
        expected += &format!("{local} {} 200\n", to.ip());
    }
    let log = || fs::read_to_string(pod.directory().join("access.log")).unwrap_or_default();
    ensure!(eventually(PATIENCE, || log() == expected), "{}, not {expected}", log());
    Ok(())
}
