//! What an application saw, as JSON lines.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The first port that the kernel chooses by itself (`net.ipv4.ip_local_port_range`).
const FIRST_EPHEMERAL_PORT: u16 = 32768;

/// One thing that an application saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// What was looked at.
    pub key: String,
    /// What was seen.
    pub value: Value,
    /// The port of an address whose port differs from run to run, and is `*` in `value`.
    pub port: Option<u16>,
}

/// A line of an application's report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It has come to the point where the other side may go on.
    Ready,
    /// It cannot run here.
    Skip(String),
    /// It saw something.
    Saw(Observation),
}

impl Event {
    /// Reads a line.
    pub fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line).with_context(|| format!("not an event: {line}"))
    }
}

/// The report of an application.
#[derive(Debug, Default)]
pub struct Seen(());

impl Seen {
    /// Says that the other side may go on.
    pub fn ready(&mut self) {
        self.emit(&Event::Ready);
    }

    /// Says that this cannot run here.
    pub fn skip(&mut self, reason: impl Into<String>) {
        self.emit(&Event::Skip(reason.into()));
    }

    /// Reports anything.
    pub fn note(&mut self, key: &str, value: impl Into<Value>) {
        self.emit(&Event::Saw(Observation { key: key.to_owned(), value: value.into(), port: None }));
    }

    /// Reports `ok` or the name of the error.
    pub fn result<T>(&mut self, key: &str, result: &io::Result<T>) {
        self.note(key, outcome(result));
    }

    /// Reports an address. A port that the kernel chose is shown as `*`.
    pub fn addr(&mut self, key: &str, addr: SocketAddr) {
        if addr.port() < FIRST_EPHEMERAL_PORT { self.note(key, addr.to_string()) } else { self.client_addr(key, addr) }
    }

    /// Reports the address of the side that connected, as the other one sees it. Its port is always `*`: a sidecar
    /// connects from a port of its own.
    pub fn client_addr(&mut self, key: &str, addr: SocketAddr) {
        let text = match addr {
            SocketAddr::V4(v4) => format!("{}:*", v4.ip()),
            SocketAddr::V6(v6) => format!("[{}]:*", v6.ip()),
        };
        self.emit(&Event::Saw(Observation { key: key.to_owned(), value: text.into(), port: Some(addr.port()) }));
    }

    fn emit(&mut self, event: &Event) {
        let line = serde_json::to_string(event).expect("events are plain data");
        // The harness has gone away: there is nobody to tell.
        let _ = writeln!(io::stdout(), "{line}");
    }
}

/// `ok` or the name of the error.
pub(super) fn outcome<T>(result: &io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(code) => format!("{:?}", Errno::from_raw(code)),
            None => error.kind().to_string(),
        },
    }
}
