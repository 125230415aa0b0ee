use std::{io, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    refusals::{http2, http2_on},
    world::{MOST, World, ask, current, pool, pool_with, receive_all, run, send_all, tls},
};
use crate::{
    hbone::{OpenError, Pace, Pool, Target, Tunnel},
    net::Side as _,
};

fn quick() -> Pace {
    Pace { ping_every: Duration::from_millis(50), ping_timeout: Duration::from_secs(1), ..Pace::default() }
}

/// Both ends work.
async fn alive((tunnel, app): &mut (Tunnel, TcpStream)) {
    send_all(tunnel, b"ping").await.unwrap();
    let mut bytes = [0; 4];
    app.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
    app.write_all(b"pong").await.unwrap();
    tunnel.receivable().await.unwrap();
    assert_eq!(tunnel.receive_now(&mut bytes).unwrap(), 4);
    assert_eq!(&bytes, b"pong");
}

#[test]
fn many_that_ask_at_once_share_connections_of_a_hundred_streams() {
    run(async {
        let world = World::start().await;
        let pool = Rc::new(pool());
        let (target, to) = (world.target(), world.app.local_addr().unwrap().to_string());
        let mut asking = JoinSet::new();
        for _ in 0..230 {
            let (pool, target, to) = (Rc::clone(&pool), target.clone(), to.clone());
            asking.spawn_local(async move { pool.open(&target, &ask(&to)).await.unwrap() });
        }
        let mut apps = Vec::new();
        while apps.len() < 230 {
            apps.push(world.app.accept().await.unwrap().0);
        }
        let tunnels = asking.join_all().await;
        assert_eq!((tunnels.len(), pool.len()), (230, 3));
        // Room that was given back is used again.
        drop((tunnels, apps));
        world.ended().await;
        let mut one = world.tunnel(&pool).await;
        alive(&mut one).await;
        assert_eq!(pool.len(), 3);
    });
}

#[test]
fn who_gives_up_while_the_connection_is_made_leaves_it_to_the_others() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let to = world.app.local_addr().unwrap().to_string();
        tokio::select! {
            biased;
            _ = world.ask(&pool, &to) => panic!("a handshake takes more than one turn"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(pool.len(), 1);
        let mut tunnel = world.tunnel(&pool).await;
        alive(&mut tunnel).await;
        assert_eq!(pool.len(), 1);
    });
}

#[test]
fn a_new_identity_gets_a_new_connection_and_old_tunnels_live() {
    run(async {
        let world = World::start().await;
        let current = current();
        let pool = pool_with(Pace::default(), current.clone());
        let mut old = world.tunnel(&pool).await;
        current.set(Some(tls().renewed()));
        let mut new = world.tunnel(&pool).await;
        assert_eq!(pool.len(), 1);
        alive(&mut old).await;
        alive(&mut new).await;
    });
}

#[test]
fn a_server_that_drains_keeps_its_tunnels_and_new_ones_go_to_its_successor() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let mut old = world.tunnel(&pool).await;
        world.drain.send_replace(true);
        // As after an upgrade: the same queue, another server.
        let successor = World::start().await;
        tokio::task::spawn_local(Arc::clone(&successor.server).serve(world.listener.try_clone().unwrap()));
        // Those that are asked for before the client hears of it are served as well.
        let mut asked = Vec::new();
        while successor.telemetry.connections().is_empty() {
            asked.push(world.tunnel(&pool).await);
        }
        for tunnel in asked.iter_mut().chain([&mut old]) {
            alive(tunnel).await;
        }
        let new = asked.pop().unwrap();
        drop((asked, old));
        world.ended().await;
        assert_eq!(successor.telemetry.connections().len(), 1);
        drop(new);
        successor.ended().await;
    });
}

#[test]
fn who_waits_in_the_queue_of_a_server_that_begins_to_drain_is_told_so_and_not_reset() {
    run(async {
        let world = World::start().await;
        // The kernel answers for the server, which has no turn before the first await.
        let clients: Vec<_> = (0..8).map(|_| std::net::TcpStream::connect(world.at).unwrap()).collect();
        world.drain.send_replace(true);
        for client in clients {
            client.set_nonblocking(true).unwrap();
            let (_send, connection) = http2_on(TcpStream::from_std(client).unwrap()).await;
            // GOAWAY without an error, and then the end.
            connection.await.unwrap();
        }
        assert_eq!((world.closed("handshake_failed"), world.closed("bad_request")), (0, 0));
    });
}

#[test]
fn a_pool_with_many_connections_closes_one_that_is_unused_for_each_that_it_makes() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let to = world.app.local_addr().unwrap().to_string();
        let from = |last| Target { source: Some([127, 0, 0, last].into()), ..world.target() };
        let mut used = world.tunnel(&pool).await;
        for last in 2..20 {
            let (target, ask) = (from(last), ask(&to));
            let (tunnel, app) = tokio::join!(pool.open(&target, &ask), world.app.accept());
            drop((tunnel.unwrap(), app));
            assert!(pool.len() <= MOST, "{}", pool.len());
        }
        assert_eq!(pool.len(), MOST);
        alive(&mut used).await;
    });
}

#[test]
fn a_pool_that_drains_says_goodbye_with_its_last_tunnel() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let mut tunnel = world.tunnel(&pool).await;
        pool.drain();
        assert!(pool.is_empty());
        alive(&mut tunnel).await;
        drop(tunnel);
        world.ended().await;
        let mut next = world.tunnel(&pool).await;
        drop(pool);
        alive(&mut next).await;
    });
}

