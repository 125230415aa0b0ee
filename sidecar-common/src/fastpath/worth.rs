//! Which connections gain by it.

use core::mem::size_of;

/// Bytes that a connection has carried from the application before it is worth two entries in a map.
pub const WORTH_BYTES: u64 = 256 * 1024;

/// Bytes of a segment, on the average, from which on a connection gains: over loopback a segment is a write, up to 64 KiB. Measured on
/// 6.18, all on one CPU: exchanges of 64 KiB take 0.92 of the time by TCP, those of 4 KiB as much.
pub const WORTH_SEGMENT: u64 = 16 * 1024;

/// Bytes of a message, on the average, below which a connection loses: exchanges of 64 B took 1.02 to 1.03 of the time by TCP.
pub const LEAST_MESSAGE: u64 = 2 * 1024;

/// Of so many messages one must go past TCP: to judge one takes half a microsecond, and one of 64 KiB past TCP wins four.
const ONE_PAST_IN: u64 = 8;

/// Messages that say something of those to come.
const TELLING: u64 = 64;

/// A connection that was let go must carry two to this power times as much to come back as it had to before.
const RETURN_SHIFT: u64 = 8;

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

    /// Whether it is enough to be enrolled, for a connection that was let go so often because it lost, where others must carry `worth`
    /// bytes: what lost once is likely to lose again, and each time costs.
    #[inline(always)]
    pub const fn is_worth(self, worth: u64, departures: u64) -> bool {
        // More would shift all bits out.
        let times = if departures > 7 { 7 } else { departures };
        self.bytes >> (times * RETURN_SHIFT) >= worth
    }

    /// Whether it came in pieces that are large enough to be enrolled.
    #[inline(always)]
    pub const fn gains(self) -> bool {
        self.bytes >= self.messages * WORTH_SEGMENT
    }
}

/// What an enrolled connection has sent since a pass judged it last.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sent {
    /// All of it.
    pub all: Carried,
    /// Messages that went past TCP.
    pub past: u64,
}

impl Sent {
    /// Whether there is enough of it to judge.
    #[inline(always)]
    pub const fn tells(self) -> bool {
        self.all.messages >= TELLING
    }

    /// Whether it loses by it: nearly all messages are judged and go by TCP all the same, as those of a stream that is sent as fast as it
    /// goes, or they are too small. That is far below what it takes to come: what lies between stays as it is.
    #[inline(always)]
    pub const fn loses(self) -> bool {
        let Self { all: Carried { bytes, messages }, past } = self;
        self.tells() && (past < messages / ONE_PAST_IN || bytes < messages * LEAST_MESSAGE)
    }
}

const _: () = assert!(size_of::<Sent>() == 24);
const _: () = assert!(size_of::<Carried>() == 16);
