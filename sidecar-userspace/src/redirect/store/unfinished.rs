//! A store that is being made goes with whoever fails at it: what is pinned in there would decide over the pod's connections although
//! nobody serves.

use std::{fs, io};

use super::Store;

impl Store {
    /// Everything in it is cut and removed when it is dropped, until [`Self::keep`].
    pub(in crate::redirect) fn unfinished(self) -> Self {
        self.unfinished.set(true);
        self
    }

    /// From here on it outlives this process.
    pub(in crate::redirect) fn keep(&self) {
        self.unfinished.set(false);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !self.unfinished.get() {
            return;
        }
        let place = self.shown();
        let removed = self.clear().and_then(|()| match fs::remove_dir(&place) {
            // Somebody has removed it already.
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.error("remove")(source)),
            _ => Ok(()),
        });
        if let Err(error) = removed {
            tracing::error!(%error, "what this process has pinned stays, and decides over the pod's connections: remove it");
        }
    }
}
