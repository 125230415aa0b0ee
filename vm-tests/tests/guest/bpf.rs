//! Loading the smallest program of a kind: whether the kernel has it at all, apart from what ours does in it.

use anyhow::{Context as _, bail};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// BPF_PROG_LOAD of `enum bpf_cmd` in linux/bpf.h.
const PROG_LOAD: libc::c_long = 5;

/// The fields of `union bpf_attr` for BPF_PROG_LOAD up to the last one that is set here. The kernel takes any length,
/// and the fields beyond it as zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

const _: () = assert!(size_of::<ProgLoad>() == 72);

/// `enum bpf_prog_type` and `enum bpf_attach_type` of an ELF section.
fn kind(section: &str) -> anyhow::Result<(u32, u32)> {
    const SOCK_OPS: u32 = 13;
    const SK_MSG: u32 = 16;
    const CGROUP_SOCK_ADDR: u32 = 18;
    const CGROUP_SOCKOPT: u32 = 25;
    const SK_LOOKUP: u32 = 30;
    Ok(match section {
        "sockops" => (SOCK_OPS, 3),
        "sk_msg" => (SK_MSG, 7),
        "cgroup/connect4" => (CGROUP_SOCK_ADDR, 10),
        "cgroup/connect6" => (CGROUP_SOCK_ADDR, 11),
        "cgroup/getsockopt" => (CGROUP_SOCKOPT, 21),
        "cgroup/getpeername4" => (CGROUP_SOCK_ADDR, 29),
        "cgroup/getpeername6" => (CGROUP_SOCK_ADDR, 30),
        "cgroup/getsockname4" => (CGROUP_SOCK_ADDR, 31),
        "cgroup/getsockname6" => (CGROUP_SOCK_ADDR, 32),
        "sk_lookup" => (SK_LOOKUP, 36),
        _ => bail!("no such kind of program: {section}"),
    })
}

/// Loads `return 1` as a program of `section`'s kind, and lets go of it.
pub(crate) fn load(section: &str) -> anyhow::Result<()> {
    let (prog_type, expected_attach_type) = kind(section)?;
    // struct bpf_insn: opcode, registers, offset (16 bits), immediate (32 bits). mov64 r0, 1; exit.
    let instructions: [u64; 2] = [0xb7 | 1 << 32, 0x95];
    let attributes = ProgLoad {
        prog_type,
        insn_cnt: 2,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: [0; 16],
        prog_ifindex: 0,
        expected_attach_type,
    };
    // SAFETY: the attributes have the layout and the length that the kernel is told, and both pointers in them outlive
    // the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<ProgLoad>()) };
    if result < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("load {section}"));
    }
    let fd = i32::try_from(result).context("a descriptor is an int")?;
    // SAFETY: the kernel made this descriptor for us just now.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}
