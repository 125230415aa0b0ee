//! The configuration for the workers: as it was at the start, and as it is now.
//!
//! It is kept as the bytes of a snapshot in memory that nobody can write: a worker that is started again gets what the one
//! before had, whatever the file says by then, and the supervisor keeps none of it in its own memory.

use std::{
    fs::File,
    io::{self, PipeReader, Write},
    os::fd::{AsFd, BorrowedFd},
    thread::{self, JoinHandle},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::Error;
use crate::config::{Fault, Snapshot};

/// The configurations.
pub(super) struct Configurations {
    /// Where they are read from.
    sources: Snapshot,
    /// At the start.
    pub(super) first: File,
    /// Whose rules are in force, if they are not those of the start.
    pub(super) in_force: Option<File>,
    /// Given to the worker, which has not said yet what it thinks of it.
    pub(super) offered: Option<File>,
    /// Configurations put in force so far.
    pub(super) generation: u64,
    reading: Option<Reading>,
    /// It was asked for again meanwhile.
    again: bool,
}

/// A file on a volume that does not answer must not keep the supervisor from anything else.
struct Reading {
    thread: JoinHandle<Result<Snapshot, Fault>>,
    done: PipeReader,
}

impl Configurations {
    pub(super) fn new(first: &Snapshot) -> Result<Self, Error> {
        Ok(Self {
            sources: first.without_text(),
            first: sealed(first)?,
            in_force: None,
            offered: None,
            generation: 1,
            reading: None,
            again: false,
        })
    }

    /// Begins to read the configuration again.
    pub(super) fn read_again(&mut self) {
        if self.reading.is_some() {
            self.again = true;
            return;
        }
        match begin(self.sources.clone()) {
            Ok(reading) => self.reading = Some(reading),
            Err(error) => {
                tracing::error!(%error, "the configuration could not be read again; the one before stays in force");
            }
        }
    }

    /// Becomes readable when it has been read.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.reading.as_ref().map(|reading| reading.done.as_fd())
    }

    /// Offers what was read to the worker: `true` if there is something to offer, `false` if it could not be read.
    pub(super) fn turn(&mut self) -> bool {
        let Some(reading) = self.reading.take() else { return false };
        if std::mem::take(&mut self.again) {
            self.read_again();
        }
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(fault = %error, "the configuration is wrong; the one before stays in force");
            false
        };
        match reading.thread.join() {
            Ok(Ok(snapshot)) => match sealed(&snapshot) {
                Ok(file) => {
                    self.offered = Some(file);
                    true
                }
                Err(error) => failed(&error),
            },
            Ok(Err(fault)) => failed(&fault),
            Err(_) => failed(&"reading it panicked; please report"),
        }
    }

    /// The worker has said whether what was offered is in force.
    pub(super) fn answered(&mut self, in_force: bool) {
        let offered = self.offered.take();
        if in_force && offered.is_some() {
            self.in_force = offered;
            self.generation += 1;
        }
    }
}

fn begin(sources: Snapshot) -> io::Result<Reading> {
    let (done, mut tell) = io::pipe()?;
    let thread = thread::Builder::new().name("configuration".to_owned()).stack_size(256 * 1024).spawn(move || {
        let read = sources.read_again();
        // The reader may be gone; closing it tells the same.
        let _ = tell.write_all(b".");
        read
    })?;
    Ok(Reading { thread, done })
}

/// Memory that holds it, and that nobody can change any more: the worker gets a descriptor of it.
fn sealed(snapshot: &Snapshot) -> Result<File, Error> {
    let what = "make memory for the configuration";
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"sidecar-configuration", flags).map_err(Error::runtime(what))?);
    file.write_all(&snapshot.to_bytes()).map_err(Error::runtime(what))?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::runtime(what))?;
    Ok(file)
}
