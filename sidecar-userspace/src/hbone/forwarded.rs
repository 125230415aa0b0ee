//! Who opened the connection that a tunnel carries: the header `forwarded` (RFC 7239).

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::authority::parse_port;
use crate::addr::{ClientAddr, canonical};

/// The value of a `forwarded` header that names a client, as ztunnel writes it.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    /// Who opened the connection.
    pub client: ClientAddr,
    /// The service that it asked for.
    pub host: Option<&'a str>,
}

impl fmt::Display for Forwarded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", canonical(self.client.0))?;
        self.host.map_or(Ok(()), |host| write!(f, ";host={host}"))
    }
}

/// The client that a `forwarded` header names: `for` of the first element (§5.2), with address and port. `None` if there
/// is none, if it is obfuscated, `unknown` or has no port: a client without a port is none that could be shown.
pub fn client(value: &str) -> Option<ClientAddr> {
    let first = until(value, ',');
    let mut rest = first;
    loop {
        let pair = until(rest, ';');
        if let Some((name, value)) = pair.split_once('=')
            && name.trim().eq_ignore_ascii_case("for")
        {
            return node(value.trim());
        }
        rest = rest.get(pair.len() + 1..)?;
    }
}

/// The text before the first `end` that is not in quotes.
fn until(text: &str, end: char) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    let at = text.find(|c: char| {
        let ends = c == end && !quoted;
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && quoted && !escaped;
        ends
    });
    &text[..at.unwrap_or(text.len())]
}

/// §6: an IPv4 address, or an IPv6 address in brackets, with a port. Quotes are needed around both by the grammar; not all
/// write them.
fn node(text: &str) -> Option<ClientAddr> {
    let text = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let (host, port) = text.rsplit_once(':')?;
    let address: IpAddr = match host.strip_prefix('[') {
        Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?),
        None => IpAddr::V4(host.parse().ok()?),
    };
    Some(ClientAddr(canonical(SocketAddr::new(address, parse_port(port).ok()?))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &str) -> Option<String> {
        client(value).map(|client| client.to_string())
    }

    #[test]
    fn the_first_client_is_read_however_it_is_written() {
        for value in [
            "for=\"10.0.0.1:4711\"",
            "for=10.0.0.1:4711",
            "For = \"10.0.0.1:4711\" ; host=shop",
            "host=\"a;b,c\\\";d\";for=\"10.0.0.1:4711\", for=\"10.9.9.9:1\"",
            "by=_x;proto=http;for=\"[::ffff:10.0.0.1]:4711\"",
        ] {
            assert_eq!(read(value).as_deref(), Some("10.0.0.1:4711"), "{value}");
        }
        assert_eq!(read("for=\"[2001:db8::1]:80\"").as_deref(), Some("[2001:db8::1]:80"));
    }

    #[test]
    fn what_names_no_client_is_none() {
        for value in [
            "",
            ";",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden:80",
            "for=10.0.0.1",
            "for=\"10.0.0.1:0\"",
            "for=\"[::1]\"",
            "for=\"::1:80\"",
            "for=\"10.0.0.1:4711",
            "host=a, for=10.0.0.1:4711",
            "xfor=10.0.0.1:4711",
        ] {
            assert_eq!(read(value), None, "{value}");
        }
    }

    #[test]
    fn it_is_written_as_ztunnel_writes_it() {
        let client = ClientAddr("10.0.0.1:4711".parse().unwrap());
        assert_eq!(Forwarded { client, host: None }.to_string(), "for=\"10.0.0.1:4711\"");
        let client = ClientAddr("[::1]:80".parse().unwrap());
        assert_eq!(Forwarded { client, host: Some("shop") }.to_string(), "for=\"[::1]:80\";host=shop");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}|[for=\";,\\\\:.0-9\\[\\]]{0,60}") {
            let _ = client(&text);
        }

        #[test]
        fn what_is_written_is_read(address: [u8; 16], v4: bool, port in 1_u16..) {
            let ip = if v4 { IpAddr::from([10, address[1], address[2], address[3]]) } else { IpAddr::from(address) };
            let written = ClientAddr(canonical(SocketAddr::new(ip, port)));
            prop_assert_eq!(client(&Forwarded { client: written, host: Some("a") }.to_string()), Some(written));
        }
    }
}
