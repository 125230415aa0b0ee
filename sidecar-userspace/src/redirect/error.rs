//! What can go wrong with the capture. One variant for each thing that an operator would do about it.

mod verifier;

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use sidecar_common::layout::LAYOUT;

use super::{init::Step, store::Foreign};
use crate::pod;
pub(super) use verifier::{refusal, verifier_words};

/// Why the capture cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not load programs.
    #[error("{} missing: loading and attaching the capture needs it; run as root or add it to the container's securityContext.capabilities.add", .0.join(" and "))]
    Capabilities(Vec<&'static str>),
    /// The eBPF object could not be created in the kernel.
    #[error("the eBPF maps cannot be created: {}{}", chain(.0), room_hint(.0))]
    Object(Box<EbpfError>),
    /// The kernel refused a program.
    #[error(
        "the kernel refuses the eBPF program `{program}`: {}; capture needs Linux 5.19 or newer, see the kernels in the README",
        refusal(.source)
    )]
    Load {
        /// Its name.
        program: &'static str,
        /// The verifier's words among them.
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("the eBPF program `{program}` cannot be attached to {target}: {source}{}", hint(.source))]
    Attach {
        /// Its name.
        program: &'static str,
        /// The cgroup or network namespace.
        target: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A map of the object could not be used.
    #[error("the eBPF map `{map}` cannot be {action}: {}", chain(.source))]
    Map {
        /// Its name.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: Box<MapError>,
    },
    /// Memory could not be shared with the kernel.
    #[error("the eBPF map `{map}` cannot be mapped into memory: {source}")]
    Mapping {
        /// Its name.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// How many CPUs the machine may have is not known.
    #[error("the number of possible CPUs is not known (/sys/devices/system/cpu/possible): {0}; mount /sys")]
    Cpus(#[source] io::Error),
    /// `on_failure: closed` needs a file system for links.
    #[error(
        "capture.on_failure: closed, the default where mtls is strict, needs bpffs at /sys/fs/bpf, so that the programs go on refusing when the sidecar is killed: mount -t bpf bpf /sys/fs/bpf (in a container: mount the host's)"
    )]
    NoBpffs,
    /// The links could not be pinned or unpinned.
    #[error(
        "cannot {action} {path}: {source}; `sidecar init` and capture.on_failure: closed pin programs there: make it writable (mount -o remount,rw /sys/fs/bpf), or do without: capture.on_failure: open"
    )]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The pod's directory of pins.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A link does not say what it runs.
    #[error("the kernel does not tell which program the link of `{program}` runs: {source}")]
    Link {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process has the pod's store.
    #[error(
        "{path} is in use{}: another sidecar serves the pod or is being started; stop it first",
        .owner.map(|pid| format!(" by process {pid}")).unwrap_or_default()
    )]
    Busy {
        /// The store.
        path: PathBuf,
        /// Who marked it as complete.
        owner: Option<u32>,
    },
    /// The place of a store is somebody else's.
    #[error(transparent)]
    Foreign(#[from] Foreign),
    /// A store that was being made is elsewhere by now.
    #[error(
        "{path} is not where it was made: another process moved or removed it; nothing of the pod was taken away, try again"
    )]
    Lost {
        /// Where it is.
        path: PathBuf,
    },
    /// It was asked to.
    #[error("stopped after {step:?}, as asked; the next `sidecar init` or `sidecar run` repairs what is there")]
    Stopped {
        /// What it had done.
        step: Step,
    },
    /// There is no store that only descriptors lead to.
    #[error(
        "no BPF file system can be mounted for this process alone: {0}; that needs CAP_SYS_ADMIN, and without it there is no upgrade in place: stop the sidecar and start the new one"
    )]
    Detached(#[source] io::Error),
    /// A store of another version.
    #[error(
        "the maps in {path} have {}, this binary (version {}) knows layout {LAYOUT} and uses no other: run `sidecar init` of this version, or start the sidecar with the capabilities that loading needs, in their place",
        other_layout(.found), env!("CARGO_PKG_VERSION")
    )]
    Layout {
        /// The store.
        path: PathBuf,
        /// Its layout and the version that made it; `None`: its marker cannot be read.
        found: Option<(u32, String)>,
    },
    /// A store that this sidecar cannot use.
    #[error(
        "what is pinned in {path} is of no use to this sidecar: {why}; run `sidecar init` with this configuration, or start the sidecar with the capabilities that loading needs"
    )]
    Unfit {
        /// The store.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A store whose maps are too small.
    #[error(
        "the eBPF map `{map}` in {path} has room for {room} entries, this configuration asks for {needed}: run `sidecar init` with this configuration, or restart the sidecar"
    )]
    Room {
        /// The store.
        path: PathBuf,
        /// The map.
        map: &'static str,
        /// Its entries.
        room: u32,
        /// What is asked for.
        needed: u32,
    },
    /// Another sidecar serves the pod.
    #[error(
        "another sidecar serves the pod: its eBPF program `{program}` runs there, and each would capture what the other dials; stop it first (`bpftool prog show name {program}` names its process)"
    )]
    Taken {
        /// The program that was found.
        program: String,
    },
    /// A port of the sidecar that is to come is in use.
    #[error(
        "{key}: port {port} of the pod's network namespace is in use: another sidecar serves the pod, or an application has the port; stop it first, or set {key} (`ss -ltnp` in the pod names its process)"
    )]
    PortTaken {
        /// The configuration key that names the port.
        key: &'static str,
        /// The port.
        port: u16,
    },
    /// What the programs say cannot be read.
    #[error("the log of the eBPF programs cannot be read: {0}; set telemetry.bpf_log to false")]
    BpfLog(String),
    /// A netlink request failed.
    #[error("netlink {request}: {source}")]
    Netlink {
        /// What was asked.
        request: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The sidecar is no longer where it was.
    #[error(transparent)]
    Pod(#[from] pod::Error),
    /// The kernel does not run one of our programs where it should.
    #[error(
        "the eBPF program `{program}` is attached but not effective in {target}: another program or a removed cgroup is in its way; `bpftool cgroup tree` shows what is attached"
    )]
    NotEffective {
        /// Its name.
        program: &'static str,
        /// Where it should run.
        target: PathBuf,
    },
    /// The kernel does not say which programs it runs.
    #[error("the kernel does not tell which programs are effective in {target}: {source}")]
    Query {
        /// The cgroup or network namespace.
        target: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A real connection did not pass our programs.
    #[error("a probe connection did not pass the eBPF program `{program}`, although it is attached")]
    ProbeMissed {
        /// The program that did not count it.
        program: &'static str,
    },
    /// The probe connection itself failed.
    #[error("the probe connection over loopback failed: {0}")]
    Probe(#[source] io::Error),
}

/// What an operator can do about maps that the kernel has no room for.
fn room_hint(error: &EbpfError) -> &'static str {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |cause| cause.source());
    let codes = causes.filter_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    if codes.into_iter().any(|code| code == libc::ENOMEM) {
        "; the kernel counts them as memory of the sidecar: raise its limit (memory.max), or lower capture.maps"
    } else {
        ""
    }
}

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

fn other_layout(found: &Option<(u32, String)>) -> String {
    match found {
        Some((layout, version)) => format!("layout {layout} of version {version}"),
        None => "a layout that this version cannot read".to_owned(),
    }
}

/// What an operator can do about a refused attachment.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; either CAP_NET_ADMIN and CAP_BPF are missing, or a program attached to a parent cgroup without \
             BPF_F_ALLOW_MULTI forbids others below it (`bpftool cgroup tree` shows it)"
        }
        _ => "",
    }
}
