//! The few bpf(2) commands that sockmaps need. Throw-away programs of ten instructions: no compiler.

use anyhow::{Context, Result};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

// Commands, types and helpers of linux/bpf.h.
const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_MAP_DELETE_ELEM: i32 = 3;
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_MAP_TYPE_SOCKHASH: u32 = 18;
const BPF_PROG_TYPE_SK_SKB: u32 = 14;
const BPF_PROG_TYPE_SK_MSG: u32 = 16;
const BPF_SK_SKB_STREAM_VERDICT: u32 = 5;
const BPF_SK_MSG_VERDICT: u32 = 7;
const MSG_REDIRECT_HASH: i32 = 71;
const SK_REDIRECT_HASH: i32 = 72;
/// `BPF_F_INGRESS`: into the socket's queue.
const INGRESS: i32 = 1;
/// Out of the socket.
const OUT: i32 = 0;
/// r0 = `SK_PASS`
const PASS: [u8; 8] = instruction(0xb7, 0x00, 0, 1);
const EXIT: [u8; 8] = instruction(0x95, 0, 0, 0);

/// The beginning of `union bpf_attr`: more than any of these commands reads.
#[repr(C, align(8))]
#[derive(Default)]
struct Attr([u32; 32]);

impl Attr {
    fn of(words: &[u32]) -> Self {
        let mut attr = Self::default();
        attr.0[..words.len()].copy_from_slice(words);
        attr
    }

    fn pointer<T: ?Sized>(&mut self, word: usize, to: &T) {
        let address = std::ptr::from_ref(to).cast::<u8>() as u64;
        (self.0[word], self.0[word + 1]) = (address as u32, (address >> 32) as u32);
    }

    fn call(&mut self, command: i32) -> io::Result<i32> {
        // SAFETY: the size is that of `self`; what its pointers name outlives the call, by the callers below.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(self), size_of::<Self>()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
    }

    fn open(&mut self, command: i32) -> io::Result<OwnedFd> {
        // SAFETY: the kernel has just returned this descriptor to us alone.
        self.call(command).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A `SOCKHASH` with keys of 32 bits.
pub(super) struct SockHash(OwnedFd);

impl SockHash {
    pub(super) fn new() -> Result<Self> {
        let created = Attr::of(&[BPF_MAP_TYPE_SOCKHASH, 4, 4, 1024]).open(BPF_MAP_CREATE);
        created.map(Self).context("BPF_MAP_CREATE of a SOCKHASH: run it as root")
    }

    pub(super) fn insert(&self, key: u32, socket: impl AsFd) -> Result<()> {
        let value = socket.as_fd().as_raw_fd();
        let mut attr = Attr::of(&[raw(&self.0)]);
        attr.pointer(2, &key);
        attr.pointer(4, &value);
        attr.call(BPF_MAP_UPDATE_ELEM).map(drop).context("BPF_MAP_UPDATE_ELEM of a SOCKHASH")
    }

    pub(super) fn remove(&self, key: u32) -> Result<()> {
        let mut attr = Attr::of(&[raw(&self.0)]);
        attr.pointer(2, &key);
        attr.call(BPF_MAP_DELETE_ELEM).map(drop).context("BPF_MAP_DELETE_ELEM of a SOCKHASH")
    }

    /// What a socket of this map receives comes to it through the map's queue.
    pub(super) fn pass_all(&self) -> Result<()> {
        self.attach(BPF_PROG_TYPE_SK_SKB, BPF_SK_SKB_STREAM_VERDICT, &[PASS, EXIT])
    }

    fn attach(&self, kind: u32, at: u32, instructions: &[[u8; 8]]) -> Result<()> {
        let mut attr = Attr::of(&[kind, instructions.len() as u32]);
        let license = c"GPL";
        attr.pointer(2, instructions);
        attr.pointer(4, license);
        attr.0[17] = at;
        let program = attr.open(BPF_PROG_LOAD).context("BPF_PROG_LOAD")?;
        Attr::of(&[raw(&self.0), raw(&program), at]).call(BPF_PROG_ATTACH).map(drop).context("BPF_PROG_ATTACH")
    }

    /// What a socket of this map sends goes into the queue of the socket that `receivers` has under the sender's own port.
    pub(super) fn send_into(&self, receivers: &Self) -> Result<()> {
        /// Offset of `local_port` in `struct sk_msg_md`; host byte order.
        const LOCAL_PORT: i16 = 64;
        // r2 = ctx->local_port
        let key = [instruction(0x61, 0x12, LOCAL_PORT, 0)];
        let redirect = receivers.redirect(MSG_REDIRECT_HASH, INGRESS);
        self.attach(BPF_PROG_TYPE_SK_MSG, BPF_SK_MSG_VERDICT, &[&key[..], &redirect, &[PASS, EXIT]].concat())
    }

    /// What a socket of this map receives is sent by the one that has as key its own port, or, if that is `listener`,
    /// [`accepted`] of the port at its other end.
    pub(super) fn pass_on(&self, listener: u16) -> Result<()> {
        /// Offsets of `remote_port` (the upper half in network byte order) and `local_port` (host) in `struct __sk_buff`.
        const REMOTE_PORT: i16 = 132;
        const LOCAL_PORT: i16 = 136;
        let key = [
            // r2 = ctx->local_port; r3 = ctx->remote_port; if r2 != listener skip 3
            instruction(0x61, 0x12, LOCAL_PORT, 0),
            instruction(0x61, 0x13, REMOTE_PORT, 0),
            instruction(0x55, 0x02, 3, i32::from(listener)),
            // r2 = ntohl(r3) | ACCEPTED
            instruction(0xbf, 0x32, 0, 0),
            instruction(0xdc, 0x02, 0, 32),
            instruction(0x47, 0x02, 0, ACCEPTED.cast_signed()),
        ];
        let redirect = self.redirect(SK_REDIRECT_HASH, OUT);
        self.attach(BPF_PROG_TYPE_SK_SKB, BPF_SK_SKB_STREAM_VERDICT, &[&key[..], &redirect, &[EXIT]].concat())
    }

    /// (u32) fp[-4] = r2; r0 = helper(ctx, this map, fp - 4, flags)
    fn redirect(&self, helper: i32, flags: i32) -> [[u8; 8]; 7] {
        [
            instruction(0x63, 0x2a, -4, 0),
            // r2 = map, in two
            instruction(0x18, 0x12, 0, self.0.as_raw_fd()),
            [0; 8],
            instruction(0xbf, 0xa3, 0, 0),
            instruction(0x07, 0x03, 0, -4),
            instruction(0xb7, 0x04, 0, flags),
            instruction(0x85, 0, 0, helper),
        ]
    }
}

/// Marks the keys of those to whom accepted sockets pass on.
const ACCEPTED: u32 = 0x1_0000;

/// The key for what comes from a client's port.
pub(super) fn accepted(port: u16) -> u32 {
    u32::from(port) | ACCEPTED
}

/// `struct bpf_insn`; `registers`: the source in the high half.
const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let ([o0, o1], [i0, i1, i2, i3]) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
    [code, registers, o0, o1, i0, i1, i2, i3]
}
