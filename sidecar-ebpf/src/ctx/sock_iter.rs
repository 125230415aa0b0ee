//! The context of a pass over the TCP sockets of a network namespace.

use core::{
    ffi::c_void,
    ptr::{NonNull, null_mut, read_volatile},
};

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    helpers::generated::{
        bpf_map_delete_elem, bpf_map_update_elem, bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_tcp_sock,
    },
};
use sidecar_common::{
    fastpath::Leg,
    flow::{FlowKey, Note},
};

use super::kernel::{Kernel, KernelSocket};
use crate::maps::{LEGS, NOTES};

/// `BPF_NOEXIST`: a key that is there already belongs to another socket.
const NOEXIST: u64 = 1;

/// One socket of a pass: `struct bpf_iter__tcp { meta, sk_common, uid }`.
pub struct SockIter(*mut c_void);

impl EbpfContext for SockIter {
    fn as_ptr(&self) -> *mut c_void {
        self.0
    }
}

impl SockIter {
    /// From the program's argument.
    #[inline(always)]
    pub fn new(context: *mut c_void) -> Self {
        Self(context)
    }

    /// The socket; `None` at the end of the pass.
    #[inline(always)]
    fn common(&self) -> Option<NonNull<c_void>> {
        NonNull::new(unsafe { read_volatile(self.0.cast::<*mut c_void>().add(1)) })
    }

    /// The socket, if it is one and no remnant or request.
    #[inline(always)]
    pub fn socket(&self, kernel: Kernel) -> Option<KernelSocket> {
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.common()?.as_ptr()) };
        (!tcp.is_null()).then(|| kernel.socket(tcp as u64))
    }

    /// What kind of note it carries; 0: none.
    #[inline(always)]
    pub fn note_kind(&self) -> u32 {
        let map = (&raw const NOTES).cast_mut().cast();
        let Some(socket) = self.common() else { return 0 };
        let note = unsafe { bpf_sk_storage_get(map, socket.as_ptr(), null_mut(), 0) };
        unsafe { note.cast::<Note>().as_ref() }.map_or(0, |note| note.kind)
    }

    /// Whether it is enrolled.
    #[inline(always)]
    pub fn is_enrolled(&self) -> bool {
        self.leg().is_some()
    }

    /// What is known of it, if it is or was enrolled. It must be locked when that is changed.
    #[inline(always)]
    pub fn leg(&self) -> Option<&'static mut Leg> {
        let map = (&raw const LEGS).cast_mut().cast();
        let socket = self.common()?;
        unsafe { bpf_sk_storage_get(map, socket.as_ptr(), null_mut(), 0).cast::<Leg>().as_mut() }
    }

    /// Puts it into `map`, a `SOCKHASH`; the kernel's answer. `leg` is remembered first, for the first message may come before this
    /// returns. If the kernel refuses it is forgotten, but for what keeps one out that was let go.
    #[inline(always)]
    pub fn enrol(&self, map: *const c_void, key: FlowKey, mut leg: Leg) -> i32 {
        /// `ENOMEM`
        const NO_MEMORY: i32 = -12;
        let storage = (&raw const LEGS).cast_mut().cast();
        let Some(socket) = self.common() else { return NO_MEMORY };
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        let stored = unsafe { bpf_sk_storage_get(storage, socket.as_ptr(), (&raw mut leg).cast(), create) };
        // One that was let go has it already.
        let Some(stored) = (unsafe { stored.cast::<Leg>().as_mut() }) else { return NO_MEMORY };
        *stored = leg;
        let key = (&raw const key).cast();
        // Half of the register: the verifier has the program call the map's own function, which returned an `int` before Linux 6.4
        // (kernel change d7ba4cc900bf). As 64 bits its errors are large positive numbers.
        let answer = unsafe { bpf_map_update_elem(map.cast_mut(), key, socket.as_ptr(), NOEXIST) } as i32;
        if answer != 0 && leg.departures != 0 {
            stored.other = 0;
        } else if answer != 0 {
            unsafe { bpf_sk_storage_delete(storage, socket.as_ptr()) };
        }
        answer
    }

    /// Takes it out of `map`. Only for ends whose queue is never used.
    #[inline(always)]
    pub fn release(&self, map: *const c_void, key: FlowKey) {
        unsafe { bpf_map_delete_elem(map.cast_mut(), (&raw const key).cast()) };
    }

    /// Forgets what is known of it.
    #[inline(always)]
    pub fn forget(&self) {
        let storage = (&raw const LEGS).cast_mut().cast();
        if let Some(socket) = self.common() {
            unsafe { bpf_sk_storage_delete(storage, socket.as_ptr()) };
        }
    }
}