#[test]
fn an_idle_connection_closes_and_the_next_tunnel_gets_another() {
    run(async {
        let world = World::start().await;
        let pool = pool_with(Pace { idle: Duration::from_millis(100), ..Pace::default() }, current());
        let mut tunnel = world.tunnel(&pool).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        alive(&mut tunnel).await;
        drop(tunnel);
        while !pool.is_empty() {
            tokio::task::yield_now().await;
        }
        alive(&mut world.tunnel(&pool).await).await;
    });
}

/// A peer that shakes hands and answers one request; its connection, which nobody drives from then on.
async fn answer_once(listener: &TcpListener) -> h2::server::Connection<TlsStream<TcpStream>, bytes::Bytes> {
    let tcp = listener.accept().await.unwrap().0;
    let tls = TlsAcceptor::from(tls().server()).accept(tcp).await.unwrap();
    let mut http2 = h2::server::handshake(tls).await.unwrap();
    let (_request, mut respond) = http2.accept().await.unwrap().unwrap();
    let mut body = respond.send_response(http::Response::new(()), false).unwrap();
    body.send_data(bytes::Bytes::from_static(b"last words"), false).unwrap();
    let flushed = tokio::time::timeout(Duration::from_millis(30), http2.accept());
    assert!(flushed.await.is_err());
    std::mem::forget((_request, body));
    http2
}

/// Its tunnel fails after what it sent, and the pool forgets it.
async fn fails(tunnel: Tunnel, pool: &Pool) {
    let (received, ended) = receive_all(&tunnel).await;
    assert_eq!(received, b"last words");
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    tunnel.failed().await;
    while !pool.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_server_that_answers_no_ping_leaves_the_pool_and_its_tunnels_fail() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { address: listener.local_addr().unwrap(), source: None, identity: None };
        let (pool, ask) = (pool_with(quick(), current()), ask("127.0.0.1:80"));
        let (tunnel, _http2) = tokio::join!(pool.open(&target, &ask), answer_once(&listener));
        fails(tunnel.unwrap(), &pool).await;
    });
}

/// Without close_notify, and with it: neither is the end of a stream.
#[test]
fn a_connection_that_ends_is_never_a_clean_end_of_its_tunnels() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { address: listener.local_addr().unwrap(), source: None, identity: None };
        let (pool, ask) = (pool(), ask("127.0.0.1:80"));
        for notify in [false, true] {
            let (tunnel, mut http2) = tokio::join!(pool.open(&target, &ask), answer_once(&listener));
            if notify {
                http2.abrupt_shutdown(h2::Reason::NO_ERROR);
                let _ = std::future::poll_fn(|cx| http2.poll_closed(cx)).await;
            }
            drop(http2);
            fails(tunnel.unwrap(), &pool).await;
        }
    });
}

/// Takes one stream on each connection and refuses the others.
async fn one_at_a_time(listener: TcpListener) {
    loop {
        let tcp = listener.accept().await.unwrap().0;
        tokio::task::spawn_local(async move {
            let tls = TlsAcceptor::from(tls().server()).accept(tcp).await.unwrap();
            let mut http2 = h2::server::Builder::new().max_concurrent_streams(1).handshake(tls).await.unwrap();
            let mut open = Vec::new();
            while let Some(Ok((request, mut respond))) = http2.accept().await {
                let body: h2::SendStream<bytes::Bytes> = respond.send_response(http::Response::new(()), false).unwrap();
                open.push((request, body));
            }
        });
    }
}

#[test]
fn a_peer_that_takes_few_streams_gets_more_connections() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { address: listener.local_addr().unwrap(), source: None, identity: None };
        tokio::task::spawn_local(one_at_a_time(listener));
        let (pool, ask) = (pool(), ask("127.0.0.1:80"));
        let (a, b, c) = tokio::join!(pool.open(&target, &ask), pool.open(&target, &ask), pool.open(&target, &ask));
        let _open = [a.unwrap(), b.unwrap(), c.unwrap()];
        assert_eq!(pool.len(), 3);
        let _fourth = pool.open(&target, &ask).await.unwrap();
        assert_eq!(pool.len(), 4);
    });
}

#[test]
fn a_client_that_answers_no_ping_is_given_up() {
    run(async {
        let world = World::start_with(|config| config.pace = quick()).await;
        let (mut send, mut connection) = http2(&world).await;
        let to = world.app.local_addr().unwrap().to_string();
        let request = http::Request::connect(to).body(()).unwrap();
        let (response, _body) = send.send_request(request, false).unwrap();
        // The connection is driven only until the tunnel is open.
        let mut app = tokio::select! {
            _ = &mut connection => panic!("the connection ended"),
            (response, app) = async { tokio::join!(response, world.app.accept()) } => {
                assert_eq!(response.unwrap().status(), http::StatusCode::OK);
                app.unwrap().0
            }
        };
        assert_eq!(app.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        world.ended().await;
    });
}

#[test]
fn a_peer_that_is_not_there_is_told_to_all_that_wait() {
    run(async {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let target = Target { address: nobody, source: None, identity: None };
        let pool = pool();
        let ask = ask("127.0.0.1:80");
        let (one, two) = tokio::join!(pool.open(&target, &ask), pool.open(&target, &ask));
        for result in [one, two] {
            assert!(matches!(result, Err(OpenError::Connect(_))));
        }
        assert!(pool.is_empty());
    });
}
