//! A folder that is removed when it is dropped.

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folder of one world.
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder; it must not exist.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        fs::create_dir(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
        Ok(Self::adopt(path.to_owned()))
    }

    /// Takes over a folder that exists, to remove it.
    pub(crate) fn adopt(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file in it and says where.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {err}", self.path.display());
        }
    }
}
