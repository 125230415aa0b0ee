//! A network namespace without a name.

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

/// It lives as long as this value or a process in it.
pub(crate) struct Netns {
    file: Mutex<File>,
}

impl Netns {
    /// A new one, in which not even loopback is up.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { file: Mutex::new(Self::make()?) })
    }

    /// Puts a new one in its place. What runs in the old one stays there.
    pub(crate) fn replace(&self) -> Result<()> {
        *self.file() = Self::make()?;
        Ok(())
    }

    fn make() -> Result<File> {
        let opened = thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let file = opened.join().map_err(|_| anyhow!("the thread that makes a network namespace panicked"))?;
        file.context("cannot make a network namespace (unshare(CLONE_NEWNET)); run as root")
    }

    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A path that `ip … netns` understands, as long as this process lives and does not replace it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file().as_raw_fd())
    }

    /// A descriptor for a child to enter it.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd> {
        Ok(self.file().try_clone().context("cannot duplicate a network namespace's descriptor")?.into())
    }

    /// Runs something inside it, on a thread of its own. Sockets made there stay in the namespace. No child process may
    /// be started there: it would be killed when the thread ends (see [`super::pod::Pod::command`]).
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = self.descriptor()?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a pod's network namespace")?;
                work()
            });
            inside.join().map_err(|_| anyhow!("a thread inside a pod's network namespace panicked"))?
        })
    }

    /// Runs `ip` with these arguments inside it.
    pub(crate) fn ip(&self, args: &[&str]) -> Result<()> {
        self.run("ip", args).map(drop)
    }

    /// Runs a program inside it, waits for its success, and gives what it wrote.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let namespace = self.descriptor()?;
        let mut command = Command::new(program);
        command.args(args);
        // SAFETY: between fork and exec the closure only makes a system call.
        unsafe { command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?)) };
        let output = command.output().with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether something in it listens on this TCP port, for programs that may not be asked by connecting to it.
    pub(crate) fn listens(&self, port: u16) -> Result<bool> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let sockets = self.enter(|| Ok(read("/proc/thread-self/net/tcp")? + &read("/proc/thread-self/net/tcp6")?))?;
        // sl local_address rem_address st …, addresses in hexadecimal, 0A = LISTEN
        let port = format!(":{port:04X}");
        Ok(sockets.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some("0A")
        }))
    }

    /// Sets a network sysctl of this namespace, such as `ipv4/ip_local_port_range`.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.enter(|| fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}")))
    }
}
