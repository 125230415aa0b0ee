//! The configuration for the workers: as it was at the start, and as it is now.
//!
//! It is kept as the bytes of a snapshot in memory that nobody can write: a worker that is started again gets what the one
//! before had, whatever the file says by then, and the supervisor keeps none of it in its own memory.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, PipeReader, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

use super::{
    Error,
    upgrade::state::{self, Kept},
};
use crate::config::{Fault, Loaded, Snapshot};

/// The configurations.
pub(super) struct Configurations {
    /// Where they are read from.
    sources: Snapshot,
    /// At the start.
    pub(super) first: File,
    /// Whose rules are in force, if they are not those of the start.
    pub(super) in_force: Option<File>,
    /// Given to the worker, which has not said yet what it thinks of them: their numbers, and what was read.
    offered: VecDeque<(u64, File)>,
    /// The number of the last one offered.
    number: u64,
    /// It had a fault when it was last read, or could not be read.
    pub(super) failed: bool,
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
    since: Instant,
}

/// After so long whoever asks again is not made to wait for it.
const READ_LIMIT: Duration = Duration::from_secs(5);

impl Configurations {
    pub(super) fn new(first: &Snapshot) -> Result<Self, Error> {
        Ok(Self {
            sources: first.without_text(),
            first: sealed(first)?,
            in_force: None,
            offered: VecDeque::new(),
            number: 0,
            failed: false,
            generation: 1,
            reading: None,
            again: false,
        })
    }

    /// Those that this process had when it ran another binary.
    pub(super) fn inherited(kept: &Kept) -> io::Result<Self> {
        let file = |descriptor| state::again(descriptor).map(File::from);
        let first = file(kept.first)?;
        let offered = kept.offered.iter().map(|(number, descriptor)| Ok((*number, file(*descriptor)?)));
        let mut configurations = Self {
            sources: read(&first)?.without_text(),
            in_force: kept.in_force.map(file).transpose()?,
            offered: offered.collect::<io::Result<_>>()?,
            number: kept.number,
            failed: kept.failed,
            generation: kept.generation,
            reading: None,
            again: false,
            first,
        };
        if kept.reading {
            configurations.read_again();
        }
        Ok(configurations)
    }

    /// For the binary that goes on with them.
    pub(super) fn kept(&self) -> Kept {
        Kept {
            first: self.first.as_raw_fd(),
            in_force: self.in_force.as_ref().map(AsRawFd::as_raw_fd),
            offered: self.offered.iter().map(|(number, file)| (*number, file.as_raw_fd())).collect(),
            number: self.number,
            failed: self.failed,
            generation: self.generation,
            reading: self.reading.is_some(),
        }
    }

    /// The one of the start.
    pub(super) fn load_first(&self) -> Result<Loaded, Error> {
        let snapshot = read(&self.first).map_err(Error::runtime("read the configuration in memory"))?;
        snapshot.load().map_err(Error::Configuration)
    }

    /// Offers what is in force to a worker that does not know of it, before what is newer and was not answered yet.
    pub(super) fn offer_in_force(&mut self) {
        if let Some(Ok(file)) = self.in_force.as_ref().map(File::try_clone) {
            self.offer(file);
            self.offered.rotate_right(1);
        }
    }

