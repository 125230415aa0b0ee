//! cgroup v2 directories that take their processes with them.

use anyhow::{Context, Result, anyhow};
use std::{
    fs::{self, OpenOptions},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Where cgroup v2 is mounted; on hybrid hosts that is not /sys/fs/cgroup.
pub(crate) fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    // id parent major:minor root mount-point options… - type source options
    let cgroup2 = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next() == Some("cgroup2")).then(|| mount.split(' ').nth(4)).flatten()
    });
    cgroup2.map(PathBuf::from).ok_or_else(|| {
        anyhow!("no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")
    })
}

/// CPU time that a cgroup's processes, living and dead, have used.
pub(crate) fn cpu(cgroup: &Path) -> Result<Duration> {
    let path = cgroup.join("cpu.stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
    usage.map(Duration::from_micros).ok_or_else(|| anyhow!("{} has no usage_usec", path.display()))
}

/// The processes in a cgroup.
pub(crate) fn members(cgroup: &Path) -> Result<Vec<u32>> {
    let path = cgroup.join("cgroup.procs");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|pid| pid.parse().with_context(|| format!("{} holds {pid:?}", path.display()))).collect()
}

/// One directory. Dropping it kills what runs in it and removes it with its children.
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the directory.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        fs::create_dir(path).with_context(|| format!("cannot make the cgroup {}; run as root", path.display()))?;
        Ok(Self::adopt(path.to_owned()))
    }

    /// Takes over a directory that exists, to remove it.
    pub(crate) fn adopt(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor through which a process moves itself here by writing `0`.
    pub(crate) fn entrance(&self) -> Result<OwnedFd> {
        let path = self.path.join("cgroup.procs");
        let file = OpenOptions::new().write(true).open(&path);
        Ok(file.with_context(|| format!("cannot open {}", path.display()))?.into())
    }

    /// Nothing in it and below runs any more, until it is killed.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), "1")
    }

    /// Kills everything in it and below, frozen or not, and nothing can fork its way out.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Whether a process is in it or below.
    pub(crate) fn populated(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(self.path.join("cgroup.events"))?.lines().any(|line| line == "populated 1"))
    }

    fn remove(&self) -> io::Result<()> {
        match self.kill() {
            // Gone with its parent.
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            killed => killed?,
        }
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match remove_tree(&self.path) {
                // The killed are on their way out; there is no one else to wait for them.
                Err(err) if err.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                    thread::sleep(Duration::from_millis(2));
                }
                done => return done,
            }
        }
    }
}

/// Children first: a cgroup's own files cannot be removed, its directory can once it is empty.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(err) = self.remove() {
            eprintln!("cannot remove the cgroup {}: {err}", self.path.display());
        }
    }
}
