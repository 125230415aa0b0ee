//! What can be wrong with the pod. One variant for each thing that an operator would do about it.

use std::{
    io,
    path::{Path, PathBuf},
};

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
    /// The sidecar runs in the root cgroup, or has nothing else above it.
    #[error(
        "the sidecar runs in the root of the cgroup v2 hierarchy {mount}, or right below it, so the pod's cgroup cannot be guessed; start sidecar and application in cgroups of their own below one of the pod's, or set `pod.cgroup` to the pod's directory (a runtime that uses cgroup v1 only makes none: use its cgroup v2 or hybrid mode)"
    )]
    InRoot {
        /// The hierarchy.
        mount: PathBuf,
    },
    /// A container that sees nothing above its own cgroup.
    #[error(
        "the pod's cgroup is above what is mounted at {mount}: that is the sidecar's own container as it sees itself; mount the host's cgroup v2 hierarchy into the sidecar's container, read-only, at any other path (Kubernetes: a hostPath volume of /sys/fs/cgroup; docker and podman: -v /sys/fs/cgroup:/host/cgroup:ro), where it is found by itself"
    )]
    AboveNamespace {
        /// The mount that shows most.
        mount: PathBuf,
    },
    /// None of the mounts contains the sidecar.
    #[error(
        "none of the cgroup v2 mounts ({}) contains the sidecar's own cgroup; mount the whole hierarchy of the host (a hostPath volume of /sys/fs/cgroup, read-only), or set `pod.cgroup`",
        listed(.mounts)
    )]
    Elsewhere {
        /// Where they are.
        mounts: Vec<PathBuf>,
    },
    /// The host's hierarchy is there, but not the sidecar in it.
    #[error(
        "the sidecar's own cgroup is {levels} levels below {mount}, but cannot be found there; is all of it readable? Else set `pod.cgroup`"
    )]
    NotFound {
        /// The mount.
        mount: PathBuf,
        /// How deep below it.
        levels: usize,
    },
    /// The parent holds more than a pod.
    #[error(
        "the cgroup above the sidecar's, {cgroup}, holds more than one pod: it would capture every container or service of this machine; give the pod a cgroup of its own (docker run --cgroup-parent, podman run --pod, systemd Slice=), or set `pod.cgroup`"
    )]
    ManyPods {
        /// The parent.
        cgroup: PathBuf,
    },
    /// The parent belongs to another pod than the kubelet says.
    #[error(
        "the cgroup above the sidecar's, {cgroup}, is not that of its pod {uid}, by the file that the kubelet mounts at /etc/hosts; set `pod.cgroup` to the pod's"
    )]
    OtherPod {
        /// The parent.
        cgroup: PathBuf,
        /// The uid of the pod.
        uid: String,
    },
    /// The sidecar is no longer where it was.
    #[error(
        "the sidecar was moved to another cgroup ({now}, before {before}): its own connections are captured there; start it again"
    )]
    Moved {
        /// The line of /proc/self/cgroup at the start.
        before: String,
        /// And now.
        now: String,
    },
    /// What the binary before was in is not there any more.
    #[error("{path} is another one than at the start of the sidecar: end it and start it again")]
    Replaced {
        /// The cgroup, or the network namespace.
        path: PathBuf,
    },
    /// The configured directory is not a cgroup below the mount.
    #[error("pod.cgroup: {path} is not a directory below a cgroup v2 mount ({})", listed(.mounts))]
    NotACgroup {
        /// The configured path.
        path: PathBuf,
        /// The hierarchies.
        mounts: Vec<PathBuf>,
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

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn netns_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; CAP_SYS_ADMIN is needed",
        Some(libc::EINVAL) => "; it is not a network namespace (`ip netns add` makes one below /run/netns)",
        _ => "",
    }
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}