    /// Begins to read the configuration again; `false` if it cannot be read.
    pub(super) fn read_again(&mut self) -> bool {
        match &self.reading {
            Some(reading) if reading.since.elapsed() < READ_LIMIT => {
                self.again = true;
                return true;
            }
            // Its thread stays where it is.
            Some(_) => tracing::error!(
                "the configuration was asked for again and is still being read: does its volume not answer? It is read anew; the \
                 one before stays in force"
            ),
            None => {}
        }
        match begin(self.sources.clone()) {
            Ok(reading) => {
                self.reading = Some(reading);
                true
            }
            Err(error) => {
                self.failed = true;
                tracing::error!(%error, "the configuration could not be read again; the one before stays in force");
                false
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
        let read = reading.thread.join();
        self.failed = true;
        // What was read is not what was asked for last.
        if std::mem::take(&mut self.again) && !self.read_again() {
            return false;
        }
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(fault = %error, "the configuration is wrong; the one before stays in force");
            false
        };
        match read {
            Ok(Ok(snapshot)) => match sealed(&snapshot) {
                Ok(file) => {
                    self.offer(file);
                    true
                }
                Err(error) => failed(&error),
            },
            Ok(Err(fault)) => failed(&fault),
            Err(_) => failed(&"reading it panicked; please report"),
        }
    }

    fn offer(&mut self, file: File) {
        /// A worker that does not answer is not offered more and more: the newest ones are what matters.
        const MOST: usize = 8;
        if self.offered.len() == MOST {
            self.offered.pop_front();
        }
        self.number += 1;
        self.offered.push_back((self.number, file));
    }

    /// What the worker has not answered, the oldest first.
    pub(super) fn offers(&self) -> impl Iterator<Item = (u64, &File)> {
        self.offered.iter().map(|(number, file)| (*number, file))
    }

    /// The worker has said whether the one with this number is in force. Answers come in the order of the offers: those
    /// before it were lost. An answer to none that waits for one means nothing.
    pub(super) fn answered(&mut self, number: u64, in_force: bool) {
        let Some(position) = self.offered.iter().position(|(offered, _)| *offered == number) else { return };
        let answered = self.offered.drain(..=position).next_back();
        self.failed = !in_force;
        if in_force {
            self.in_force = answered.map(|(_, file)| file);
            self.generation += 1;
        }
    }
}

/// Room for what parses the file, however deep it is: an overflow would end the supervisor. A build without optimization takes more
/// than a quarter of it. What is not used takes no page, but counts where `ulimit -v` or `ulimit -d` limits the sidecar.
const STACK: usize = 1 << 20;

/// A thread that parses, and ends.
fn thread() -> thread::Builder {
    thread::Builder::new().name("configuration".to_owned()).stack_size(STACK)
}

fn begin(sources: Snapshot) -> io::Result<Reading> {
    let (done, mut tell) = io::pipe()?;
    let thread = thread().spawn(move || {
        let read = sources.read_again();
        // The reader may be gone; closing it tells the same.
        let _ = tell.write_all(b".");
        read
    })?;
    Ok(Reading { thread, done, since: Instant::now() })
}

/// What is in such memory. Its position belongs to everybody who has a descriptor of it.
fn read(memory: &File) -> io::Result<Snapshot> {
    let mut bytes = vec![0; usize::try_from(memory.metadata()?.len()).map_err(io::Error::other)?];
    memory.read_exact_at(&mut bytes, 0)?;
    Snapshot::from_bytes(&bytes).map_err(io::Error::other)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(configurations: &Configurations) -> Vec<u64> {
        configurations.offers().map(|(number, _)| number).collect()
    }

    #[test]
    fn what_is_in_force_is_never_offered_behind_what_is_newer() {
        let memory = || File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        let mut configurations =
            Configurations::new(&Snapshot::from_bytes(br#"{"overrides":[],"env":[]}"#).unwrap()).unwrap();
        configurations.in_force = Some(memory());
        configurations.offer(memory());
        configurations.offer_in_force();
        assert_eq!(numbers(&configurations), [2, 1]);
        configurations.answered(2, true);
        assert_eq!(numbers(&configurations), [1], "the newer one waits for its answer");
        configurations.answered(1, true);
        assert_eq!(numbers(&configurations), [0; 0]);
    }

    /// An overflow ends the process.
    #[test]
    fn the_thread_that_reads_has_room_for_whatever_depth_a_file_has() {
        let file = std::env::temp_dir().join(format!("sidecar-depth-{}.yaml", std::process::id()));
        let source = serde_json::json!({ "name": file, "overrides": [], "env": [] }).to_string();
        for (open, close) in [("[", "]"), ("{ key: ", " }"), ("- ", ""), ("? ", "")] {
            for depth in (0..40).chain([1000]) {
                std::fs::write(&file, format!("{}word{}", open.repeat(depth), close.repeat(depth))).unwrap();
                let sources = Snapshot::from_bytes(source.as_bytes()).unwrap();
                assert!(thread().spawn(move || sources.read_again()).unwrap().join().is_ok());
            }
        }
        std::fs::remove_file(&file).unwrap();
    }
}
