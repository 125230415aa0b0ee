//! The fast path: what a message needs to go from the application's socket into the proxy's queue without TCP.
//!
//! Only this direction. The proxy's end is ours, always non-blocking and always read to its end, so that nothing about its
//! queue can be observed; the application's end keeps receiving by TCP alone. A refusal costs speed and nothing else: the
//! message goes by TCP as if there were no fast path.

pub mod mixed;
mod worth;

use core::mem::size_of;

use crate::{counter::Counter, flow::FlowKey};

pub use worth::{Carried, LEAST_MESSAGE, Sent, WORTH_BYTES, WORTH_SEGMENT};

/// Bytes that may wait in the proxy's queue when a message joins them; tried up to 4 MiB of unread data behind it, which
/// is what TCP over loopback takes on top.
pub const MOST_BYTES: u32 = 512 * 1024;

/// Messages that may wait there: each costs the kernel a kilobyte that is charged to nobody, however short it is.
pub const MOST_MESSAGES: u32 = 64;

/// Everything that counts at the moment at which a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The operator's switch; off as well where the kernel failed the probe.
    pub switched_on: bool,
    /// A layer between application and TCP, such as kTLS, sees to the bytes.
    pub layered: bool,
    /// One of the ends has begun to close.
    pub closing: bool,
    /// The application's descriptor is in non-blocking mode.
    pub nonblocking: bool,
    /// The call is known to be a plain write: no urgent data, no zero-copy, no io_uring, no splice.
    pub plain: bool,
    /// Sequence number of the next byte that the application will send by TCP (`write_seq`).
    pub written: u32,
    /// Sequence number of the next byte that the proxy will receive by TCP (`copied_seq`).
    pub consumed: u32,
    /// What waits in the proxy's queue, which TCP does not know.
    pub waiting: Waiting,
    /// Bytes of this message.
    pub bytes: u32,
}

/// What was redirected and not yet received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Waiting {
    /// Bytes.
    pub bytes: u32,
    /// Messages; counting ends at [`MOST_MESSAGES`].
    pub messages: u32,
}

/// Why a message goes by TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Switched off.
    Off,
    /// Another layer sees to the bytes.
    Layered,
    /// One of the ends has begun to close: TCP gives the right error.
    Closing,
    /// A blocking socket.
    Blocking,
    /// Not known to be a plain write.
    NotPlain,
    /// Bytes that went by TCP have not been received yet: this message would overtake them.
    Order,
    /// Too much waits already: TCP holds the sender back.
    Full,
    /// The kernel did not show what must be known.
    Unknown,
}

impl Refusal {
    /// What counts it.
    #[inline(always)]
    pub const fn counter(self) -> Counter {
        match self {
            Self::Off => Counter::FastOff,
            Self::Layered => Counter::FastLayered,
            Self::Closing => Counter::FastClosing,
            Self::Blocking => Counter::FastBlocking,
            Self::NotPlain => Counter::FastNotPlain,
            Self::Order => Counter::FastOrder,
            Self::Full => Counter::FastFull,
            Self::Unknown => Counter::FastUnknown,
        }
    }
}

/// Whether a message may go past TCP.
///
/// # Errors
/// Why it goes by TCP.
#[inline(always)]
pub const fn decide(message: &Message) -> Result<(), Refusal> {
    if !message.switched_on {
        return Err(Refusal::Off);
    }
    if message.layered {
        return Err(Refusal::Layered);
    }
    if message.closing {
        return Err(Refusal::Closing);
    }
    if !message.nonblocking {
        return Err(Refusal::Blocking);
    }
    if !message.plain {
        return Err(Refusal::NotPlain);
    }
    if message.written != message.consumed {
        return Err(Refusal::Order);
    }
    let Waiting { bytes, messages } = message.waiting;
    // One message alone may be larger than the bound: the kernel cuts what is sent at some 540 KiB.
    if messages >= MOST_MESSAGES || messages > 0 && bytes.saturating_add(message.bytes) > MOST_BYTES {
        return Err(Refusal::Full);
    }
    Ok(())
}

/// Numbers of the system calls that write, of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
pub mod syscall {
    /// `write(fd, buffer, length)`
    pub const WRITE: u64 = 1;
    /// `writev(fd, vector, count)`
    pub const WRITEV: u64 = 20;
    /// `sendto(fd, buffer, length, flags, …)`
    pub const SENDTO: u64 = 44;
    /// `sendmsg(fd, message, flags)`
    pub const SENDMSG: u64 = 46;
    /// `sendmmsg(fd, messages, count, flags)`
    pub const SENDMMSG: u64 = 307;
}

/// Flags of a send that do not survive a redirection: `MSG_OOB` (an urgent byte would be an ordinary one) and
/// `MSG_ZEROCOPY` (its completion would never come).
const NOT_PLAIN: u64 = 0x1 | 0x400_0000;

/// Whether a system call is a plain write, from its number and its third and fourth arguments. What is not known is not
/// plain. Numbers of 32-bit programs mean other calls, none of which writes, so that their writes are not plain.
#[inline(always)]
pub const fn is_plain_write(number: u64, third: u64, fourth: u64) -> bool {
    match number {
        syscall::WRITE | syscall::WRITEV => true,
        syscall::SENDMSG => third & NOT_PLAIN == 0,
        syscall::SENDTO | syscall::SENDMMSG => fourth & NOT_PLAIN == 0,
        _ => false,
    }
}

