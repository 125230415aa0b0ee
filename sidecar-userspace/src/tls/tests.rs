//! Handshakes over real sockets.

mod bad;
mod rotation;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, Stream};

use super::*;
use crate::identity::mint::{Root, workload};

const WEB: &str = "spiffe://td/ns/shop/sa/web";
const DB: &str = "spiffe://td/ns/shop/sa/db";

fn contexts(identity: Identity) -> Contexts {
    Contexts::new(Arc::new(identity), &config::Mtls::default()).unwrap()
}

/// How a handshake ended on one side.
#[derive(Debug)]
struct Seen {
    peer: Result<SpiffeId, Failure>,
    resumed: bool,
    group: Option<rustls::NamedGroup>,
    suite: Option<rustls::CipherSuite>,
}

impl Seen {
    fn label(&self) -> &'static str {
        self.peer.as_ref().map_or_else(|failure| failure.label(), |_| "ok")
    }
}

fn seen(state: &CommonState, outcome: std::io::Result<()>, judge: &Contexts, alpn: Alpn) -> Seen {
    let peer = outcome.map_err(|error| Failure::from(&error)).and_then(|()| judge.admit(state, alpn));
    Seen {
        peer,
        resumed: state.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        group: state.negotiated_key_exchange_group().map(|group| group.name()),
        suite: state.negotiated_cipher_suite().map(|suite| suite.suite()),
    }
}

/// A handshake and a byte each way; what the client and the server saw. Each judges by its own contexts.
fn meet(client: (Arc<ClientConfig>, &Contexts), server: (Arc<ServerConfig>, &Contexts), alpn: Alpn) -> (Seen, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let (mut socket, _) = listener.accept().unwrap();
            let mut tls = ServerConnection::new(server.0).unwrap();
            let mut stream = Stream::new(&mut tls, &mut socket);
            let outcome = stream.read_exact(&mut [0]).and_then(|()| stream.write_all(b"s"));
            if outcome.is_err() {
                // The alert must arrive before the reset that unread bytes would cause.
                let _ = socket.shutdown(std::net::Shutdown::Write);
                let _ = socket.read_to_end(&mut Vec::new());
            }
            seen(&tls, outcome, server.1, alpn)
        });
        let mut socket = TcpStream::connect(address).unwrap();
        let mut tls = ClientConnection::new(client.0, server_name(address.ip())).unwrap();
        let mut stream = Stream::new(&mut tls, &mut socket);
        let outcome = stream.write_all(b"c").and_then(|()| stream.read_exact(&mut [0]));
        if outcome.is_err() {
            let _ = socket.shutdown(std::net::Shutdown::Write);
        }
        let client = seen(&tls, outcome, client.1, alpn);
        drop(socket);
        (client, serving.join().unwrap())
    })
}

fn meet_natively(client: &Contexts, server: &Contexts) -> (Seen, Seen) {
    let alpn = Alpn::Native;
    meet((client.client(alpn).unwrap(), client), (server.server(alpn).unwrap(), server), alpn)
}

#[test]
fn each_side_learns_who_the_other_is_and_only_tls_13_with_aes_is_spoken() {
    let root = Root::new("root");
    let (web, db) = (contexts(root.identity(WEB)), contexts(root.identity(DB)));
    for alpn in [Alpn::Native, Alpn::Hbone] {
        let (client, server) = meet((web.client(alpn).unwrap(), &web), (db.server(alpn).unwrap(), &db), alpn);
        assert_eq!(client.peer.unwrap().as_str(), DB);
        assert_eq!(server.peer.unwrap().as_str(), WEB);
        assert_eq!(server.suite, Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256));
        assert_eq!(server.group, Some(rustls::NamedGroup::X25519));
    }
}

#[test]
fn hybrid_key_exchange_is_used_where_both_sides_offer_it() {
    let root = Root::new("root");
    let hybrid = config::Mtls { post_quantum: true, ..config::Mtls::default() };
    let hybrid = Contexts::new(Arc::new(root.identity(WEB)), &hybrid).unwrap();
    let classic = contexts(root.identity(DB));
    let (client, _) = meet_natively(&hybrid, &hybrid);
    assert_eq!(client.group, Some(rustls::NamedGroup::X25519MLKEM768));
    for (client, server) in [(&hybrid, &classic), (&classic, &hybrid)] {
        assert_eq!(meet_natively(client, server).0.group, Some(rustls::NamedGroup::X25519));
    }
}

