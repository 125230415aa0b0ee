//! A server of tunnels before an application, certificates, and ways to move bytes.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use http::HeaderValue;
use rustls::ClientConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::{Semaphore, watch},
};

use crate::{
    addr::ClientAddr,
    config,
    hbone::{Ask, Authority, OpenError, Pace, Pool, PoolConfig, Server, ServerConfig, Target, Tunnel},
    identity::{
        Identity,
        mint::{Minted, Root, workload},
    },
    lifecycle::board::{Board, BoardReader},
    mtls::Mtls,
    net::{self, Arrived as _, Received, Side, Stream, Transports, Tuning},
    policy::{Permits, Policy},
    serve::{Application, Shared, Turns, UnderWay, why_not_connected},
    telemetry::{CloseReason, Telemetry},
    tls::{Alpn, Contexts, Current},
};

/// Whom the client's certificate names, and the server's.
pub(super) const ID: &str = "spiffe://td/ns/shop/sa/web";

/// Connections of a [`pool`] from which on it closes those that are unused.
pub(super) const MOST: usize = 4;

/// What the server says about itself.
pub(super) const BAGGAGE: &str = "k8s.namespace.name=shop,k8s.deployment.name=web";

/// The client whom [`World::ask`] names.
pub(super) const CLIENT: &str = "127.0.0.1:4711";

/// Runs a test on a runtime like a worker's; no test may hang.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs") });
}

/// One authority, and one certificate for both ends.
pub(super) struct Tls {
    root: Root,
    minted: Minted,
    pub(super) contexts: Arc<Contexts>,
}

pub(super) fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| {
        let root = Root::new("root");
        let minted = root.mint(&workload(ID));
        let contexts = contexts(&root);
        Tls { root, minted, contexts }
    })
}

fn contexts(root: &Root) -> Arc<Contexts> {
    Arc::new(Contexts::new(Arc::new(root.identity(ID)), &config::Mtls::default()).unwrap())
}

impl Tls {
    /// For software that reads files.
    pub(super) fn pems(&self) -> [(&'static str, String); 3] {
        [
            ("root.pem", self.root.pem.clone()),
            ("cert.pem", self.minted.pem.clone()),
            ("key.pem", self.minted.key_pem.clone()),
        ]
    }

    pub(super) fn server(&self) -> Arc<rustls::ServerConfig> {
        self.contexts.server(Alpn::Hbone).unwrap()
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.contexts.client(Alpn::Hbone).unwrap()
    }

    /// The same identity, renewed.
    pub(super) fn renewed(&self) -> Arc<Contexts> {
        contexts(&self.root)
    }

    /// The same, after its certificate was revoked.
    pub(super) fn revoked(&self) -> Arc<Contexts> {
        let mut parts = self.root.parts(ID);
        parts.crls = vec![self.root.revoke(&self.contexts.identity().certified().cert).0];
        let identity = Identity::verify(parts, SystemTime::now()).unwrap();
        Arc::new(Contexts::new(Arc::new(identity), &config::Mtls::default()).unwrap())
    }
}

pub(super) fn current() -> Current {
    let current = Current::default();
    current.set(Some(Arc::clone(&tls().contexts)));
    current
}

/// Nothing but the kernel side can name the client to the application.
fn dial(application: Application) -> Pin<Box<dyn Future<Output = Result<Stream, CloseReason>>>> {
    Box::pin(async move {
        let dialled = net::connect_out(application.to, None, Transports::NONE, application.shared.tuning()).await;
        dialled.map_err(|error| why_not_connected(&error))
    })
}

/// A server of tunnels, and the application's listener behind it.
pub(super) struct World {
    pub(super) server: Arc<Server>,
    pub(super) listener: std::net::TcpListener,
    pub(super) at: SocketAddr,
    pub(super) app: TcpListener,
    pub(super) telemetry: Telemetry,
    pub(super) drain: watch::Sender<bool>,
    pub(super) permits: Permits,
    pub(super) current: Current,
}

/// What all connections share, before any does.
pub(super) fn shared(config: &mut ServerConfig) -> &mut Shared {
    Arc::get_mut(&mut config.shared).unwrap()
}

pub(super) fn telemetry() -> Telemetry {
    let config = config::Telemetry { access_log: config::AccessLog::Off, ..config::Telemetry::default() };
    Telemetry::start(&config, &config::Pod::default()).unwrap()
}

impl World {
    pub(super) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(super) async fn start_with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let (drain, drained) = watch::channel(false);
        let telemetry = telemetry();
        let slots = || Arc::new(Semaphore::new(1000));
        let mtls = config::Mtls { handshake_timeout: Duration::from_secs(5), ..config::Mtls::default() };
        let shared = Shared {
            limits: config::Proxy { connect_timeout: Duration::from_secs(5), ..config::Proxy::default() },
            own_ports: vec![15001, 15006],
            board: BoardReader::map(Board::new().unwrap()).unwrap(),
            dials: slots(),
            handshakes: Turns::new(1000),
            waiting: slots(),
            spares: 8,
            under_way: UnderWay::default(),
            mtls: Mtls { config: mtls, current: current() },
            permits: telemetry.within(|| Permits::new(Policy::default())),
            baggage: Some(HeaderValue::from_static(BAGGAGE)),
            telemetry: telemetry.clone(),
        };
        let mut config = ServerConfig {
            shared: Arc::new(shared),
            slots: slots(),
            carriers: slots(),
            hosts: vec!["web.shop.svc".into()],
            dial,
            drain: drained,
            pace: Pace::default(),
        };
        change(&mut config);
        let (permits, current) = (config.shared.permits.clone(), config.shared.mtls.current.clone());
        let listener = net::listen_for_tunnels(0, TUNING).unwrap();
        let at = ([127, 0, 0, 1], listener.local_addr().unwrap().port()).into();
        let server = Server::new(config);
        tokio::task::spawn_local(Arc::clone(&server).serve(listener.try_clone().unwrap()));
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { server, at, listener, app, telemetry, drain, permits, current }
    }

