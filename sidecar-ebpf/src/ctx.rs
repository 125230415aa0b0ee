//! All access to the kernel's contexts and to kernel objects, behind safe accessors.
//!
//! SAFETY, for every block here: the pointer is the context that the kernel passed to the program (or the socket inside
//! it, checked for null), and the verifier proves before the program may run that each field is readable or writable at
//! this width. Fields are read and written `volatile`, because the verifier allows only whole fields and the compiler
//! would merge neighbours. An address is read in both of its forms before the family chooses one: of two loads in two
//! branches the compiler makes one load at a computed offset, which the verifier refuses as well.
#![expect(clippy::undocumented_unsafe_blocks, reason = "one argument holds for all and stands above")]

mod kernel;
mod lookup;
mod message;
mod sock_addr;
mod sock_iter;
mod sock_ops;
mod sockopt;

use core::{
    ffi::c_void,
    ptr::{NonNull, null_mut, read_volatile},
};

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release,
        bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_tcp6_sock,
    },
};
use sidecar_common::{
    addr::{Ip, PortBe},
    capture::Bound,
    flow::{Note, note_kind},
    mesh::Spoken,
    rules::{CaptureRules, Liveness, liveness},
};

use crate::maps::{HEARTBEAT, MESH, NOTES, PROXY_LISTENERS, RULES};

pub use kernel::{Kernel, KernelSocket};
pub use lookup::Lookup;
pub use message::{Message, current_write_is_plain};
pub use sock_addr::{Family, SockAddr, V4, V6, set_errno};
pub use sock_iter::SockIter;
pub use sock_ops::{SockOps, inbound_port};
pub use sockopt::Sockopt;

/// `AF_INET6`.
const AF_INET6: u32 = 10;

/// Whether the kernel shows an IPv6 socket's own fields (`bpf_skc_to_tcp6_sock`, since 5.9, with BTF and `CAP_PERFMON`). Set
/// by the loader before the verifier sees the programs: where it is zero, user space reads them in the socket table.
#[unsafe(no_mangle)]
static TELLS_V6_ONLY: u8 = 0;

/// The rules in force; `None` until user space has written them.
#[inline(always)]
pub fn rules() -> Option<&'static CaptureRules> {
    RULES.get(0)
}

/// Judges the proxy's liveness by its listener in `slot` and its heartbeat.
#[inline(always)]
pub fn proxy_liveness(rules: &CaptureRules, slot: u32) -> Liveness {
    let map = (&raw const PROXY_LISTENERS).cast_mut().cast::<c_void>();
    let listener = unsafe { bpf_map_lookup_elem(map, (&raw const slot).cast()) };
    let listens = !listener.is_null();
    if listens {
        unsafe { bpf_sk_release(listener) };
    }
    let heartbeat = HEARTBEAT.get_ptr(0).map_or(0, |beat| unsafe { read_volatile(beat) });
    let now = unsafe { bpf_ktime_get_ns() };
    liveness(listens, heartbeat, now, rules.heartbeat_max_age)
}

/// Whether the calling task is in the cgroup with this id. Only for hooks that run in the caller's context.
#[inline(always)]
pub fn current_cgroup_is(id: u64) -> bool {
    (unsafe { bpf_get_current_cgroup_id() }) == id
}

