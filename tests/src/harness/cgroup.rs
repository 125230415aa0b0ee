//! Control groups of a world, and the sweeping of those that a killed run left behind.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::eventually;

/// What the name of every world's cgroup begins with; the test process's id and a number follow.
const PREFIX: &str = "sidecar-test-";

/// Where the memory controller of the first version is, on a hybrid host.
pub(super) const MEMORY_V1: &str = "/sys/fs/cgroup/memory";

/// Where the worlds' files are.
pub(super) const FILES: &str = "/tmp";

/// A cgroup v2 directory; killed and removed with everything below it when dropped.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The cgroup of a new world, directly below the cgroup v2 mount.
    pub fn new_world() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mount = Self::mount()?;
        SWEEP.call_once(|| sweep(&mount));
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = mount.join(name);
        fs::create_dir(&path).with_context(|| format!("create cgroup {}: run the tests as root", path.display()))?;
        Ok(Self(path))
    }

    /// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or below it on a hybrid host.
    pub fn mount() -> Result<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        for line in table.lines() {
            // proc(5): "... mount-point options [optional fields] - type source super-options".
            let Some((mount, file_system)) = line.split_once(" - ") else { continue };
            if file_system.starts_with("cgroup2 ")
                && let Some(path) = mount.split(' ').nth(4)
            {
                return Ok(path.into());
            }
        }
        bail!("no cgroup2 mount in /proc/self/mountinfo: mount -t cgroup2 none /sys/fs/cgroup")
    }

    /// Makes the directory `name` below it. It is removed with its parent.
    pub fn create_child(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        Ok(path)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            eprintln!("cgroup {} stays behind: {error}", self.0.display());
        }
    }
}

/// Kills every process in it and removes it with everything below.
fn remove(path: &Path) -> io::Result<()> {
    fs::write(path.join("cgroup.kill"), "1")?;
    let events = path.join("cgroup.events");
    let empty = || fs::read_to_string(&events).is_ok_and(|text| text.contains("populated 0"));
    eventually(Duration::from_secs(5), empty);
    remove_directories(path)
}

fn remove_directories(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_directories(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Removes the cgroups and files of test processes that no longer exist. Done before the first world of a run.
pub fn sweep(mount: &Path) {
    // Another run may sweep at the same time: whoever comes second finds nothing, which is as good.
    for limit in orphans(Path::new(MEMORY_V1)) {
        let _ = fs::remove_dir(&limit);
    }
    for cgroup in orphans(mount) {
        let _ = remove(&cgroup);
    }
    for files in orphans(Path::new(FILES)) {
        let _ = fs::remove_dir_all(&files);
    }
}

/// What is named like a world in `directory` and has no living owner.
fn orphans(directory: &Path) -> Vec<PathBuf> {
    let is_orphan = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let owner = name.and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split('-').next());
        owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists())
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(is_orphan).collect()
}
