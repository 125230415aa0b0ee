//! Mount namespaces without a name, each with a BPF file system of its own: what a sidecar pins ends with its world.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

/// Where the BPF file system is mounted, here and everywhere.
pub const BPF_FS: &str = "/sys/fs/bpf";

/// A mount namespace that differs from the machine's in [`BPF_FS`] alone.
#[derive(Debug)]
pub struct MountNs(File);

impl MountNs {
    /// A new one.
    pub fn new() -> Result<Self> {
        // A thread of its own, as for a network namespace.
        thread::spawn(|| -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNS).context("unshare(CLONE_NEWNS): run the tests as root")?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
            mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), none)
                .with_context(|| format!("mount a BPF file system at {BPF_FS}"))?;
            Ok(Self(File::open("/proc/thread-self/ns/mnt").context("open /proc/thread-self/ns/mnt")?))
        })
        .join()
        .map_err(|_| anyhow!("the thread that makes a mount namespace panicked"))?
    }

    /// Runs `work` on a thread inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // Threads share their root directory, which setns(2) must not change for the others.
                unshare(CloneFlags::CLONE_FS).context("unshare(CLONE_FS)")?;
                setns(&self.0, CloneFlags::CLONE_NEWNS).context("setns of a mount namespace")?;
                Ok(work())
            });
            inside.join().map_err(|_| anyhow!("panic inside a mount namespace"))?
        })
    }
}

impl AsFd for MountNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
