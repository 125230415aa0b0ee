//! What the supervisor lends: taken out of the order to start, and refused if it is not what it should be.

use std::{
    fs::File,
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileExt, net::UnixListener},
    },
};

use nix::unistd::dup2_stdin;

use super::Error;
use crate::{
    admin,
    config::{Loaded, Snapshot},
    control::{Channel, Order, Start},
    lifecycle::{beats::Heartbeat, board::BoardReader, counters::Counters, mixed::Mixes},
};

/// Everything that the supervisor lends.
pub(super) struct Inherited {
    pub(super) start: Start,
    pub(super) loaded: Loaded,
    /// Why the rules that were in force last are not any more.
    pub(super) refused: Option<Error>,
    pub(super) board: BoardReader,
    pub(super) heartbeat: Heartbeat,
    pub(super) counters: Counters,
    /// `None`: it cannot be seen, as where programs were loaded without the fast path.
    pub(super) mixes: Option<Mixes>,
    pub(super) queues: [TcpListener; 2],
    pub(super) endpoints: admin::Listeners,
    pub(super) tunnels: Option<TcpListener>,
}

/// The end of the channel that is standard input, which is nothing from then on.
pub(super) fn channel() -> Result<Channel, Error> {
    let failed = |source| Error::Runtime { what: "take over standard input", source };
    let ours = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    let channel = Channel::inherited(ours).map_err(Error::Alone)?;
    let nothing = File::open("/dev/null").map_err(failed)?;
    dup2_stdin(&nothing).map_err(|errno| failed(errno.into()))?;
    Ok(channel)
}

impl Inherited {
    /// Waits for the order to start.
    pub(super) fn await_start(channel: &Channel) -> Result<Self, Error> {
        let (order, descriptors) = channel.wait::<Order>().map_err(Error::Alone)?;
        let Order::Start(start) = order else {
            return Err(Error::Misunderstood(format!("{order:?} before the order to start")));
        };
        if descriptors.len() != start.descriptors() {
            let (came, should) = (descriptors.len(), start.descriptors());
            return Err(Error::Misunderstood(format!(
                "{came} descriptors instead of {should} with the order to start"
            )));
        }
        Self::take(start, descriptors)
    }

    fn take(start: Start, descriptors: Vec<OwnedFd>) -> Result<Self, Error> {
        let mut rest = descriptors.into_iter();
        let mut next = || rest.next().ok_or_else(|| Error::Misunderstood("a descriptor is missing".to_owned()));
        let memory = |what| move |source| Error::Memory { what, source };
        let board = BoardReader::map(next()?).map_err(memory("figures"))?;
        let (heartbeat, counters, mixed) = (next()?, next()?, next()?);
        let mut loaded = load(next()?)?;
        let threads = loaded.config.proxy.workers;
        let mut tcp = || next().map(TcpListener::from);
        let queues = [tcp()?, tcp()?];
        let (metrics, health, admin) = (tcp()?, tcp()?, tcp()?);
        let admin_socket = UnixListener::from(next()?);
        let tunnels = if start.tunnels { Some(TcpListener::from(next()?)) } else { None };
        let newer = if start.reloaded { load(next()?).map(Some) } else { Ok(None) };
        // A fault in them must not keep every worker from serving.
        let refused = newer.map(|newer| newer.iter().for_each(|newer| loaded.take_authorization(newer))).err();
        Ok(Self {
            heartbeat: Heartbeat::map(heartbeat, threads).map_err(memory("HEARTBEAT"))?,
            counters: Counters::map(counters, start.cpus).map_err(memory("COUNTERS"))?,
            mixes: Mixes::map_to_read(mixed).ok(),
            start,
            loaded,
            refused,
            board,
            queues,
            endpoints: admin::Listeners { metrics, health, admin, admin_socket },
            tunnels,
        })
    }
}

/// The configuration in memory of the supervisor's.
pub(super) fn load(memory: OwnedFd) -> Result<Loaded, Error> {
    let bytes = read(&File::from(memory)).map_err(|source| Error::Memory { what: "configuration", source })?;
    let snapshot = Snapshot::from_bytes(&bytes).map_err(|error| Error::Misunderstood(error.to_string()))?;
    snapshot.load().map_err(Error::Configuration)
}

/// From its beginning: the position belongs to everybody who has a descriptor of it.
fn read(memory: &File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(memory.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    memory.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
