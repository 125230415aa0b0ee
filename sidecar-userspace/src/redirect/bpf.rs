//! bpf(2) for what aya has no words for: links that can be pinned whatever they are attached to, whose program can be exchanged,
//! and that tell where they are.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `BPF_OBJ_PIN`.
const OBJ_PIN: libc::c_int = 6;
/// `BPF_OBJ_GET`.
const OBJ_GET: libc::c_int = 7;
/// `BPF_OBJ_GET_INFO_BY_FD`.
const OBJ_GET_INFO: libc::c_int = 15;
/// `BPF_LINK_CREATE`, since Linux 5.7.
const LINK_CREATE: libc::c_int = 28;
/// `BPF_LINK_UPDATE`, since Linux 5.7.
const LINK_UPDATE: libc::c_int = 29;
/// `BPF_LINK_DETACH`, since Linux 5.9.
const LINK_DETACH: libc::c_int = 34;
/// `BPF_LINK_TYPE_NETNS`.
const NETNS_LINK: u32 = 5;

/// The part of `union bpf_attr` that `BPF_OBJ_PIN` and `BPF_OBJ_GET` use.
#[repr(C)]
struct PathAttr {
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

/// `struct bpf_link_info` of a link to a cgroup; of one to a network namespace, the number of that and the attach type stand in
/// the place of the cgroup's id.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    _pad: u32,
    target: u64,
    attach_type: u32,
    _tail: u32,
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that `BPF_LINK_CREATE` uses.
#[repr(C)]
struct CreateAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that `BPF_LINK_UPDATE` uses.
#[repr(C)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The part of `union bpf_attr` that `BPF_LINK_DETACH` uses.
#[repr(C)]
struct DetachAttr {
    link_fd: u32,
}

/// What the kernel tells of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// The id of its program.
    pub(super) program: u32,
    /// The id of the cgroup, or the inode number of the network namespace, that it is attached to; zero: that is gone.
    pub(super) target: u64,
}

/// Opens what is pinned.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut get = PathAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `pathname` points to a string that lives through the call.
    let fd = unsafe { bpf(OBJ_GET, &mut get) }?;
    // SAFETY: the kernel just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, program or link.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut pin = PathAttr { pathname: path.as_ptr() as u64, bpf_fd: object.as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: `pathname` points to a string that lives through the call.
    unsafe { bpf(OBJ_PIN, &mut pin) }.map(drop)
}

/// Attaches a program to a cgroup or network namespace. Of several on one cgroup all run: a link needs no flag for that.
pub(super) fn link(program: BorrowedFd<'_>, target: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut create =
        CreateAttr { prog_fd: program.as_raw_fd() as u32, target_fd: target.as_raw_fd() as u32, attach_type, flags: 0 };
    // SAFETY: the command uses no pointers.
    let fd = unsafe { bpf(LINK_CREATE, &mut create) }?;
    // SAFETY: the kernel just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a program into the place of the one that a link runs: no event falls between.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = UpdateAttr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the command uses no pointers.
    unsafe { bpf(LINK_UPDATE, &mut update) }.map(drop)
}

/// Cuts a link from what it is attached to; its program has run for the last time when this returns.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut detach = DetachAttr { link_fd: link.as_raw_fd() as u32 };
    // SAFETY: the command uses no pointers.
    unsafe { bpf(LINK_DETACH, &mut detach) }.map(drop)
}

/// What a link runs, and where.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<Link> {
    let LinkInfo { kind, prog_id, target, .. } = info(link)?;
    // The attach type stands beside the number of a network namespace.
    let target = if kind == NETNS_LINK { u64::from(target as u32) } else { target };
    Ok(Link { program: prog_id, target })
}

/// The room of a map.
pub(super) fn max_entries(map: BorrowedFd<'_>) -> io::Result<u32> {
    info::<MapInfo>(map).map(|info| info.max_entries)
}

/// Structures of integers alone, of which every bit pattern is a value.
trait Info: Default {}
impl Info for LinkInfo {}
impl Info for MapInfo {}

fn info<T: Info>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut ask =
        InfoAttr { bpf_fd: object.as_raw_fd() as u32, info_len: size_of::<T>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: `info` points to `info_len` writable bytes, of which every bit pattern is a value.
    unsafe { bpf(OBJ_GET_INFO, &mut ask) }?;
    Ok(info)
}

/// bpf(2).
///
/// # Safety
/// Pointers inside `attr` must be valid for what the command does with them.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the attribute lives through the call and has the size that is passed; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
