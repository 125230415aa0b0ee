//! Copies of the sockets that another process holds (pidfd_getfd(2), Linux 5.6): what their owner could ask the kernel
//! about them, and set, a test can.

use std::{
    fs,
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::{libc, unistd::Pid};
use socket2::{Socket, Type};

use super::process::pidfd_open;

/// Copies of the TCP sockets of `process` that are `wanted`. A connection ends with the last copy.
pub fn sockets_of(process: Pid, wanted: impl Fn(&Socket) -> bool) -> Result<Vec<Socket>> {
    let owner = pidfd_open(process)?;
    let mut sockets = vec![];
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let entry = entry?;
        // A descriptor may be closed while they are listed.
        if !fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:")) {
            continue;
        }
        let number: i32 = entry.file_name().to_string_lossy().parse().context("a descriptor's number")?;
        // SAFETY: no pointers are passed.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, owner.as_raw_fd(), number, 0) };
        let Ok(copy @ 0..) = i32::try_from(copy) else { continue };
        // SAFETY: the kernel has just returned this descriptor to us alone.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(copy) });
        let is_tcp = address(socket.local_addr()).is_some() && socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
        if is_tcp && wanted(&socket) {
            sockets.push(socket);
        }
    }
    Ok(sockets)
}

/// An end of a TCP socket, IPv4 as IPv4.
pub fn address(end: std::io::Result<socket2::SockAddr>) -> Option<SocketAddr> {
    let end = end.ok()?.as_socket()?;
    Some(SocketAddr::new(end.ip().to_canonical(), end.port()))
}
