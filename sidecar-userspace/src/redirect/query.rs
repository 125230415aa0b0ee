//! Asks the kernel which programs it really runs, and where.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

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

/// The part of `union bpf_attr` that `BPF_OBJ_GET` uses.
#[repr(C)]
struct GetAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` uses.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_link_info` of a link to a cgroup.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    _tail: u32,
}

/// `BPF_OBJ_GET`.
const OBJ_GET: libc::c_int = 7;
/// `BPF_OBJ_GET_INFO_BY_FD`.
const OBJ_GET_INFO: libc::c_int = 15;

/// A pinned link.
pub(super) struct PinnedLink {
    /// The id of its program.
    pub(super) program: u32,
    /// The id of the cgroup (or the inode number of the network namespace) that it is attached to; zero: that is gone.
    pub(super) target: u64,
}

/// What the kernel tells of a pinned link.
pub(super) fn pinned_link(path: &Path) -> io::Result<PinnedLink> {
    let link = open_pinned(path)?;
    let mut info = CgroupLinkInfo::default();
    let mut ask = InfoAttr {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<CgroupLinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `info` points to `info_len` writable bytes, of which every bit pattern is a value.
    unsafe { bpf(OBJ_GET_INFO, &mut ask) }?;
    Ok(PinnedLink { program: info.prog_id, target: info.cgroup_id })
}

/// The part of `union bpf_attr` that `BPF_LINK_DETACH` uses.
#[repr(C)]
struct DetachAttr {
    link_fd: u32,
}

/// `BPF_LINK_DETACH`, since Linux 5.9.
const LINK_DETACH: libc::c_int = 34;

/// Cuts a pinned link from what it is attached to; its program has run for the last time when this returns.
pub(super) fn detach_pinned(path: &Path) -> io::Result<()> {
    let link = open_pinned(path)?;
    let mut detach = DetachAttr { link_fd: link.as_raw_fd() as u32 };
    // SAFETY: the command uses no pointers.
    unsafe { bpf(LINK_DETACH, &mut detach) }.map(drop)
}

fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut get = GetAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `pathname` points to a string that lives through the call.
    let fd = unsafe { bpf(OBJ_GET, &mut get) }?;
    // SAFETY: the kernel just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2).
///
/// # Safety
/// Pointers inside `attr` must be valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the attribute lives through the call and has the size that is passed; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
