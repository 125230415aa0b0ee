//! Peers that others wrote: Python's `h2` (Debian's python3-h2) as client and as server.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::spawn_blocking,
};

use super::world::{BAGGAGE, World, ask, numbered, pool, receive_all, run, send_all, tls};
use crate::{
    hbone::{OpenError, Target},
    net::Side as _,
};

/// A folder with root.pem, cert.pem and key.pem, gone when dropped.
pub(super) struct Pems(pub(super) PathBuf);

impl Pems {
    pub(super) fn new(of: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("sidecar-hbone-{}-{of}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for (name, pem) in tls().pems() {
            fs::write(folder.join(name), pem).unwrap();
        }
        Self(folder)
    }

    fn python(&self, script: &str) -> Command {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script]);
        command
    }
}

impl Drop for Pems {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with the test.
pub(super) struct Process(pub(super) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the client to its end; what it printed.
async fn client(pems: &Pems, at: SocketAddr, method: &str, authority: &str, send: Vec<u8>) -> Value {
    let mut command = pems.python(include_str!("peers/client.py"));
    command.arg(at.ip().to_string()).arg(at.port().to_string()).arg(&pems.0).args([method, authority]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let fed = spawn_blocking(move || drop(stdin.write_all(&send)));
    let output = spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    fed.await.unwrap();
    assert!(output.status.success(), "the client failed; is python3-h2 installed? (cargo xtask setup)");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_client_on_pythons_h2_gets_its_tunnel_and_sees_our_settings() {
    run(async {
        let (world, pems) = (World::start().await, Pems::new("client"));
        let to = world.app.local_addr().unwrap().to_string();
        // Twice the window of a stream, with windows of 64 KiB on the way back.
        let all = numbered(1 << 20);
        let serve = async {
            let (mut app, _) = world.app.accept().await.unwrap();
            let mut received = Vec::new();
            app.read_to_end(&mut received).await.unwrap();
            app.write_all(&received).await.unwrap();
            app.shutdown().await.unwrap();
            received
        };
        let (result, received) = tokio::join!(client(&pems, world.at, "CONNECT", &to, all.clone()), serve);
        assert!(received == all, "{} bytes", received.len());
        let digest = sha256(&all);
        let expected = json!({
            "alpn": "h2", "status": "200", "ended": "end", "length": 8 << 20, "sha256": digest,
            "stream_window": 4 << 20, "max_frame": 1 << 20, "max_streams": 200, "max_headers": 64 << 10,
            "connect_protocol": 0, "baggage": BAGGAGE,
        });
        assert_eq!(result, expected);
        world.ended().await;
        assert_eq!(world.closed("completed"), 1);

        for (method, authority) in [("GET", to.as_str()), ("CONNECT", "127.0.0.2:80")] {
            let result = client(&pems, world.at, method, authority, Vec::new()).await;
            assert_eq!(result["status"], "400", "{method} {authority}: {result}");
        }
    });
}

/// SHA-256 in hexadecimal, by the library that TLS uses.
fn sha256(bytes: &[u8]) -> String {
    let provider = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let hash = provider.tls13().unwrap().common.hash_provider.hash(bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The server, its first line read: where it listens.
fn server(pems: &Pems) -> (Process, BufReader<ChildStdout>, Target) {
    let mut command = pems.python(include_str!("peers/server.py"));
    let mut child = Process(command.arg(&pems.0).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap());
    let mut port = String::new();
    lines.read_line(&mut port).unwrap();
    let port: u16 = port.trim().parse().expect("the server failed; is python3-h2 installed? (cargo xtask setup)");
    (child, lines, Target { address: ([127, 0, 0, 1], port).into(), source: None, identity: None })
}

/// The next line that the server prints.
async fn told(mut lines: BufReader<ChildStdout>) -> (BufReader<ChildStdout>, Value) {
    let (lines, line) = spawn_blocking(|| {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        (lines, line)
    })
    .await
    .unwrap();
    (lines, serde_json::from_str(&line).unwrap())
}

#[test]
fn a_server_on_pythons_h2_gets_the_headers_of_hbone_and_carries_tunnels() {
    run(async {
        let pems = Pems::new("server");
        let (_server, lines, target) = server(&pems);
        let pool = pool();
        let baggage = "k8s.namespace.name=shop".parse().unwrap();
        let ask_baggage = crate::hbone::Ask { baggage: Some(&baggage), ..ask("127.0.0.1:80") };
        let tunnel = pool.open(&target, &ask_baggage).await.unwrap();
        let all = numbered(1 << 19);
        let ((received, ended), ()) = tokio::join!(receive_all(&tunnel), async {
            send_all(&tunnel, &all).await.unwrap();
            tunnel.finish_sending().unwrap();
        });
        ended.unwrap();
        assert!(received == all, "{} bytes", received.len());
        tunnel.end_cleanly();
        drop(tunnel);
        let (lines, mut line) = told(lines).await;
        // Each tunnel begins a trace of its own: `00-<32 digits>-<16>-00`.
        let mut trace = line["headers"].as_array_mut().unwrap().pop().unwrap();
        assert_eq!((&trace[0], trace[1].as_str().unwrap().len()), (&json!("traceparent"), 55), "{trace}");
        let headers = json!([
            [":method", "CONNECT"],
            [":authority", "127.0.0.1:80"],
            ["forwarded", "for=\"127.0.0.1:4711\""],
            ["baggage", "k8s.namespace.name=shop"],
        ]);
        assert_eq!(line, json!({"headers": headers, "how": "end", "alpn": "h2", "sni": [null]}));

        // One that is reset, on the same connection: CANCEL is 8.
        drop(pool.open(&target, &ask("[::1]:80")).await.unwrap());
        let (lines, line) = told(lines).await;
        let other = line["headers"].as_array().and_then(|headers| headers.last()).unwrap();
        assert!(other[0] == "traceparent" && *other != trace.take(), "{other}");
        assert_eq!((&line["headers"][1][1], &line["how"]), (&json!("[::1]:80"), &json!("reset 8")));

        let error = pool.open(&target, &ask("127.0.0.1:1")).await.err().unwrap();
        assert!(matches!(error, OpenError::Refused(http::StatusCode::SERVICE_UNAVAILABLE)), "{error}");
        assert_eq!(told(lines).await.1["how"], "refused");
        assert_eq!(pool.len(), 1);
    });
}
