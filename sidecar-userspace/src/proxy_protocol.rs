//! PROXY protocol version 2 (haproxy.org/download/2.9/doc/proxy-protocol.txt, §2.2): a header that tells who connected to
//! what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// What every header begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
/// TCP over IPv4.
const TCP4: u8 = 0x11;
/// TCP over IPv6.
const TCP6: u8 = 0x21;
/// Signature, version and command, family, length.
const FIXED: usize = 16;

/// Type of the value that holds the client's SPIFFE ID, as ztunnel writes it (custom types: 0xE0 and above, and Istio's
/// 0xD0).
pub const TLV_SOURCE_IDENTITY: u8 = 0xD0;

/// Most bytes after the fixed part that are taken: addresses, a SPIFFE ID of the greatest length, and as much again.
const LONGEST: usize = 4096;

/// A header: who connected to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The client.
    pub source: SocketAddr,
    /// What it connected to.
    pub destination: SocketAddr,
    /// Further values, by type.
    pub values: Vec<(u8, Vec<u8>)>,
}

/// Why bytes are no header of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// They begin otherwise.
    #[error("not a PROXY protocol v2 header")]
    Signature,
    /// Another version, or a connection of the proxy itself (LOCAL).
    #[error("PROXY protocol version or command {0:#04x} is not supported")]
    Command(u8),
    /// Neither TCP over IPv4 nor over IPv6.
    #[error("PROXY protocol address family {0:#04x} is not supported")]
    Family(u8),
    /// The length does not hold what it should, or holds too much.
    #[error("a PROXY protocol header of {0} bytes")]
    Length(usize),
    /// A value ends outside of the header.
    #[error("a PROXY protocol value ends outside of its header")]
    Value,
}

impl Header {
    /// The header as bytes. Both addresses are written as IPv6 unless both are IPv4. Values that do not fit into a header
    /// are left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.push(PROXY);
        let (source, destination) = (self.source.ip().to_canonical(), self.destination.ip().to_canonical());
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes.extend([TCP4, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            _ => {
                bytes.extend([TCP6, 0, 0]);
                bytes.extend(v6(source).octets());
                bytes.extend(v6(destination).octets());
            }
        }
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        for (kind, value) in &self.values {
            let Ok(length) = u16::try_from(value.len()) else { continue };
            if bytes.len() + 3 + value.len() > FIXED + LONGEST {
                continue;
            }
            bytes.push(*kind);
            bytes.extend(length.to_be_bytes());
            bytes.extend(value);
        }
        let length = (bytes.len() - FIXED) as u16;
        bytes[FIXED - 2..FIXED].copy_from_slice(&length.to_be_bytes());
        bytes
    }

