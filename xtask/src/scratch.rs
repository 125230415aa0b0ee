//! Folders that are removed when their user is done, however it ends.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A folder for things that are not finished yet; removed with all its contents when dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes `<parent>/.<name>-partial`, empty. It is beside the final place, so that a rename finishes the work, and
    /// always has the same name, so that what a killed run left is cleared by the next.
    ///
    /// # Errors
    /// When the folder cannot be cleared or made.
    pub(crate) fn beside(parent: &Path, name: &str) -> Result<Self> {
        let folder = parent.join(format!(".{name}-partial"));
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing is left to do about a folder that cannot be removed; the next run clears it or says why not.
        let _ = fs::remove_dir_all(&self.0);
    }
}
