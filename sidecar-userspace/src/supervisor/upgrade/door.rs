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

use super::{
    outcome::{Outcome, Wanted},
    peer::{Peer, Strangers},
};
use crate::admin::socket::{self, SocketFile};

/// Whoever has connected has so long to ask.
const PATIENCE: Duration = Duration::from_secs(2);
/// Those that may be about to ask.
const MOST: usize = 4;

/// The socket, and those who are about to ask.
pub(in crate::supervisor) struct Door {
    pub(super) listener: UnixListener,
    waiting: Vec<Waiting>,
    /// Nobody is let in before: there was no descriptor to be had, and the listener would speak all the time.
    shut_until: Option<Instant>,
    /// `None`: somebody has removed it.
    _file: Option<SocketFile>,
}

/// One of them.
struct Waiting {
    client: UnixStream,
    peer: Peer,
    until: Instant,
}

impl Waiting {
    fn new(client: UnixStream) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        Ok(Self { peer: Peer::of(&client)?, client, until: Instant::now() + PATIENCE })
    }

    fn may_ask(&self, strangers: &Strangers<'_>) -> bool {
        let why = self.peer.refuse(strangers);
        if let Some(why) = why {
            tracing::warn!(peer = %self.peer, why, "a process that may not wants to ask for an upgrade");
        }
        why.is_none()
    }
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
        Ok(Self { listener, waiting: Vec::new(), shut_until: None, _file: Some(file) })
    }

    /// The one that this process had when it ran another binary.
    pub(in crate::supervisor) fn inherited(listener: OwnedFd, admin_socket: &Path) -> Self {
        let file = SocketFile::of(&path(admin_socket)).ok();
        Self { listener: listener.into(), waiting: Vec::new(), shut_until: None, _file: file }
    }

    /// What to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let open = self.shut_until.is_none_or(|until| until <= Instant::now());
        let listener = open.then(|| self.listener.as_fd());
        listener.into_iter().chain(self.waiting.iter().map(|waiting| waiting.client.as_fd()))
    }

    /// When to come back at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        let shut = self.shut_until.filter(|until| *until > Instant::now());
        self.waiting.iter().map(|waiting| waiting.until).chain(shut).min()
    }

    /// Who asks for what now. Whoever connects is looked at, and again when it asks: it may have ended in between.
    pub(super) fn turn(&mut self, strangers: &Strangers<'_>) -> Vec<(UnixStream, Wanted)> {
        while let Some(client) = self.accept() {
            match Waiting::new(client) {
                Ok(waiting) if self.waiting.len() < MOST && waiting.may_ask(strangers) => self.waiting.push(waiting),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a process that is gone wanted to ask for an upgrade"),
            }
        }
        let mut asked = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            match read(&waiting.client) {
                Ok(wanted) if waiting.may_ask(strangers) => asked.push((waiting.client, wanted)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && waiting.until > Instant::now() => {
                    self.waiting.push(waiting);
                }
                // It is gone, late, or says what is not understood: closing it tells so.
                Err(error) => tracing::debug!(%error, "somebody did not ask for an upgrade"),
            }
        }
        asked
    }

    fn accept(&mut self) -> Option<UnixStream> {
        const A_WHILE: Duration = Duration::from_secs(1);
        match self.listener.accept() {
            Ok((client, _)) => Some(client),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                tracing::debug!(%error, "whoever wants to ask for an upgrade waits");
                self.shut_until = Some(Instant::now() + A_WHILE);
                None
            }
        }
    }
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
    /// For the questions before the worker's start, and what comes after the takeover, which has the time that the worker has.
    const MORE: Duration = Duration::from_secs(60);
    let mut stream = UnixStream::connect(path(admin_socket))?;
    stream.set_read_timeout(Some(2 * wanted.patience + MORE))?;
    let line = serde_json::to_string(wanted).map_err(io::Error::other)? + "\n";
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has closed the connection without an answer"));
    }
    serde_json::from_str(&answer).map_err(io::Error::other)
}
