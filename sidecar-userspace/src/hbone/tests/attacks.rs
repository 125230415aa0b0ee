//! Frames that no honest peer sends, written by hand.

use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::world::{World, pool, run, tls};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// RFC 9113 §7
const ENHANCE_YOUR_CALM: u32 = 11;

/// A connection after the preface and our SETTINGS.
struct Attacker(TlsStream<TcpStream>);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// CONNECT to `authority`, HPACK literals with indexed names (RFC 7541 §6.2.2).
fn connect(authority: &str) -> Vec<u8> {
    let mut block = b"\x02\x07CONNECT\x01".to_vec();
    block.push(authority.len() as u8);
    block.extend(authority.as_bytes());
    block
}

impl Attacker {
    async fn new(world: &World) -> Self {
        let tcp = TcpStream::connect(world.at).await.unwrap();
        let name = ServerName::IpAddress(world.at.ip().into());
        let mut tls = TlsConnector::from(tls().client()).connect(name, tcp).await.unwrap();
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        tls.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self(tls)
    }

    /// Writes until the server has had enough; the reason of its GOAWAY. Reads beside, as a client would.
    async fn flood(self, mut frames: impl FnMut() -> Vec<u8>) -> Option<u32> {
        let (mut reader, mut writer) = tokio::io::split(self.0);
        let write = async {
            while writer.write_all(&frames()).await.is_ok() {
                tokio::task::yield_now().await;
            }
            std::future::pending().await
        };
        let read = async {
            loop {
                let mut head = [0; 9];
                reader.read_exact(&mut head).await.ok()?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let mut payload = vec![0; length];
                reader.read_exact(&mut payload).await.ok()?;
                if head[3] == GOAWAY {
                    let reason = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                    if reason != 0 {
                        return Some(reason);
                    }
                }
            }
        };
        tokio::select! {
            () = write => None,
            reason = read => reason,
        }
    }
}

/// The server serves others after the attack, and keeps nothing of it.
async fn unharmed(world: &World) {
    world.ended().await;
    drop(world.tunnel(&pool()).await);
}

#[test]
fn streams_that_are_opened_and_reset_end_the_connection() {
    run(async {
        let world = World::start().await;
        let authority = world.app.local_addr().unwrap().to_string();
        let mut stream = 1;
        let attack = Attacker::new(&world).await.flood(|| {
            let mut frames = Vec::new();
            for _ in 0..100 {
                frames.extend(frame(HEADERS, END_HEADERS, stream, &connect(&authority)));
                frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                stream += 2;
            }
            frames
        });
        assert_eq!(attack.await, Some(ENHANCE_YOUR_CALM));
        assert!(stream < 20_000, "after {} streams", stream / 2);
        unharmed(&world).await;
    });
}

#[test]
fn headers_without_end_end_the_connection() {
    run(async {
        let world = World::start().await;
        let mut first = true;
        let mut sent = 0;
        let attack = Attacker::new(&world).await.flood(|| {
            // A literal that is never indexed: x: 1 KiB.
            let mut block = b"\x10\x01x\x7f\x81\x07".to_vec();
            block.extend([b'a'; 1024]);
            sent += block.len();
            let kind = if std::mem::take(&mut first) { HEADERS } else { CONTINUATION };
            frame(kind, 0, 1, &block)
        });
        // Whether the reason arrives depends on what was under way when the connection was closed.
        let reason = attack.await;
        assert!(reason.is_none_or(|reason| reason == ENHANCE_YOUR_CALM), "{reason:?}");
        assert!(sent < 8 << 20, "{sent} bytes were taken");
        unharmed(&world).await;
    });
}

/// Each SETTINGS and PING needs an answer: a peer that does not read them must not have us keep them.
#[test]
fn settings_and_pings_whose_answers_nobody_reads_are_bounded() {
    for kind in [SETTINGS, PING] {
        run(async {
            let world = World::start_with(|config| {
                config.pace.ping_every = Duration::from_millis(100);
                config.pace.ping_timeout = Duration::from_millis(500);
            })
            .await;
            let mut attacker = Attacker::new(&world).await;
            let payload = if kind == PING { vec![0; 8] } else { Vec::new() };
            let frames = frame(kind, 0, 0, &payload).repeat(1000);
            let mut sent = 0_usize;
            // Ends when the server has closed the connection.
            while attacker.0.write_all(&frames).await.is_ok() {
                sent += frames.len();
            }
            assert!(sent < 64 << 20, "{sent} bytes were taken");
            unharmed(&world).await;
        });
    }
}

#[test]
fn garbage_instead_of_http2_ends_the_connection() {
    run(async {
        let world = World::start().await;
        for bytes in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], &[0xff; 4096]] {
            let tcp = TcpStream::connect(world.at).await.unwrap();
            let name = ServerName::IpAddress(world.at.ip().into());
            let mut tls = TlsConnector::from(tls().client()).connect(name, tcp).await.unwrap();
            tls.write_all(bytes).await.unwrap();
            let _ = tls.read_to_end(&mut Vec::new()).await;
            world.ended().await;
        }
        assert_eq!(world.closed("bad_request"), 2);
        unharmed(&world).await;
    });
}