#[test]
fn native_sessions_are_resumed_within_one_contexts_and_never_across_two_and_hbone_never() {
    let root = Root::new("root");
    let (web, db) = (contexts(root.identity(WEB)), contexts(root.identity(DB)));
    assert!(!meet_natively(&web, &db).0.resumed);
    let (client, server) = meet_natively(&web, &db);
    assert!(client.resumed && server.resumed);
    assert_eq!((client.peer.unwrap().as_str(), server.peer.unwrap().as_str()), (DB, WEB));
    let rotated = contexts(root.identity(DB));
    assert!(!meet_natively(&web, &rotated).0.resumed, "the server has rotated");
    assert!(!meet_natively(&contexts(root.identity(WEB)), &db).0.resumed, "the client has rotated");
    for _ in 0..2 {
        let alpn = Alpn::Hbone;
        let (client, _) = meet((web.client(alpn).unwrap(), &web), (db.server(alpn).unwrap(), &db), alpn);
        assert!(!client.resumed && client.peer.is_ok());
    }
}

#[test]
fn a_peer_that_speaks_another_protocol_or_names_none_is_refused() {
    let root = Root::new("root");
    let (web, db) = (contexts(root.identity(WEB)), contexts(root.identity(DB)));
    let (client, server) =
        meet((web.client(Alpn::Hbone).unwrap(), &web), (db.server(Alpn::Native).unwrap(), &db), Alpn::Native);
    assert_eq!((client.label(), server.label()), ("alpn", "alpn"));
    let mut silent = (*web.client(Alpn::Native).unwrap()).clone();
    silent.alpn_protocols.clear();
    let (_, server) = meet((Arc::new(silent), &web), (db.server(Alpn::Native).unwrap(), &db), Alpn::Native);
    assert_eq!(server.label(), "alpn");
}

#[test]
fn plaintext_is_told_from_broken_tls() {
    let db = contexts(Root::new("root").identity(DB));
    for (bytes, label) in [
        (b"GET / HTTP/1.1\r\n\r\n".as_slice(), "plaintext"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff", "protocol"),
        (b"", "closed"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(bytes).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        let mut tls = ServerConnection::new(db.server(Alpn::Native).unwrap()).unwrap();
        let error = tls.complete_io(&mut socket).unwrap_err();
        assert_eq!(Failure::from(&error).label(), label, "{bytes:?}: {error}");
    }
}

#[test]
fn an_expired_certificate_of_our_own_is_a_reason_of_its_own() {
    let root = Root::new("root");
    let hours_ago = |hours: u64| SystemTime::now() - Duration::from_secs(3600 * hours);
    let mut params = workload(WEB);
    (params.not_before, params.not_after) = (hours_ago(3).into(), hours_ago(1).into());
    let minted = root.mint(&params);
    assert_eq!(peer_id(&minted.chain), Err(Failure::Certificate(Problem::Expired)), "a session may outlive it");
    assert_eq!(peer_id(&[]), Err(Failure::NoCertificate));
    let mut parts = root.parts(WEB);
    (parts.chain, parts.key) = (minted.chain, minted.key);
    let expired = contexts(Identity::verify(parts, hours_ago(2)).unwrap());
    for alpn in [Alpn::Native, Alpn::Hbone] {
        assert_eq!(expired.client(alpn).err(), Some(Failure::OwnExpired));
        assert_eq!(expired.server(alpn).err(), Some(Failure::OwnExpired));
    }
}

#[test]
fn connections_without_buffers_are_admitted_by_the_same_rules() {
    let contexts = contexts(Root::new("root").identity(WEB));
    let config = contexts.client(Alpn::Native).unwrap();
    let address = IpAddr::from([127, 0, 0, 1]);
    let fresh = rustls::client::UnbufferedClientConnection::new(config, server_name(address)).unwrap();
    assert_eq!(contexts.admit(&fresh, Alpn::Native), Err(Failure::Alpn), "nothing was said yet");
}
