//! The pod as one binary of the sidecar has found it, for the next one in the same process. That must not look for it anew: somebody
//! may have moved the process meanwhile, and it would find another.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Directory, Error, Place, Pod};

/// What is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    cgroup: Same,
    own: Same,
    container: Option<PathBuf>,
    membership: String,
    /// The inode number of the network namespace.
    netns: u64,
}

/// A cgroup by its path and its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Same {
    path: PathBuf,
    id: u64,
}

impl Same {
    fn of(Directory { path, id, .. }: &Directory) -> Self {
        Self { path: path.clone(), id: *id }
    }

    /// # Errors
    /// Another one is there.
    fn require(&self) -> Result<(), Error> {
        let now = Directory::open(self.path.clone())?.id;
        if now == self.id { Ok(()) } else { Err(Error::Replaced { path: self.path.clone() }) }
    }
}

impl Pod {
    /// What the next binary needs to go on in the same pod.
    pub fn known(&self) -> Known {
        Known {
            cgroup: Same::of(&self.cgroup),
            own: Same::of(&self.own),
            container: self.container.clone(),
            membership: self.membership.clone(),
            netns: self.netns_inode(),
        }
    }

    /// The same pod again, wherever this process is by now: [`Self::verify`] tells.
    ///
    /// # Errors
    /// Something of it is gone, or another.
    pub fn again(known: &Known) -> Result<Self, Error> {
        let Known { cgroup, own, container, membership, netns } = known;
        [cgroup, own].into_iter().try_for_each(Same::require)?;
        let place = Place { cgroup: cgroup.path.clone(), own: Some(own.path.clone()), container: container.clone() };
        let pod = Self::at(place, own.path.clone(), membership.clone())?;
        if pod.netns_inode() == *netns {
            return Ok(pod);
        }
        Err(Error::Replaced { path: "/proc/self/ns/net".into() })
    }
}
