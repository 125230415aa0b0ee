use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::*;

/// Endpoints on ports of their own, with a state that the test changes.
struct World {
    metrics: SocketAddr,
    health: SocketAddr,
    admin: SocketAddr,
    socket: PathBuf,
    unready: Arc<Mutex<Vec<Unready>>>,
    level: Arc<Mutex<String>>,
    serving: tokio::task::JoinHandle<Result<Infallible, Error>>,
    _file: socket::SocketFile,
}

impl World {
    fn start(name: &str) -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (metrics, health, admin) = (bind(), bind(), bind());
        let socket = std::env::temp_dir().join(format!("sidecar-admin-{name}-{}.sock", std::process::id()));
        let (admin_socket, file) = socket::bind(&socket).unwrap();
        let unready = Arc::new(Mutex::new(Vec::new()));
        let level = Arc::new(Mutex::new("info".to_owned()));
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let (metrics_at, health_at, admin_at) = (address(&metrics), address(&health), address(&admin));
        let listeners = Listeners { metrics, health, admin, admin_socket };
        let serving = tokio::spawn(serve(listeners, hooks(&unready, &level), watch::channel(false).1));
        Self { metrics: metrics_at, health: health_at, admin: admin_at, socket, unready, level, serving, _file: file }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn hooks(unready: &Arc<Mutex<Vec<Unready>>>, level: &Arc<Mutex<String>>) -> Hooks {
    let (unready, read, write) = (Arc::clone(unready), Arc::clone(level), Arc::clone(level));
    let draining = Arc::new(Mutex::new(false));
    let seen = Arc::clone(&draining);
    Hooks {
        live: Arc::new(Vec::new),
        ready: Arc::new(move || unready.lock().unwrap().clone()),
        config_dump: Arc::new(|| json!({"pod": {"workload": "shop"}})),
        connections: Arc::new(|| json!([{"id": 1}])),
        metrics: Arc::new(|| "up 1\n".to_owned()),
        fast_path: Arc::new(|| serde_json::json!({ "on": true })),
        switch_fast_path: Arc::new(|on| if on { Err("no fast path on this kernel".to_owned()) } else { Ok(()) }),
        drain_state: Arc::new(move || json!({ "draining": *seen.lock().unwrap() })),
        drain: Arc::new(move || *draining.lock().unwrap() = true),
        log_level: Arc::new(move || read.lock().unwrap().clone()),
        set_log_level: Arc::new(move |level| match level {
            "inof" => Err("`inof` is not a log level".to_owned()),
            good => {
                good.clone_into(&mut write.lock().unwrap());
                Ok(())
            }
        }),
    }
}

/// A request as it stands on the wire, and the whole answer.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn ask(to: SocketAddr, method: &str, target: &str, headers: &str) -> (u16, String) {
    let request = format!("{method} {target} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{headers}\r\n");
    status_and_text(&exchange(TcpStream::connect(to).await.unwrap(), &request).await)
}

async fn ask_socket(path: &Path, method: &str, target: &str) -> (u16, String) {
    let request = format!("{method} {target} HTTP/1.1\r\nHost: sidecar\r\nConnection: close\r\n\r\n");
    status_and_text(&exchange(UnixStream::connect(path).await.unwrap(), &request).await)
}

fn status_and_text(answer: &str) -> (u16, String) {
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer:?}")).parse().unwrap();
    (status, answer.to_owned())
}

