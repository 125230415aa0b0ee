//! Where the sidecar is among the cgroups that it can see, and which of them is its pod's.
//!
//! /proc/self/cgroup and the fourth field of /proc/self/mountinfo name cgroups as seen from the root of the reader's cgroup
//! namespace (cgroup_namespaces(7)): `/` is the root itself, `/../..` what is two levels above it, by whatever name. A
//! container sees `0::/`, and a mount of the host's hierarchy has `/../../..`: how many levels lie between is known, what
//! they are called is not. The directory is then found by its inode number, which is the cgroup's id.

use std::path::{Path, PathBuf};

use super::{Error, names, view::View};

/// A cgroup's name, relative to the root of the reader's cgroup namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    /// Levels up from there.
    up: usize,
    /// And from that, down.
    down: Vec<String>,
}

impl Name {
    fn parse(text: &str) -> Self {
        let text = text.strip_suffix(" (deleted)").unwrap_or(text);
        let parts = || text.split('/').filter(|part| !part.is_empty());
        let up = parts().take_while(|part| *part == "..").count();
        Self { up, down: parts().skip(up).map(str::to_owned).collect() }
    }

    /// The way from `ancestor` to this one; `None`: it leads elsewhere.
    fn below(&self, ancestor: &Self) -> Option<Way> {
        let unknown = ancestor.up.checked_sub(self.up)?;
        if unknown > 0 {
            // The kernel goes up only as far as it must: whatever goes down from there leads away from us.
            return ancestor.down.is_empty().then(|| Way { unknown, known: self.down.clone() });
        }
        let known = self.down.strip_prefix(ancestor.down.as_slice())?.to_vec();
        Some(Way { unknown, known })
    }
}

/// From a cgroup down to another: levels without a name, then names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Way {
    unknown: usize,
    known: Vec<String>,
}

impl Way {
    fn levels(&self) -> usize {
        self.unknown + self.known.len()
    }

    fn end(&self, from: &Path) -> PathBuf {
        self.known.iter().fold(from.to_owned(), |path, name| path.join(name))
    }
}

/// A mount of the cgroup v2 hierarchy, or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    root: Name,
    /// Where it is mounted.
    pub(super) at: PathBuf,
}

/// proc_pid_mountinfo(5): the fourth field is the mounted directory, the fifth the mount point, and the file system follows
/// the separator `-`. What is mounted over is not seen.
pub(super) fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mut found: Vec<Mount> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, source)) = line.split_once(" - ") else { continue };
        let mut fields = mount.split(' ').skip(3);
        let (Some(root), Some(at)) = (fields.next(), fields.next()) else { continue };
        let at = PathBuf::from(unescape(at));
        found.retain(|earlier| earlier.at != at);
        if source.split(' ').next() == Some("cgroup2") {
            found.push(Mount { root: Name::parse(&unescape(root)), at });
        }
    }
    found
}

/// Blanks and backslashes are octal escapes there.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The sidecar's own cgroup as a directory below a mount that shows as much above it as any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    mount: Mount,
    /// The directory.
    pub(super) own: PathBuf,
}

/// Finds the sidecar's own cgroup.
pub(super) fn locate(view: &impl View) -> Result<Located, Error> {
    let mounts = mounts(&view.mounts()?);
    let membership = view.membership()?;
    // The line of the v2 hierarchy starts with `0::` (cgroups(7)).
    let own = membership.lines().find_map(|line| line.strip_prefix("0::")).map(Name::parse).ok_or(Error::NoCgroup2)?;
    if mounts.is_empty() {
        return Err(Error::NoCgroup2);
    }
    let ways: Vec<(&Mount, Way)> = mounts.iter().filter_map(|mount| Some((mount, own.below(&mount.root)?))).collect();
    let named = ways.iter().find(|(_, way)| way.unknown == 0).map(|(mount, way)| way.end(&mount.at));
    let best = ways.iter().rev().max_by_key(|(_, way)| (way.levels(), std::cmp::Reverse(way.unknown)));
    let Some((mount, way)) = best else {
        return Err(Error::Elsewhere { mounts: mounts.into_iter().map(|mount| mount.at).collect() });
    };
    let own = match way.unknown {
        0 => way.end(&mount.at),
        _ => search(view, &mount.at, way.levels(), named.as_deref())
            .ok_or_else(|| Error::NotFound { mount: mount.at.clone(), levels: way.levels() })?,
    };
    Ok(Located { mount: (*mount).clone(), own })
}

