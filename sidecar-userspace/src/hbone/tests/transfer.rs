use std::{io, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::world::{CLIENT, World, ask, numbered, pool, receive_all, run, send_all};
use crate::{
    hbone::Target,
    net::{Side as _, Stream},
    relay::relay,
    telemetry::{CloseReason, Traffic},
};

#[test]
fn every_byte_arrives_both_ways_and_both_ends_finish() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let (tunnel, mut app) = world.tunnel(&pool).await;
        let rows = world.telemetry.connections().snapshot();
        assert_eq!((rows.len(), rows[0].client), (1, CLIENT.parse().unwrap()));
        assert_eq!(rows[0].original_destination, Some(world.app.local_addr().unwrap()));
        let all = numbered(1 << 20);
        let ((), ()) = tokio::join!(
            async {
                let (received, ()) = tokio::join!(receive_all(&tunnel), async {
                    send_all(&tunnel, &all).await.unwrap();
                    assert!(tunnel.finish_sending().unwrap());
                });
                received.1.unwrap();
                assert!(received.0 == all, "{} bytes", received.0.len());
                tunnel.end_cleanly();
            },
            async {
                let (mut reader, mut writer) = app.split();
                let mut received = Vec::new();
                let (read, written) = tokio::join!(reader.read_to_end(&mut received), async {
                    writer.write_all(&all).await?;
                    writer.shutdown().await
                });
                read.and(written.map(|()| 0)).unwrap();
                assert!(received == all, "{} bytes", received.len());
            }
        );
        drop(tunnel);
        world.ended().await;
        assert_eq!(world.closed("completed"), 1);
    });
}

/// The whole way: application, relay, tunnel, server, relay, application.
#[test]
fn a_relay_through_a_tunnel_passes_both_ends_on() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let (tunnel, mut server) = world.tunnel(&pool).await;
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(front.local_addr().unwrap()).await.unwrap();
        let down = Stream::register(front.accept().await.unwrap().0.into_std().unwrap().into()).unwrap();
        let traffic = Traffic::default();
        let (reason, ()) = tokio::join!(relay(&down, &tunnel, &traffic, 64 * 1024), async {
            client.write_all(b"request").await.unwrap();
            client.shutdown().await.unwrap();
            let mut request = Vec::new();
            server.read_to_end(&mut request).await.unwrap();
            assert_eq!(request, b"request");
            // The other direction goes on after the half-close.
            let answer = numbered(300_000);
            let mut received = Vec::new();
            let (read, written) = tokio::join!(client.read_to_end(&mut received), async {
                server.write_all(&answer).await?;
                server.shutdown().await
            });
            read.and(written.map(|()| 0)).unwrap();
            assert!(received == answer);
        });
        assert_eq!((reason, traffic.totals()), (CloseReason::Completed, (7, 2_400_000)));
    });
}

#[test]
fn ipv6_leads_to_ipv6() {
    run(async {
        let world = World::start().await;
        let app = TcpListener::bind("[::1]:0").await.unwrap();
        let at = (std::net::Ipv6Addr::LOCALHOST, world.at.port()).into();
        let target = Target { address: at, ..world.target() };
        let to = app.local_addr().unwrap().to_string();
        let (pool, ask) = (pool(), ask(&to));
        let (tunnel, accepted) = tokio::join!(pool.open(&target, &ask), app.accept());
        send_all(&tunnel.unwrap(), b"hello").await.unwrap();
        let mut hello = [0; 5];
        accepted.unwrap().0.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
    });
}

/// A worker that ends drops its tunnels wherever they are, also with bytes on their way.
#[test]
fn a_runtime_that_ends_takes_its_tunnels_along() {
    run(async {
        let world = World::start().await;
        let (tunnel, _app) = world.tunnel(&pool()).await;
        let (sent, is_sent) = tokio::sync::oneshot::channel();
        tokio::task::spawn_local(async move {
            assert_eq!(tunnel.send(&[1; 65536]).unwrap(), 65536);
            sent.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(tunnel);
        });
        is_sent.await.unwrap();
    });
}

