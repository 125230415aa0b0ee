//! The pod: its cgroup, its network namespace, and the sidecar's own place in it.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, setns};

use crate::{config, net};

/// Why the pod cannot be found or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted (/proc/self/mountinfo names none); mount one: mount -t cgroup2 none /sys/fs/cgroup"
    )]
    NoCgroup2,
    /// A file of the kernel could not be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The sidecar runs in the root cgroup, which has no parent to capture.
    #[error(
        "the sidecar runs in the root of the cgroup v2 hierarchy {mount}, so the pod's cgroup cannot be guessed; set `pod.cgroup` to the pod's directory below it"
    )]
    InRoot {
        /// The hierarchy.
        mount: PathBuf,
    },
    /// The configured directory is not a cgroup below the mount.
    #[error("pod.cgroup: {path} is not a directory below the cgroup v2 mount {mount}")]
    NotACgroup {
        /// The configured path.
        path: PathBuf,
        /// The hierarchy.
        mount: PathBuf,
    },
    /// The network namespace could not be entered.
    #[error("pod.netns: the network namespace {path} cannot be entered: {source}{}", netns_hint(.source))]
    Netns {
        /// The configured path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not give a cookie of the network namespace.
    #[error("the kernel gives no cookie of the network namespace (SO_NETNS_COOKIE, since Linux 5.14): {0}")]
    NetnsCookie(#[source] io::Error),
}

/// The pod as the sidecar found it. The sidecar is in it: in a cgroup of its own below the pod's, and in its network
/// namespace.
pub struct Pod {
    cgroup: Directory,
    own: Directory,
    netns: File,
    netns_cookie: u64,
}

/// Where the pod is, found without changing anything.
pub struct Place {
    /// The pod's cgroup.
    pub cgroup: PathBuf,
    /// The sidecar's own below it; `None`: it is elsewhere and would have to move.
    pub own: Option<PathBuf>,
}

impl Place {
    /// Finds the pod's cgroup and the process's place in it.
    ///
    /// # Errors
    /// There is no such cgroup, or it cannot be guessed.
    pub fn find(config: &config::Pod) -> Result<Self, Error> {
        let mount = cgroup2_mount()?;
        let own = own_cgroup(&mount)?;
        let cgroup = match &config.cgroup {
            Some(path) => configured_cgroup(path, &mount)?,
            None => parent_of(&own, &mount)?,
        };
        let inside = own != cgroup && own.starts_with(&cgroup);
        Ok(Self { cgroup, own: inside.then_some(own) })
    }
}

struct Directory {
    path: PathBuf,
    file: File,
    id: u64,
}

impl Directory {
    fn open(path: PathBuf) -> Result<Self, Error> {
        let file = File::open(&path).map_err(io_error("open", &path))?;
        // The id of a cgroup is the inode number of its directory (kernel/cgroup/cgroup.c, `cgroup_id`).
        let id = file.metadata().map_err(io_error("stat", &path))?.ino();
        Ok(Self { path, file, id })
    }
}

impl Pod {
    /// Finds the pod and enters it. Must run before the process has threads: a network namespace belongs to a thread.
    ///
    /// A sidecar that was started outside the pod's cgroup moves into `<pod cgroup>/sidecar`: its sockets must be
    /// distinguishable from the application's.
    pub fn enter(config: &config::Pod) -> Result<Self, Error> {
        if let Some(path) = &config.netns {
            enter_netns(path)?;
        }
        let Place { cgroup, own } = Place::find(config)?;
        let own = match own {
            Some(own) => own,
            None => move_below(&cgroup)?,
        };
        let own_netns = Path::new("/proc/self/ns/net");
        let cgroup = Directory::open(cgroup)?;
        Ok(Self {
            cgroup,
            own: Directory::open(own)?,
            netns: File::open(own_netns).map_err(io_error("open", own_netns))?,
            netns_cookie: net::netns_cookie().map_err(Error::NetnsCookie)?,
        })
    }

    /// The pod's cgroup.
    pub fn cgroup(&self) -> BorrowedFd<'_> {
        self.cgroup.file.as_fd()
    }

    /// The id of the pod's cgroup.
    pub fn cgroup_id(&self) -> u64 {
        self.cgroup.id
    }

    /// Where the pod's cgroup is.
    pub fn cgroup_path(&self) -> &Path {
        &self.cgroup.path
    }

    /// The sidecar's own cgroup.
    pub fn own_cgroup(&self) -> BorrowedFd<'_> {
        self.own.file.as_fd()
    }

    /// Where the sidecar's own cgroup is.
    pub fn own_cgroup_path(&self) -> &Path {
        &self.own.path
    }

    /// The id by which the kernel side knows the sidecar's tasks.
    pub fn own_cgroup_id(&self) -> u64 {
        self.own.id
    }

    /// The pod's network namespace.
    pub fn netns(&self) -> &File {
        &self.netns
    }

    /// The number by which the kernel side knows the network namespace.
    pub fn netns_cookie(&self) -> u64 {
        self.netns_cookie
    }

    /// The inode number of the network namespace, as `ls -l /proc/self/ns/net` shows it.
    pub fn netns_inode(&self) -> u64 {
        self.netns.metadata().map(|metadata| metadata.ino()).unwrap_or_default()
    }

    /// The cgroups in which the pod's tasks are: its own and those right below it.
    pub fn leaves(&self) -> Vec<PathBuf> {
        let mut leaves = vec![self.cgroup.path.clone()];
        leaves.extend(subdirectories(&self.cgroup.path));
        leaves
    }
}

