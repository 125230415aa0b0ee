//! What the worker gives up before it speaks with anybody.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Error;
use crate::{
    config::{Config, Identity},
    sandbox::{self, Files},
};

/// Gives up everything but reading the files of the identity.
pub(super) fn confine(config: &Config) -> Result<(), Error> {
    let sandbox = sandbox::enter(config.proxy.user, &readable(&config.identity))?;
    match sandbox.files {
        Files::Limited => {}
        Files::Partly => {
            tracing::debug!("this kernel's Landlock limits less of what the worker does with files than asked for")
        }
        Files::NotLimited => {
            tracing::info!("this kernel has no Landlock in force: the worker may read what its user may read")
        }
    }
    Ok(())
}

/// Folders, because files are replaced; and where links lead to now.
fn readable(identity: &Identity) -> Vec<PathBuf> {
    let mut files: Vec<&Path> = Vec::new();
    if let Some(set) = &identity.files {
        files.extend([&set.cert, &set.key, &set.roots].map(PathBuf::as_path));
        files.extend(set.crl.as_deref());
    }
    let folder = |path: &Path| path.parent().map(Path::to_path_buf);
    let mut folders: Vec<PathBuf> = files.iter().filter_map(|path| folder(path)).collect();
    folders.extend(files.iter().filter_map(|path| folder(&fs::canonicalize(path).ok()?)));
    folders.extend(identity.ca.iter().map(|authority| authority.directory.clone()));
    folders.sort();
    folders.dedup();
    folders
}
