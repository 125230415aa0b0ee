//! What the kernel keeps in structures that no context shows, read by offsets from its own type information.
//!
//! Reading never faults: an address that is no longer what it was gives other bytes or an error, and what is decided from them
//! may only cost speed (`sidecar_common::fastpath`).

use aya_ebpf::helpers::bpf_probe_read_kernel;
use sidecar_common::{
    addr::{Endpoint, Ip, PortBe},
    fastpath::{Fields, MOST_MESSAGES, Waiting},
    flow::FlowKey,
};

use super::AF_INET6;
use crate::maps::KERNEL_FIELDS;

/// `O_NONBLOCK` (asm-generic/fcntl.h).
const O_NONBLOCK: u32 = 0o4000;
/// States of a socket (net/tcp_states.h).
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;
/// Flags that the kernel keeps in the lowest bits of `sk_user_data` (net/sock.h, `SK_USER_DATA_PTRMASK`).
const USER_DATA_FLAGS: u64 = 7;

/// The running kernel's layout.
#[derive(Clone, Copy)]
pub struct Kernel(&'static Fields);

impl Kernel {
    /// `None`: user space has not told it yet.
    #[inline(always)]
    pub fn get() -> Option<Self> {
        KERNEL_FIELDS.get(0).filter(|fields| fields.file_flags != 0).map(Self)
    }

    /// The layout.
    #[inline(always)]
    pub fn fields(self) -> &'static Fields {
        self.0
    }

    /// The socket at this address.
    #[inline(always)]
    pub fn socket(self, address: u64) -> KernelSocket {
        KernelSocket { at: address, fields: self.0 }
    }
}

/// Reads a value of the kernel's memory.
#[inline(always)]
pub fn read<T: Copy>(base: u64, offset: u32) -> Option<T> {
    unsafe { bpf_probe_read_kernel(base.wrapping_add(u64::from(offset)) as *const T) }.ok()
}

/// A TCP socket by its address.
#[derive(Clone, Copy)]
pub struct KernelSocket {
    at: u64,
    fields: &'static Fields,
}

impl KernelSocket {
    /// Its address.
    #[inline(always)]
    pub fn address(self) -> u64 {
        self.at
    }

    /// `TCP_ESTABLISHED`: the sockmap takes no other.
    #[inline(always)]
    pub fn is_established(self) -> Option<bool> {
        self.state().map(|state| state == ESTABLISHED)
    }

    /// Whether it is connected and has not said that it will send no more.
    #[inline(always)]
    pub fn may_send(self) -> Option<bool> {
        self.state().map(|state| state == ESTABLISHED || state == CLOSE_WAIT)
    }

    /// Whether it waits for connections.
    #[inline(always)]
    pub fn listens(self) -> Option<bool> {
        self.state().map(|state| state == LISTEN)
    }

    #[inline(always)]
    fn state(self) -> Option<u8> {
        read(self.at, self.fields.state)
    }

    /// Whether the socket is locked as a whole; if not, whoever holds it holds the spin lock that the sockmap takes.
    #[inline(always)]
    pub fn is_owned(self) -> Option<bool> {
        read::<u32>(self.at, self.fields.owned).map(|owned| owned != 0)
    }

    /// Both ends, as this one sees them.
    #[inline(always)]
    pub fn key(self, netns: u64) -> Option<FlowKey> {
        let fields = self.fields;
        let family: u16 = read(self.at, fields.family)?;
        let (local, remote) = if u32::from(family) == AF_INET6 {
            (Ip::from_v6(read(self.at, fields.local_v6)?), Ip::from_v6(read(self.at, fields.remote_v6)?))
        } else {
            (Ip::from_v4(read(self.at, fields.local_v4)?), Ip::from_v4(read(self.at, fields.remote_v4)?))
        };
        Some(FlowKey {
            netns,
            local: Endpoint::new(local, PortBe::from_host(read(self.at, fields.local_port)?)),
            remote: Endpoint::new(remote, PortBe::from_be(read(self.at, fields.remote_port)?)),
        })
    }

    /// Whether it is the end of this connection that sees it so. Asked for each message: few reads, and one answer for both families.
    #[inline(always)]
    pub fn is_end_of(self, key: &FlowKey) -> Option<bool> {
        let fields = self.fields;
        let (local, remote) = (key.local, key.remote);
        let local_port: u16 = read(self.at, fields.local_port)?;
        let remote_port: u16 = read(self.at, fields.remote_port)?;
        let mut other = u32::from(local_port ^ local.port.host()) | u32::from(remote_port ^ remote.port.be());
        if remote.ip.is_v4() {
            // Those of an IPv6 socket are there as well (net/ipv6/tcp_ipv6.c, `tcp_v6_connect` and `tcp_v6_mapped_child_init`).
            other |= read::<u32>(self.at, fields.local_v4)? ^ local.ip.v4();
            other |= read::<u32>(self.at, fields.remote_v4)? ^ remote.ip.v4();
        } else {
            other |= difference(read(self.at, fields.local_v6)?, local.ip);
            other |= difference(read(self.at, fields.remote_v6)?, remote.ip);
        }
        Some(other == 0)
    }

