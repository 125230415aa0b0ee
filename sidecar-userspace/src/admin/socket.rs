//! The unix socket of the admin interface.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::{
    socket::{getsockopt, sockopt::PeerCredentials},
    stat::{Mode, fchmod},
};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config;

/// Where sockets are by default: one for each pod, because sidecars of several pods may share a file system.
pub const DIRECTORY: &str = "/run/sidecar";

/// The socket of the sidecar of a pod, by the inode number of its network namespace.
pub fn path(config: &config::Telemetry, netns_inode: u64) -> PathBuf {
    let default = || Path::new(DIRECTORY).join(format!("{netns_inode}.sock"));
    config.admin_socket.clone().unwrap_or_else(default)
}

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Why the socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{call} {}: {source}", path.display())]
    Call {
        /// Which.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A running process listens there.
    #[error("{} is in use by process {process}: stop it, or set telemetry.admin_socket to another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Its process; `?` when the kernel does not say, 0 when it is in another pid namespace.
        process: String,
    },
    /// Something else has that name.
    #[error("{} exists and is not a socket: remove it, or set telemetry.admin_socket to another path", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
}

/// The file of a bound socket; removes it when dropped, unless another process has put its own there since.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

impl SocketFile {
    /// The file of a socket that this process has bound before it ran another binary.
    ///
    /// # Errors
    /// There is no file.
    pub fn of(path: &Path) -> io::Result<Self> {
        identity(path).map(|identity| Self { path: path.to_owned(), identity })
    }
}

/// Listens on `path` with mode 0600, making its directory if needed. A socket that a dead process left is replaced.
///
/// # Errors
/// Somebody listens there, or a file of another kind is there, or a system call failed.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    let failed = |call| move |source| Error::Call { call, path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed("mkdir() for"))?;
    }
    make_way(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("socket() for"))?;
    // The file gets the mode of the socket's inode (unix_bind_bsd() in net/unix/af_unix.c), so that there is no moment
    // at which others may connect. chmod() after bind() would leave one.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| failed("fchmod() for")(errno.into()))?;
    let address = SockAddr::unix(path).map_err(failed("the path is too long for a unix socket:"))?;
    socket.bind(&address).map_err(failed("bind()"))?;
    // Takes away what an unusual umask would have left: the owner's own permission.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("chmod()"))?;
    let file = SocketFile { path: path.to_owned(), identity: identity(path).map_err(failed("lstat()"))? };
    socket.listen(BACKLOG).map_err(failed("listen()"))?;
    Ok((socket.into(), file))
}

/// Removes the sockets that dead processes left in a directory of such sockets. Young ones are left alone: between bind()
/// and listen() a live process looks dead.
pub fn sweep(directory: &Path) {
    const YOUNG: Duration = Duration::from_secs(60);
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let modified = fs::symlink_metadata(&path).and_then(|found| found.modified());
        if modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > YOUNG)) {
            // Those of live processes, and files of other kinds, are left with an error that nobody needs.
            let _ = make_way(&path);
        }
    }
}

/// Removes the socket of a dead process.
fn make_way(path: &Path) -> Result<(), Error> {
    let failed = |call| move |source| Error::Call { call, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("lstat()")(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(Error::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("socket() for"))?;
    // A live process with a full backlog must not make us wait.
    probe.set_nonblocking(true).map_err(failed("fcntl() for"))?;
    let address = SockAddr::unix(path).map_err(failed("the path is too long for a unix socket:"))?;
    match probe.connect(&address) {
        Ok(()) => Err(Error::InUse { path: path.to_owned(), process: owner(&probe) }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Error::InUse { path: path.to_owned(), process: "?".to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("unlink()")(error)),
            _ => Ok(()),
        },
        Err(error) => Err(failed("connect()")(error)),
    }
}

/// The process that called listen().
fn owner(connected: &impl AsFd) -> String {
    getsockopt(&connected.as_fd(), PeerCredentials).map_or_else(|_| "?".to_owned(), |peer| peer.pid().to_string())
}

/// Tells one file from all others, also from one that later has the same name: device, inode number and time of the last
/// change, because file systems give the number of a removed file to the next one.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> io::Result<Identity> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "admin socket not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    /// A directory of this test's own.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sidecar-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_the_owner_may_connect_and_the_file_goes_with_the_listener() {
        let directory = Directory::new("mode");
        let path = directory.0.join("made/on/demand/admin.sock");
        let (_listener, file) = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_replaced() {
        let directory = Directory::new("stale");
        let path = directory.0.join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, _file) = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_process_keeps_its_socket_and_is_named() {
        let directory = Directory::new("live");
        let path = directory.0.join("admin.sock");
        let (listener, _file) = bind(&path).unwrap();
        let error = bind(&path).unwrap_err();
        let process = std::process::id().to_string();
        assert!(matches!(&error, Error::InUse { process: named, .. } if *named == process), "{error}");
        assert!(error.to_string().contains("admin.sock is in use by process"), "{error}");
        drop(listener);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = Directory::new("file");
        let path = directory.0.join("precious");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(Error::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_socket_of_a_successor_is_not_removed() {
        let directory = Directory::new("successor");
        let path = directory.0.join("admin.sock");
        let (listener, file) = bind(&path).unwrap();
        drop(listener);
        let (_successor, _file) = bind(&path).unwrap();
        drop(file);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_named() {
        let directory = Directory::new("long");
        let error = bind(&directory.0.join("x".repeat(120))).unwrap_err();
        assert!(error.to_string().starts_with("the path is too long"), "{error}");
    }
}
