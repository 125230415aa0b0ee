//! Where the stores of pods are that outlive processes: for `on_failure: closed`, so that a killed sidecar's programs go on
//! refusing, because the slot of its listener is empty; and for `sidecar init`. Without pins the kernel detaches everything when the
//! process dies, and traffic goes direct.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
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
        patiently(|| self.find())
    }

    fn find(&self) -> Result<Option<Store>, Error> {
        if let Some(store) = Store::there(&self.directory)? {
            return Ok(Some(store));
        }
        let fresh = self.fresh_place();
        let unsettled = Store::there(&fresh)?;
        // Whoever was at work there has settled it in the meantime.
        self.require_unsettled()?;
        if unsettled.is_some() {
            // A predecessor died between removing and renaming: what refuses now is in there. The lock goes with it.
            fs::rename(&fresh, &self.directory).map_err(store::error("rename", &fresh))?;
        }
        Ok(unsettled)
    }

    /// An empty store where none is.
    ///
    /// # Errors
    /// Another process is at work there, or was since somebody looked.
    pub(super) fn first(&self) -> Result<Store, Error> {
        let fresh = self.fresh()?;
        self.require_unsettled().map(|()| fresh)
    }

    fn require_unsettled(&self) -> Result<(), Error> {
        if self.directory.exists() {
            return Err(Error::Busy { path: self.directory.clone(), owner: None });
        }
        Ok(())
    }

    /// An empty store beside the one that is there, which goes on working until the new one takes its place. It goes when it is
    /// dropped, until somebody keeps it.
    pub(super) fn fresh(&self) -> Result<Store, Error> {
        let fresh = patiently(|| Store::at(&self.fresh_place()))?;
        fresh.clear()?;
        Ok(fresh.unfinished())
    }

    /// Puts a complete store into the place of what an earlier process left: there is no moment without. One that is mounted
    /// nowhere needs no place.
    ///
    /// # Errors
    /// It is not where it was made.
    pub(super) fn settle(&self, store: &Store) -> Result<(), Error> {
        if store.shown() == self.directory {
            return Ok(());
        }
        if store.has_no_place() {
            return self.remove();
        }
        self.clear_place(store)?;
        let fresh = self.fresh_place();
        fs::rename(&fresh, &self.directory).map_err(store::error("rename", &fresh))
    }

    /// Removes what a process left that died while it made another store beside the one that is there: its programs would run beside
    /// those of the one that is used, which sends connections to the loopback address of a sidecar, and refuse them for that.
    ///
    /// # Errors
    /// Another process is at work there.
    pub(super) fn remove_unsettled(&self) -> Result<(), Error> {
        let fresh = self.fresh_place();
        match patiently(|| Store::there(&fresh)) {
            Ok(Some(_locked)) => store::remove(&fresh),
            // No earlier process of ours left that.
            Ok(None) | Err(Error::Foreign(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes what an earlier process left, for a new store that is to take its place: from then on that one decides instead, and is
    /// kept whatever becomes of this process.
    ///
    /// # Errors
    /// The new store is not where it was made: it may be what would be removed.
    pub(super) fn clear_place(&self, new: &Store) -> Result<(), Error> {
        let path = new.shown();
        if path != self.fresh_place() {
            new.keep();
            return Err(Error::Lost { path });
        }
        if self.directory.exists() {
            new.keep();
        }
        store::remove(&self.directory)
    }

    /// Removes what an earlier process left; its links end with that.
    pub(super) fn remove(&self) -> Result<(), Error> {
        [self.directory.clone(), self.fresh_place()].iter().try_for_each(|place| match store::remove(place) {
            // No earlier process of ours left that.
            Err(Error::Foreign(_)) => Ok(()),
            removed => removed,
        })
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
    /// Those of other users are theirs to sweep.
    pub(super) fn sweep() {
        let Ok(pods) = fs::read_dir(ROOT) else { return };
        for pod in pods.flatten().map(|entry| entry.path()) {
            match sweep_one(&pod) {
                Ok(true) => tracing::info!(directory = %pod.display(), "removed the pins of a pod that is gone"),
                Ok(false) | Err(Error::Busy { .. } | Error::Foreign(_)) => {}
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

/// Whether it was removed.
fn sweep_one(pod: &Path) -> Result<bool, Error> {
    let is_gone = || store::pinned_links(pod, Some(POD_PROGRAMS[0].0)).iter().all(|link| link.target == 0);
    if !is_gone() {
        return Ok(false);
    }
    let locked = Store::there(pod)?;
    // Whoever had the lock may have attached since.
    if locked.is_none() || !is_gone() {
        return Ok(false);
    }
    store::remove(pod).map(|()| true)
}

/// The sweep of a sidecar of another pod may have the lock of a store that is half made, for a moment.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    /// What a sweep of one directory takes, many times over.
    const PAUSE: Duration = Duration::from_millis(20);
    const PAUSES: u32 = 5;
    for _ in 0..PAUSES {
        match attempt() {
            Err(Error::Busy { .. }) => thread::sleep(PAUSE),
            done => return done,
        }
    }
    attempt()
}
