//! How two sidecars learn of each other in the TCP handshake: an option in SYN and SYN-ACK that says which transports its
//! sender speaks. Anybody can send it: it is a hint, never a proof.

use core::mem::size_of;

/// Transports between sidecars; bits of the option's last byte. Unknown bits are kept: a newer sidecar may set them.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Transports(u8);

impl Transports {
    /// None, which is also what is known of an end that said nothing.
    pub const NONE: Self = Self(0);
    /// TLS on the original port with the application protocol `sidecar/1`.
    pub const NATIVE: Self = Self(1);
    /// HBONE: HTTP/2 CONNECT over mutual TLS on port 15008.
    pub const HBONE: Self = Self(2);

    /// From the bits of the option or of a socket option's value.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// As the bits of the option or of a socket option's value.
    #[inline(always)]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` are among these.
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those of both.
    #[inline(always)]
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Value of the `MESH` socket storage: what the two ends of a connection said.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Spoken {
    /// What this end offers in its SYN.
    pub ours: Transports,
    /// What the other end said.
    pub theirs: Transports,
    /// Always zero.
    pub _pad: [u8; 2],
}

/// The option as it is on the wire: a shared experimental option (RFC 6994) and one byte.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshOption {
    /// 254 (RFC 4727 §3.2).
    pub kind: u8,
    /// Bytes of the whole option.
    pub length: u8,
    /// The experiment's identifier in network byte order.
    pub exid: [u8; 2],
    /// What the sender speaks.
    pub transports: Transports,
}

impl MeshOption {
    /// Identifier of the experiment (RFC 6994 §3): "SC", as the level of sidecar's socket options. It is not registered.
    pub const EXID: [u8; 2] = *b"SC";
    /// Bytes of the whole option.
    pub const LENGTH: u8 = size_of::<Self>() as u8;

    /// The option that says `transports`.
    #[inline(always)]
    pub const fn saying(transports: Transports) -> Self {
        Self { kind: 254, length: Self::LENGTH, exid: Self::EXID, transports }
    }

    /// What `bpf_load_hdr_opt` searches for: kind and identifier. The length says how much of it is to be compared.
    #[inline(always)]
    pub const fn search() -> Self {
        Self { length: 4, ..Self::saying(Transports::NONE) }
    }

    /// What an option says that `bpf_load_hdr_opt` found, or did not: `result` is its answer. A longer option says the same
    /// in its fifth byte, so that there may be more bytes one day; a shorter one says nothing.
    #[inline(always)]
    pub const fn read(self, result: i64) -> Transports {
        /// The option is longer than this structure, which holds its first bytes.
        const ENOSPC: i64 = 28;
        if result == Self::LENGTH as i64 || result == -ENOSPC { self.transports } else { Transports::NONE }
    }
}

/// SYN in the flags of a TCP segment (RFC 9293 §3.1).
const SYN: u32 = 2;

/// What the SYN of a connecting socket says. `flags` are those of the segment, 0 if there is none yet; `retransmits` counts
/// the SYNs that were sent again.
///
/// A network that drops what it does not know must not cut the connection off: the third retransmission is a plain SYN.
/// MPTCP does the same after as many (`net.mptcp.syn_retrans_before_tcp_fallback`). One lost SYN is not enough: on a bad
/// network it would make the other end unknown too often.
#[inline(always)]
pub const fn offered(ours: Transports, flags: u32, retransmits: u32) -> Transports {
    const WITH_OPTION: u32 = 2;
    if flags & SYN != 0 && retransmits <= WITH_OPTION { ours } else { Transports::NONE }
}

/// What the SYN-ACK of the inbound listener says to a client whose SYN said `theirs`: nothing to one that said nothing.
#[inline(always)]
pub const fn answered(ours: Transports, theirs: Transports) -> Transports {
    if theirs.is_empty() { Transports::NONE } else { ours }
}

const _: () = assert!(size_of::<Transports>() == 1);
const _: () = assert!(size_of::<Spoken>() == 4);
const _: () = assert!(size_of::<MeshOption>() == 5);

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Transports = Transports::NATIVE.union(Transports::HBONE);

    #[test]
    fn a_set_contains_what_it_was_made_of_and_keeps_unknown_bits() {
        assert!(BOTH.contains(Transports::NATIVE) && BOTH.contains(Transports::HBONE));
        assert!(!Transports::NATIVE.contains(BOTH) && Transports::NATIVE.contains(Transports::NONE));
        assert_eq!(Transports::from_bits(0x81).bits(), 0x81);
        assert!(Transports::from_bits(0x81).contains(Transports::NATIVE));
    }

    #[test]
    fn only_an_option_with_room_for_its_byte_says_something() {
        let found = MeshOption::saying(BOTH);
        for (result, says) in [
            (5, BOTH),
            (-28, BOTH),             // longer: ENOSPC
            (4, Transports::NONE),   // no byte
            (-42, Transports::NONE), // no such option: ENOMSG
            (-2, Transports::NONE),  // no SYN saved: ENOENT
            (-22, Transports::NONE), // EINVAL
        ] {
            assert_eq!(found.read(result), says, "{result}");
        }
    }

    #[test]
    fn a_syn_says_it_until_the_third_retransmission_and_nothing_else_does() {
        const ACK: u32 = 16;
        const ECE_CWR: u32 = 0xc0;
        for (flags, retransmits, says) in [
            (SYN, 0, BOTH),
            (SYN | ECE_CWR, 0, BOTH),
            (SYN, 2, BOTH),
            (SYN, 3, Transports::NONE),
            (ACK, 0, Transports::NONE),
            (0, 0, Transports::NONE),
        ] {
            assert_eq!(offered(BOTH, flags, retransmits), says, "{flags} {retransmits}");
        }
        assert_eq!(offered(Transports::NONE, SYN, 0), Transports::NONE);
    }

    #[test]
    fn only_a_client_that_said_something_is_answered() {
        assert_eq!(answered(BOTH, Transports::NATIVE), BOTH);
        assert_eq!(answered(BOTH, Transports::from_bits(0x80)), BOTH);
        assert_eq!(answered(BOTH, Transports::NONE), Transports::NONE);
        assert_eq!(answered(Transports::NONE, BOTH), Transports::NONE);
    }
}
