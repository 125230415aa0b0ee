//! Every socket that somebody may connect to: bound once, kept as long as the sidecar lives, lent to each worker.

use std::{
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixListener,
    },
    path::Path,
};

use super::Error;
use crate::{
    admin::{self, socket::SocketFile},
    config::Config,
    net::{self, Tuning},
    pod::Pod,
};

/// The listeners. The admin socket's file goes with them.
pub(super) struct Listeners {
    pub(super) outbound: TcpListener,
    pub(super) inbound: TcpListener,
    questions: [TcpListener; 3],
    admin_socket: UnixListener,
    pub(super) tunnels: Option<TcpListener>,
    _file: SocketFile,
}

impl Listeners {
    /// Listens on every port of the configuration.
    pub(super) fn bind(config: &Config, pod: &Pod) -> Result<Self, Error> {
        let [outbound, inbound] = listen_for_capture(config)?;
        let tunnels = listen_for_tunnels(config)?;
        let telemetry = &config.telemetry;
        let (admin_socket, file) = listen_for_admin(config, pod)?;
        let questions = [
            listen("telemetry.metrics", telemetry.metrics)?,
            listen("telemetry.health", telemetry.health)?,
            listen("telemetry.admin", telemetry.admin)?,
        ];
        Ok(Self { outbound, inbound, questions, admin_socket, tunnels, _file: file })
    }

    /// In the order in which the worker expects them.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let [metrics, health, admin] = &self.questions;
        let tcp = [&self.outbound, &self.inbound, metrics, health, admin].map(AsFd::as_fd);
        let mut all = tcp.to_vec();
        all.push(self.admin_socket.as_fd());
        all.extend(self.tunnels.as_ref().map(AsFd::as_fd));
        all
    }
}

fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    net::listen(address).map_err(|source| Error::Listen { key, address: address.to_string(), source })
}

fn listen_for_capture(config: &Config) -> Result<[TcpListener; 2], Error> {
    let tuning = Tuning { keepalive: config.proxy.keepalive, buffer: config.proxy.socket_buffer };
    let listen = |key, port| {
        net::listen_for_relay(port, tuning).map_err(|source| Error::Listen {
            key,
            address: format!("[::]:{port}"),
            source,
        })
    };
    Ok([
        listen("capture.outbound.port", config.capture.outbound.port)?,
        listen("capture.inbound.port", config.capture.inbound.port)?,
    ])
}

fn listen_for_tunnels(config: &Config) -> Result<Option<TcpListener>, Error> {
    let tuning = Tuning { keepalive: config.proxy.keepalive, buffer: None };
    let listen = |port| {
        net::listen_for_tunnels(port, tuning).map_err(|source| Error::Listen {
            key: "mtls.hbone_port",
            address: format!("[::]:{port}"),
            source,
        })
    };
    config.tunnel_port().map(listen).transpose()
}

fn listen_for_admin(config: &Config, pod: &Pod) -> Result<(UnixListener, SocketFile), Error> {
    admin::socket::sweep(Path::new(admin::socket::DIRECTORY));
    Ok(admin::socket::bind(&admin::socket::path(&config.telemetry, pod.netns_inode()))?)
}
