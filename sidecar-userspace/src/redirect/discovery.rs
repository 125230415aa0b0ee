//! Discovery of other sidecars in the TCP handshake: a program of its own on the sidecar's own cgroup, which a kernel may
//! refuse without harm to the capture.

use aya::Ebpf;

use super::{
    attach::Attaching,
    error::Error,
    programs::{Hook, Programs, load_one},
};
use crate::{config::Config, pod::Pod};

/// The program that writes and reads the mesh option, with its attach type (linux/bpf.h, `BPF_CGROUP_SOCK_OPS`).
pub(super) const MESH_PROGRAM: Hook = ("on_mesh", 3);

/// Has the kernel verify the program; the kernel's words if it refuses.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), String> {
    let refused = |source| Error::Load { program: MESH_PROGRAM.0, source: Box::new(source) }.to_string();
    load_one(ebpf, MESH_PROGRAM.0).map_err(refused)
}

impl Programs {
    /// Says what a kernel without discovery costs this configuration: with an identity, encryption in `permissive`.
    pub(super) fn tell_of_discovery(&self, config: &Config) {
        let Err(error) = self.discovers() else { return };
        match config.identity.is_configured() {
            true => tracing::warn!(
                error,
                "other sidecars cannot be discovered on this kernel: `permissive` sends plaintext to all of them but those \
                 whose transport `mtls.workloads` names; name it there, use `strict` or another kernel"
            ),
            false => tracing::info!(error, "other sidecars cannot be discovered on this kernel"),
        }
    }

    /// Whether other sidecars can be discovered on this kernel; else why not.
    ///
    /// # Errors
    /// The kernel's words.
    pub fn discovers(&self) -> Result<(), &str> {
        self.discovery.as_ref().copied().map_err(String::as_str)
    }

    /// Has discovery see the sidecar's own sockets. Before the inbound listener listens: that is the one moment at which
    /// every kernel lets a program ask for a say in the listener's SYN-ACKs.
    ///
    /// # Errors
    /// The program cannot be attached to the sidecar's cgroup.
    pub fn attach_discovery(&mut self, pod: &Pod) -> Result<(), Error> {
        if self.discovery.is_err() {
            return Ok(());
        }
        let attaching =
            Attaching { code: &self.code, store: self.store.as_ref(), pod, refused: self.refused.as_deref() };
        self.mesh_link = attaching.to_own_cgroup(&[MESH_PROGRAM])?.pop();
        Ok(())
    }
}
