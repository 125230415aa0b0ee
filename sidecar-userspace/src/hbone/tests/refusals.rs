use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{Method, Request, StatusCode};
use rustls::pki_types::ServerName;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::world::{CLIENT, ID, World, ask, pool, receive_all, run, shared, tls};
use crate::{
    addr::ClientAddr,
    config::{Action, Rule, RulePlace, Source},
    hbone::{OpenError, ServerConfig},
    policy::Policy,
    telemetry::CloseReason,
    tls::Failure,
};

/// A client that is not ours, and its connection, which somebody must drive.
pub(super) async fn http2(world: &World) -> (SendRequest<Bytes>, Connection<TlsStream<TcpStream>>) {
    http2_on(TcpStream::connect(world.at).await.unwrap()).await
}

/// The same on a connection that is there.
pub(super) async fn http2_on(tcp: TcpStream) -> (SendRequest<Bytes>, Connection<TlsStream<TcpStream>>) {
    let name = ServerName::IpAddress(tcp.peer_addr().unwrap().ip().into());
    let tls = TlsConnector::from(tls().client()).connect(name, tcp).await.unwrap();
    h2::client::handshake(tls).await.unwrap()
}

async fn status(world: &World, method: Method, uri: &str) -> StatusCode {
    let (send, connection) = http2(world).await;
    tokio::task::spawn_local(connection);
    let mut send = send.ready().await.unwrap();
    let request = Request::builder().method(method).uri(uri).body(()).unwrap();
    let (response, _body) = send.send_request(request, false).unwrap();
    response.await.unwrap().status()
}

#[test]
fn what_is_no_tunnel_to_this_pod_is_refused_with_400() {
    run(async {
        let world = World::start().await;
        let own = format!("127.0.0.1:{}", world.at.port());
        let cases = [
            (Method::GET, "http://127.0.0.1:80/", "bad_request"),
            (Method::CONNECT, "127.0.0.2:80", "bad_request"),
            (Method::CONNECT, "[::1]:80", "bad_request"),
            (Method::CONNECT, "other.shop.svc:80", "bad_request"),
            (Method::CONNECT, "web.shop.svc", "bad_request"),
            (Method::CONNECT, "127.0.0.1:15001", "own_port"),
            (Method::CONNECT, "web.shop.svc:15006", "own_port"),
            (Method::CONNECT, &own, "own_port"),
        ];
        for (method, uri, reason) in cases {
            let before = world.closed(reason);
            assert_eq!(status(&world, method.clone(), uri).await, StatusCode::BAD_REQUEST, "{method} {uri}");
            world.ended().await;
            assert_eq!(world.closed(reason), before + 1, "{method} {uri}");
        }
    });
}

#[test]
fn a_name_of_the_pod_leads_to_the_address_that_the_connection_came_to() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let to = format!("WEB.shop.svc:{}", world.app.local_addr().unwrap().port());
        let (tunnel, app) = tokio::join!(world.ask(&pool, &to), world.app.accept());
        assert!(tunnel.is_ok() && app.is_ok());
    });
}

/// A rule on the port of the world's application, for whoever is `principal`.
fn deny(principal: &str) -> Policy {
    let from = vec![Source { principals: vec![principal.parse().unwrap()], ..Source::default() }];
    Policy::new(&[Rule {
        name: "no-web".into(),
        action: Action::Deny,
        from,
        ports: Vec::new(),
        dry_run: false,
        place: RulePlace::default(),
    }])
}

#[test]
fn what_the_rules_deny_is_refused_with_401_and_new_rules_end_open_tunnels() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let (tunnel, _app) = world.tunnel(&pool).await;
        world.permits.replace(deny(ID));
        assert!(receive_all(&tunnel).await.1.is_err());
        world.ended().await;
        assert_eq!(world.closed("no_longer_authorized"), 1);
        let error = world.ask(&pool, &world.app.local_addr().unwrap().to_string()).await.err().unwrap();
        assert!(matches!(error, OpenError::Refused(StatusCode::UNAUTHORIZED)), "{error}");
        assert_eq!(error.reason(), CloseReason::Unauthorized);
        world.ended().await;
        assert_eq!(world.closed("unauthorized"), 1);
    });
}