/// Value of the socket storage `LEGS`: an end that is enrolled, or an application's that was let go because it lost.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Key of the other end in its map, as that end sees the connection.
    pub key: FlowKey,
    /// The kernel's address of the other end, or 0 in an application's end that was let go; to read from and never to write to.
    pub other: u64,
    /// Of the application's end: what it has sent since a pass judged it last.
    pub sent: Sent,
    /// Of an application's end that was let go because it lost: what TCP had carried by then, by which nothing comes back.
    pub before: Carried,
    /// How often that was, less one for each time a pass found afterwards that it does not lose.
    pub departures: u64,
}

impl Leg {
    /// One that has sent nothing yet.
    #[inline(always)]
    pub const fn new(key: FlowKey, other: u64) -> Self {
        let nothing = Carried { bytes: 0, messages: 0 };
        Self { key, other, sent: Sent { all: nothing, past: 0 }, before: nothing, departures: 0 }
    }
}

/// Value of `CANDIDATES`, by the connection as the application's end sees it: what one pass knows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Candidate {
    /// The kernel's address of the application's end.
    pub sender: u64,
    /// That of the proxy's, once it is in `RECEIVERS`; 0 before.
    pub receiver: u64,
}

/// What a pass over the sockets of the pod does.
pub mod step {
    /// Find application ends worth enrolling, and let go of those that may stay no longer.
    pub const FIND: u32 = 1;
    /// Enrol the proxy ends of what was found.
    pub const RECEIVERS: u32 = 2;
    /// Enrol the application ends whose proxy ends are enrolled.
    pub const SENDERS: u32 = 3;
}

/// The one entry of `FAST_PATH`, written by user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Switch {
    /// Not zero: messages may be redirected.
    pub on: u32,
    /// One of [`step`].
    pub step: u32,
    /// Not zero: legs are connections to this port, whatever is noted about them. For the probe.
    pub probe_port: u64,
    /// Bytes that a connection must have carried: [`WORTH_BYTES`], or 0 for the probe.
    pub worth: u64,
    /// Cookie of the pod's network namespace.
    pub netns: u64,
}

/// Offset of a member that the kernel does without.
pub const ABSENT: u32 = u32::MAX;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $path:literal,)*) => {
        /// Where the running kernel keeps what must be known: the one entry of `KERNEL_FIELDS`, bytes from the beginning of the
        /// structure.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
        pub struct Fields { $($(#[$doc])* pub $name: u32,)* }

        impl Fields {
            /// Structure and member of each field, in order.
            pub const PATHS: &'static [&'static str] = &[$($path,)*];

            /// From the offsets in the order of [`Self::PATHS`].
            pub fn from_offsets(mut offset: impl FnMut(&'static str) -> Option<u32>) -> Result<Self, &'static str> {
                Ok(Self { $($name: offset($path).ok_or($path)?,)* })
            }
        }
    };
}

fields! {
    /// Local IPv4 address.
    local_v4 = "sock_common.skc_rcv_saddr",
    /// Remote IPv4 address.
    remote_v4 = "sock_common.skc_daddr",
    /// Local IPv6 address.
    local_v6 = "sock_common.skc_v6_rcv_saddr",
    /// Remote IPv6 address.
    remote_v6 = "sock_common.skc_v6_daddr",
    /// Local port, host byte order.
    local_port = "sock_common.skc_num",
    /// Remote port, network byte order.
    remote_port = "sock_common.skc_dport",
    /// Address family.
    family = "sock_common.skc_family",
    /// TCP state.
    state = "sock_common.skc_state",
    /// Whether the socket is locked as a whole, and not by its spin lock alone.
    owned = "sock.sk_lock.owned",
    /// What another subsystem keeps there, such as the sockmap.
    user_data = "sock.sk_user_data",
    /// The socket of the file system.
    socket = "sock.sk_socket",
    /// Options that are on, a bit for each.
    flags = "sock_common.skc_flags",
    /// Directions that have been shut down.
    shutdown = "sock.sk_shutdown",
    /// The file of the socket.
    file = "socket.file",
    /// The file's flags, `O_NONBLOCK` among them.
    file_flags = "file.f_flags",
    /// A layer on top of TCP.
    ulp = "inet_connection_sock.icsk_ulp_ops",
    /// Next byte to send.
    write_seq = "tcp_sock.write_seq",
    /// Next byte to receive.
    copied_seq = "tcp_sock.copied_seq",
    /// Bytes that the other end has acknowledged.
    bytes_acked = "tcp_sock.bytes_acked",
    /// Segments with data that were sent.
    segments = "tcp_sock.data_segs_out",
    /// Who uses what the sockmap keeps: the map, and each thread in a call on the socket.
    users = "sk_psock.refcnt",
    /// The sockmap's queue of messages.
    ingress = "sk_psock.ingress_msg",
    /// A message's place in it.
    message_list = "sk_msg.list",
    /// Bytes of a message.
    message_size = "sk_msg.sg.size",
    /// What kind of task it is.
    task_flags = "task_struct.flags",
    /// What io_uring keeps for a task that has used it; [`ABSENT`] where the kernel has no io_uring.
    io_uring = "task_struct.io_uring",
    /// Number of the system call.
    syscall = "pt_regs.orig_ax",
    /// Its third argument.
    third = "pt_regs.dx",
    /// Its fourth argument.
    fourth = "pt_regs.r10",
}

const _: () = assert!(size_of::<Leg>() == 104);
const _: () = assert!(size_of::<Candidate>() == 16);
const _: () = assert!(size_of::<Switch>() == 32);
const _: () = assert!(size_of::<Fields>() == 4 * Fields::PATHS.len());

#[cfg(test)]
mod tests;
