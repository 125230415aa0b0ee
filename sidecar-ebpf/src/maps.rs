//! Every map, and who writes, reads and deletes its entries. Layouts live in `sidecar-common`; sizes marked *configured*
//! are set by the loader.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    btf_maps::SkStorage,
    helpers::generated::bpf_map_lookup_elem,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, RingBuf, SockHash, SockMap},
};
use sidecar_common::{
    addr::{Endpoint, Ip, PortBe},
    counter,
    fastpath::{
        Candidate, Fields, Leg, Switch,
        mixed::{Mixed, Mixing, place},
    },
    flow::{FlowKey, Note, Passed},
    mesh::Spoken,
    rules::{CaptureRules, Source},
};

use crate::count::add;

/// `BPF_F_MMAPABLE` (linux/bpf.h).
const MMAPABLE: u32 = 1 << 10;

/// One entry. Written by user space at start and on a change; read by every program.
#[map]
pub static RULES: Array<CaptureRules> = Array::with_max_entries(1, 0);

/// `CLOCK_MONOTONIC` in nanoseconds of the proxy's last sign of life, read with every verdict; its open connections, and its process
/// ID while its main thread waits for events, both read by user space alone. Written by the proxy through a memory mapping, without a system call.
#[map]
pub static HEARTBEAT: Array<u64> = Array::with_max_entries(3, MMAPABLE);

/// What a port means: bits of `port_role`. Written by user space; read with every verdict. *Configured.*
#[map]
pub static PORTS: HashMap<PortBe, u32> = HashMap::with_max_entries(1, 0);

/// Destination networks that go direct. Written by user space; read by connect. *Configured.*
#[map]
pub static EXCLUDED_CIDRS: LpmTrie<Ip, u32> = LpmTrie::with_max_entries(1, 0);

/// The pod's own addresses and the index of the interface that owns each. Written by user space, which follows the
/// kernel's address notifications; read with every verdict.
#[map]
pub static OWN_ADDRESSES: HashMap<Ip, u32> = HashMap::with_max_entries(4096, NO_PREALLOC);

/// Destination network to the pod's address that the kernel chooses as source. Written by user space, which follows the
/// kernel's route notifications; read by connect.
#[map]
pub static SOURCES: LpmTrie<Ip, Source> = LpmTrie::with_max_entries(262_144, 0);

/// The proxy's listening sockets (`listener_slot`). Written by user space; the kernel removes a socket that closes, so a
/// dead proxy leaves an empty slot. Read with every verdict.
#[map]
pub static PROXY_LISTENERS: SockMap = SockMap::with_max_entries(2, 0);

/// Address and port of the application's listening sockets, and how many share it (`SO_REUSEPORT`). Written by sockops,
/// deleted by user space; read by sk_lookup. *Configured.*
#[map]
pub static APP_LISTENERS: HashMap<Endpoint, u64> = HashMap::with_max_entries(4096, NO_PREALLOC);

/// Listening sockets that sockops did not see: those from before the capture. Written and deleted by user space, which
/// compares with the kernel's socket table; read by sk_lookup. *Configured.*
#[map]
pub static SEEDED_LISTENERS: HashMap<Endpoint, u64> = HashMap::with_max_entries(4096, NO_PREALLOC);

/// One entry: not zero once a listening socket found no room in the maps of them. Written by sockops and user space; read
/// by sk_lookup.
#[map]
pub static LISTENERS_LOST: Array<u32> = Array::with_max_entries(1, 0);

/// A byte for each port, in host order: not zero where what listens at `::` is for IPv6 alone (`IPV6_V6ONLY`). Written by sockops as
/// sockets begin to listen, and, as memory, by user space for those that sockops did not see or the kernel does not show; read by
/// sk_lookup. One of a port on which nobody listens means nothing.
#[map]
pub static V6_ONLY: Array<[u8; 1 << 16]> = Array::with_max_entries(1, MMAPABLE);

/// A byte for every socket that begins to listen at `::` or is bound to a device, so that user space looks at once. Written by sockops, read by
/// user space. A page, the smallest size: a lost byte costs seconds, since user space looks from time to time anyway.
#[map]
pub static LISTENING: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Entries are allocated one by one: an idle pod pays for none.
const NO_PREALLOC: u32 = 1;

/// What the proxy's connecting sockets tell the application's: as in `FLOWS`, but with room for every connection that the
/// proxy may have open, so that no application can take it. *Configured.*
#[map]
pub static PRESENTED_FLOWS: HashMap<FlowKey, Passed> = HashMap::with_max_entries(16384, NO_PREALLOC);

/// What the application's connecting sockets tell the proxy's. Written by sockops before the SYN leaves, taken out when
/// the other end is established, deleted by the connecting socket's close at the latest. *Configured.*
#[map]
pub static FLOWS: HashMap<FlowKey, Passed> = HashMap::with_max_entries(16384, NO_PREALLOC);

/// What is remembered about a socket; dies with it. Written by connect, sockops and setsockopt.
#[btf_map]
pub static NOTES: SkStorage<Note> = SkStorage::new();

/// What the ends of a connection of the proxy said about transports between sidecars; dies with the socket. Written by
/// setsockopt and `on_mesh`, read by getsockopt.
#[btf_map]
pub static MESH: SkStorage<Spoken> = SkStorage::new();

/// One entry: the transports with which the inbound listener answers (`SO_MESH_ANSWER`). Written by setsockopt, read by
/// `on_mesh`: a handshake's request has no storage, and the listener's cannot be seen from there.
#[map]
pub static MESH_ANSWER: Array<u32> = Array::with_max_entries(1, 0);

/// One entry. Written by user space; read by every program of the fast path.
#[map]
pub static FAST_PATH: Array<Switch> = Array::with_max_entries(1, 0);