#[test]
fn the_server_may_finish_first() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let (tunnel, mut app) = world.tunnel(&pool).await;
        app.write_all(b"bye").await.unwrap();
        app.shutdown().await.unwrap();
        let (received, ended) = receive_all(&tunnel).await;
        ended.unwrap();
        assert_eq!(received, b"bye");
        send_all(&tunnel, b"still here").await.unwrap();
        tunnel.finish_sending().unwrap();
        let mut rest = Vec::new();
        app.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"still here");
    });
}

#[test]
fn a_client_that_resets_has_the_application_reset() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        for finished in [false, true] {
            let (tunnel, mut app) = world.tunnel(&pool).await;
            send_all(&tunnel, b"last words").await.unwrap();
            if finished {
                tunnel.finish_sending().unwrap();
            }
            drop(tunnel);
            let mut words = Vec::new();
            let error = loop {
                match app.read_buf(&mut words).await {
                    // The end was passed on before the reset, which only writing shows now.
                    Ok(0) => match app.write_all(b"?").await {
                        Ok(()) => tokio::task::yield_now().await,
                        Err(error) => break error,
                    },
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
            assert!(kinds.contains(&error.kind()), "{error}");
            assert_eq!(words, b"last words");
        }
        world.ended().await;
        assert_eq!(world.closed("downstream_reset"), 2);
    });
}

#[test]
fn an_application_that_resets_has_the_client_reset_after_its_last_words() {
    run(async {
        let world = World::start().await;
        let pool = pool();
        let (tunnel, mut app) = world.tunnel(&pool).await;
        app.write_all(b"last words").await.unwrap();
        SockRef::from(&app).set_linger(Some(Duration::ZERO)).unwrap();
        drop(app);
        let (received, ended) = receive_all(&tunnel).await;
        assert_eq!(received, b"last words");
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        tunnel.failed().await;
        assert!(tunnel.send(b"x").is_err() || tunnel.sendable().await.is_ok() && tunnel.send(b"x").is_err());
        world.ended().await;
        assert_eq!(world.closed("upstream_reset"), 1);
    });
}

/// More than any window: what waits is bounded, the connection's other streams go on, and every byte arrives at last.
#[test]
fn a_reader_that_stops_stops_its_sender_and_nobody_else() {
    const TOTAL: usize = 48 << 20;
    run(async {
        let world = World::start().await;
        let pool = pool();
        let (slow, mut app) = world.tunnel(&pool).await;
        SockRef::from(&app).set_recv_buffer_size(64 * 1024).unwrap();
        let all = numbered(TOTAL as u64 / 8);
        let mut sent = 0;
        while let Ok(room) = tokio::time::timeout(Duration::from_millis(500), slow.sendable_for(&all[sent..])).await {
            sent += room;
        }
        // The stream's window, the buffers of both relays and both kernels' sockets.
        assert!((4 << 20..16 << 20).contains(&sent), "{sent} bytes were taken");

        let (other, mut other_app) = world.tunnel(&pool).await;
        assert_eq!(pool.len(), 1);
        send_all(&other, b"hello").await.unwrap();
        let mut hello = [0; 5];
        other_app.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");

        let mut received = Vec::with_capacity(TOTAL);
        let (read, ()) = tokio::join!(app.read_to_end(&mut received), async {
            send_all(&slow, &all[sent..]).await.unwrap();
            slow.finish_sending().unwrap();
        });
        read.unwrap();
        assert!(received == all, "{} bytes", received.len());
    });
}

impl crate::hbone::Tunnel {
    /// Sends some of it, when there is room.
    async fn sendable_for(&self, bytes: &[u8]) -> usize {
        loop {
            match self.send(bytes).unwrap() {
                0 => self.sendable().await.unwrap(),
                sent => return sent,
            }
        }
    }
}
