//! Asks the kernel which programs it really runs, and where.

use std::{io, os::fd::AsRawFd};

use super::bpf::bpf;

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` uses (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _pad: u32,
}

/// `BPF_PROG_QUERY`.
const PROG_QUERY: libc::c_int = 16;
/// `BPF_F_QUERY_EFFECTIVE`: what runs there, wherever it is attached.
pub(super) const EFFECTIVE: u32 = 1;
/// The kernel attaches at most 64 programs per cgroup and hook (`BPF_CGROUP_MAX_PROGS`); effective are also those of the
/// cgroups above.
const MAX_PROGRAMS: usize = 64 * 8;

/// Ids of the programs of `attach_type` on a cgroup or network namespace, in the order in which they run.
pub(super) fn program_ids(target: &impl AsRawFd, attach_type: u32, flags: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MAX_PROGRAMS];
    let mut attr = QueryAttr {
        target_fd: target.as_raw_fd() as u32,
        attach_type,
        query_flags: flags,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS as u32,
        ..QueryAttr::default()
    };
    // SAFETY: `prog_ids` points to `prog_cnt` words.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}
