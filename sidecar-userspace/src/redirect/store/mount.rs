//! A BPF file system that is mounted nowhere.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

/// `FSOPEN_CLOEXEC`, `FSMOUNT_CLOEXEC` (linux/mount.h).
const CLOSE_ON_EXEC: libc::c_uint = 1;
/// `FSCONFIG_CMD_CREATE`.
const CREATE: libc::c_uint = 6;

/// Makes one. Its root has no path; the descriptor is all there is of it, and it ends with the last copy of that.
pub(super) fn bpffs() -> io::Result<OwnedFd> {
    // SAFETY: the name is a string that lives through the call.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, c"bpf".as_ptr(), CLOSE_ON_EXEC) })?;
    let nothing = ptr::null::<libc::c_char>();
    // SAFETY: the command takes neither key nor value.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, nothing, nothing, 0) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes no pointers.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOSE_ON_EXEC, 0) })
}

fn descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(answer as i32) })
}
