//! The few bpf(2) commands that show what is attached and what is in a map, and attach a program of somebody else's.

mod agent;
mod lookup;
mod tags;

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, bail};
use nix::{libc, unistd::Pid};

use super::Pod;
pub use agent::take_sockets_of;
pub use lookup::{ForeignLookups, MOST_LOOKUPS, attach_foreign_lookups};
pub use tags::{Tags, tags};

// Commands, types and flags of linux/bpf.h.
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_GET_NEXT_KEY: i32 = 4;
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_MAP_GET_FD_BY_ID: i32 = 14;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_PROG_QUERY: i32 = 16;
const BPF_PROG_TYPE_SOCK_OPS: u32 = 13;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_PROG_TYPE_SK_MSG: u32 = 16;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_CGROUP_SOCK_OPS: u32 = 3;
const BPF_SK_MSG_VERDICT: u32 = 7;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_SK_LOOKUP: u32 = 36;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Attach types of a cgroup that a sidecar may use: sockops, connect4/6, getsockopt, setsockopt, getpeername4/6,
/// getsockname4/6.
const CGROUP_HOOKS: [u32; 9] = [3, BPF_CGROUP_INET4_CONNECT, 11, 21, 22, 29, 30, 31, 32];

/// The beginning of `union bpf_attr`: more than any of these commands reads.
#[repr(C, align(8))]
#[derive(Default)]
struct Attr([u32; 32]);

impl Attr {
    fn set64(&mut self, word: usize, value: u64) {
        let [low, high] = [value as u32, (value >> 32) as u32];
        let words = if cfg!(target_endian = "little") { [low, high] } else { [high, low] };
        self.0[word..word + 2].copy_from_slice(&words);
    }
}

