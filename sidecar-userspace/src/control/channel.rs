//! One end of the socket between supervisor and worker.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
            socketpair,
        },
        stat::fstat,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::message::{LONGEST, decode, encode};

/// Descriptors of one message at most: more than any message has.
const MOST_DESCRIPTORS: usize = 16;
/// What the kernel lets anybody send with one message (net/core/scm.h, `SCM_MAX_FD`): with less room some would be open that
/// nobody knows of.
const MOST_POSSIBLE: usize = 253;

/// Why a message did not go or come.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end does not take any more now, or has nothing to say now.
    #[error("the other end is busy")]
    Busy,
    /// The other end is gone.
    #[error("the other end is gone")]
    Gone,
    /// It is longer than a message may be.
    #[error("a message of {0} bytes is longer than the {LONGEST} that are allowed")]
    TooLong(usize),
    /// It has more descriptors than a message may have.
    #[error("a message has more than {MOST_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// It is not of this language.
    #[error("a message cannot be understood: {0}")]
    Malformed(String),
    /// It is of another version of the language.
    #[error("a message is of version {0} of the language")]
    Version(u8),
    /// Another answer of the kernel.
    #[error("{call}: {source}")]
    Call {
        /// The system call.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// One end. No call on it blocks, but for [`Channel::wait`].
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends of a new one.
    ///
    /// # Errors
    /// The kernel's answer to `socketpair`.
    pub fn pair() -> Result<(Self, Self), Error> {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (one, other) = pair.map_err(call("socketpair"))?;
        Ok((Self(one), Self(other)))
    }

    /// The end behind a descriptor that somebody has passed on.
    ///
    /// # Errors
    /// It is no socket.
    pub fn inherited(descriptor: OwnedFd) -> Result<Self, Error> {
        let mode = fstat(&descriptor).map_err(call("fstat"))?.st_mode;
        if mode & libc::S_IFMT != libc::S_IFSOCK {
            return Err(Error::Malformed("the descriptor is no socket".to_owned()));
        }
        Ok(Self(descriptor))
    }

    /// Another descriptor of the same end.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn duplicate(&self) -> Result<Self, Error> {
        self.0.try_clone().map(Self).map_err(|source| Error::Call { call: "dup", source })
    }

    /// Sends a message, and descriptors with it.
    ///
    /// # Errors
    /// [`Error::Busy`] if the other end has not read those before; [`Error::Gone`] if it is gone.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = encode(message)?;
        if descriptors.len() > MOST_DESCRIPTORS {
            return Err(Error::TooManyDescriptors);
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let with = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], with, flags, None) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::ENOBUFS) => Err(Error::Busy),
            Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => Err(Error::Gone),
            Err(errno) => Err(call("sendmsg")(errno)),
        }
    }

    /// The next message and its descriptors.
    ///
    /// # Errors
    /// [`Error::Busy`] if there is none now; [`Error::Gone`] if there will be none; a message that is not understood.
    pub fn receive<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), Error> {
        self.receive_with(MsgFlags::MSG_DONTWAIT)
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn wait<M: DeserializeOwned>(&self) -> Result<(M, Vec<OwnedFd>), Error> {
        self.receive_with(MsgFlags::empty())
    }

    fn receive_with<M: DeserializeOwned>(&self, flags: MsgFlags) -> Result<(M, Vec<OwnedFd>), Error> {
        let mut bytes = vec![0; LONGEST];
        let mut space = cmsg_space!([RawFd; MOST_POSSIBLE]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let (length, descriptors, cut) = loop {
            match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Ok(message) => {
                    let rights = message.cmsgs().map_err(call("recvmsg"))?.filter_map(|control| match control {
                        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
                        _ => None,
                    });
                    let owned: Vec<OwnedFd> = rights.flatten().map(own).collect();
                    break (message.bytes, owned, message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Error::Busy),
                Err(Errno::ECONNRESET) => return Err(Error::Gone),
                Err(errno) => return Err(call("recvmsg")(errno)),
            }
        };
        match length {
            // No message is empty: so the other end has closed.
            0 => Err(Error::Gone),
            _ if cut => Err(Error::Malformed("it was cut".to_owned())),
            _ if descriptors.len() > MOST_DESCRIPTORS => Err(Error::TooManyDescriptors),
            length => Ok((decode(&bytes[..length])?, descriptors)),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us (SCM_RIGHTS); nobody else has it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn call(call: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Call { call, source: errno.into() }
}
