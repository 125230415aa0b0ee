//! Every socket that somebody may connect to: bound once, kept as long as the sidecar lives, lent to each worker.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixListener,
    },
    path::Path,
};

use super::{
    Error,
    upgrade::state::{self, Sockets},
};
use crate::{
    admin::{self, socket::SocketFile},
    config::Config,
    lifecycle::predecessor,
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
    /// `None`: somebody has removed it.
    file: Option<SocketFile>,
}

impl Listeners {
    /// Listens on every port of the configuration, and waits for a moment until nobody has them.
    pub(super) fn bind(config: &Config, pod: &Pod) -> Result<Self, Error> {
        predecessor::given_time(|| Self::bind_now(config, pod), Error::is_of_another)
    }

    fn bind_now(config: &Config, pod: &Pod) -> Result<Self, Error> {
        let [outbound, inbound] = listen_for_capture(config)?;
        let tunnels = listen_for_tunnels(config)?;
        let telemetry = &config.telemetry;
        let (admin_socket, file) = listen_for_admin(config, pod)?;
        let questions = [
            listen("telemetry.metrics", telemetry.metrics)?,
            listen("telemetry.health", telemetry.health)?,
            listen("telemetry.admin", telemetry.admin)?,
        ];
        Ok(Self { outbound, inbound, questions, admin_socket, tunnels, file: Some(file) })
    }

    /// Those that this process had when it ran another binary.
    pub(super) fn inherited(sockets: &Sockets) -> io::Result<Self> {
        let tcp = |descriptor| state::again(descriptor).map(TcpListener::from);
        let [metrics, health, admin] = sockets.questions;
        Ok(Self {
            outbound: tcp(sockets.outbound)?,
            inbound: tcp(sockets.inbound)?,
            questions: [tcp(metrics)?, tcp(health)?, tcp(admin)?],
            admin_socket: state::again(sockets.admin_socket)?.into(),
            tunnels: sockets.tunnels.map(tcp).transpose()?,
            file: None,
        })
    }

    /// The admin socket's file goes with them from now on, if it is there.
    pub(super) fn own_file_of(&mut self, admin_socket: &Path) {
        self.file = SocketFile::of(admin_socket).ok();
    }

    /// For the binary that goes on with them.
    pub(super) fn sockets(&self) -> Sockets {
        Sockets {
            outbound: self.outbound.as_raw_fd(),
            inbound: self.inbound.as_raw_fd(),
            questions: self.questions.each_ref().map(AsRawFd::as_raw_fd),
            admin_socket: self.admin_socket.as_raw_fd(),
            tunnels: self.tunnels.as_ref().map(AsRawFd::as_raw_fd),
        }
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
