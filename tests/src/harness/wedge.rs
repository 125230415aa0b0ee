//! A thread that hangs while the rest of its process runs.

use std::{
    fs,
    marker::PhantomData,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::{
        ptrace::{self, Options},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{PATIENCE, patient};

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

/// Receives of one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Receives {
    /// Those that returned something.
    pub full: u32,
    /// Those that found nothing.
    pub empty: u32,
    bytes: u64,
}

impl Wedge {
    /// Lets the thread go on until it has received so many bytes, and tells by how many calls of `recv`.
    pub fn receives(self, bytes: u64) -> Result<Receives> {
        /// Of the kernel's own numbers: what a call has returned before it has returned anything.
        const ENTERED: i64 = -(nix::libc::ENOSYS as i64);
        const NOTHING: i64 = -(nix::libc::EAGAIN as i64);
        let mut seen = Receives::default();
        ptrace::setoptions(self.thread, Options::PTRACE_O_TRACESYSGOOD).context("follow system calls")?;
        let mut signal = None;
        while seen.bytes < bytes {
            ptrace::syscall(self.thread, signal.take()).context("go on to the next system call")?;
            let status = self.next_stop().with_context(|| format!("after {seen:?}"))?;
            match status {
                WaitStatus::PtraceSyscall(_) => {}
                WaitStatus::Stopped(_, sent) => {
                    signal = Some(sent);
                    continue;
                }
                WaitStatus::PtraceEvent(..) => continue,
                ended => anyhow::bail!("after {seen:?}: {ended:?}"),
            }
            let registers = ptrace::getregs(self.thread).context("registers")?;
            if registers.orig_rax != nix::libc::SYS_recvfrom as u64 {
                continue;
            }
            match registers.rax as i64 {
                ENTERED => {}
                NOTHING => seen.empty += 1,
                received => {
                    seen.full += 1;
                    seen.bytes += u64::try_from(received).unwrap_or(0);
                }
            }
        }
        Ok(seen)
    }

    fn next_stop(&self) -> Result<WaitStatus> {
        const A_MOMENT: Duration = Duration::from_micros(20);
        let deadline = Instant::now() + patient(PATIENCE);
        loop {
            match waitpid(self.thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG))
                .context("wait for a system call")?
            {
                WaitStatus::StillAlive => ensure!(Instant::now() < deadline, "it waits, and nothing comes"),
                stopped => return Ok(stopped),
            }
            std::thread::sleep(A_MOMENT);
        }
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
