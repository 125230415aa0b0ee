//! Where upgrades are asked for: a unix socket beside the admin socket, which the supervisor itself has. A worker, which talks to
//! strangers, must have no say in which program runs with the supervisor's capabilities.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};

use super::outcome::{Outcome, Wanted};
use crate::admin::socket::{self, SocketFile};

/// Whoever has connected has so long to ask.
const PATIENCE: Duration = Duration::from_secs(2);
/// Those that may be about to ask.
const MOST: usize = 4;

/// The socket, and those who are about to ask.
pub(in crate::supervisor) struct Door {
    pub(super) listener: UnixListener,
    waiting: Vec<(UnixStream, Instant)>,
    /// `None`: somebody has removed it.
    _file: Option<SocketFile>,
}

/// Where it is, by the admin socket.
fn path(admin_socket: &Path) -> PathBuf {
    let mut path = admin_socket.to_owned().into_os_string();
    path.push(".upgrade");
    path.into()
}

impl Door {
    /// Opens it.
    pub(in crate::supervisor) fn open(admin_socket: &Path) -> Result<Self, socket::Error> {
        let path = path(admin_socket);
        let (listener, file) = socket::bind(&path)?;
        listener.set_nonblocking(true).map_err(|source| socket::Error::Call { call: "fcntl() for", path, source })?;
        Ok(Self { listener, waiting: Vec::new(), _file: Some(file) })
    }

    /// The one that this process had when it ran another binary.
    pub(in crate::supervisor) fn inherited(listener: OwnedFd, admin_socket: &Path) -> Self {
        Self { listener: listener.into(), waiting: Vec::new(), _file: SocketFile::of(&path(admin_socket)).ok() }
    }

    /// What to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.listener.as_fd()].into_iter().chain(self.waiting.iter().map(|(client, _)| client.as_fd()))
    }

    /// When to come back at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|(_, until)| *until).min()
    }

    /// Who asks for what now. `workers`: ours, who may not.
    pub(super) fn turn(&mut self, workers: &[u32]) -> Vec<(UnixStream, Wanted)> {
        while let Ok((client, _)) = self.listener.accept() {
            if self.waiting.len() < MOST && client.set_nonblocking(true).is_ok() && may_ask(&client, workers) {
                self.waiting.push((client, Instant::now() + PATIENCE));
            }
        }
        let mut asked = Vec::new();
        for (client, until) in std::mem::take(&mut self.waiting) {
            match read(&client) {
                Ok(wanted) => asked.push((client, wanted)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && until > Instant::now() => {
                    self.waiting.push((client, until));
                }
                // It is gone, late, or says what is not understood: closing it tells so.
                Err(error) => tracing::debug!(%error, "somebody did not ask for an upgrade"),
            }
        }
        asked
    }
}

/// The file's mode keeps others out, but for those who had it open, and a worker of the same user.
fn may_ask(client: &UnixStream, workers: &[u32]) -> bool {
    let Ok(peer) = getsockopt(client, PeerCredentials) else { return false };
    let may = (peer.uid() == 0 || peer.uid() == geteuid().as_raw()) && !workers.contains(&peer.pid().cast_unsigned());
    if !may {
        tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a process that may not wants to ask for an upgrade");
    }
    may
}

/// A line, which comes at once: it fits in the socket.
fn read(mut client: &UnixStream) -> io::Result<Wanted> {
    let mut bytes = [0; 8192];
    let length = client.read(&mut bytes)?;
    serde_json::from_slice(&bytes[..length]).map_err(io::Error::other)
}

/// Tells whoever has asked. One that is gone is told nothing.
pub(super) fn answer(mut client: UnixStream, outcome: &Outcome) {
    let line = serde_json::to_string(outcome).unwrap_or_default() + "\n";
    if let Err(error) = client.write_all(line.as_bytes()) {
        tracing::debug!(%error, "whoever asked for the upgrade is gone");
    }
}

/// Asks the sidecar whose admin socket this is, and waits for the outcome.
///
/// # Errors
/// Nobody is there; it does not answer in time, or not as it should.
pub fn ask(admin_socket: &Path, wanted: &Wanted) -> io::Result<Outcome> {
    /// For the questions before the worker's start, and what comes after it.
    const MORE: Duration = Duration::from_secs(60);
    let mut stream = UnixStream::connect(path(admin_socket))?;
    stream.set_read_timeout(Some(wanted.patience + MORE))?;
    let line = serde_json::to_string(wanted).map_err(io::Error::other)? + "\n";
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has closed the connection without an answer"));
    }
    serde_json::from_str(&answer).map_err(io::Error::other)
}
