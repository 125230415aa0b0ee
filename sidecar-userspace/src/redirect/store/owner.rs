//! Whose the directories are that stores are in. What is pinned there decides over the pod's connections: nobody may put it there but
//! root and the sidecar's own user.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

use super::{super::error::Error, error};

/// The mode of the directory of all stores where root makes it: sidecars of every user make theirs there, and nobody can rename or
/// remove that of another, as in /tmp.
const SHARED: u32 = 0o1777;

/// A directory that a sidecar does not use, because others could put into it what they like, or because it may not.
#[derive(Debug)]
pub struct Foreign {
    path: PathBuf,
    owner: u32,
    mode: u32,
    user: u32,
    /// It is for the stores of many, or above.
    pub(in crate::redirect) shared: bool,
}

impl Foreign {
    fn new(path: &Path, metadata: &fs::Metadata, shared: bool) -> Self {
        let (owner, mode, user) = (metadata.uid(), metadata.mode() & 0o7777, geteuid().as_raw());
        Self { path: path.to_owned(), owner, mode, user, shared }
    }

    /// Others may make their own directories in one that is shared, but leave those of others alone.
    fn is_safe(&self) -> bool {
        const STICKY: u32 = 0o1000;
        const WRITTEN_BY_OTHERS: u32 = 0o022;
        let alone = self.mode & WRITTEN_BY_OTHERS == 0 || self.shared && self.mode & STICKY != 0;
        (self.owner == 0 || self.owner == self.user) && alone
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, owner, mode, user, shared } = self;
        let path = path.display();
        write!(
            f,
            "{path} belongs to user {owner}, with mode {mode:04o}, and this process to user {user}: what is pinned is used only where \
             root or the sidecar's own user made it and nobody else may write; "
        )?;
        if *shared {
            write!(f, "let sidecars of every user share it: chown 0 {path} && chmod {SHARED:o} {path}")
        } else {
            write!(
                f,
                "start the sidecar as that user, or remove it (rm -r {path}) if none of that user serves this pod"
            )
        }
    }
}

impl std::error::Error for Foreign {}

/// Makes sure of the directory that a store is to be in.
pub(super) fn share(store: &Path) -> Result<(), Error> {
    let Some(root) = store.parent() else { return Ok(()) };
    let made = DirBuilder::new().mode(0o700).create(root);
    if let Err(failed) = made {
        return if failed.kind() == io::ErrorKind::AlreadyExists {
            Ok(())
        } else {
            Err(refused("create", root, true)(failed))
        };
    }
    if !geteuid().is_root() {
        return Ok(());
    }
    // By the descriptor: the one that was made, or it is of another owner and refused.
    let opened = checked(root, true)?;
    let shared = opened.map(|opened| opened.set_permissions(Permissions::from_mode(SHARED)));
    shared.unwrap_or(Ok(())).map_err(error("share", root))
}

/// Opens a store's directory; `None`: it is not there.
///
/// # Errors
/// It may not be opened, or somebody else could change what is in it, or put another in its place.
pub(super) fn open(store: &Path) -> Result<Option<File>, Error> {
    if let Some(root) = store.parent()
        && checked(root, true)?.is_none()
    {
        return Ok(None);
    }
    checked(store, false)
}

fn checked(path: &Path, shared: bool) -> Result<Option<File>, Error> {
    // A link may lead to a directory that is root's, but not for this.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path);
    let opened = match opened {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(refused("open", path, shared))?,
    };
    let seen = Foreign::new(path, &opened.metadata().map_err(error("look at", path))?, shared);
    if seen.is_safe() { Ok(Some(opened)) } else { Err(seen.into()) }
}

/// Says whose the directory is that may not be entered or written: this one, or the first above it that can be looked at.
pub(super) fn refused(action: &'static str, path: &Path, shared: bool) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| {
        let seen = path.ancestors().find_map(|there| Some((there, fs::symlink_metadata(there).ok()?)));
        match seen.filter(|_| source.kind() == io::ErrorKind::PermissionDenied) {
            Some((there, metadata)) => Foreign::new(there, &metadata, shared || there != path).into(),
            None => error(action, &path)(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_root_or_the_own_user_alone_can_write_is_safe() {
        for (owner, mode, shared, expected) in [
            (0, 0o700, false, true),
            (1000, 0o700, false, true),
            (1001, 0o700, false, false),
            (1000, 0o770, false, false),
            (1000, 0o702, false, false),
            (0, 0o1777, false, false),
            (0, 0o1777, true, true),
            (0, 0o755, true, true),
            (0, 0o777, true, false),
            (1001, 0o1777, true, false),
        ] {
            let seen = Foreign { path: PathBuf::new(), owner, mode, user: 1000, shared };
            assert_eq!(seen.is_safe(), expected, "{seen:?}");
        }
    }
}
