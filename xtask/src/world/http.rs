//! Just enough HTTP to ask a proxy's own endpoints.

use super::pod::Pod;
use anyhow::{Context, Result, bail};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// No endpoint asked here takes longer.
const LIMIT: Duration = Duration::from_secs(2);

/// Asks for a path at the pod's loopback and gives the body of a 200. HTTP/1.0: the answer ends with the connection.
pub(crate) fn get(pod: &Pod, port: u16, path: &str) -> Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let answer = pod.netns.enter(|| exchange(address, path));
    answer.with_context(|| format!("GET http://{address}{path} in the {} pod", pod.name))
}

fn exchange(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{status}: {}", body.trim());
    }
    Ok(body.to_owned())
}
