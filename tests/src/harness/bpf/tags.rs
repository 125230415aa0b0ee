//! What tells one binary's programs from another's.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};

use super::{Attr, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_GET_FD_BY_ID, BPF_SK_LOOKUP, CGROUP_HOOKS, bpf, ids};
use crate::harness::Pod;

/// The tags of the programs at each hook that has any.
pub type Tags = Vec<Vec<[u8; 8]>>;

/// The tags of the programs that a sidecar attaches, hook by hook: of the pod's network namespace, then of its cgroups.
pub fn tags(pod: &Pod) -> Result<Tags> {
    let mut hooks = vec![tags_at(pod.netns().as_fd(), BPF_SK_LOOKUP).context("programs of a network namespace")?];
    for path in [pod.cgroup(), pod.sidecar_cgroup()] {
        let cgroup = File::open(path).with_context(|| format!("open {}", path.display()))?;
        for hook in CGROUP_HOOKS {
            hooks.push(tags_at(cgroup.as_fd(), hook).with_context(|| format!("programs of attach type {hook}"))?);
        }
    }
    hooks.retain(|tags| !tags.is_empty());
    Ok(hooks)
}

fn tags_at(target: BorrowedFd<'_>, hook: u32) -> io::Result<Vec<[u8; 8]>> {
    ids(target, hook, 0)?.into_iter().map(tag).collect()
}

fn tag(program: u32) -> io::Result<[u8; 8]> {
    let mut attr = Attr::default();
    attr.0[0] = program;
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut attr)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    // The beginning of `struct bpf_prog_info`: type, id, tag.
    let mut info = [0_u8; 16];
    let mut attr = Attr::default();
    attr.0[..2].copy_from_slice(&[program.as_raw_fd().cast_unsigned(), info.len() as u32]);
    attr.set64(2, info.as_mut_ptr() as u64);
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info[8..].try_into().unwrap_or_default())
}
