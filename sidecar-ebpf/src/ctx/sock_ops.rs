//! The context of TCP callbacks.

use core::ptr::{NonNull, read_volatile};

use aya_ebpf::{
    helpers::generated::{bpf_load_hdr_opt, bpf_reserve_hdr_opt, bpf_sock_ops_cb_flags_set, bpf_store_hdr_opt},
    programs::SockOpsContext,
};
use sidecar_common::{
    addr::{Endpoint, Ip, PortBe},
    mesh::{MeshOption, Transports},
};

use super::{AF_INET6, Socket, read_v6};

/// `BPF_SOCK_OPS_STATE_CB_FLAG` (linux/bpf.h).
const STATE_CB: u32 = 1 << 2;
/// `BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG` (linux/bpf.h).
const WRITE_HDR_OPT_CB: u32 = 1 << 6;

/// `BPF_LOAD_HDR_OPT_TCP_SYN` (linux/bpf.h).
const TCP_SYN: u64 = 1;

/// Port of the inbound listener. Set by the loader before the verifier sees the programs.
#[unsafe(no_mangle)]
static INBOUND_PORT: u16 = 0;

/// Port of the inbound listener.
#[inline(always)]
pub fn inbound_port() -> PortBe {
    PortBe::from_host(unsafe { read_volatile(&raw const INBOUND_PORT) })
}

/// A TCP callback.
pub struct SockOps<'a>(pub &'a SockOpsContext);

impl SockOps<'_> {
    /// The socket; null for request sockets.
    #[inline(always)]
    pub fn socket(&self) -> Option<Socket> {
        NonNull::new(unsafe { read_volatile(&raw const (*self.0.ops).__bindgen_anon_2.sk) }).map(Socket)
    }

    /// The pod's end of the connection, or the address that a listener is bound to.
    #[inline(always)]
    pub fn local(&self) -> Endpoint {
        let ops = self.0.ops;
        let port = unsafe { read_volatile(&raw const (*ops).local_port) };
        let (family, v4, v6) = unsafe {
            (
                read_volatile(&raw const (*ops).family),
                read_volatile(&raw const (*ops).local_ip4),
                read_v6(&raw const (*ops).local_ip6),
            )
        };
        let ip = if family == AF_INET6 { v6 } else { Ip::from_v4(v4) };
        Endpoint::new(ip, PortBe::from_host(port as u16))
    }

    /// The other end of the connection.
    #[inline(always)]
    pub fn remote(&self) -> Endpoint {
        let ops = self.0.ops;
        // The kernel loads the port into the upper half of the word (net/core/filter.c, sock_ops_convert_ctx_access).
        let port = u32::from_be(unsafe { read_volatile(&raw const (*ops).remote_port) });
        let (family, v4, v6) = unsafe {
            (
                read_volatile(&raw const (*ops).family),
                read_volatile(&raw const (*ops).remote_ip4),
                read_v6(&raw const (*ops).remote_ip6),
            )
        };
        let ip = if family == AF_INET6 { v6 } else { Ip::from_v4(v4) };
        Endpoint::new(ip, PortBe::from_host(port as u16))
    }

    /// Asks for state callbacks on this socket, on top of what other programs asked for.
    #[inline(always)]
    pub fn follow_state(&self) {
        self.set_callbacks(self.callbacks() | STATE_CB);
    }

    /// Takes that back.
    #[inline(always)]
    pub fn follow_state_no_more(&self) {
        let flags = self.callbacks();
        if flags & STATE_CB != 0 {
            self.set_callbacks(flags & !STATE_CB);
        }
    }

    /// Asks for the callbacks in which options are added to the segments of this socket; for a listener, to its SYN-ACKs.
    #[inline(always)]
    pub fn write_options(&self) {
        self.set_callbacks(self.callbacks() | WRITE_HDR_OPT_CB);
    }

    /// Takes that back.
    #[inline(always)]
    pub fn write_options_no_more(&self) {
        self.set_callbacks(self.callbacks() & !WRITE_HDR_OPT_CB);
    }

    /// Whether it was asked for.
    #[inline(always)]
    pub fn writes_options(&self) -> bool {
        self.callbacks() & WRITE_HDR_OPT_CB != 0
    }

    #[inline(always)]
    fn callbacks(&self) -> u32 {
        unsafe { read_volatile(&raw const (*self.0.ops).bpf_sock_ops_cb_flags) }
    }

    #[inline(always)]
    fn set_callbacks(&self, flags: u32) {
        unsafe { bpf_sock_ops_cb_flags_set(self.0.ops, flags as i32) };
    }

    /// Flags of the segment that is about to leave; 0 where the kernel only asks how long its header will be.
    #[inline(always)]
    pub fn tcp_flags(&self) -> u32 {
        unsafe { read_volatile(&raw const (*self.0.ops).skb_tcp_flags) }
    }

    /// Segments that this socket has sent again so far.
    #[inline(always)]
    pub fn retransmits(&self) -> u32 {
        unsafe { read_volatile(&raw const (*self.0.ops).total_retrans) }
    }

    /// Makes room for an option; false if there is none.
    #[inline(always)]
    pub fn reserve(&self, length: u8) -> bool {
        (unsafe { bpf_reserve_hdr_opt(self.0.ops, u32::from(length), 0) }) == 0
    }

    /// Writes the option; false if no room was made for it.
    #[inline(always)]
    pub fn store(&self, option: MeshOption) -> bool {
        let option = (&raw const option).cast();
        (unsafe { bpf_store_hdr_opt(self.0.ops, option, u32::from(MeshOption::LENGTH), 0) }) == 0
    }

    /// What the segment says that has just arrived.
    #[inline(always)]
    pub fn said_by_segment(&self) -> Transports {
        self.said(0)
    }

    /// What the SYN said with which the connection began: known to the request, and to the accepted socket where the
    /// listener saves it (`TCP_SAVE_SYN`).
    #[inline(always)]
    pub fn said_by_syn(&self) -> Transports {
        self.said(TCP_SYN)
    }

    #[inline(always)]
    fn said(&self, flags: u64) -> Transports {
        let mut option = MeshOption::search();
        let buffer = (&raw mut option).cast();
        let result = unsafe { bpf_load_hdr_opt(self.0.ops, buffer, u32::from(MeshOption::LENGTH), flags) };
        option.read(result)
    }

    /// Old and new state of a state callback.
    #[inline(always)]
    pub fn transition(&self) -> (u32, u32) {
        let args = unsafe { (&raw const (*self.0.ops).__bindgen_anon_1.args).cast::<u32>() };
        unsafe { (read_volatile(args), read_volatile(args.add(1))) }
    }
}
