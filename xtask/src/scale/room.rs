//! Room in what all network namespaces of the machine share: the kernel's neighbour tables, and watches on files.

use anyhow::{Context, Result, bail};
use std::fs;

/// Each pod's loopback takes an entry of both tables (net/core/neighbour.c counts all but permanent ones). Beyond
/// `gc_thresh3` nothing can be sent to anybody new.
const ENTRIES_PER_POD: usize = 4;

/// The limits as they were, put back when this is dropped.
pub(super) struct Room {
    before: Vec<(String, String)>,
}

impl Room {
    /// Raises what is too low, and says so. A sidecar has one inotify instance, for its identity; without one it polls.
    pub(super) fn for_pods(pods: usize) -> Result<Self> {
        let mut room = Self { before: Vec::new() };
        let wanted = pods * ENTRIES_PER_POD + 1024;
        for family in ["ipv4", "ipv6"] {
            // The last first: a lower limit may not be above a higher one for a moment.
            for limit in ["gc_thresh3", "gc_thresh2", "gc_thresh1"] {
                room.raise(format!("/proc/sys/net/{family}/neigh/default/{limit}"), wanted)?;
            }
        }
        room.raise("/proc/sys/fs/inotify/max_user_instances".to_owned(), pods + 128)?;
        for (path, before) in &room.before {
            println!("{path} is raised from {} while this runs", before.trim());
        }
        Ok(room)
    }

    fn raise(&mut self, path: String, wanted: usize) -> Result<()> {
        let before = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let Ok(limit) = before.trim().parse::<usize>() else { bail!("{path} holds {before:?}") };
        if limit < wanted {
            fs::write(&path, wanted.to_string()).with_context(|| format!("cannot write {wanted} to {path}"))?;
            self.before.push((path, before));
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (path, before) in self.before.iter().rev() {
            if let Err(err) = fs::write(path, before) {
                eprintln!("cannot put {} back into {path}: {err}", before.trim());
            }
        }
    }
}
