//! Where a tunnel leads: `:authority` of a CONNECT request (RFC 9113 §8.5), which always names a port.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use thiserror::Error;

use crate::addr::canonical;

/// The destination that a CONNECT request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// On which host.
    pub host: Host<'a>,
    /// On which port; not zero.
    pub port: u16,
}

/// The host of an [`Authority`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host<'a> {
    /// Its address, IPv4-mapped IPv6 written as IPv4.
    Address(IpAddr),
    /// Its name, as it was written.
    Name(&'a str),
}

/// Why a text names no destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthorityError {
    /// A port is not optional in CONNECT.
    #[error("no port: a CONNECT request names `host:port`")]
    NoPort,
    /// Not 1 to 65535 in plain digits.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// IPv6 without brackets, with a zone, or not an address.
    #[error("not an IPv6 address in brackets, without a zone")]
    Ipv6,
    /// Neither an IPv4 address nor a name (RFC 1123 §2.1). `127.1` and `0x7f000001`, which some resolvers take for
    /// addresses, are neither.
    #[error("neither an IPv4 address nor a host name")]
    Host,
}

impl<'a> Authority<'a> {
    /// Reads `ip:port`, `[ip]:port` or `name:port`.
    ///
    /// # Errors
    /// It is none of them.
    pub fn parse(text: &'a str) -> Result<Self, AuthorityError> {
        if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or(AuthorityError::Ipv6)?;
            let address: std::net::Ipv6Addr = address.parse().map_err(|_| AuthorityError::Ipv6)?;
            let port = parse_port(port.strip_prefix(':').ok_or(AuthorityError::NoPort)?)?;
            return Ok(Self { host: Host::Address(IpAddr::V6(address).to_canonical()), port });
        }
        let (host, port) = text.rsplit_once(':').ok_or(AuthorityError::NoPort)?;
        if host.contains(':') {
            return Err(AuthorityError::Ipv6);
        }
        let port = parse_port(port)?;
        let host = match host.parse::<Ipv4Addr>() {
            Ok(address) => Host::Address(address.into()),
            Err(_) if is_name(host) => Host::Name(host),
            Err(_) => return Err(AuthorityError::Host),
        };
        Ok(Self { host, port })
    }
}

impl From<SocketAddr> for Authority<'_> {
    fn from(address: SocketAddr) -> Self {
        let address = canonical(address);
        Self { host: Host::Address(address.ip()), port: address.port() }
    }
}

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Host::Address(address) => SocketAddr::new(address, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Digits only: `u16::from_str` would also take a plus sign.
pub(super) fn parse_port(text: &str) -> Result<u16, AuthorityError> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = if digits { text.parse().unwrap_or(0) } else { 0 };
    if port == 0 { Err(AuthorityError::Port) } else { Ok(port) }
}

/// RFC 1123 §2.1 and RFC 3696 §2: labels of letters, digits and inner dashes; the last one is no number.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(label) && !last.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn destinations_are_read_and_written_alike() {
        for (text, host, port) in [
            ("10.0.0.1:80", Host::Address([10, 0, 0, 1].into()), 80),
            ("[2001:db8::1]:8080", Host::Address("2001:db8::1".parse().unwrap()), 8080),
            ("shop.default.svc.cluster.local:65535", Host::Name("shop.default.svc.cluster.local"), 65535),
            ("a-1:1", Host::Name("a-1"), 1),
        ] {
            let authority = Authority::parse(text).unwrap();
            assert_eq!((authority.host, authority.port), (host, port), "{text}");
            assert_eq!(authority.to_string(), text);
        }
        let mapped = Authority::parse("[::ffff:10.0.0.1]:80").unwrap();
        assert_eq!(mapped, Authority::parse("10.0.0.1:80").unwrap());
    }

    #[test]
    fn what_names_no_destination_is_refused_with_its_reason() {
        for (text, error) in [
            ("", AuthorityError::NoPort),
            ("10.0.0.1", AuthorityError::NoPort),
            ("[::1]", AuthorityError::NoPort),
            ("[::1]80", AuthorityError::NoPort),
            ("10.0.0.1:", AuthorityError::Port),
            ("10.0.0.1:0", AuthorityError::Port),
            ("10.0.0.1:+80", AuthorityError::Port),
            ("10.0.0.1:080000", AuthorityError::Port),
            ("10.0.0.1:65536", AuthorityError::Port),
            ("10.0.0.1: 80", AuthorityError::Port),
            ("::1:80", AuthorityError::Ipv6),
            ("[::1:80", AuthorityError::Ipv6),
            ("[fe80::1%eth0]:80", AuthorityError::Ipv6),
            ("[10.0.0.1]:80", AuthorityError::Ipv6),
            (":80", AuthorityError::Host),
            ("010.0.0.1:80", AuthorityError::Host),
            ("127.1:80", AuthorityError::Host),
            ("2130706433:80", AuthorityError::Host),
            ("0x7f000001:80", AuthorityError::Host),
            ("user@host:80", AuthorityError::Host),
            ("host.:80", AuthorityError::Host),
            ("-host:80", AuthorityError::Host),
            ("ho st:80", AuthorityError::Host),
            ("höst:80", AuthorityError::Host),
        ] {
            assert_eq!(Authority::parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_read_is_written_to_the_same(text in "\\PC{0,40}|[0-9a-f.:\\[\\]]{0,40}") {
            if let Ok(authority) = Authority::parse(&text) {
                let written = authority.to_string();
                prop_assert_eq!(Authority::parse(&written), Ok(authority));
            }
        }
    }
}
