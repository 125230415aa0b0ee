//! Processes inside pods.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Log, MountNs, NetNs, os_error};

/// How a process is placed: which namespaces and which cgroup. By default in those of the tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spawn<'a> {
    /// The network namespace.
    pub netns: Option<&'a NetNs>,
    /// The cgroup's directory.
    pub cgroup: Option<&'a Path>,
    /// The mount namespace.
    pub mounts: Option<&'a MountNs>,
}

impl Spawn<'_> {
    /// Starts `command` there. Only these namespaces are entered: `ip netns exec` would hide cgroup2 and bpffs
    /// behind a fresh `/sys`.
    pub fn start(self, mut command: Command) -> Result<Process> {
        let name = format!("{:?}", command.get_program());
        let netns = self.netns.map(|netns| netns.as_fd().try_clone_to_owned()).transpose()?;
        let mounts = self.mounts.map(|mounts| mounts.as_fd().try_clone_to_owned()).transpose()?;
        let procs = self
            .cgroup
            .map(|path| {
                let procs = path.join("cgroup.procs");
                OpenOptions::new().write(true).open(&procs).with_context(|| format!("open {}", procs.display()))
            })
            .transpose()?;
        let enter = move || {
            if let Some(procs) = &procs {
                (&mut &*procs).write_all(b"0")?;
            }
            if let Some(netns) = &netns {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
            }
            if let Some(mounts) = &mounts {
                setns(mounts, CloneFlags::CLONE_NEWNS)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only write(2) and setns(2) are called, both async-signal-safe.
        unsafe { command.pre_exec(enter) };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let out = Log::follow(child.stdout.take().context("a child without stdout")?);
        let err = Log::follow(child.stderr.take().context("a child without stderr")?);
        Ok(Process { name, child, out, err })
    }
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Its standard output.
    pub out: Arc<Log>,
    /// Its standard error.
    pub err: Arc<Log>,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        // Process ids are positive i32 (PID_MAX_LIMIT is 2^22); the standard library only shows them as u32.
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Moves it to the cgroup in this directory. Sockets that it has made stay what they are.
    pub fn move_to(&self, cgroup: &Path) -> Result<()> {
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, self.pid().to_string()).with_context(|| format!("move {} to {}", self.name, procs.display()))
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("its standard input is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("write to {}", self.name))
    }

    /// Writes bytes to its standard input.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("its standard input is closed")?;
        stdin.write_all(bytes).with_context(|| format!("write to {}", self.name))
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; an error with all its output when `limit` passes first.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let pidfd = pidfd_open(self.pid())?;
        let timeout = PollTimeout::try_from(limit).context("time limit")?;
        if poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            bail!("{} still runs after {limit:?}{}", self.name, self.output());
        }
        let status = self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        // A child of its own may hold the pipes: what it had to say itself has arrived by then.
        self.out.wait_for_end(Duration::from_secs(1));
        self.err.wait_for_end(Duration::from_secs(1));
        Ok(status)
    }

    /// Waits for its end and returns its standard output; an error unless it exits with 0.
    pub fn finish(mut self, limit: Duration) -> Result<String> {
        let status = self.wait(limit)?;
        if !status.success() {
            bail!("{} ended with {status}{}", self.name, self.output());
        }
        Ok(self.out.text())
    }

    /// The last of what it has written, for a failure message.
    pub fn output(&self) -> String {
        format!("\n--- stdout of {}\n{}\n--- stderr\n{}\n---", self.name, self.out.tail(), self.err.tail())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2), Linux 5.3).
pub(super) fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = i32::try_from(fd).context("pidfd")?;
    if fd < 0 {
        return Err(os_error("pidfd_open"));
    }
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
