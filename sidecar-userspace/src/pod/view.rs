//! What the kernel and its file systems show of cgroups, to the sidecar and to tests.

use std::{
    fs, io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{Error, error::io_error};

/// Where questions about cgroups are answered.
pub(super) trait View {
    /// The text of /proc/self/cgroup.
    fn membership(&self) -> Result<String, Error>;
    /// The text of /proc/self/mountinfo.
    fn mounts(&self) -> Result<String, Error>;
    /// The id of the cgroup at a directory: its inode number.
    fn id(&self, cgroup: &Path) -> io::Result<u64>;
    /// Its children, with their ids.
    fn children(&self, cgroup: &Path) -> Vec<(PathBuf, u64)>;
    /// Whether it is the root of the whole hierarchy, not only of what can be seen.
    fn is_root(&self, cgroup: &Path) -> bool;
    /// Whether the calling process is right in it.
    fn holds_us(&self, cgroup: &Path) -> bool;
}

/// The machine.
pub(super) struct System;

impl View for System {
    fn membership(&self) -> Result<String, Error> {
        read("/proc/self/cgroup")
    }

    fn mounts(&self) -> Result<String, Error> {
        read("/proc/self/mountinfo")
    }

    fn id(&self, cgroup: &Path) -> io::Result<u64> {
        // kernel/cgroup/cgroup.c, `cgroup_id`.
        fs::metadata(cgroup).map(|metadata| metadata.ino())
    }

    fn children(&self, cgroup: &Path) -> Vec<(PathBuf, u64)> {
        let Ok(entries) = fs::read_dir(cgroup) else { return Vec::new() };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| (entry.path(), entry.ino())).collect()
    }

    fn is_root(&self, cgroup: &Path) -> bool {
        // The root has no type (Documentation/admin-guide/cgroup-v2.rst, "Core Interface Files").
        cgroup.join("cgroup.procs").exists() && !cgroup.join("cgroup.type").exists()
    }

    fn holds_us(&self, cgroup: &Path) -> bool {
        let own = std::process::id().to_string();
        fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|procs| procs.lines().any(|pid| pid == own))
    }
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(io_error("read", Path::new(path)))
}
