//! Network namespaces without a name: they end with their last process or file descriptor, so nothing can be left behind.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::PathBuf,
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace.
#[derive(Debug)]
pub struct NetNs(File);

impl NetNs {
    /// A new, empty one.
    pub fn new() -> Result<Self> {
        // A thread of its own, because a thread that has left its namespace must not run anything else afterwards.
        thread::spawn(|| -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET): run the tests as root")?;
            Ok(Self(File::open("/proc/thread-self/ns/net").context("open /proc/thread-self/ns/net")?))
        })
        .join()
        .map_err(|_| anyhow!("the thread that makes a network namespace panicked"))?
    }

    /// A path by which other programs can enter it while this process runs.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Runs `work` on a thread inside the namespace. Sockets made there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.0, CloneFlags::CLONE_NEWNET).context("setns of a pod's network namespace")?;
                    Ok(work())
                })
                .join()
                .map_err(|panic| anyhow!("panic inside a pod's network namespace: {}", message_of(&panic)))?
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn message_of(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}