fn bpf(command: i32, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: the size is that of `attr`; what its pointers name outlives the call, by the callers below.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// How many of the programs that a sidecar attaches are on the pod's cgroups and its network namespace.
pub fn attached_programs(pod: &Pod) -> Result<u32> {
    let mut count = query(pod.netns().as_fd(), BPF_SK_LOOKUP).context("BPF_PROG_QUERY of a network namespace")?;
    for path in [pod.cgroup(), pod.app_cgroup(), pod.sidecar_cgroup()] {
        let cgroup = File::open(path).with_context(|| format!("open {}", path.display()))?;
        for hook in CGROUP_HOOKS {
            count += query(cgroup.as_fd(), hook).with_context(|| format!("BPF_PROG_QUERY of attach type {hook}"))?;
        }
    }
    Ok(count)
}

/// The ids of the programs that run for IPv4 connects of a cgroup's tasks.
pub fn connect_programs(cgroup: &Path) -> Result<Vec<u32>> {
    const BPF_F_QUERY_EFFECTIVE: u32 = 1;
    let directory = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    ids(directory.as_fd(), BPF_CGROUP_INET4_CONNECT, BPF_F_QUERY_EFFECTIVE)
        .context("BPF_PROG_QUERY of what is effective")
}

fn ids(target: BorrowedFd<'_>, attach_type: u32, flags: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    let mut attr = Attr::default();
    attr.0[..3].copy_from_slice(&[target.as_raw_fd().cast_unsigned(), attach_type, flags]);
    attr.set64(4, ids.as_mut_ptr() as u64);
    attr.0[6] = ids.len() as u32;
    bpf(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate(attr.0[6] as usize);
    Ok(ids)
}

fn query(target: BorrowedFd<'_>, attach_type: u32) -> io::Result<u32> {
    let mut attr = Attr::default();
    attr.0[0] = target.as_raw_fd().cast_unsigned();
    attr.0[1] = attach_type;
    // query_flags, attach_flags, prog_ids (2 words, none wanted), prog_cnt.
    bpf(BPF_PROG_QUERY, &mut attr)?;
    Ok(attr.0[6])
}

/// How many entries the map of this name has that `process` holds open.
pub fn map_entries(process: Pid, name: &str) -> Result<usize> {
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        // A descriptor may be closed while they are listed.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let Some(id) = text.lines().find_map(|line| line.strip_prefix("map_id:")) else { continue };
        let map = open_map(id.trim().parse()?).context("BPF_MAP_GET_FD_BY_ID")?;
        let info = MapInfo::of(map.as_fd()).context("BPF_OBJ_GET_INFO_BY_FD")?;
        if info.name.iter().take_while(|byte| **byte != 0).eq(name.as_bytes()) {
            return count_entries(map.as_fd(), info.key_size as usize).context("BPF_MAP_GET_NEXT_KEY");
        }
    }
    bail!("process {process} holds no map {name}")
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
    name: [u8; 16],
}

impl MapInfo {
    fn of(map: BorrowedFd<'_>) -> io::Result<Self> {
        let mut info = Self::default();
        let mut attr = Attr::default();
        attr.0[0] = map.as_raw_fd().cast_unsigned();
        attr.0[1] = size_of::<Self>() as u32;
        attr.set64(2, std::ptr::from_mut(&mut info) as u64);
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        Ok(info)
    }
}

fn open_map(id: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    attr.0[0] = id;
    let fd = bpf(BPF_MAP_GET_FD_BY_ID, &mut attr)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An entry that is deleted meanwhile makes the kernel begin anew: the count is exact when nothing changes.
fn count_entries(map: BorrowedFd<'_>, key_size: usize) -> io::Result<usize> {
    let (mut key, mut next) = (vec![0_u8; key_size], vec![0_u8; key_size]);
    let mut count = 0;
    loop {
        let mut attr = Attr::default();
        attr.0[0] = map.as_raw_fd().cast_unsigned();
        attr.set64(2, if count == 0 { 0 } else { key.as_ptr() as u64 });
        attr.set64(4, next.as_mut_ptr() as u64);
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => count += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(count),
            Err(error) => return Err(error),
        }
        std::mem::swap(&mut key, &mut next);
    }
}

/// Attaches a connect4 program that allows everything to `cgroup`; `shared`: others may attach below it.
///
/// It stays until the cgroup is removed.
pub fn attach_foreign_connect4(cgroup: &Path, shared: bool) -> Result<()> {
    // r0 = 1; exit
    attach_connect4(cgroup, shared, &[instruction(0xb7, 0, 0, 1), instruction(0x95, 0, 0, 0)])
}

/// Attaches a connect4 program that sends connections for one port to another, as load balancers do, to `cgroup`;
/// others may attach below it.
pub fn attach_rewriting_connect4(cgroup: &Path, from: u16, to: u16) -> Result<()> {
    /// Offset of `user_port` in `struct bpf_sock_addr`.
    const USER_PORT: i16 = 24;
    let [from, to] = [from, to].map(|port| i32::from(port.to_be()));
    // r2 = ctx->user_port; if r2 != from skip 2; r3 = to; ctx->user_port = r3; r0 = 1; exit
    let program = [
        instruction(0x61, 0x12, USER_PORT, 0),
        instruction(0x55, 0x02, 2, from),
        instruction(0xb7, 0x03, 0, to),
        instruction(0x63, 0x31, USER_PORT, 0),
        instruction(0xb7, 0, 0, 1),
        instruction(0x95, 0, 0, 0),
    ];
    attach_connect4(cgroup, true, &program)
}

/// `struct bpf_insn`; `registers`: the source in the high half.
fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let ([o0, o1], [i0, i1, i2, i3]) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
    [code, registers, o0, o1, i0, i1, i2, i3]
}

fn attach_connect4(cgroup: &Path, shared: bool, instructions: &[[u8; 8]]) -> Result<()> {
    attach(cgroup, shared, (BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT), instructions)
}

