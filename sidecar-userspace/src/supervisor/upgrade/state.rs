//! What one supervisor hands to the next, which is the same process with another binary: written into memory, with descriptors by
//! their numbers, which outlive execve(2).

use std::{
    fs::File,
    io,
    os::{
        fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use serde::{Deserialize, Serialize};

use super::{outcome::Outcome, standby};
use crate::pod;

/// Of what is here. To be raised with every change of it.
pub(super) const VERSION: u32 = 3;

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::supervisor) struct State {
    pub(super) version: u32,
    pub(in crate::supervisor) pod: pod::Known,
    pub(in crate::supervisor) listeners: Sockets,
    /// Where upgrades are asked for.
    pub(in crate::supervisor) door: Option<RawFd>,
    pub(in crate::supervisor) board: RawFd,
    /// The directory of the BPF file system that holds maps and links.
    pub(in crate::supervisor) store: RawFd,
    pub(in crate::supervisor) configurations: Kept,
    pub(in crate::supervisor) current: Option<Process>,
    /// The worker of the new binary.
    pub(in crate::supervisor) candidate: Process,
    /// Its rules are those of this configuration.
    pub(in crate::supervisor) candidate_generation: u64,
    pub(in crate::supervisor) leaving: Vec<Process>,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub(in crate::supervisor) began: u64,
    pub(in crate::supervisor) predecessors: u64,
    pub(in crate::supervisor) log_level: Option<String>,
    pub(in crate::supervisor) applications_were_there: bool,
    /// The name of the process (`/proc/PID/comm`).
    pub(in crate::supervisor) name: String,
    /// Where the binary before lies, and what it is: to come back to.
    pub(in crate::supervisor) binary: PathBuf,
    pub(in crate::supervisor) own: RawFd,
    /// The same of the new one.
    pub(in crate::supervisor) new_binary: PathBuf,
    pub(in crate::supervisor) new: RawFd,
    /// Who has asked for the upgrade and waits for its outcome, as far as it is known.
    pub(in crate::supervisor) client: Option<RawFd>,
    pub(in crate::supervisor) outcome: Outcome,
    /// `CLOCK_MONOTONIC` in nanoseconds when the step before ended.
    pub(in crate::supervisor) step: u64,
    /// Who stands by until the new binary has taken over.
    pub(super) standby: standby::Known,
    /// What the fast path was told by hand.
    pub(in crate::supervisor) fast_path: Option<bool>,
    /// Why the new binary gave back what it had taken.
    pub(in crate::supervisor) failed: Option<String>,
}

/// Listening sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::supervisor) struct Sockets {
    pub(in crate::supervisor) outbound: RawFd,
    pub(in crate::supervisor) inbound: RawFd,
    pub(in crate::supervisor) questions: [RawFd; 3],
    pub(in crate::supervisor) admin_socket: RawFd,
    pub(in crate::supervisor) tunnels: Option<RawFd>,
}

/// Configurations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::supervisor) struct Kept {
    pub(in crate::supervisor) first: RawFd,
    pub(in crate::supervisor) in_force: Option<RawFd>,
    pub(in crate::supervisor) offered: Vec<(u64, RawFd)>,
    pub(in crate::supervisor) number: u64,
    pub(in crate::supervisor) failed: bool,
    pub(in crate::supervisor) generation: u64,
    /// It was being read: that is to be done again.
    pub(in crate::supervisor) reading: bool,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::supervisor) struct Process {
    pub(in crate::supervisor) pid: u32,
    pub(in crate::supervisor) channel: RawFd,
    pub(in crate::supervisor) serves: bool,
    pub(in crate::supervisor) lived: Duration,
    /// Of one that leaves: time until it is ended, and connections at the last word.
    pub(in crate::supervisor) left: Duration,
    pub(in crate::supervisor) open: Option<u64>,
}

