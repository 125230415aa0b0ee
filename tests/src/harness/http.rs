//! Just enough of an HTTP client for the sidecar's own endpoints.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use anyhow::{Context, Result, ensure};

use super::PATIENCE;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// `GET path`.
pub(super) fn get(host: IpAddr, port: u16, path: &str) -> Result<Response> {
    let address = SocketAddr::new(host, port);
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0 keeps the answer free of chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").with_context(|| format!("ask {address}"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("read the answer of {address}{path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer}"))?;
    ensure!(!head.to_ascii_lowercase().contains("chunked"), "a chunked answer to an HTTP/1.0 request");
    let status =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("no status: {head}"))?;
    Ok(Response { status, body: body.to_owned() })
}
