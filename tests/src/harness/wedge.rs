//! A thread that hangs while the rest of its process runs.

use std::{fs, marker::PhantomData};

use anyhow::{Context, Result};
use nix::{
    sys::{
        ptrace::{self, Options},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// A stopped thread of another process; goes on when dropped. Belongs to the thread that made it, as ptrace(2) demands.
#[derive(Debug)]
pub struct Wedge {
    thread: Pid,
    _not_send: PhantomData<*const ()>,
}

impl Wedge {
    /// Stops the thread of `process` that has this name.
    pub fn new(process: Pid, name: &str) -> Result<Self> {
        Self::stop(find(process, name)?)
    }

    /// Stops the main thread of `process`, whose name is the program's.
    pub fn of_main_thread(process: Pid) -> Result<Self> {
        Self::stop(process)
    }

    fn stop(thread: Pid) -> Result<Self> {
        ptrace::seize(thread, Options::empty()).with_context(|| format!("ptrace thread {thread}"))?;
        let wedge = Self { thread, _not_send: PhantomData };
        ptrace::interrupt(thread).with_context(|| format!("stop thread {thread}"))?;
        waitpid(thread, Some(WaitPidFlag::__WALL))
            .with_context(|| format!("wait until thread {thread} has stopped"))?;
        Ok(wedge)
    }
}

impl Drop for Wedge {
    fn drop(&mut self) {
        // Fails only if the thread is dead or dying; then nobody sees its end before its tracer has.
        if ptrace::detach(self.thread, None).is_err() {
            let _ = waitpid(self.thread, Some(WaitPidFlag::__WALL));
        }
    }
}

fn find(process: Pid, name: &str) -> Result<Pid> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).with_context(|| format!("threads of {process}"))?;
    for thread in threads {
        let path = thread?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name) {
            let id = path.file_name().and_then(|id| id.to_str()).context("a thread without a number")?;
            return Ok(Pid::from_raw(id.parse()?));
        }
    }
    anyhow::bail!("process {process} has no thread {name}")
}