/// Cookie of the network namespace of the context's socket.
#[inline(always)]
pub fn netns_cookie(ctx: &impl EbpfContext) -> u64 {
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// A kernel socket that the verifier knows to be a full socket.
#[derive(Clone, Copy)]
pub struct Socket(NonNull<bpf_sock>);

impl Socket {
    /// What is remembered about the socket.
    #[inline(always)]
    pub fn note(self) -> Option<&'static Note> {
        let note = self.storage(null_mut(), 0);
        unsafe { note.as_ref() }
    }

    /// Remembers `note`; false if the kernel has no memory.
    #[inline(always)]
    pub fn remember(self, mut note: Note) -> bool {
        let stored = self.storage(&raw mut note, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
        // A socket that already had a note (a second connect after a failed one) got that one back: overwrite it.
        match unsafe { stored.as_mut() } {
            Some(stored) => {
                *stored = note;
                true
            }
            None => false,
        }
    }

    /// The note of a proxy's socket did not reach the other end. A captured socket keeps its note: its owner goes on seeing
    /// the destination that it asked for, until the proxy resets the connection.
    #[inline(always)]
    pub fn note_is_lost(self) {
        if let Some(note) = unsafe { self.storage(null_mut(), 0).as_mut() }
            && note.kind == note_kind::PRESENT_AS
        {
            note.kind = note_kind::LOST;
        }
    }

    /// Forgets what was remembered.
    #[inline(always)]
    pub fn forget(self) {
        let map = (&raw const NOTES).cast_mut().cast::<c_void>();
        unsafe { bpf_sk_storage_delete(map, self.0.as_ptr().cast()) };
    }

    #[inline(always)]
    fn storage(self, value: *mut Note, flags: u64) -> *mut Note {
        let map = (&raw const NOTES).cast_mut().cast::<c_void>();
        unsafe { bpf_sk_storage_get(map, self.0.as_ptr().cast(), value.cast(), flags) }.cast()
    }

    /// What the two ends of the proxy's connection said about transports between sidecars.
    #[inline(always)]
    pub fn spoken(self) -> Option<&'static mut Spoken> {
        unsafe { self.mesh(null_mut(), 0).as_mut() }
    }

    /// Remembers that; false if the kernel has no memory.
    #[inline(always)]
    pub fn speak(self, mut spoken: Spoken) -> bool {
        let stored = self.mesh(&raw mut spoken, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
        unsafe { stored.as_mut() }.map(|stored| *stored = spoken).is_some()
    }

    #[inline(always)]
    fn mesh(self, value: *mut Spoken, flags: u64) -> *mut Spoken {
        let map = (&raw const MESH).cast_mut().cast::<c_void>();
        unsafe { bpf_sk_storage_get(map, self.0.as_ptr().cast(), value.cast(), flags) }.cast()
    }

    /// Whether the application bound it to a device (`SO_BINDTODEVICE`).
    #[inline(always)]
    pub fn is_bound_to_device(self) -> bool {
        (unsafe { read_volatile(&raw const (*self.0.as_ptr()).bound_dev_if) }) != 0
    }

    /// Whether a TCP socket over IPv6 is for IPv6 alone (`IPV6_V6ONLY`); `None` where the kernel does not show it, as no helper
    /// and no field of a context does.
    #[inline(always)]
    pub fn is_v6_only(self) -> Option<bool> {
        /// `skc_reuse:4, skc_reuseport:1, skc_ipv6only:1` follow `skc_daddr` to `skc_state` (include/net/sock.h, `struct
        /// sock_common`): so it has been since 3.13. User space corrects what another layout would have it say.
        const BITS: usize = 19;
        const V6_ONLY: u8 = 1 << 5;
        if unsafe { read_volatile(&raw const TELLS_V6_ONLY) } == 0 {
            return None;
        }
        let shown = unsafe { bpf_skc_to_tcp6_sock(self.0.as_ptr().cast()) }.cast::<u8>();
        // The verifier knows the type and how long it is: a wrong offset could lie, but do no harm.
        (!shown.is_null()).then(|| unsafe { read_volatile(shown.add(BITS)) } & V6_ONLY != 0)
    }

    /// What the application chose for its own end before it connects.
    #[inline(always)]
    fn bound(self, family: u32) -> Bound {
        let sk = self.0.as_ptr();
        let ip = unsafe {
            if family == AF_INET6 {
                read_v6(&raw const (*sk).src_ip6)
            } else {
                Ip::from_v4(read_volatile(&raw const (*sk).src_ip4))
            }
        };
        let port = unsafe { read_volatile(&raw const (*sk).src_port) };
        let device = unsafe { read_volatile(&raw const (*sk).bound_dev_if) };
        Bound { ip, port: PortBe::from_host(port as u16), device }
    }
}

/// Four words of an IPv6 address in a context.
#[inline(always)]
unsafe fn read_v6(words: *const [u32; 4]) -> Ip {
    let words = words.cast::<u32>();
    unsafe {
        Ip::from_v6([
            read_volatile(words),
            read_volatile(words.add(1)),
            read_volatile(words.add(2)),
            read_volatile(words.add(3)),
        ])
    }
}
