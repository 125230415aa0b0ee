use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};

use super::*;

/// What rustls says first when it offers these protocols.
fn hello(protocols: &[&[u8]]) -> Vec<u8> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let mut client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same message in records of at most `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    hello[RECORD_HEADER..].chunks(size).flat_map(record).collect()
}

#[test]
fn hellos_are_told_apart_by_their_protocols_however_they_are_cut() {
    let cases: [(&[&[u8]], Opening); 5] = [
        (&[NATIVE_ALPN], Opening::Native),
        (&[b"h2", NATIVE_ALPN, b"http/1.1"], Opening::Native),
        (&[b"h2", b"http/1.1"], Opening::OtherTls),
        (&[b"sidecar/2"], Opening::OtherTls),
        (&[], Opening::OtherTls),
    ];
    for (protocols, expected) in cases {
        let hello = hello(protocols);
        for size in [1, 2, 3, 50, hello.len()] {
            let records = in_records(&hello, size);
            assert_eq!(opening(&records), expected, "{protocols:?} in records of {size}");
            for end in 0..records.len() {
                assert_eq!(opening(&records[..end]), Opening::Unclear, "{protocols:?}: {end} bytes");
            }
            assert_eq!(opening(&[&records[..], b"more"].concat()), expected);
        }
    }
}

#[test]
fn what_is_no_hello_is_plaintext_at_the_first_byte_that_tells() {
    for bytes in [
        &b"G"[..],
        b"\x00",
        b"\x16G",
        b"\x16\x02",
        b"\x16\x03\x05",
        b"\x16\x03\x01\xff",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x05\x02",
        b"\x16\x03\x01\x00\x05\x01\x02",
        b"\x80",
        // The rest of a hello must come in handshake records.
        b"\x16\x03\x01\x00\x01\x01\x17",
    ] {
        assert_eq!(opening(bytes), Opening::Plaintext, "{bytes:?}");
        assert_eq!(opening(&bytes[..bytes.len() - 1]), Opening::Unclear, "{bytes:?}");
    }
}

#[test]
fn a_hello_without_end_is_the_applications_business() {
    let record = [&[22, 3, 1, 0x40, 0][..], &[1, 1, 0xff, 0xff], &[0; 0x4000 - 4]].concat();
    assert_eq!(opening(&record[..LONGEST_HELLO - 1]), Opening::Unclear);
    assert_eq!(opening(&record), Opening::OtherTls);
}

proptest! {
    #[test]
    fn any_bytes_have_an_opening_and_more_bytes_never_make_it_unclear(mut bytes: Vec<u8>, hello: bool, end in 0_usize..64) {
        if hello {
            bytes.splice(0..0, [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]);
        }
        let all = opening(&bytes);
        let some = opening(&bytes[..end.min(bytes.len())]);
        prop_assert!(some == all || some == Opening::Unclear, "{some:?} {all:?}");
    }
}
