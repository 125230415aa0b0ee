//! Which connections gain by it.

use core::mem::size_of;

/// Bytes that a connection has carried from the application before it is worth two entries in a map.
pub const WORTH_BYTES: u64 = 256 * 1024;

/// Bytes of a segment, on the average, from which on a connection gains: over loopback a segment is a write, up to 64 KiB. Measured on
/// 6.18, all on one CPU: exchanges of 64 KiB take 0.92 of the time by TCP, those of 4 KiB as much.
pub const WORTH_SEGMENT: u64 = 16 * 1024;

/// Bytes of a message, on the average, below which a connection loses: exchanges of 64 B took 1.02 to 1.03 of the time by TCP.
pub const LEAST_MESSAGE: u64 = 2 * 1024;

/// Messages that say something of those to come.
const TELLING: u64 = 64;

/// What a connection has carried from the application.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Carried {
    /// Bytes.
    pub bytes: u64,
    /// Messages, or segments, of which the kernel's number begins anew after 2^32.
    pub messages: u64,
}

impl Carried {
    /// What came after `then`.
    #[inline(always)]
    pub const fn since(self, then: Self) -> Self {
        let messages = (self.messages as u32).wrapping_sub(then.messages as u32);
        Self { bytes: self.bytes.wrapping_sub(then.bytes), messages: messages as u64 }
    }

    /// Whether it came in pieces that are large enough to be enrolled.
    #[inline(always)]
    pub const fn gains(self) -> bool {
        self.bytes >= self.messages * WORTH_SEGMENT
    }

    /// Whether there is enough of it to judge.
    #[inline(always)]
    pub const fn tells(self) -> bool {
        self.messages >= TELLING
    }

    /// Whether it came in pieces that are too small to stay. Far below what it takes to come: what lies between stays as it is.
    #[inline(always)]
    pub const fn loses(self) -> bool {
        self.tells() && self.bytes < self.messages * LEAST_MESSAGE
    }
}

const _: () = assert!(size_of::<Carried>() == 16);
