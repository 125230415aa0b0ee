//! The pod: its cgroup, its network namespace, and the sidecar's own place in it.

mod applications;
mod error;
mod known;
mod layout;
mod names;
#[cfg(test)]
mod tests;
mod view;

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

pub use applications::Applications;
pub use error::Error;
use error::io_error;
pub use known::Known;
use layout::Located;
use view::{System, View};

use crate::{config, net};

/// The pod as the sidecar found it. The sidecar is in it: in a cgroup of its own below the pod's, and in its network
/// namespace.
pub struct Pod {
    cgroup: Directory,
    own: Directory,
    /// See [`Place`].
    container: Option<PathBuf>,
    /// Where the kernel says that this process is.
    membership: String,
    applications: Applications,
    netns: File,
    netns_cookie: u64,
}

/// Where the pod is, found without changing anything.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The pod's cgroup.
    pub cgroup: PathBuf,
    /// The sidecar's own below it; `None`: it is elsewhere and would have to move.
    pub own: Option<PathBuf>,
    /// The cgroup of the container that the sidecar runs in.
    container: Option<PathBuf>,
}

impl Place {
    /// Finds the pod's cgroup and the process's place in it.
    ///
    /// # Errors
    /// There is no such cgroup, or it cannot be guessed.
    pub fn find(config: &config::Pod) -> Result<Self, Error> {
        Self::find_in(&System, config)
    }

    fn find_in(view: &impl View, config: &config::Pod) -> Result<Self, Error> {
        let Some(path) = &config.cgroup else {
            let located = layout::locate(view)?;
            let guess = located.pod(view)?;
            return Ok(Self { cgroup: guess.pod, own: Some(located.own), container: Some(guess.container) });
        };
        let cgroup = configured_cgroup(path, view)?;
        // A sidecar outside of what it can see moves into the pod.
        let inside = layout::locate(view).ok().filter(|located| is_below(view, located, &cgroup));
        let container = inside.as_ref().map(Located::container).filter(|container| *container != cgroup);
        Ok(Self { cgroup, container, own: inside.map(|located| located.own) })
    }

    fn applications(&self, own: &Path, mountinfo: &str) -> Applications {
        let pod = self.cgroup.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let ours = self.container.iter().cloned().chain([own.to_owned()]).collect();
        Applications::new(self.cgroup.clone(), ours, names::sandbox(mountinfo, pod))
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
        let place = Place::find(config)?;
        let own = match &place.own {
            Some(own) => own.clone(),
            None => move_below(&place.cgroup)?,
        };
        Self::at(place, own, membership()?)
    }

    fn at(place: Place, own: PathBuf, membership: String) -> Result<Self, Error> {
        let own_netns = Path::new("/proc/self/ns/net");
        let applications = place.applications(&own, &System.mounts()?);
        Ok(Self {
            cgroup: Directory::open(place.cgroup)?,
            own: Directory::open(own)?,
            container: place.container,
            membership,
            applications,
            netns: File::open(own_netns).map_err(io_error("open", own_netns))?,
            netns_cookie: net::netns_cookie().map_err(Error::NetnsCookie)?,
        })
    }

    /// The processes of the pod's application.
    pub fn applications(&self) -> &Applications {
        &self.applications
    }

    /// Checks that the sidecar is still where it was at the start: elsewhere its own connections would be captured.
    ///
    /// # Errors
    /// Somebody has moved it.
    pub fn verify(&self) -> Result<(), Error> {
        let (before, now) = (self.membership.clone(), membership()?);
        if before == now { Ok(()) } else { Err(Error::Moved { before, now }) }
    }

    /// Where a process of the sidecar is, if that is not where the sidecar was at the start: its connections would be
    /// captured there, and come to itself. One that is gone is nowhere else; and where the calling process has been moved
    /// itself, another one of its making would be no better off ([`Self::verify`] tells).
    pub fn moved(&self, process: u32) -> Option<String> {
        let now = v2_line(&fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?);
        (now != self.membership && self.verify().is_ok()).then_some(now)
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
///
/// # Errors
/// They cannot all be seen, as where descriptors are short: what is missing would count as somebody else's.
pub fn descendants(cgroup: &Path) -> io::Result<HashSet<u64>> {
    let mut ids = HashSet::from([fs::metadata(cgroup)?.ino()]);
    let mut open = seen_below(cgroup)?;
    while let Some(path) = open.pop() {
        // One that went away in the meantime has no sockets to look for.
        if let Ok(metadata) = fs::metadata(&path) {
            ids.insert(metadata.ino());
            open.extend(seen_below(&path)?);
        }
    }
    Ok(ids)
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
    seen_below(path).unwrap_or_default()
}

/// The directories in one, which may have been removed.
fn seen_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return Ok(Vec::new()),
        entries => entries?,
    };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| entry.path()).collect())
}

/// Where the cgroup v2 hierarchy is mounted: found, because hybrid hosts mount it elsewhere than /sys/fs/cgroup. With several
/// mounts, the first.
pub fn cgroup2_mount() -> Result<PathBuf, Error> {
    let mounts = layout::mounts(&System.mounts()?);
    mounts.into_iter().next().map(|mount| mount.at).ok_or(Error::NoCgroup2)
}

/// The line of /proc/self/cgroup that tells of cgroup v2.
fn membership() -> Result<String, Error> {
    System.membership().map(|all| v2_line(&all))
}

fn v2_line(all: &str) -> String {
    all.lines().find(|line| line.starts_with("0::")).unwrap_or_default().to_owned()
}

fn configured_cgroup(path: &Path, view: &impl View) -> Result<PathBuf, Error> {
    let absolute = path.canonicalize().map_err(io_error("pod.cgroup: open", path))?;
    let mounts: Vec<_> = layout::mounts(&view.mounts()?).into_iter().map(|mount| mount.at).collect();
    let within = mounts.iter().any(|mount| absolute.starts_with(mount));
    if within && absolute.is_dir() && !view.is_root(&absolute) {
        return Ok(absolute);
    }
    Err(Error::NotACgroup { path: path.to_owned(), mounts })
}

/// Whether the sidecar is below a cgroup, by whichever mount that is named.
fn is_below(view: &impl View, located: &Located, cgroup: &Path) -> bool {
    let Ok(id) = view.id(cgroup) else { return false };
    located.own.ancestors().skip(1).any(|above| view.id(above).is_ok_and(|found| found == id))
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
