//! Files of a directory that are replaced together.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use super::Error;
use crate::identity::authority::DATA;

/// A directory laid out as a Kubernetes volume: `<name>` → `..data/<name>`, `..data` → the directory of the set.
pub(super) struct Folder<'a> {
    path: &'a Path,
    /// Held for as long as this lives: one command at a time, the others wait.
    _lock: File,
}

impl<'a> Folder<'a> {
    /// Opens the directory for sets of `names`, making it (mode 0700) if it is not there. Nobody else's files are
    /// replaced.
    pub(super) fn open(path: &'a Path, names: &[&str]) -> Result<Self, Error> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| at(path, source))?;
        let lock = File::open(path).and_then(|folder| folder.lock().map(|()| folder));
        let lock = lock.map_err(|source| at(path, source))?;
        for name in names.iter().copied().chain([DATA]) {
            let file = path.join(name);
            if file.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()) {
                return Err(Error::Foreign(file));
            }
        }
        Ok(Self { path, _lock: lock })
    }

    /// Makes `files` the set, durably. Until the last step whoever reads sees the old set, after it the new one.
    pub(super) fn replace(&self, files: &[(&str, &str)]) -> Result<(), Error> {
        let stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let set = PathBuf::from(format!("..{stamp}-{}", process::id()));
        self.fill(&set, files).and_then(|()| self.switch(&set)).inspect_err(|_| {
            // Nothing half written stays; that it cannot be removed is not what went wrong.
            let _ = fs::remove_dir_all(self.path.join(&set));
        })?;
        for (name, _) in files {
            self.link(&Path::new(DATA).join(name), &self.path.join(name))?;
        }
        self.prune(&set)
    }

    fn fill(&self, set: &Path, files: &[(&str, &str)]) -> Result<(), Error> {
        let folder = self.path.join(set);
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|source| at(&folder, source))?;
        for (name, text) in files {
            let path = folder.join(name);
            // Keys for their owner alone; certificates for everyone who may enter the directory.
            let mode = if text.contains("PRIVATE KEY") { 0o600 } else { 0o644 };
            let mut options = OpenOptions::new();
            let written = options.write(true).create_new(true).mode(mode).open(&path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            });
            written.map_err(|source| at(&path, source))?;
        }
        sync(&folder)
    }

    fn switch(&self, set: &Path) -> Result<(), Error> {
        self.link(set, &self.path.join(DATA))?;
        sync(self.path)
    }

    /// Makes `path` a link to `target`, at once.
    fn link(&self, target: &Path, path: &Path) -> Result<(), Error> {
        if fs::read_link(path).is_ok_and(|now| now == target) {
            return Ok(());
        }
        let fresh = self.path.join(format!("..link-{}", process::id()));
        let _ = fs::remove_file(&fresh);
        symlink(target, &fresh).and_then(|()| fs::rename(&fresh, path)).map_err(|source| at(path, source))
    }

    /// Removes what is not of `set`: the sets before it, that of a command that was killed, and links to nothing.
    fn prune(&self, set: &Path) -> Result<(), Error> {
        for entry in fs::read_dir(self.path).map_err(|source| at(self.path, source))? {
            let entry = entry.map_err(|source| at(self.path, source))?;
            let path = entry.path();
            let link = fs::read_link(&path).is_ok_and(|target| target.starts_with(DATA));
            if link && !path.exists() {
                fs::remove_file(&path).map_err(|source| at(&path, source))?;
            } else if is_set(&entry.file_name()) && entry.file_name() != set {
                fs::remove_dir_all(&path).map_err(|source| at(&path, source))?;
            }
        }
        sync(self.path)
    }
}

/// Whether it is a name that [`Folder::replace`] gives: `..<digits>-<digits>`.
fn is_set(name: &OsStr) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.to_str().and_then(|name| name.strip_prefix("..")?.split_once('-'));
    parts.is_some_and(|(stamp, process)| digits(stamp) && digits(process))
}

fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(|source| at(folder, source))
}

fn at(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}
