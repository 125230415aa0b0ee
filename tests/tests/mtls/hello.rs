//! What a TLS client begins with.

use std::{
    io::Read,
    net::{Ipv4Addr, TcpListener},
    process::Command,
};

use anyhow::Result;
use sidecar_tests::harness::{NetNs, Spawn};

/// The first record of `openssl s_client` with these further arguments: its ClientHello.
pub(crate) fn client_hello(netns: &NetNs, arguments: &[&str]) -> Result<Vec<u8>> {
    let listener = netns.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &listener.local_addr()?.to_string()]).args(arguments);
    let _openssl = Spawn { netns: Some(netns), ..Spawn::default() }.start(command)?;
    let (mut stream, _) = listener.accept()?;
    let mut record = vec![0; 5];
    stream.read_exact(&mut record)?;
    record.resize(5 + usize::from(u16::from_be_bytes([record[3], record[4]])), 0);
    stream.read_exact(&mut record[5..])?;
    Ok(record)
}
