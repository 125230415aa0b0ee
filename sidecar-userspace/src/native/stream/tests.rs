use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{MsgFlags, recv};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::UnbufferedClientConnection,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{UnbufferedServerConnection, WebPkiClientVerifier},
};
use socket2::SockRef;
use tokio::runtime::{Builder, LocalOptions};

use super::*;
use crate::{
    relay::relay,
    telemetry::{CloseReason, Traffic},
};

/// What both ends need to trust each other.
struct Pki {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Pki {
    fn new() -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        Self {
            roots: Arc::new(roots),
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }

    fn client(&self) -> UnbufferedClientConnection {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .unwrap();
        UnbufferedClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap()
    }

    fn server(&self) -> UnbufferedServerConnection {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&provider))
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .unwrap();
        UnbufferedServerConnection::new(Arc::new(config)).unwrap()
    }
}

/// Two connected sockets, prepared as the relay's are.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn watched(socket: TcpStream) -> Stream {
    socket.set_nonblocking(true).unwrap();
    let options = SockRef::from(&socket);
    options.set_out_of_band_inline(true).unwrap();
    options.set_linger(Some(Duration::ZERO)).unwrap();
    Stream::register(socket.into()).unwrap()
}

fn run<T>(story: impl AsyncFnOnce() -> T) -> T {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap().block_on(story())
}

/// A handshake of which nothing is left to send.
async fn handshake<R: Role>(stream: &TlsStream<R>) {
    stream.handshake().await.unwrap();
    while !stream.flush().unwrap() {
        stream.sendable().await.unwrap();
    }
}

/// A client and a server, joined by two relays with TLS between them. Returns how the relays ended.
fn through_tls<F: Future<Output = ()>>(meanwhile: impl FnOnce(TcpStream, TcpStream) -> F) -> [CloseReason; 2] {
    let pki = Pki::new();
    let ((client, down), (near, far), (up, server)) = (pair(), pair(), pair());
    run(async || {
        let (down, up) = (watched(down), watched(up));
        let near = TlsStream::new(watched(near), pki.client());
        let far = TlsStream::new(watched(far), pki.server());
        let traffic = [Traffic::default(), Traffic::default()];
        let (outbound, inbound, ()) = tokio::join!(
            async {
                handshake(&near).await;
                let reason = relay(&down, &near, &traffic[0], 64 * 1024).await;
                drop((down, near));
                reason
            },
            async {
                handshake(&far).await;
                let reason = relay(&far, &up, &traffic[1], 64 * 1024).await;
                drop((far, up));
                reason
            },
            meanwhile(client, server),
        );
        [outbound, inbound]
    })
}

async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Bytes of which no two stretches are alike.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn every_byte_arrives_both_ways_at_once_and_both_ends_finish() {
    const BYTES: usize = 20_000_000;
    let reasons = through_tls(|client, server| async {
        let both = [client, server].map(|end| {
            elsewhere(move || {
                let mut writer = end.try_clone().unwrap();
                let sender = std::thread::spawn(move || {
                    let bytes = noise(BYTES);
                    // Pieces of all sizes around those of records.
                    let mut sizes = [1, 100, 16_382, 16_383, 16_384, 16_385, 70_000, 200_000].iter().cycle();
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        let (piece, more) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                        writer.write_all(piece).unwrap();
                        rest = more;
                    }
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                let mut received = Vec::new();
                (&end).read_to_end(&mut received).unwrap();
                sender.join().unwrap();
                received
            })
        });
        let [there, back] = both;
        let (there, back) = tokio::join!(there, back);
        assert!(there == noise(BYTES) && back == noise(BYTES), "{} and {} bytes", there.len(), back.len());
    });
    assert_eq!(reasons, [CloseReason::Completed; 2]);
}

#[test]
fn a_half_closed_connection_still_answers() {
    let reasons = through_tls(|mut client, mut server| async {
        let serve = elsewhere(move || {
            let mut request = Vec::new();
            server.read_to_end(&mut request).unwrap();
            server.write_all(&request).unwrap();
        });
        let ask = elsewhere(move || {
            client.write_all(b"request").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "request");
        });
        tokio::join!(serve, ask);
    });
    assert_eq!(reasons, [CloseReason::Completed; 2]);
}

