//! The context of a message that is being sent, and of the call that sends it.

use core::{
    ffi::c_void,
    ptr::{NonNull, null_mut, read_volatile},
};

use aya_ebpf::{
    helpers::generated::{
        bpf_get_current_task_btf, bpf_msg_redirect_hash, bpf_sk_storage_get, bpf_skc_to_tcp_sock, bpf_task_pt_regs,
    },
    programs::SkMsgContext,
};
use sidecar_common::fastpath::{ABSENT, Leg, is_plain_write};

use super::kernel::{Kernel, KernelSocket, read};
use crate::maps::LEGS;

/// `BPF_F_INGRESS`: into the receiver's queue, not out of its socket.
const INGRESS: u64 = 1;

/// A message that an enrolled socket is sending.
pub struct Message<'a>(pub &'a SkMsgContext);

impl Message<'_> {
    /// Bytes of the message.
    #[inline(always)]
    pub fn bytes(&self) -> u32 {
        unsafe { read_volatile(&raw const (*self.0.msg).size) }
    }

    /// What is known of the sender's connection. The sender is locked: nobody else changes it.
    #[inline(always)]
    pub fn leg(&self) -> Option<&'static mut Leg> {
        let map = (&raw const LEGS).cast_mut().cast();
        let sender = unsafe { read_volatile(&raw const (*self.0.msg).__bindgen_anon_3.sk) };
        let sender = NonNull::new(sender)?;
        unsafe { bpf_sk_storage_get(map, sender.as_ptr().cast(), null_mut(), 0).cast::<Leg>().as_mut() }
    }

    /// The sender.
    #[inline(always)]
    pub fn sender(&self, kernel: Kernel) -> Option<KernelSocket> {
        let sender = unsafe { read_volatile(&raw const (*self.0.msg).__bindgen_anon_3.sk) };
        let sender = NonNull::new(sender)?;
        let tcp = unsafe { bpf_skc_to_tcp_sock(sender.as_ptr().cast()) };
        (!tcp.is_null()).then(|| kernel.socket(tcp as u64))
    }

    /// Has the kernel put the message into the queue of the receiver, which is in `receivers`; false if it is not, and the message
    /// goes by TCP.
    #[inline(always)]
    pub fn redirect(&self, leg: &Leg, receivers: *const c_void) -> bool {
        let key = (&raw const leg.key).cast_mut().cast();
        // Zero is SK_DROP: the receiver has gone.
        (unsafe { bpf_msg_redirect_hash(self.0.msg, receivers.cast_mut(), key, INGRESS) }) != 0
    }
}

/// Whether the running task is in a system call that is a plain write.
#[inline(always)]
pub fn current_write_is_plain(kernel: Kernel) -> Option<bool> {
    /// `PF_IO_WORKER` and `PF_KTHREAD` (linux/sched.h): what they send is not what a system call says.
    const WORKER: u32 = 0x10 | 0x20_0000;
    let fields = kernel.fields();
    let task = unsafe { bpf_get_current_task_btf() };
    let registers = unsafe { bpf_task_pt_regs(task.cast()) } as u64;
    let task = task as u64;
    if read::<u32>(task, fields.task_flags)? & WORKER != 0 {
        return Some(false);
    }
    // What io_uring sends may go out in any system call of the task.
    if fields.io_uring != ABSENT && read::<u64>(task, fields.io_uring)? != 0 {
        return Some(false);
    }
    let number: u64 = read(registers, fields.syscall)?;
    Some(is_plain_write(number, read(registers, fields.third)?, read(registers, fields.fourth)?))
}