impl State {
    /// Every descriptor that it names.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let Self { listeners, configurations, .. } = self;
        let sockets = [listeners.outbound, listeners.inbound, listeners.admin_socket];
        let optional = [self.door, self.client, listeners.tunnels, configurations.in_force];
        let workers = self.leaving.iter().chain(&self.current).chain([&self.candidate]);
        [self.board, self.store, configurations.first, self.own, self.new, self.standby.memory]
            .into_iter()
            .chain(sockets)
            .chain(listeners.questions)
            .chain(optional.into_iter().flatten())
            .chain(configurations.offered.iter().map(|(_, descriptor)| *descriptor))
            .chain(workers.map(|worker| worker.channel))
    }

    /// Has the next binary inherit every descriptor, or no program at all.
    pub(super) fn inherit(&self, inherited: bool) -> io::Result<()> {
        let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
        for descriptor in self.descriptors() {
            fcntl(borrow(descriptor), FcntlArg::F_SETFD(flags))?;
        }
        Ok(())
    }

    /// Memory that the next binary inherits, with all of this in it.
    pub(super) fn write(&self) -> io::Result<File> {
        let file = memory()?;
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        self.write_to(&file)?;
        Ok(file)
    }

    /// The same, in the place of what is there.
    pub(super) fn write_to(&self, memory: &File) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        memory.set_len(bytes.len() as u64)?;
        memory.write_all_at(&bytes, 0)
    }

    /// For whoever stands by: what the supervisor has written into the memory that it shares with this process, to which the reason is
    /// added; and the number of that memory in the supervisor.
    pub(super) fn of_the_one_before(memory: BorrowedFd<'_>, why: &str) -> io::Result<(Self, RawFd)> {
        let file = File::from(memory.try_clone_to_owned()?);
        let mut state = Self::read_from(&file)?;
        state.failed = Some(why.to_owned());
        state.write_to(&file)?;
        let number = state.standby.memory;
        Ok((state, number))
    }

    /// Whether nothing has been written there.
    pub(super) fn is_nothing(memory: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(File::from(memory.try_clone_to_owned()?).metadata()?.len() == 0)
    }

    fn read_from(memory: &File) -> io::Result<Self> {
        let mut bytes = vec![0; usize::try_from(memory.metadata()?.len()).map_err(io::Error::other)?];
        memory.read_exact_at(&mut bytes, 0)?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// What was written into the memory behind this descriptor, which is closed, unless the state names it itself.
    pub(super) fn read(memory: RawFd) -> io::Result<Self> {
        // Whatever the number was given by, nothing but memory has this name.
        let name = std::fs::read_link(format!("/proc/self/fd/{memory}"))?;
        if !name.to_string_lossy().starts_with("/memfd:sidecar-state") {
            return Err(io::Error::other(format!("{} is no state of a sidecar", name.display())));
        }
        // SAFETY: it was made by `write` for whoever reads it, and nobody else has it in this process.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(memory) });
        let state = Self::read_from(&file)?;
        if state.version != VERSION {
            return Err(io::Error::other(format!("a state of version {}, not {VERSION}", state.version)));
        }
        state.inherit(false)?;
        if state.standby.memory == memory {
            let _ = file.into_raw_fd();
        }
        Ok(state)
    }

    /// Closes every descriptor that it names: there are others of the same by now.
    pub(super) fn close(&self) {
        for descriptor in self.descriptors() {
            // SAFETY: whoever took the state has only duplicates of it in use, and reads it no more.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
}

/// Memory for a state, which no other program inherits.
pub(super) fn memory() -> io::Result<File> {
    Ok(File::from(memfd_create(c"sidecar-state", MFdFlags::MFD_CLOEXEC)?))
}

/// Another descriptor of the same.
pub(in crate::supervisor) fn again(descriptor: RawFd) -> io::Result<OwnedFd> {
    borrow(descriptor).try_clone_to_owned()
}

fn borrow<'a>(descriptor: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the descriptors of a state are open as long as it is in use.
    unsafe { BorrowedFd::borrow_raw(descriptor) }
}
