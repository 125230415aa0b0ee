//! Worlds: two pods with their processes and sidecars, removed when they go out of scope.

mod authority;
mod borrow;
pub mod bpf;
mod cgroup;
mod conversation;
mod family;
mod http;
mod lacking;
mod log;
mod memory;
mod mesh;
mod metrics;
mod mountns;
mod netns;
mod nginx;
mod pace;
mod pod;
mod process;
mod puppet;
mod sidecar;
mod skip;
mod wedge;
mod wire;
mod world;

pub use authority::{Authority, TRUST_DOMAIN, spiffe_id};
pub use borrow::{address, sockets_of};
pub use cgroup::{Cgroup, sweep};
pub use conversation::{Agent, Conversation, Report, converse};
pub use family::children;
pub use http::Response;
pub use lacking::{with_other_tags, without_helper};
pub use log::Log;
pub use memory::MemoryLimit;
pub use mesh::{Layout, Mesh, wait_for_port};
pub use metrics::{Metrics, Sample};
pub use mountns::{BPF_FS, MountNs};
pub use netns::NetNs;
pub use nginx::nginx;
pub use pace::{patient, work};
pub use pod::{Pod, SocketField};
pub use process::{Process, Spawn};
pub use puppet::Puppet;
pub use sidecar::Sidecar;
pub use skip::skip;
pub use wedge::{Receives, Wedge};
pub use wire::{ACK, SYN, Segment, Wire};
pub use world::{World, require_root};

use std::{
    io,
    time::{Duration, Instant},
};

/// How long anything outside this process may take before a test fails: far above what is normal on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks until the answer is yes or `limit` has passed; says which.
///
/// For the state of other processes and of the kernel, which send no event.
pub fn eventually(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The error of the last failed system call, with what was tried.
fn os_error(what: &str) -> anyhow::Error {
    anyhow::Error::new(io::Error::last_os_error()).context(what.to_owned())
}
