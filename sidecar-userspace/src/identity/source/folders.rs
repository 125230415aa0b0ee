//! Noticing that files were replaced: their directories are watched, for a file that is renamed over is another one, and
//! a Kubernetes volume changes by the rename of one symbolic link, `..data`.

use std::{
    collections::BTreeSet,
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{net::unix::pipe, time};

/// Time after which files are looked at again although nothing was heard: network file systems say nothing, and a
/// directory above may have been replaced.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The same where the kernel gives no watch: the directory is not there yet, or the user's watches are used up.
const LOOK_AGAIN_BLIND: Duration = Duration::from_secs(2);

/// A set that is not written at once is given this long of silence to be complete, ten times at most.
const SETTLE: Duration = Duration::from_millis(50);

/// Which files are there. Equal prints: the same files, with the same content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Print(Vec<Option<File>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    path: PathBuf,
    /// Device and inode.
    place: (u64, u64),
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The print of `files`, of those behind symbolic links.
pub(super) fn print(files: &[&Path]) -> Print {
    let of = |path: &&Path| {
        let path = fs::canonicalize(path).ok()?;
        let meta = fs::metadata(&path).ok()?;
        Some(File {
            path,
            place: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    };
    Print(files.iter().map(of).collect())
}

/// Watches on the directories of some files. Made before the files are read, so that no change falls between.
pub(super) struct Folders(Option<pipe::Receiver>);

impl Folders {
    /// Watches the directories of `files`, and of the files that those are links to.
    pub(super) fn watch(files: &[&Path]) -> Self {
        Self(watch(files).inspect_err(|error| tracing::debug!(%error, "identity files are polled")).ok())
    }

    /// Waits until something changed there, or may have.
    pub(super) async fn changed(&self) {
        let Some(events) = &self.0 else { return time::sleep(LOOK_AGAIN_BLIND).await };
        if time::timeout(LOOK_AGAIN, heard(events)).await.is_err() {
            return;
        }
        for _ in 0..10 {
            if time::timeout(SETTLE, heard(events)).await.is_err() {
                return;
            }
        }
    }
}

fn watch(files: &[&Path]) -> io::Result<pipe::Receiver> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let real = files.iter().filter_map(|path| fs::canonicalize(path).ok());
    let all = files.iter().map(|path| path.to_path_buf()).chain(real);
    let folders: BTreeSet<PathBuf> = all.filter_map(|path| path.parent().map(Path::to_path_buf)).collect();
    let what = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    for folder in folders {
        inotify.add_watch(if folder.as_os_str().is_empty() { Path::new(".") } else { &folder }, what)?;
    }
    // What the reactor needs of a pipe holds for inotify: it can be polled and read (inotify(7)). Registering a bare
    // descriptor would need unsafe code.
    pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(inotify))
}

/// Waits for an event, and forgets all that are there: which file it was about does not matter.
async fn heard(events: &pipe::Receiver) {
    let mut buffer = [0; 4096];
    loop {
        if events.readable().await.is_err() {
            return std::future::pending().await;
        }
        match events.try_read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}
