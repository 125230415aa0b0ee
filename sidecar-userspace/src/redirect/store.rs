//! Maps, programs and links of one pod in a directory of the BPF file system, by name: what outlives the process that made them.
//!
//! A directory below /sys/fs/bpf/sidecar is there for whoever comes next ([`super::pins`]). One in a BPF file system that is mounted
//! nowhere goes when the last process that holds its descriptor is gone, as links do without a store: a sidecar that is replaced
//! while it runs hands it to its successor, which need not know which of the two it got.
//!
//! ```text
//! layout     a symbolic link whose target is the marker: what made this, and for which layout; written last, removed first
//! maps/      RULES, NOTES, FLOWS, …
//! links/     on_connect4, …: each by the name of its program
//! programs/  those of the sidecar's own sockets, which are attached anew for each sidecar's cgroup
//! ```
//!
//! Without a marker a store is half made. With one of another layout nobody touches its maps.

mod marker;
mod mount;
mod owner;
mod unfinished;

use std::{
    cell::Cell,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, fstatfs};
use sidecar_common::layout::LAYOUT;

use super::{bpf, error::Error, maps::KEPT};
pub(super) use marker::{Marker, fingerprint};
pub(super) use owner::Foreign;

const MARKER: &str = "layout";
const MAPS: &str = "maps";
const LINKS: &str = "links";
const PROGRAMS: &str = "programs";

/// A directory of the BPF file system that holds what one pod's sidecar made.
#[derive(Debug)]
pub struct Store {
    directory: OwnedFd,
    /// It goes when it is dropped.
    unfinished: Cell<bool>,
}

impl Store {
    /// The store in a directory below /sys/fs/bpf, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made or is not in a BPF file system; another process has it, or another user.
    pub fn at(directory: &Path) -> Result<Self, Error> {
        owner::share(directory)?;
        make(directory).map_err(owner::refused("create", directory, false))?;
        // Another process may have removed it already.
        Self::there(directory)?.ok_or_else(|| Error::Busy { path: directory.to_owned(), owner: None })
    }

    /// The store in a directory below /sys/fs/bpf, if it is there.
    ///
    /// # Errors
    /// It is not in a BPF file system; another process has it, or another user.
    pub(super) fn there(directory: &Path) -> Result<Option<Self>, Error> {
        let Some(opened) = owner::open(directory)? else { return Ok(None) };
        if fstatfs(&opened).map(|found| found.filesystem_type()) != Ok(BPF_FS_MAGIC) {
            return Err(Error::NoBpffs);
        }
        let same = opened.metadata().map(|opened| opened.ino());
        let store = Self::from_descriptor(opened.into());
        store.lock(directory)?;
        // Whoever had the lock may have removed it, and what is locked is nowhere any more.
        match fs::metadata(directory).map(|there| there.ino()) {
            Ok(there) if same.is_ok_and(|same| same == there) => Ok(Some(store)),
            _ => Err(Error::Busy { path: directory.to_owned(), owner: None }),
        }
    }

    /// A store that nobody else can see, and that goes with the last descriptor of it: the one in it, and the one beside it, which
    /// is for a successor.
    ///
    /// # Errors
    /// The kernel mounts no BPF file system for this process (no CAP_SYS_ADMIN): then there is no upgrade in place.
    pub fn detached() -> Result<(Self, OwnedFd), Error> {
        let mounted = mount::bpffs().map_err(Error::Detached)?;
        let other = mounted.try_clone().map_err(Error::Detached)?;
        Ok((Self::from_descriptor(mounted), other))
    }

    /// The store that another process left or handed over: a descriptor of its directory.
    pub fn from_descriptor(directory: OwnedFd) -> Self {
        Self { directory, unfinished: Cell::new(false) }
    }