    pub(super) fn target(&self) -> Target {
        Target { address: self.at, source: None, identity: Some(ID.parse().unwrap()) }
    }

    /// Opens a tunnel to `to`.
    pub(super) async fn ask(&self, pool: &Pool, to: &str) -> Result<Tunnel, OpenError> {
        pool.open(&self.target(), &ask(to)).await
    }

    /// Opens a tunnel to the application; both its ends.
    pub(super) async fn tunnel(&self, pool: &Pool) -> (Tunnel, TcpStream) {
        let to = self.app.local_addr().unwrap().to_string();
        let (tunnel, accepted) = tokio::join!(self.ask(pool, &to), self.app.accept());
        (tunnel.unwrap(), accepted.unwrap().0)
    }

    /// Resolves when no connection is in the table.
    pub(super) async fn ended(&self) {
        self.telemetry.connections().empty().await;
    }

    /// How many connections ended for this reason.
    pub(super) fn closed(&self, reason: &str) -> u64 {
        let metrics = self.telemetry.render_metrics();
        let of = |line: &&str| {
            line.starts_with("sidecar_connections_closed_total{direction=\"inbound\"")
                && line.contains(&format!("\"{reason}\""))
        };
        metrics.lines().find(of).and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect(reason)
    }
}

impl World {
    /// How many handshakes failed for this reason.
    pub(super) fn handshakes_failed(&self, reason: &str) -> u64 {
        let metrics = self.telemetry.render_metrics();
        let of = |line: &&str| {
            line.starts_with("sidecar_tls_handshake_failures_total") && line.contains(&format!("\"{reason}\""))
        };
        metrics.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }
}

pub(super) fn ask(to: &str) -> Ask<'_> {
    let client = ClientAddr(CLIENT.parse().unwrap());
    Ask { to: Authority::parse(to).unwrap(), client, service: None, baggage: None, traceparent: None }
}

pub(super) const TUNING: Tuning = Tuning { keepalive: Duration::from_secs(180), buffer: None };

pub(super) fn pool() -> Pool {
    pool_with(Pace::default(), current())
}

pub(super) fn pool_with(pace: Pace, current: Current) -> Pool {
    Pool::new(PoolConfig {
        current,
        tuning: TUNING,
        telemetry: telemetry(),
        connect_timeout: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(5),
        pace,
        most: MOST,
    })
}

/// Bytes that are different everywhere.
pub(super) fn numbered(count: u64) -> Vec<u8> {
    (0..count).flat_map(u64::to_le_bytes).collect()
}

/// Sends all of it.
pub(super) async fn send_all(side: &impl Side, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match side.send(bytes)? {
            0 => side.sendable().await?,
            sent => bytes = &bytes[sent..],
        }
    }
    Ok(())
}

/// Receives until the end, or the failure.
pub(super) async fn receive_all(side: &impl Side) -> (Vec<u8>, io::Result<()>) {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let arrived = side.receivable().await.unwrap();
        match arrived.receive(&mut buffer, false) {
            Ok(Received::Bytes(bytes)) => all.extend_from_slice(&buffer[..bytes]),
            Ok(Received::End) => return (all, Ok(())),
            Ok(Received::Urgent(_) | Received::Nothing) => {}
            Err(error) => return (all, Err(error)),
        }
    }
}