/// Ids of a cgroup and of every cgroup below it.
pub fn descendants(cgroup: &Path) -> io::Result<HashSet<u64>> {
    let mut ids = HashSet::from([fs::metadata(cgroup)?.ino()]);
    let mut open = subdirectories(cgroup);
    while let Some(path) = open.pop() {
        // One that went away in the meantime has no sockets to look for.
        if let Ok(metadata) = fs::metadata(&path) {
            ids.insert(metadata.ino());
            open.extend(subdirectories(&path));
        }
    }
    Ok(ids)
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Where the cgroup v2 hierarchy is mounted: found, because hybrid hosts mount it elsewhere than /sys/fs/cgroup.
pub fn cgroup2_mount() -> Result<PathBuf, Error> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path).map_err(io_error("read", path))?;
    find_cgroup2(&mounts).ok_or(Error::NoCgroup2)
}

/// proc_pid_mountinfo(5): the fourth field is the mounted directory, the fifth the mount point, and the file system follows
/// the separator `-`. A mount of the whole hierarchy is preferred: a container may see its host's beside its own.
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    let mounts: Vec<(&str, &str)> = mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(3);
            (source.split(' ').next()? == "cgroup2").then_some((fields.next()?, fields.next()?))
        })
        .collect();
    let whole = mounts.iter().find(|(root, _)| *root == "/");
    whole.or(mounts.first()).map(|(_, at)| PathBuf::from(unescape(at)))
}

/// Blanks and backslashes are octal escapes there.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn netns_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; CAP_SYS_ADMIN is needed",
        Some(libc::EINVAL) => "; it is not a network namespace (`ip netns add` makes one below /run/netns)",
        _ => "",
    }
}

fn own_cgroup(mount: &Path) -> Result<PathBuf, Error> {
    let path = Path::new("/proc/self/cgroup");
    let cgroups = fs::read_to_string(path).map_err(io_error("read", path))?;
    // The line of the v2 hierarchy starts with `0::` (cgroups(7)).
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(Error::NoCgroup2)?;
    Ok(if own.is_empty() { mount.to_owned() } else { mount.join(own) })
}

fn configured_cgroup(path: &Path, mount: &Path) -> Result<PathBuf, Error> {
    let absolute = path.canonicalize().map_err(io_error("pod.cgroup: open", path))?;
    if absolute.is_dir() && absolute.starts_with(mount) && absolute != mount {
        return Ok(absolute);
    }
    Err(Error::NotACgroup { path: path.to_owned(), mount: mount.to_owned() })
}

fn parent_of(own: &Path, mount: &Path) -> Result<PathBuf, Error> {
    match own.parent() {
        Some(parent) if own != mount && parent != mount => Ok(parent.to_owned()),
        _ => Err(Error::InRoot { mount: mount.to_owned() }),
    }
}

fn move_below(cgroup: &Path) -> Result<PathBuf, Error> {
    let own = cgroup.join("sidecar");
    match fs::create_dir(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error("create", &own)(error)),
        _ => {}
    }
    let procs = own.join("cgroup.procs");
    fs::write(&procs, "0").map_err(io_error("move the sidecar into", &procs))?;
    Ok(own)
}

/// Moves the calling thread into a network namespace.
///
/// # Errors
/// It is none, or the process may not.
pub fn enter_netns(path: &Path) -> Result<(), Error> {
    let netns = |source| Error::Netns { path: path.to_owned(), source };
    let file = File::open(path).map_err(netns)?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| netns(errno.into()))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_mount_is_found_wherever_it_is() {
        for (mountinfo, expected) in [
            ("31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw", Some("/sys/fs/cgroup")),
            (
                "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                 31 23 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup rw",
                Some("/sys/fs/cgroup/unified"),
            ),
            (
                "31 23 0:27 /kubepods/pod1/c1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
                 32 23 0:27 / /host/cgroup\\040v2 ro - cgroup2 cgroup rw",
                Some("/host/cgroup v2"),
            ),
            ("30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
            ("", None),
        ] {
            assert_eq!(find_cgroup2(mountinfo), expected.map(PathBuf::from), "{mountinfo}");
        }
    }

    #[test]
    fn a_sidecar_in_the_root_has_no_pod_to_guess() {
        let mount = Path::new("/sys/fs/cgroup");
        assert!(matches!(parent_of(mount, mount), Err(Error::InRoot { .. })));
        assert!(matches!(parent_of(&mount.join("sidecar"), mount), Err(Error::InRoot { .. })));
        assert_eq!(parent_of(&mount.join("pod/sidecar"), mount).unwrap(), mount.join("pod"));
    }
}