    /// The descriptor of its directory, for a successor. It carries the lock as well.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Two processes must not work at one store. The lock goes with the last descriptor.
    fn lock(&self, shown: &Path) -> Result<(), Error> {
        // SAFETY: flock(2) takes no pointers.
        let locked = unsafe { libc::flock(self.directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        if locked == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            busy if busy.kind() == io::ErrorKind::WouldBlock => {
                let owner = self.marker().ok().flatten().map(|marker| marker.owner);
                Err(Error::Busy { path: shown.to_owned(), owner })
            }
            other => Err(error("lock", shown)(other)),
        }
    }

    /// Where it is, for people.
    pub fn shown(&self) -> PathBuf {
        fs::read_link(self.root()).unwrap_or_else(|_| self.root())
    }

    /// The directory by its descriptor: it has no other path, or one that another may have by now.
    pub(super) fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))
    }

    fn path(&self, part: &str, name: &str) -> PathBuf {
        self.root().join(part).join(name)
    }

    /// The marker; `None`: the store is empty or half made.
    ///
    /// # Errors
    /// It has another layout.
    pub(super) fn marker(&self) -> Result<Option<Marker>, Error> {
        let text = match fs::read_link(self.root().join(MARKER)) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.error("read the marker of")(source)),
        };
        match text.to_str().and_then(Marker::parse) {
            Some(marker) if marker.layout == LAYOUT => Ok(Some(marker)),
            other => {
                Err(Error::Layout { path: self.shown(), found: other.map(|marker| (marker.layout, marker.version)) })
            }
        }
    }

    /// Makes room for maps, programs and links. What is half made goes first; a marker that is there stays.
    ///
    /// # Errors
    /// The store has another layout, or cannot be written.
    pub(super) fn open(&self) -> Result<Option<Marker>, Error> {
        let marker = self.marker()?;
        if marker.is_none() {
            self.clear()?;
        }
        for part in [MAPS, LINKS, PROGRAMS] {
            make(&self.root().join(part)).map_err(self.error("make room in"))?;
        }
        Ok(marker)
    }

    /// Says that the store is complete, and whose it is.
    pub(super) fn complete(&self, marker: &Marker) -> Result<(), Error> {
        const NEXT: &str = "layout-new";
        let next = self.root().join(NEXT);
        let _ = fs::remove_file(&next);
        std::os::unix::fs::symlink(marker.to_string(), &next)
            .and_then(|()| fs::rename(&next, self.root().join(MARKER)))
            .map_err(self.error("mark"))
    }

    /// Marks it again, if everything is still there: nobody goes on with a store that somebody has emptied, or that cannot be
    /// written any more.
    ///
    /// # Errors
    /// Why, for people.
    pub(super) fn refresh(&self, marker: &Marker) -> Result<(), String> {
        let removed = |what| format!("somebody has removed {what} from {}", self.shown().display());
        self.marker().map_err(|error| error.to_string())?.ok_or_else(|| removed("the marker `layout`"))?;
        if let Some(map) = KEPT.iter().find(|map| !self.map(map).exists()) {
            return Err(removed(&format!("the map {map}")));
        }
        self.complete(marker).map_err(|error| error.to_string())
    }

    /// Where a map is pinned or will be.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.path(MAPS, name)
    }

    /// A pinned link.
    pub(super) fn link(&self, program: &str) -> Option<OwnedFd> {
        bpf::get(&self.path(LINKS, program)).ok()
    }

    /// A pinned program.
    pub(super) fn program(&self, name: &str) -> io::Result<OwnedFd> {
        bpf::get(&self.path(PROGRAMS, name))
    }

    /// Pins a link in the place of one that was there.
    pub(super) fn pin_link(&self, program: &str, link: BorrowedFd<'_>) -> Result<(), Error> {
        self.pin(&self.path(LINKS, program), link, "pin links in")
    }

    /// Unpins a link, which goes on as long as somebody holds it.
    pub(super) fn unpin_link(&self, program: &str) {
        // There may be none.
        let _ = fs::remove_file(self.path(LINKS, program));
    }

    /// Whether it is in a file system that is mounted nowhere.
    pub(super) fn has_no_place(&self) -> bool {
        self.shown() == Path::new("/")
    }

    /// Pins a program in the place of one that was there.
    pub(super) fn pin_program(&self, name: &str, program: BorrowedFd<'_>) -> Result<(), Error> {
        self.pin(&self.path(PROGRAMS, name), program, "pin programs in")
    }

    fn pin(&self, path: &Path, object: BorrowedFd<'_>, action: &'static str) -> Result<(), Error> {
        let _ = fs::remove_file(path);
        bpf::pin(object, path).map_err(self.error(action))
    }

    /// Cuts every link and removes everything: a link that is only unpinned goes on running its program for a while.
    pub(super) fn clear(&self) -> Result<(), Error> {
        empty(&self.root()).map_err(self.error("empty"))
    }

    pub(super) fn error(&self, action: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        error(action, &self.shown())
    }
}

/// The marker goes first, so that what is left by a crash in between is known for half made.
fn empty(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(MARKER)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(source),
        _ => {}
    }
    for entry in fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        // The kernel's own (`maps.debug`, `progs.debug`, kernel/bpf/inode.c), in the root of every BPF file system: nobody else may
        // have such names, and nobody may remove them.
        if entry.file_name().as_encoded_bytes().contains(&b'.') {
            continue;
        }
        if entry.file_type()?.is_dir() {
            empty(&path)?;
            fs::remove_dir(&path)?;
            continue;
        }
        // Maps and programs cannot be cut.
        if let Ok(pinned) = bpf::get(&path) {
            let _ = bpf::detach(pinned.as_fd());
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Removes a directory with all that is pinned below it, by whichever version.
///
/// # Errors
/// It cannot be removed, or is of another user, who could lead us elsewhere meanwhile.
pub(super) fn remove(directory: &Path) -> Result<(), Error> {
    if owner::open(directory)?.is_none() {
        return Ok(());
    }
    match empty(directory).and_then(|()| fs::remove_dir(directory)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("remove", directory)(source)),
        _ => Ok(()),
    }
}

/// The links that are pinned in a directory, by whichever version: all of them, or those of one program.
pub(super) fn pinned_links(directory: &Path, program: Option<&str>) -> Vec<bpf::Link> {
    let places = [directory.join(LINKS), directory.to_owned()];
    let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let wanted = entries.filter(|entry| program.is_none_or(|program| entry.file_name() == program));
    let opened = wanted.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    opened.filter_map(|entry| bpf::link_info(bpf::get(&entry.path()).ok()?.as_fd()).ok()).collect()
}

fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

pub(super) fn error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Pin { action, path, source }
}
