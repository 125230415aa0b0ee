//! Where the stores of pods are that outlive processes: for `on_failure: closed`, so that a killed sidecar's programs go on
//! refusing, because the slot of its listener is empty; and for `sidecar init`. Without pins the kernel detaches everything when the
//! process dies, and traffic goes direct.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{
    error::Error,
    programs::POD_PROGRAMS,
    store::{self, Store},
};
use crate::pod::Pod;

/// Where bpffs is mounted by convention (systemd and every distribution do it).
const BPFFS: &str = "/sys/fs/bpf";

/// Where sidecars pin, a directory for each pod.
const ROOT: &str = "/sys/fs/bpf/sidecar";

/// The place of one pod's store: a directory named for the pod's cgroup and network namespace.
#[derive(Clone)]
pub(super) struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The place of this pod's store, whether there is one or not.
    pub(super) fn of(pod: &Pod) -> Self {
        Self { directory: Path::new(ROOT).join(format!("{}-{}", pod.cgroup_id(), pod.netns_inode())) }
    }

    /// The programs that links of an earlier sidecar run.
    pub(super) fn program_ids(&self) -> Vec<u32> {
        let places = [self.directory.clone(), self.fresh_place()];
        places.iter().flat_map(|place| store::pinned_links(place, None)).map(|link| link.program).collect()
    }

    /// What an earlier process left, complete or not.
    ///
    /// # Errors
    /// Another process is at work there.
    pub(super) fn found(&self) -> Result<Option<Store>, Error> {
        let fresh = self.fresh_place();
        if !self.directory.exists() && fresh.exists() {
            // A predecessor died between removing and renaming: what refuses now is in there.
            fs::rename(&fresh, &self.directory).map_err(store::error("rename", &fresh))?;
        }
        if self.directory.exists() { Store::at(&self.directory).map(Some) } else { Ok(None) }
    }

    /// An empty store beside the one that is there, which goes on working until the new one takes its place.
    pub(super) fn fresh(&self) -> Result<Store, Error> {
        let fresh = Store::at(&self.fresh_place())?;
        fresh.clear()?;
        Ok(fresh)
    }

    /// Puts a complete store into the place of what an earlier process left: there is no moment without. One that is elsewhere
    /// needs no place.
    pub(super) fn settle(&self, store: &Store) -> Result<(), Error> {
        let (place, fresh) = (store.shown(), self.fresh_place());
        if place == self.directory {
            return Ok(());
        }
        if place != fresh {
            return self.remove();
        }
        self.clear_place()?;
        fs::rename(&fresh, &self.directory).map_err(store::error("rename", &fresh))
    }

    /// Removes what an earlier process left, but for a new store that is to take its place.
    pub(super) fn clear_place(&self) -> Result<(), Error> {
        store::remove(&self.directory)
    }

    /// Removes what an earlier process left; its links end with that.
    pub(super) fn remove(&self) -> Result<(), Error> {
        store::remove(&self.directory)?;
        store::remove(&self.fresh_place())
    }

    /// Removes a store of this process; its links have been cut.
    pub(super) fn discard(&self, store: &Store) -> Result<(), Error> {
        if store.shown() == self.directory { store::remove(&self.directory) } else { store.clear() }
    }

    /// Where a new store is gathered. bpffs refuses names with a dot.
    fn fresh_place(&self) -> PathBuf {
        let mut fresh = self.directory.clone().into_os_string();
        fresh.push("-new");
        fresh.into()
    }

    /// Removes the stores of pods that are gone: their links were cut when the cgroup was removed, but programs and maps stay
    /// in memory as long as they are pinned. One without links was left by a process that died at work, unless it is locked.
    pub(super) fn sweep() {
        let Ok(pods) = fs::read_dir(ROOT) else { return };
        for pod in pods.flatten().map(|entry| entry.path()) {
            let links = store::pinned_links(&pod, Some(POD_PROGRAMS[0].0));
            if links.iter().any(|link| link.target != 0) {
                continue;
            }
            match Store::at(&pod).and_then(|_locked| store::remove(&pod)) {
                Ok(()) => tracing::info!(directory = %pod.display(), "removed the pins of a pod that is gone"),
                Err(Error::Busy { .. }) => {}
                Err(error) => tracing::warn!(%error, "the pins of a pod that is gone stay"),
            }
        }
    }

    /// A directory of another file system would take files but no links.
    pub(super) fn require_bpffs() -> Result<(), Error> {
        let found = statfs(BPFFS).map(|found| found.filesystem_type() == BPF_FS_MAGIC);
        if found == Ok(true) { Ok(()) } else { Err(Error::NoBpffs) }
    }
}