/// Attaches a sockops program to `cgroup` that adds an option of 16 bytes wherever another one asks for a say in the
/// header.
pub fn attach_option_hog(cgroup: &Path) -> Result<()> {
    // `BPF_SOCK_OPS_HDR_OPT_LEN_CB`, `BPF_SOCK_OPS_WRITE_HDR_OPT_CB`, `bpf_store_hdr_opt`, `bpf_reserve_hdr_opt`.
    const HDR_OPT_LEN: i32 = 14;
    const WRITE_HDR_OPT: i32 = 15;
    const STORE: i32 = 143;
    const RESERVE: i32 = 144;
    /// Kind 253, 16 bytes, "XX".
    const OPTION: i32 = i32::from_le_bytes([253, 16, b'X', b'X']);
    let program = [
        // r2 = ctx->op; if r2 == WRITE_HDR_OPT skip 5; if r2 != HDR_OPT_LEN skip 11
        instruction(0x61, 0x12, 0, 0),
        instruction(0x15, 0x02, 5, WRITE_HDR_OPT),
        instruction(0x55, 0x02, 11, HDR_OPT_LEN),
        // reserve(ctx, 16, 0); skip 7
        instruction(0xb7, 0x02, 0, 16),
        instruction(0xb7, 0x03, 0, 0),
        instruction(0x85, 0, 0, RESERVE),
        instruction(0x05, 0, 7, 0),
        // (u64) fp[-16] = OPTION; (u64) fp[-8] = 0; store(ctx, fp - 16, 16, 0)
        instruction(0x7a, 0x0a, -16, OPTION),
        instruction(0x7a, 0x0a, -8, 0),
        instruction(0xbf, 0xa2, 0, 0),
        instruction(0x07, 0x02, 0, -16),
        instruction(0xb7, 0x03, 0, 16),
        instruction(0xb7, 0x04, 0, 0),
        instruction(0x85, 0, 0, STORE),
        // r0 = 1; exit
        instruction(0xb7, 0, 0, 1),
        instruction(0x95, 0, 0, 0),
    ];
    attach(cgroup, true, (BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS), &program)
}

/// Has a program of somebody else's own what `socket` sends, as long as the map lives that is returned.
pub fn own_messages_of(socket: &impl AsRawFd) -> Result<OwnedFd> {
    let mut create = Attr::default();
    create.0[..4].copy_from_slice(&[BPF_MAP_TYPE_SOCKMAP, 4, 4, 1]);
    let map = bpf(BPF_MAP_CREATE, &mut create).context("BPF_MAP_CREATE of a foreign sockmap")?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    let map = unsafe { OwnedFd::from_raw_fd(map) };
    // r0 = SK_PASS; exit
    let program = [instruction(0xb7, 0, 0, 1), instruction(0x95, 0, 0, 0)];
    let program =
        load((BPF_PROG_TYPE_SK_MSG, BPF_SK_MSG_VERDICT), &program).context("BPF_PROG_LOAD of a foreign program")?;
    let mut attach = Attr::default();
    attach.0[..3].copy_from_slice(&[
        map.as_raw_fd().cast_unsigned(),
        program.as_raw_fd().cast_unsigned(),
        BPF_SK_MSG_VERDICT,
    ]);
    bpf(BPF_PROG_ATTACH, &mut attach).context("BPF_PROG_ATTACH to a foreign sockmap")?;
    let (key, value) = (0_u32, socket.as_raw_fd());
    let mut update = Attr::default();
    update.0[0] = map.as_raw_fd().cast_unsigned();
    update.set64(2, std::ptr::from_ref(&key) as u64);
    update.set64(4, std::ptr::from_ref(&value) as u64);
    bpf(BPF_MAP_UPDATE_ELEM, &mut update).context("BPF_MAP_UPDATE_ELEM of a foreign sockmap")?;
    Ok(map)
}

/// `kind`: the program's type and its attach type.
fn attach(cgroup: &Path, shared: bool, kind: (u32, u32), instructions: &[[u8; 8]]) -> Result<()> {
    let program = load(kind, instructions).context("BPF_PROG_LOAD of a foreign program")?;
    let target = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    let mut attr = Attr::default();
    attr.0[0] = target.as_raw_fd().cast_unsigned();
    attr.0[1] = program.as_raw_fd().cast_unsigned();
    attr.0[2] = kind.1;
    attr.0[3] = if shared { BPF_F_ALLOW_MULTI } else { 0 };
    bpf(BPF_PROG_ATTACH, &mut attr).map(drop).context("BPF_PROG_ATTACH of a foreign program")
}

fn load((program_type, attach_type): (u32, u32), instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = Attr::default();
    attr.0[0] = program_type;
    attr.0[1] = instructions.len() as u32;
    attr.set64(2, instructions.as_ptr() as u64);
    attr.set64(4, license.as_ptr() as u64);
    attr.0[17] = attach_type;
    let fd = bpf(BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