#[tokio::test]
async fn every_endpoint_answers_with_its_type() {
    let world = World::start("endpoints");
    for (to, target, content_type, body) in [
        (world.metrics, "/metrics", "text/plain; version=0.0.4; charset=utf-8", "up 1\n"),
        (world.metrics, "/stats/prometheus", "text/plain; version=0.0.4; charset=utf-8", "up 1\n"),
        (world.admin, "/stats/prometheus", "text/plain; version=0.0.4; charset=utf-8", "up 1\n"),
        (world.health, "/healthz/ready", "text/plain; charset=utf-8", "ready\n"),
        (world.health, "/healthz/live?verbose", "text/plain; charset=utf-8", "live\n"),
        (world.admin, "/ready", "text/plain; charset=utf-8", "ready\n"),
        (world.admin, "/config_dump", "application/json", "\"workload\": \"shop\""),
        (world.admin, "/connections", "application/json", "\"id\": 1"),
        (world.admin, "/drain", "application/json", "\"draining\": false"),
        (world.admin, "/logging", "text/plain; charset=utf-8", "info\n"),
        (world.admin, "/", "text/plain; charset=utf-8", "/config_dump "),
    ] {
        let (status, answer) = ask(to, "GET", target, "").await;
        assert_eq!(status, 200, "{target}: {answer}");
        assert!(answer.contains(&format!("content-type: {content_type}\r\n")), "{target}: {answer}");
        assert!(answer.contains(body), "{target}: {answer}");
    }
    let (status, answer) = ask_socket(&world.socket, "GET", "/ready").await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn unready_names_the_conditions_and_does_not_make_it_dead() {
    let world = World::start("unready");
    world.unready.lock().unwrap().push(Unready { name: "programs", reason: "connect4 is not attached".into() });
    for (to, target) in [(world.health, "/healthz/ready"), (world.admin, "/ready")] {
        let (status, answer) = ask(to, "GET", target, "").await;
        assert_eq!(status, 503);
        assert!(answer.ends_with("\r\n\r\nprograms: connect4 is not attached\n"), "{answer}");
    }
    assert_eq!(ask(world.health, "GET", "/healthz/live", "").await.0, 200);
}

#[tokio::test]
async fn wrong_paths_and_methods_are_told_what_exists() {
    let world = World::start("wrong");
    for (to, method, target, status, says) in [
        (world.admin, "GET", "/conections", 404, "/connections "),
        (world.metrics, "GET", "/config_dump", 404, "/metrics "),
        (world.health, "GET", "/metrics", 404, "/healthz/ready "),
        (world.admin, "POST", "/", 404, "/logging "),
        (world.metrics, "POST", "/metrics", 405, "allow: GET, HEAD\r\n"),
        (world.admin, "DELETE", "/logging", 405, "allow: GET, HEAD, POST\r\n"),
        (world.admin, "GET", "/logging?level=debug", 405, "changed with POST"),
    ] {
        let (found, answer) = ask(to, method, target, "").await;
        assert_eq!(found, status, "{method} {target}: {answer}");
        assert!(answer.contains(says), "{method} {target}: {answer}");
    }
    assert_eq!(*world.level.lock().unwrap(), "info");
}

#[tokio::test]
async fn the_log_level_is_changed_over_both_admin_interfaces() {
    let world = World::start("logging");
    let (status, answer) = ask(world.admin, "POST", "/logging?level=warn,sidecar::relay%3Dtrace", "").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(*world.level.lock().unwrap(), "warn,sidecar::relay=trace");
    assert_eq!(ask_socket(&world.socket, "POST", "/logging?level=debug").await.0, 200);
    assert_eq!(*world.level.lock().unwrap(), "debug");
    for (target, says) in
        [("/logging?level=inof", "not a log level"), ("/logging", "say which"), ("/logging?level=", "say which")]
    {
        let (status, answer) = ask(world.admin, "POST", target, "").await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains(says), "{answer}");
    }
    assert_eq!(*world.level.lock().unwrap(), "debug");
}

#[tokio::test]
async fn the_fast_path_is_switched_over_the_admin_interface() {
    let world = World::start("fast-path");
    for (method, target, status, told) in [
        ("GET", "/fastpath", 200, "\"on\": true"),
        ("POST", "/fastpath?switch=off", 200, "\"on\": true"),
        ("POST", "/fastpath?switch=on", 409, "no fast path on this kernel"),
        ("POST", "/fastpath?switch=maybe", 400, "switch=on"),
        ("GET", "/fastpath?switch=off", 405, "POST"),
    ] {
        let (answered, answer) = ask(world.admin, method, target, "").await;
        assert!(answered == status && answer.contains(told), "{method} {target}: {answer}");
    }
}

#[tokio::test]
async fn a_web_page_can_neither_change_nor_read_the_admin_interface() {
    let world = World::start("browser");
    let (status, answer) = ask(world.admin, "POST", "/logging?level=off", "Origin: http://evil.example\r\n").await;
    assert_eq!(status, 403, "{answer}");
    let rebound = "GET /config_dump HTTP/1.1\r\nHost: evil.example:15000\r\nConnection: close\r\n\r\n";
    let answer = exchange(TcpStream::connect(world.admin).await.unwrap(), rebound).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && !answer.contains("shop"), "{answer}");
    assert_eq!(*world.level.lock().unwrap(), "info");
    // Scrapers and probes come by the pod's address or a name.
    let scrape = "GET /metrics HTTP/1.1\r\nHost: pod.example:15020\r\nConnection: close\r\n\r\n";
    let answer = exchange(TcpStream::connect(world.metrics).await.unwrap(), scrape).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn an_oversized_header_is_refused() {
    let world = World::start("header");
    let mut stream = TcpStream::connect(world.metrics).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(9 * 1024));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 431");
}

#[tokio::test]
async fn silent_clients_use_up_their_own_listener_only_and_only_for_a_while() {
    let world = World::start("silent");
    let mut silent = Vec::new();
    for _ in 0..connection::MAX_CLIENTS {
        silent.push(TcpStream::connect(world.metrics).await.unwrap());
    }
    assert_eq!(ask(world.health, "GET", "/healthz/live", "").await.0, 200);
    let waiting = tokio::spawn(ask(world.metrics, "GET", "/metrics", ""));
    // One of them leaves, and the one that waited in the backlog is served.
    drop(silent.pop());
    assert_eq!(timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap().0, 200);
    // The others are cut off at the header's time limit.
    let mut rest = String::new();
    let limit = connection::HEADER_TIMEOUT + Duration::from_secs(5);
    let cut_off = timeout(limit, silent[0].read_to_string(&mut rest)).await;
    assert!(cut_off.is_ok(), "a silent client is still connected after {limit:?}");
}

#[tokio::test]
async fn dropping_the_server_ends_its_clients() {
    let world = World::start("drop");
    let mut client = TcpStream::connect(world.metrics).await.unwrap();
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    client.read_u8().await.unwrap();
    world.serving.abort();
    let mut rest = Vec::new();
    let ended = timeout(Duration::from_secs(5), client.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the client is still connected");
}