    /// Whether its descriptor is in non-blocking mode; `None`: nobody has accepted it.
    #[inline(always)]
    pub fn is_nonblocking(self) -> Option<bool> {
        let socket: u64 = read(self.at, self.fields.socket)?;
        if socket == 0 {
            return None;
        }
        let file: u64 = read(socket, self.fields.file)?;
        if file == 0 {
            return None;
        }
        read::<u32>(file, self.fields.file_flags).map(|flags| flags & O_NONBLOCK != 0)
    }

    /// Whether `SO_ZEROCOPY` is set: an application counts what is completed, and would count otherwise.
    #[inline(always)]
    pub fn is_zero_copy(self) -> Option<bool> {
        /// `SOCK_ZEROCOPY` in `enum sock_flags` (include/net/sock.h) of 6.1, 6.12, 6.18 and 7.3; where it is another, the probe
        /// finds its own enrolled.
        const ZERO_COPY: u64 = 1 << 18;
        read::<u64>(self.at, self.fields.flags).map(|flags| flags & ZERO_COPY != 0)
    }

    /// Whether a layer such as kTLS or MPTCP sits on top of TCP.
    #[inline(always)]
    pub fn is_layered(self) -> Option<bool> {
        read::<u64>(self.at, self.fields.ulp).map(|ulp| ulp != 0)
    }

    /// Whether one of its directions has been shut down.
    #[inline(always)]
    pub fn is_shut_down(self) -> Option<bool> {
        read::<u8>(self.at, self.fields.shutdown).map(|directions| directions != 0)
    }

    /// Whether it can still receive: neither closed nor shut down for it (`RCV_SHUTDOWN`).
    #[inline(always)]
    pub fn receives(self) -> Option<bool> {
        read::<u8>(self.at, self.fields.shutdown).map(|directions| directions & 1 == 0)
    }

    /// Sequence number of the next byte to send.
    #[inline(always)]
    pub fn written(self) -> Option<u32> {
        read(self.at, self.fields.write_seq)
    }

    /// Sequence number of the next byte to receive.
    #[inline(always)]
    pub fn consumed(self) -> Option<u32> {
        read(self.at, self.fields.copied_seq)
    }

    /// Bytes that the other end has acknowledged.
    #[inline(always)]
    pub fn acknowledged(self) -> Option<u64> {
        read(self.at, self.fields.bytes_acked)
    }

    /// Segments with data that it has sent.
    #[inline(always)]
    pub fn segments(self) -> Option<u32> {
        read(self.at, self.fields.segments)
    }

    /// Whether another subsystem keeps something in the socket.
    #[inline(always)]
    pub fn is_used_otherwise(self) -> Option<bool> {
        read::<u64>(self.at, self.fields.user_data).map(|data| data & !USER_DATA_FLAGS != 0)
    }

    /// Who uses what the sockmap keeps of this socket, if it is in one: the map, and each thread that is in a call on it
    /// (`sk_psock_get` in net/ipv4/tcp_bpf.c).
    #[inline(always)]
    pub fn users(self) -> Option<u32> {
        read(self.psock()?, self.fields.users)
    }

    /// What the sockmap keeps of this socket; `None`: it is in none.
    #[inline(always)]
    fn psock(self) -> Option<u64> {
        let psock = read::<u64>(self.at, self.fields.user_data)? & !USER_DATA_FLAGS;
        (psock != 0).then_some(psock)
    }

    /// What was redirected to this socket and not yet received.
    ///
    /// The queue is read while it changes: the figures may be off by what moves meanwhile. It begins and ends at its head, and
    /// counting ends at the bound.
    #[inline(always)]
    pub fn waiting(self) -> Option<Waiting> {
        let fields = self.fields;
        let head = self.psock()?.wrapping_add(u64::from(fields.ingress));
        let mut waiting = Waiting::default();
        let mut next: u64 = read(head, 0)?;
        while waiting.messages < MOST_MESSAGES {
            if next == head {
                break;
            }
            let message = next.wrapping_sub(u64::from(fields.message_list));
            let bytes: u32 = read(message, fields.message_size)?;
            waiting.bytes = waiting.bytes.saturating_add(bytes);
            waiting.messages += 1;
            next = read(next, 0)?;
        }
        Some(waiting)
    }
}

/// Zero if both are the same.
#[inline(always)]
fn difference(one: [u32; 4], other: Ip) -> u32 {
    let [a, b, c, d] = other.words();
    (one[0] ^ a) | (one[1] ^ b) | (one[2] ^ c) | (one[3] ^ d)
}