    /// The header at the beginning of `bytes` and its length; `None`: more bytes are needed.
    ///
    /// # Errors
    /// There is none that is supported.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HeaderError> {
        let begins = bytes.len().min(SIGNATURE.len());
        if bytes[..begins] != SIGNATURE[..begins] {
            return Err(HeaderError::Signature);
        }
        let Some(fixed) = bytes.first_chunk::<FIXED>() else { return Ok(None) };
        if fixed[12] != PROXY {
            return Err(HeaderError::Command(fixed[12]));
        }
        let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
        let address = match fixed[13] {
            TCP4 => 4,
            TCP6 => 16,
            family => return Err(HeaderError::Family(family)),
        };
        if !(2 * address + 4..=LONGEST).contains(&length) {
            return Err(HeaderError::Length(length));
        }
        let Some(rest) = bytes.get(FIXED..FIXED + length) else { return Ok(None) };
        let (addresses, rest) = rest.split_at(2 * address);
        let (ports, values) = rest.split_at(4);
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        let header = Self {
            source: SocketAddr::new(ip(&addresses[..address]), port(0)),
            destination: SocketAddr::new(ip(&addresses[address..]), port(2)),
            values: parse_values(values)?,
        };
        Ok(Some((header, FIXED + length)))
    }
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn ip(octets: &[u8]) -> IpAddr {
    match (<[u8; 4]>::try_from(octets), <[u8; 16]>::try_from(octets)) {
        (Ok(v4), _) => Ipv4Addr::from(v4).into(),
        (_, Ok(v6)) => IpAddr::from(v6).to_canonical(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn parse_values(mut bytes: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, HeaderError> {
    let mut values = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        let (length, rest) = rest.split_first_chunk::<2>().ok_or(HeaderError::Value)?;
        let (value, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(HeaderError::Value)?;
        values.push((*kind, value.to_vec()));
        bytes = rest;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(source: &str, destination: &str) -> Header {
        Header { source: source.parse().unwrap(), destination: destination.parse().unwrap(), values: Vec::new() }
    }

    #[test]
    fn a_header_is_what_the_specification_says_byte_for_byte() {
        let mut v4 = header("192.0.2.1:4660", "198.51.100.2:80");
        v4.values.push((TLV_SOURCE_IDENTITY, b"spiffe://a/b".to_vec()));
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1b".to_vec();
        expected.extend([192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0, 80, 0xD0, 0, 12]);
        expected.extend(b"spiffe://a/b");
        assert_eq!(v4.encode(), expected);
        let v6 = header("[2001:db8::1]:1", "[2001:db8::2]:2").encode();
        assert_eq!((v6[13], v6[14..16].to_vec(), v6.len()), (0x21, vec![0, 36], 52));
    }

    #[test]
    fn a_header_in_pieces_needs_more_until_it_is_whole() {
        let whole = header("192.0.2.1:1", "[2001:db8::2]:2").encode();
        for end in 0..whole.len() {
            assert_eq!(Header::parse(&whole[..end]), Ok(None), "{end}");
        }
        let (parsed, length) = Header::parse(&[&whole[..], b"data"].concat()).unwrap().unwrap();
        assert_eq!((parsed.source, length), ("192.0.2.1:1".parse().unwrap(), whole.len()));
    }

    #[test]
    fn what_is_no_header_of_ours_is_refused_with_its_reason() {
        let good = header("192.0.2.1:1", "192.0.2.2:2").encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Header::parse(&bytes)
        };
        assert_eq!(with(0, b'G'), Err(HeaderError::Signature));
        assert_eq!(with(12, 0x20), Err(HeaderError::Command(0x20)));
        assert_eq!(with(12, 0x11), Err(HeaderError::Command(0x11)));
        assert_eq!(with(13, 0x12), Err(HeaderError::Family(0x12)));
        assert_eq!(with(15, 11), Err(HeaderError::Length(11)));
        assert_eq!(with(14, 0xff), Err(HeaderError::Length(0xff0c)));
        let mut open = header("192.0.2.1:1", "192.0.2.2:2");
        open.values.push((1, vec![0; 4]));
        let mut open = open.encode();
        open[FIXED + 12 + 2] = 5;
        assert_eq!(Header::parse(&open), Err(HeaderError::Value));
        assert_eq!(Header::parse(b"GET / HTTP/1.1"), Err(HeaderError::Signature));
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_again(
            source: SocketAddr, destination: SocketAddr, values: Vec<(u8, Vec<u8>)>, more: Vec<u8>
        ) {
            let clean = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
            let header = Header { source: clean(source), destination: clean(destination), values };
            prop_assume!(header.values.iter().map(|(_, value)| value.len() + 3).sum::<usize>() < LONGEST - 36);
            let mut bytes = header.encode();
            let length = bytes.len();
            bytes.extend(more);
            prop_assert_eq!(Header::parse(&bytes), Ok(Some((header, length))));
        }

        #[test]
        fn any_bytes_are_taken_or_refused(mut bytes: Vec<u8>, signed: bool) {
            if signed {
                bytes.splice(0..0, SIGNATURE);
            }
            let _ = Header::parse(&bytes);
        }
    }
}
