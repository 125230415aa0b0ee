//! Links that outlive the process, for `on_failure: closed`: a killed sidecar's programs go on refusing, because the slot
//! of its listener is empty. Without pins the kernel detaches everything when the process dies, and traffic goes direct.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::links::FdLink;
use nix::sys::statfs::statfs;

use super::{error::Error, programs::POD_PROGRAMS, query};
use crate::pod::Pod;

/// Where bpffs is mounted by convention (systemd and every distribution do it).
const BPFFS: &str = "/sys/fs/bpf";

/// Where sidecars pin, a directory for each pod.
const ROOT: &str = "/sys/fs/bpf/sidecar";

/// The pins of one pod: a directory named for the pod's cgroup and network namespace.
pub(super) struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The place of this pod's pins, whether there are any or not.
    pub(super) fn of(pod: &Pod) -> Self {
        Self { directory: Path::new(ROOT).join(format!("{}-{}", pod.cgroup_id(), pod.netns_inode())) }
    }

    /// The program that an earlier sidecar's pinned link runs.
    pub(super) fn program_id(&self, program: &str) -> Option<u32> {
        let pinned = [&self.directory, &self.fresh()].map(|directory| query::pinned_link(&directory.join(program)));
        pinned.into_iter().flatten().map(|link| link.program).next()
    }

    /// Where the pins are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes what an earlier sidecar of this pod left, or this one; the links end with that.
    pub(super) fn remove(&self) -> Result<(), Error> {
        remove(&self.directory)?;
        remove(&self.fresh())
    }

    /// Pins every link under its program's name, in place of what an earlier sidecar left: there is no moment without.
    pub(super) fn replace(&self, links: Vec<(&'static str, FdLink)>) -> Result<Vec<FdLink>, Error> {
        let fresh = self.fresh();
        if !self.directory.exists() && fresh.exists() {
            // A predecessor died between removing and renaming: what refuses now is in there.
            fs::rename(&fresh, &self.directory).map_err(|source| error("rename", &fresh, source))?;
        }
        remove(&fresh)?;
        fs::create_dir_all(&fresh).map_err(|source| error("create", &fresh, source))?;
        let pin = |(program, link): (&str, FdLink)| {
            let pinned = link.pin(fresh.join(program)).map(FdLink::from);
            pinned.map_err(|source| error("pin links in", &fresh, io::Error::other(source)))
        };
        let links = links.into_iter().map(pin).collect::<Result<_, _>>()?;
        remove(&self.directory)?;
        fs::rename(&fresh, &self.directory).map_err(|source| error("rename", &fresh, source))?;
        Ok(links)
    }

    /// Where new pins are gathered. bpffs refuses names with a dot.
    fn fresh(&self) -> PathBuf {
        let mut fresh = self.directory.clone().into_os_string();
        fresh.push("-new");
        fresh.into()
    }

    /// Removes the pins of pods that are gone: their links were cut when the cgroup was removed, but programs and maps stay
    /// in memory as long as they are pinned.
    pub(super) fn sweep() {
        let Ok(pods) = fs::read_dir(ROOT) else { return };
        for pod in pods.flatten().map(|entry| entry.path()) {
            let cut = query::pinned_link(&pod.join(POD_PROGRAMS[0].0)).is_ok_and(|link| link.target == 0);
            if cut {
                match remove(&pod) {
                    Ok(()) => tracing::info!(directory = %pod.display(), "removed the pins of a pod that is gone"),
                    Err(error) => tracing::warn!(%error, "the pins of a pod that is gone stay"),
                }
            }
        }
    }

    /// A directory of another file system would take files but no links.
    pub(super) fn require_bpffs() -> Result<(), Error> {
        let found = statfs(BPFFS).map(|found| found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
        if found == Ok(true) { Ok(()) } else { Err(Error::NoBpffs) }
    }
}

/// Cuts the links, then removes their pins: a link that is only unpinned goes on running its program for a while.
fn remove(directory: &Path) -> Result<(), Error> {
    if let Ok(pins) = fs::read_dir(directory) {
        for pin in pins.flatten() {
            if let Err(source) = query::detach_pinned(&pin.path()) {
                tracing::debug!(pin = %pin.path().display(), %source, "not a link that can be cut");
            }
        }
    }
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("remove", directory, source)),
        _ => Ok(()),
    }
}

fn error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Pin { action, path: path.to_owned(), source }
}