/// The directory so many levels below `from` that has the id of `named`; without one, that lists this process.
fn search(view: &impl View, from: &Path, levels: usize, named: Option<&Path>) -> Option<PathBuf> {
    let wanted = named.and_then(|named| view.id(named).ok());
    let mut level = vec![from.to_owned()];
    for _ in 1..levels {
        level = level.iter().flat_map(|cgroup| view.children(cgroup)).map(|(path, _)| path).collect();
    }
    let mut last = level.iter().flat_map(|cgroup| view.children(cgroup));
    let found = match wanted {
        Some(id) => last.find(|(_, child)| *child == id),
        None => last.find(|(path, _)| view.holds_us(path)),
    };
    found.map(|(path, _)| path)
}

/// What the sidecar runs in below the pod's cgroup, and the pod's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guess {
    /// The pod's cgroup.
    pub(super) pod: PathBuf,
    /// The cgroup of the sidecar's container, or its own.
    pub(super) container: PathBuf,
}

impl Located {
    /// The pod is the parent of the sidecar's container, or of its own cgroup where that is none's: runtimes may make cgroups
    /// below a container's (crun: `libpod-….scope/container`).
    pub(super) fn pod(&self, view: &impl View) -> Result<Guess, Error> {
        let at = &self.mount.at;
        let container = self.container();
        if container == *at {
            return Err(self.nothing_above(view));
        }
        let Some(pod) = container.parent().map(Path::to_owned) else { return Err(self.nothing_above(view)) };
        if pod == *at && (view.is_root(at) || self.sees_a_container_only()) {
            return Err(self.nothing_above(view));
        }
        let (name, child) = (name_of(&pod), name_of(&container));
        // `….slice:cri-containerd:…` is one name where containerd takes systemd's for a path: there are no pods then.
        if child.contains(':') || names::holds_more_than_a_pod(name, child) {
            return Err(Error::ManyPods { cgroup: pod });
        }
        match names::pod_uid(&view.mounts()?) {
            Some(uid) if pod != *at && !names::is_pod(name, &uid) => Err(Error::OtherPod { cgroup: pod, uid }),
            _ => Ok(Guess { pod, container }),
        }
    }

    /// The cgroup of the container in which the sidecar runs, or its own.
    pub(super) fn container(&self) -> PathBuf {
        let is_container =
            |path: &&Path| path.file_name().and_then(|name| name.to_str()).is_some_and(names::is_container);
        let visible = self.own.ancestors().take_while(|path| *path != self.mount.at);
        visible.filter(|path| path.starts_with(&self.mount.at)).find(is_container).unwrap_or(&self.own).to_owned()
    }

    /// What is mounted is the cgroup of one container: that of the sidecar itself, as it sees it from inside.
    fn sees_a_container_only(&self) -> bool {
        let Name { up, down } = &self.mount.root;
        *up == 0 && down.last().is_none_or(|name| names::is_container(name))
    }

    fn nothing_above(&self, view: &impl View) -> Error {
        let mount = self.mount.at.clone();
        if view.is_root(&mount) { Error::InRoot { mount } } else { Error::AboveNamespace { mount } }
    }
}

/// Cgroups that concern us have names of plain letters; another one is like none of those.
fn name_of(cgroup: &Path) -> &str {
    cgroup.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