#[test]
fn a_reset_of_either_end_reaches_the_other() {
    for of_the_client in [true, false] {
        let reasons = through_tls(|client, server| async move {
            elsewhere(move || {
                let (mut gone, mut left) = if of_the_client { (client, server) } else { (server, client) };
                gone.write_all(b"last words").unwrap();
                let mut words = [0; 10];
                left.read_exact(&mut words).unwrap();
                SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
                drop(gone);
                assert_eq!(left.read(&mut words).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            })
            .await;
        });
        let reason = if of_the_client { CloseReason::DownstreamReset } else { CloseReason::UpstreamReset };
        assert_eq!(reasons, [reason; 2]);
    }
}

#[test]
fn urgent_bytes_stay_in_their_places() {
    through_tls(|mut client, mut server| async {
        elsewhere(move || {
            SockRef::from(&server).set_out_of_band_inline(true).unwrap();
            for urgent in [b'!', b'?'] {
                client.write_all(b"before").unwrap();
                let mut before = [0; 6];
                server.read_exact(&mut before).unwrap();
                SockRef::from(&client).send_out_of_band(&[urgent]).unwrap();
                client.write_all(b"after").unwrap();
                let mut mark = [0; 6];
                // A read never crosses the mark, so the urgent byte begins one.
                let first = server.read(&mut mark).unwrap();
                assert_eq!(mark[0], urgent);
                server.read_exact(&mut mark[first..]).unwrap();
                assert_eq!(&mark[1..], b"after");
            }
        })
        .await;
    });
}

#[test]
fn an_urgent_byte_is_urgent_at_the_other_end_and_not_among_the_others() {
    through_tls(|mut client, mut server| async {
        elsewhere(move || {
            for urgent in [b'!', b'?'] {
                client.write_all(b"before").unwrap();
                let mut text = [0; 6];
                server.read_exact(&mut text).unwrap();
                SockRef::from(&client).send_out_of_band(&[urgent]).unwrap();
                client.write_all(b"after").unwrap();
                // The first byte that is not urgent.
                assert_eq!((server.peek(&mut text[..1]).unwrap(), text[0]), (1, b'a'));
                let mut byte = [0];
                assert_eq!(recv(server.as_raw_fd(), &mut byte, MsgFlags::MSG_OOB), Ok(1));
                assert_eq!(byte, [urgent]);
                server.read_exact(&mut text[..5]).unwrap();
                assert_eq!(&text[..5], b"after");
            }
        })
        .await;
    });
}

#[test]
fn a_stream_that_is_cut_off_is_an_error_and_no_end() {
    let pki = Pki::new();
    let (near, far) = pair();
    run(async || {
        let far_socket = far.try_clone().unwrap();
        let near = TlsStream::new(watched(near), pki.client());
        let far = TlsStream::new(watched(far), pki.server());
        tokio::join!(handshake(&near), handshake(&far));
        assert_eq!(far.send(b"half a sto").unwrap(), 10);
        far_socket.shutdown(Shutdown::Write).unwrap();
        let mut buffer = [0; 100];
        let mut received = Vec::new();
        let error = loop {
            match near.receivable().await.unwrap().receive(&mut buffer, false) {
                Ok(Received::Bytes(bytes)) => received.extend_from_slice(&buffer[..bytes]),
                Ok(Received::Nothing) => {}
                other => break other.unwrap_err(),
            }
        };
        assert_eq!((received.as_slice(), error.kind()), (&b"half a sto"[..], io::ErrorKind::UnexpectedEof));
    });
}

#[test]
fn ciphertext_that_was_changed_on_its_way_is_an_error() {
    let pki = Pki::new();
    let ((near, mut outer), (mut inner, far)) = (pair(), pair());
    run(async || {
        let near = TlsStream::new(watched(near), pki.client());
        let far = TlsStream::new(watched(far), pki.server());
        let wire = elsewhere(move || {
            let mut back = (inner.try_clone().unwrap(), outer.try_clone().unwrap());
            let answers = std::thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
            let mut bytes = [0; 65536];
            let mut last = false;
            while !last {
                let count = outer.read(&mut bytes).unwrap();
                // The record after the handshake is of a length that nothing else has.
                last = count == 5000 + 22;
                if last {
                    bytes[2500] ^= 1;
                }
                inner.write_all(&bytes[..count]).unwrap();
            }
            drop((outer, inner));
            let _ = answers.join();
        });
        let exchange = async {
            tokio::join!(handshake(&near), handshake(&far));
            near.send(&[7; 5000]).unwrap();
            let mut buffer = [0; 8192];
            let error = loop {
                match far.receivable().await.unwrap().receive(&mut buffer, false) {
                    Ok(Received::Nothing) => {}
                    other => break other.unwrap_err(),
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            drop((near, far));
        };
        tokio::join!(wire, exchange);
    });
}

/// Ends of a handshake between two that were given these.
async fn ends(client: &Pki, server: &Pki) -> [Result<(), HandshakeError>; 2] {
    let (near, far) = pair();
    let near = TlsStream::new(watched(near), client.client());
    let far = TlsStream::new(watched(far), server.server());
    let begin = async {
        near.handshake().await?;
        Ok::<_, HandshakeError>(near.flush_all().await?)
    };
    let (ours, theirs) = tokio::join!(begin, async {
        let shaken = far.handshake().await;
        drop(far);
        shaken
    });
    let told = match ours {
        // The client learns of it with what it receives next.
        Ok(()) => {
            near.receivable().await.unwrap().receive(&mut [0; 100], false).map(drop).map_err(HandshakeError::from)
        }
        refused => refused,
    };
    [told, theirs]
}

#[test]
fn whoever_is_refused_is_told_and_nobody_panics() {
    let (one, other) = (Pki::new(), Pki::new());
    // The server does not believe the client, the client does.
    let naive = Pki { roots: Arc::clone(&one.roots), chain: other.chain.clone(), key: other.key.clone_key() };
    run(async || {
        let [told, refused] = ends(&naive, &one).await;
        assert!(matches!(refused, Err(HandshakeError::Tls(rustls::Error::InvalidCertificate(_)))), "{refused:?}");
        assert!(told.is_err(), "{told:?}");
        let [refused, told] = ends(&one, &other).await;
        assert!(matches!(refused, Err(HandshakeError::Tls(rustls::Error::InvalidCertificate(_)))), "{refused:?}");
        assert!(matches!(told, Err(HandshakeError::Tls(rustls::Error::AlertReceived(_)))), "{told:?}");
    });
}

/// What was on the wire before a record that is none is delivered, and what comes after it never is.
#[test]
fn a_foreign_record_ends_the_stream_without_a_hole() {
    let pki = Pki::new();
    let ((near, mut outer), (mut inner, far)) = (pair(), pair());
    run(async || {
        let near = TlsStream::new(watched(near), pki.client());
        let far = TlsStream::new(watched(far), pki.server());
        let wire = elsewhere(move || {
            let mut back = (inner.try_clone().unwrap(), outer.try_clone().unwrap());
            let answers = std::thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
            let mut bytes = [0; 65536];
            loop {
                // Both ends are dropped in the end, which resets them.
                let count = outer.read(&mut bytes).unwrap_or(0);
                if count == 0 {
                    break;
                }
                // Behind the first record of data comes one that nobody has encrypted, and with it the second record.
                if count > 9000 {
                    let first = 5 + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
                    let foreign = [&[23, 3, 3, 0, 30][..], &[7; 30]].concat();
                    inner.write_all(&[&bytes[..first], &foreign, &bytes[first..count]].concat()).unwrap();
                } else {
                    inner.write_all(&bytes[..count]).unwrap();
                }
            }
            drop((outer, inner));
            let _ = answers.join();
        });
        let exchange = async {
            tokio::join!(handshake(&near), handshake(&far));
            assert_eq!(near.send(&[1; 20_000]).unwrap(), 20_000);
            let mut received = Vec::new();
            let mut buffer = [0; 1000];
            let error = loop {
                match far.receivable().await.unwrap().receive(&mut buffer, false) {
                    Ok(Received::Bytes(bytes)) => received.extend_from_slice(&buffer[..bytes]),
                    Ok(Received::Nothing) => {}
                    other => break other.unwrap_err(),
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(received.len(), 16_383, "the first record and nothing else");
            assert_eq!(far.receive_now(&mut buffer).unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(far.send(b"late").unwrap_err().kind(), io::ErrorKind::InvalidData);
            drop((near, far));
        };
        tokio::join!(wire, exchange);
    });
}