/// One entry. Written by user space before the first pass; read by every program of the fast path.
#[map]
pub static KERNEL_FIELDS: Array<Fields> = Array::with_max_entries(1, 0);

/// The application's ends that are enrolled: what they send is judged by `on_message`. Written and deleted by `on_socket`; the
/// kernel removes a socket that closes. Keys are the connection as that end sees it. *Configured.*
#[map]
pub static SENDERS: SockHash<FlowKey> = SockHash::with_max_entries(1, 0);

/// The proxy's ends that are enrolled: where redirected messages go. Written by `on_socket`, never deleted while they live, for
/// that would throw away what they have not read, and the proxy polls them meanwhile; the kernel removes a socket that closes.
/// Keys are the connection as that end sees it. *Configured.*
#[map]
pub static RECEIVERS: SockHash<FlowKey> = SockHash::with_max_entries(1, 0);

/// What is known of an end that is enrolled, or was until it was let go because it lost; dies with its socket. Written by `on_socket`, read by
/// `on_message`, which adds up what it carries, and by `on_answer` in the probe.
#[btf_map]
pub static LEGS: SkStorage<Leg> = SkStorage::new();

/// The connections that the pass under way is about to enrol, as the application's end sees them. Written by `on_socket`,
/// emptied by user space after each pass. *Configured.*
#[map]
pub static CANDIDATES: HashMap<FlowKey, Candidate> = HashMap::with_max_entries(1, NO_PREALLOC);

/// By the place of a leg: what its reader must know of messages that go by TCP (`sidecar_common::fastpath::mixed`). Written by
/// `on_message` and `on_socket`; read as memory by the proxy; `always` is taken back by user space, as memory, when no leg of the place is
/// enrolled any more. *Configured.*
#[map]
pub static MIXED: Array<Mixed> = Array::with_max_entries(1, MMAPABLE);

/// For each CPU one counter for every reason (`sidecar_common::counter::slot`). Written by every program; read by user space
/// through a memory mapping, which a per-CPU array does not have: whoever shows them needs neither a system call nor a
/// capability. *Configured.*
#[map]
pub static COUNTERS: Array<u64> = Array::with_max_entries(counter::PER_CPU, MMAPABLE);

/// The interface that owns an address of the pod; 0: it is not the pod's.
#[inline(always)]
pub fn device_of(ip: Ip) -> u32 {
    // SAFETY: the value is one aligned word, which user space replaces as a whole.
    unsafe { OWN_ADDRESSES.get(ip) }.copied().unwrap_or(0)
}

/// What a port means: bits of `port_role`.
#[inline(always)]
pub fn port_roles(port: PortBe) -> u32 {
    // SAFETY: as above.
    unsafe { PORTS.get(port) }.copied().unwrap_or(0)
}

/// The byte of a port in [`V6_ONLY`].
#[inline(always)]
fn v6_only(port: PortBe) -> Option<*mut u8> {
    // SAFETY: a port is within the value, which has a byte for each.
    V6_ONLY.get_ptr_mut(0).map(|ports| unsafe { ports.cast::<u8>().add(port.host().into()) })
}

/// Whether what listens at `::` on this port, if anything, is for IPv6 alone.
#[inline(always)]
pub fn is_v6_only(port: PortBe) -> bool {
    // SAFETY: one byte, which others may write at any time.
    v6_only(port).is_some_and(|ports| unsafe { read_volatile(ports) } != 0)
}

/// Notes whether what listens at `::` on this port is for IPv6 alone.
#[inline(always)]
pub fn note_v6_only(port: PortBe, alone: bool) {
    if let Some(ports) = v6_only(port) {
        // SAFETY: as above.
        unsafe { write_volatile(ports, alone.into()) };
    }
}

/// Has the reader of a leg know what becomes of a message. `key`: either end's.
#[inline(always)]
pub fn note_mixing(key: &FlowKey, mixing: Mixing) {
    let place = place(key.local.port.host(), key.remote.port.host());
    if mixing == Mixing::Apart {
        return;
    }
    let Some(mixed) = MIXED.get_ptr_mut(place) else { return };
    if mixing == Mixing::Always {
        // SAFETY: an aligned word of the map's value, which everybody stores as a whole.
        unsafe { write_volatile(&raw mut (*mixed).always, 1) };
    } else {
        // SAFETY: a place within the map's value.
        add(unsafe { &raw mut (*mixed).count }, 1);
    }
}

/// Whether the application listens on exactly this address and port.
#[inline(always)]
pub fn listened_at(local: Endpoint) -> bool {
    // SAFETY: the value is one aligned word, read once.
    let counted = unsafe { APP_LISTENERS.get(local) }.is_some_and(|sockets| *sockets != 0);
    // SAFETY: only the presence of the entry counts; its value is not read.
    counted || unsafe { SEEDED_LISTENERS.get(local) }.is_some()
}

/// The value of the longest prefix in a trie that covers `ip`.
///
/// aya's own `get` takes a packed key, which the compiler fills byte by byte: forty instructions for each look-up.
#[inline(always)]
pub fn longest_match<V>(trie: &'static LpmTrie<Ip, V>, ip: Ip) -> Option<&'static V> {
    #[repr(C)]
    struct Key {
        prefix_len: u32,
        ip: Ip,
    }
    const _: () = assert!(size_of::<Key>() == size_of::<aya_ebpf::maps::lpm_trie::Key<Ip>>());
    let key = Key { prefix_len: 128, ip };
    let map = core::ptr::from_ref(trie).cast_mut().cast();
    // SAFETY: the key has the size of the map's, and a value stays allocated while the program runs (RCU); user space
    // replaces values as wholes.
    unsafe { bpf_map_lookup_elem(map, (&raw const key).cast()).cast::<V>().as_ref() }
}
