//! The socket calls that the standard library and socket2 do not offer.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    time::Duration,
};

use nix::{
    cmsg_space, libc,
    poll::PollFlags,
    sys::socket::{self, ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, sendmsg},
};
use socket2::{SockAddr, Socket};

/// Waits for any of `events` for at most `limit`; what is there, empty if nothing.
pub fn poll(socket: &impl AsRawFd, events: PollFlags, limit: Duration) -> io::Result<PollFlags> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: events.bits(), revents: 0 };
    let timeout = i32::try_from(limit.as_millis()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to one pollfd that outlives the call.
    check(unsafe { libc::poll(&mut entry, 1, timeout) })?;
    // POLLRDHUP has no name in nix, and would get lost in its own poll.
    Ok(PollFlags::from_bits_retain(entry.revents))
}

/// Sets an option whose value is an `int`.
pub fn set_int(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the size describe `value`, which outlives the call.
    check(unsafe {
        let size = size_of::<i32>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), size)
    })
    .map(drop)
}

/// Reads an option whose value is an `int`.
pub fn get_int(socket: &impl AsRawFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0;
    let mut size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointers describe `value` and its size, which outlive the call.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, ptr::from_mut(&mut value).cast(), &mut size) })?;
    Ok(value)
}

/// Bytes that can be read at once (`FIONREAD`).
pub fn readable_bytes(socket: &impl AsRawFd) -> io::Result<i32> {
    ioctl_int(socket, libc::FIONREAD)
}

/// Whether the next byte is the one after the urgent mark (`SIOCATMARK`).
pub fn at_mark(socket: &impl AsRawFd) -> io::Result<bool> {
    // asm-generic/sockios.h; the libc crate does not have it.
    const SIOCATMARK: libc::c_ulong = 0x8905;
    ioctl_int(socket, SIOCATMARK).map(|value| value != 0)
}

fn ioctl_int(socket: &impl AsRawFd, request: libc::c_ulong) -> io::Result<i32> {
    let mut value: i32 = 0;
    // SAFETY: both requests used here write one int.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request, &mut value) })?;
    Ok(value)
}

/// recv(2) with flags.
pub fn recv(socket: &Socket, limit: usize, flags: i32) -> io::Result<Vec<u8>> {
    let mut buffer = vec![MaybeUninit::uninit(); limit];
    let n = socket.recv_with_flags(&mut buffer, flags)?;
    // SAFETY: the kernel has written the first `n` bytes (at most `limit`; with MSG_TRUNC it may say more and write none).
    let bytes =
        buffer[..if flags & libc::MSG_TRUNC != 0 { 0 } else { n }].iter().map(|byte| unsafe { byte.assume_init() });
    Ok(bytes.collect())
}

/// Discards up to `limit` bytes (`MSG_TRUNC` on TCP, tcp(7)); says how many.
pub fn discard(socket: &Socket, limit: usize) -> io::Result<usize> {
    socket.recv_with_flags(&mut vec![MaybeUninit::uninit(); limit], libc::MSG_TRUNC)
}

/// Connects and sends the first bytes with the SYN (`MSG_FASTOPEN`).
pub fn connect_with_data(socket: &Socket, to: SocketAddr, bytes: &[u8]) -> io::Result<usize> {
    socket.send_to_with_flags(bytes, &SockAddr::from(to), libc::MSG_FASTOPEN)
}

/// Breaks the association of a socket (`connect` to `AF_UNSPEC`, connect(2)).
pub fn disconnect(socket: &Socket) -> io::Result<()> {
    let address = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the pointer and the size describe `address`, which outlives the call.
    check(unsafe { libc::connect(socket.as_raw_fd(), &address, size_of::<libc::sockaddr>() as libc::socklen_t) })
        .map(drop)
}

/// recvmsg(2) on a connected socket: the bytes and the length of the name that the kernel gave (0 on TCP).
pub fn recvmsg(socket: &Socket, limit: usize) -> io::Result<(usize, u32)> {
    let mut buffer = vec![0_u8; limit];
    // SAFETY: all-zero is a valid sockaddr_storage and a valid msghdr.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = ptr::from_mut(&mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    // SAFETY: every pointer in `message` is to a local that outlives the call.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, 0) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    Ok((n, message.msg_namelen))
}

/// splice(2) without offsets.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
    // SAFETY: null offsets are allowed; the descriptors are open.
    let n = unsafe { libc::splice(from.as_raw_fd(), ptr::null_mut(), to.as_raw_fd(), ptr::null_mut(), limit, 0) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Gives a descriptor to the process at the other end of a unix socket (`SCM_RIGHTS`, unix(7)).
pub fn send_descriptor(through: &impl AsRawFd, given: &impl AsRawFd) -> io::Result<()> {
    let fds = [given.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(through.as_raw_fd(), &[IoSlice::new(b"s")], &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Takes the descriptor that [`send_descriptor`] gave.
pub fn receive_descriptor(through: &impl AsRawFd) -> io::Result<OwnedFd> {
    let mut space = cmsg_space!([RawFd; 1]);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message =
        socket::recvmsg::<UnixAddr>(through.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let received = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let fd = received.ok_or_else(|| io::Error::other("no descriptor in the message"))?;
    // SAFETY: recvmsg has just installed the descriptor in this process, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Becomes another user, for good.
pub fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: no pointers. The agent has one thread, and the C function changes all of them anyway.
    check(unsafe { libc::setresuid(uid, uid, uid) }).map(drop)
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