#[test]
fn a_certificate_that_is_revoked_ends_its_tunnels_and_opens_none() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let (tunnel, _app) = world.tunnel(&pool).await;
        world.current.set(Some(tls().revoked()));
        assert!(receive_all(&tunnel).await.1.is_err());
        world.ended().await;
        assert_eq!(world.closed("revoked"), 1);
        let error = world.ask(&pool, &world.app.local_addr().unwrap().to_string()).await.err().unwrap();
        assert!(matches!(error, OpenError::Tls(_) | OpenError::Http2(_)), "{error}");
    });
}

#[test]
fn a_client_is_believed_its_port_and_no_other_address() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let to = world.app.local_addr().unwrap().to_string();
        for (named, believed) in [(CLIENT, true), ("10.1.2.3:4711", false)] {
            let ask = crate::hbone::Ask { client: ClientAddr(named.parse().unwrap()), ..ask(&to) };
            let target = world.target();
            let (tunnel, app) = tokio::join!(pool.open(&target, &ask), world.app.accept());
            let seen = world.telemetry.connections().snapshot()[0].client;
            assert_eq!(seen == named.parse().unwrap(), believed, "{named}: {seen}");
            assert_eq!(seen.ip(), world.at.ip());
            drop((tunnel, app));
            world.ended().await;
        }
    });
}

#[test]
fn an_application_that_does_not_listen_is_answered_with_503() {
    run(async {
        let world = World::start().await;
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = world.ask(&pool(), &nobody.to_string()).await.err().unwrap();
        assert!(matches!(error, OpenError::Refused(StatusCode::SERVICE_UNAVAILABLE)), "{error}");
        world.ended().await;
        assert_eq!(world.closed("connect_refused"), 1);
    });
}

#[test]
fn no_slot_in_time_is_answered_with_503() {
    run(async {
        let world = World::start_with(|config| {
            config.slots = Arc::new(tokio::sync::Semaphore::new(1));
            shared(config).mtls.config.handshake_timeout = Duration::from_secs(1);
        })
        .await;
        let pool = pool();
        let (tunnel, _app) = world.tunnel(&pool).await;
        let to = world.app.local_addr().unwrap().to_string();
        let error = world.ask(&pool, &to).await.err().unwrap();
        assert!(matches!(error, OpenError::Refused(StatusCode::SERVICE_UNAVAILABLE)), "{error}");
        drop(tunnel);
        world.tunnel(&pool).await;
    });
}

#[test]
fn a_handshake_that_fails_is_counted_and_recorded() {
    run(async {
        let change =
            |config: &mut ServerConfig| shared(config).mtls.config.handshake_timeout = Duration::from_millis(300);
        let world = World::start_with(change).await;
        let mut silent = TcpStream::connect(world.at).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
        assert_eq!((world.closed("handshake_failed"), world.handshakes_failed("timeout")), (1, 1));

        let mut plain = TcpStream::connect(world.at).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        // The alert, then the end.
        let _ = plain.read_to_end(&mut Vec::new()).await;
        assert_eq!((world.closed("handshake_failed"), world.handshakes_failed("plaintext")), (2, 1));
    });
}

#[test]
fn handshakes_that_nobody_goes_on_with_hold_others_up_no_longer_than_their_time() {
    run(async {
        let world = World::start_with(|config| {
            shared(config).handshakes = crate::serve::Turns::new(2);
            shared(config).mtls.config.handshake_timeout = Duration::from_secs(1);
        })
        .await;
        let mut silent = Vec::new();
        for _ in 0..4 {
            silent.push(TcpStream::connect(world.at).await.unwrap());
        }
        let start = std::time::Instant::now();
        let tunnel = world.tunnel(&pool()).await;
        // Two turns of two before it.
        assert!((1.9..10.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
        drop(tunnel);
        world.ended().await;
        assert_eq!(world.closed("handshake_failed"), 4);
    });
}

#[test]
fn another_identity_than_the_expected_gets_no_tunnel() {
    run(async {
        let world = World::start().await;
        let mut target = world.target();
        target.identity = Some("spiffe://td/ns/shop/sa/other".parse().unwrap());
        let error = pool().open(&target, &ask("127.0.0.1:80")).await.err().unwrap();
        assert!(matches!(error, OpenError::Tls(Failure::WrongPeer)), "{error}");
        assert_eq!(error.reason(), CloseReason::WrongPeer);
    });
}
