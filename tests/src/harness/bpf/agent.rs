//! An agent of the node that takes sockets for itself.

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result};

use super::{Attr, BPF_CGROUP_SOCK_OPS, BPF_MAP_CREATE, BPF_PROG_TYPE_SOCK_OPS, attach, bpf, instruction};

const BPF_MAP_TYPE_SOCKHASH: u32 = 18;

/// Has a sockops program put what connects from `cgroup` into a sockmap of its own, as long as there is room in it; nobody else gets
/// those into one. Others may attach below it. The program stays until the cgroup is removed.
pub fn take_sockets_of(cgroup: &Path, room: u32) -> Result<()> {
    /// `BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB`.
    const CONNECTED: i32 = 4;
    /// Offset of `local_port` in `struct bpf_sock_ops`.
    const LOCAL_PORT: i16 = 68;
    /// `bpf_sock_hash_update`.
    const UPDATE: i32 = 70;
    /// `BPF_PSEUDO_MAP_FD`, as the source register.
    const MAP_FD: u8 = 0x10;
    let mut create = Attr::default();
    create.0[..4].copy_from_slice(&[BPF_MAP_TYPE_SOCKHASH, 4, 4, room]);
    let map = bpf(BPF_MAP_CREATE, &mut create).context("BPF_MAP_CREATE of a foreign sockhash")?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    let map = unsafe { OwnedFd::from_raw_fd(map) };
    let program = [
        // r2 = ctx->op; if r2 != CONNECTED skip 8
        instruction(0x61, 0x12, 0, 0),
        instruction(0x55, 0x02, 8, CONNECTED),
        // (u32) fp[-4] = ctx->local_port; update(ctx, map, fp - 4, 0)
        instruction(0x61, 0x12, LOCAL_PORT, 0),
        instruction(0x63, 0x2a, -4, 0),
        instruction(0x18, MAP_FD | 0x02, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0),
        instruction(0xbf, 0xa3, 0, 0),
        instruction(0x07, 0x03, 0, -4),
        instruction(0xb7, 0x04, 0, 0),
        instruction(0x85, 0, 0, UPDATE),
        // r0 = 1; exit
        instruction(0xb7, 0, 0, 1),
        instruction(0x95, 0, 0, 0),
    ];
    attach(cgroup, true, (BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS), &program)
}
