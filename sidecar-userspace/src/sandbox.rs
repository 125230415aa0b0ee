//! What the worker may not do, given up for good before it speaks with anybody: no capability, no more privileges by
//! executing, only some files, only some system calls, and another user if the configuration names one. Its memory is closed
//! to other processes of its user.
//!
//! Each layer stands for itself. What a kernel lacks of them is told and done without, but for the capabilities, which every
//! kernel can take away.

mod files;
mod syscalls;

use std::{io, path::PathBuf};

use caps::{CapSet, Capability};
use nix::{
    errno::Errno,
    sys::prctl::{set_dumpable, set_no_new_privs},
    unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid},
};

use crate::config::User;

pub use files::Files;

/// Why a layer could not be put on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not become another user.
    #[error("proxy.user: the worker cannot become user {} and group {}: {source}; give the sidecar CAP_SETUID and CAP_SETGID, or start it as that user", user.uid, user.gid)]
    User {
        /// Who.
        user: User,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nobody could end the worker.
    #[error("proxy.user: the supervisor could not end a worker that is user {}; give the sidecar CAP_KILL, or start it as that user", user.uid)]
    Unkillable {
        /// Who.
        user: User,
    },
    /// The capabilities could not be given up.
    #[error("the worker cannot give up its capabilities: {0}")]
    Capabilities(String),
    /// The kernel does not promise that executing gives no privileges.
    #[error("the worker cannot set no_new_privs: {0}")]
    NoNewPrivileges(#[source] io::Error),
    /// Others of its user may read its memory.
    #[error("the worker cannot close its memory to other processes of its user: {0}")]
    NotDumpable(#[source] io::Error),
    /// The list of system calls cannot be put in force.
    #[error("the worker cannot limit its system calls: {0}; the kernel needs CONFIG_SECCOMP_FILTER")]
    SystemCalls(String),
}

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// How well the kernel limits the files.
    pub files: Files,
}

/// Gives up everything that the worker does not need. For the calling thread and those that it will start: before there are
/// others.
///
/// # Errors
/// A layer that must not be missing.
pub fn enter(user: Option<User>, readable: &[PathBuf]) -> Result<Sandbox, Error> {
    drop_bounding()?;
    if let Some(user) = user {
        become_user(user)?;
    }
    drop_capabilities()?;
    set_no_new_privs().map_err(|errno| Error::NoNewPrivileges(errno.into()))?;
    // Without capabilities it would be open to every process of its user: to read its keys, or to be traced (ptrace(2)).
    set_dumpable(false).map_err(|errno| Error::NotDumpable(errno.into()))?;
    let files = files::limit(readable);
    syscalls::limit()?;
    Ok(Sandbox { files })
}

fn become_user(user: User) -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    if (uid, gid) == (geteuid(), getegid()) {
        return Ok(());
    }
    // What this process has here the supervisor has as well (kill(2)).
    if uid != geteuid() && !caps::has_cap(None, CapSet::Effective, Capability::CAP_KILL).is_ok_and(|has| has) {
        return Err(Error::Unkillable { user });
    }
    let change = || -> nix::Result<()> {
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)
    };
    change().map_err(|errno| Error::User { user, source: errno.into() })
}

/// A process that may not (CAP_SETPCAP) could only get by executing what it had given up, and `no_new_privs` keeps it from that.
fn drop_bounding() -> Result<(), Error> {
    for capability in caps::runtime::thread_all_supported() {
        if caps::drop(None, CapSet::Bounding, capability).is_err() {
            return match Errno::last() {
                Errno::EPERM => Ok(()),
                errno => Err(Error::Capabilities(format!("bounding set, {capability}: {errno}"))),
            };
        }
    }
    Ok(())
}

fn drop_capabilities() -> Result<(), Error> {
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        caps::clear(None, set).map_err(|error| Error::Capabilities(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
