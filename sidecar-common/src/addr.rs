//! One address type for IPv4, IPv6 and IPv4-mapped IPv6, so that nothing is written twice.

use core::mem::{align_of, size_of};

/// An IP address as four 32-bit words in network byte order; IPv4 is kept IPv4-mapped (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2).
///
/// An application that connects an IPv6 socket to `::ffff:10.0.0.1` and one that connects an IPv4 socket to `10.0.0.1`
/// therefore have equal keys.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ip([u32; 4]);

/// The third word of every IPv4-mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Ip {
    /// `::`, the IPv6 wildcard. Distinct from the IPv4 wildcard `::ffff:0.0.0.0`.
    pub const UNSPECIFIED_V6: Self = Self([0; 4]);
    /// `::ffff:0.0.0.0`, the IPv4 wildcard.
    pub const UNSPECIFIED_V4: Self = Self([0, 0, MAPPED, 0]);
    /// `::ffff:127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::from_v4(0x7f00_0001_u32.to_be());
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self([0, 0, 0, 1_u32.to_be()]);

    /// From an IPv4 address in network byte order, as the kernel's contexts hold it.
    #[inline(always)]
    pub const fn from_v4(be: u32) -> Self {
        Self([0, 0, MAPPED, be])
    }

    /// From an IPv6 address as four words in network byte order, as the kernel's contexts hold it.
    #[inline(always)]
    pub const fn from_v6(be: [u32; 4]) -> Self {
        Self(be)
    }

    /// From sixteen bytes in network order.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// Sixteen bytes in network order.
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] =
            [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes(), self.0[2].to_ne_bytes(), self.0[3].to_ne_bytes()];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// Four words in network byte order.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// The IPv4 address in network byte order; meaningful only if [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4(self) -> u32 {
        self.0[3]
    }

    /// Whether this is an IPv4 (mapped) address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// `0.0.0.0` or `::`: a connect to it reaches the loopback of the same network namespace.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[3] == 0 && (self.0[2] == 0 || self.0[2] == MAPPED)
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        if self.is_v4() {
            self.first_v4_octet() == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// `fe80::/10`: needs a scope id, which the connect hook does not show.
    #[inline(always)]
    pub const fn is_v6_link_local(self) -> bool {
        u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
    }

    /// Multicast (`224.0.0.0/4`, `ff00::/8`) or the IPv4 broadcast address: TCP reaches none of them.
    #[inline(always)]
    pub const fn is_not_unicast(self) -> bool {
        if self.is_v4() {
            self.first_v4_octet() >> 4 == 0xe || self.0[3] == u32::MAX
        } else {
            u32::from_be(self.0[0]) >> 24 == 0xff
        }
    }

    #[inline(always)]
    const fn first_v4_octet(self) -> u32 {
        u32::from_be(self.0[3]) >> 24
    }
}

/// A port in network byte order, so that a raw integer never enters a map by accident.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct PortBe(u16);

impl PortBe {
    /// From host byte order.
    #[inline(always)]
    pub const fn from_host(port: u16) -> Self {
        Self(port.to_be())
    }

    /// From network byte order.
    #[inline(always)]
    pub const fn from_be(port: u16) -> Self {
        Self(port)
    }

    /// In host byte order.
    #[inline(always)]
    pub const fn host(self) -> u16 {
        u16::from_be(self.0)
    }

    /// In network byte order.
    #[inline(always)]
    pub const fn be(self) -> u16 {
        self.0
    }
}

/// One end of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Endpoint {
    /// Address.
    pub ip: Ip,
    /// Port.
    pub port: PortBe,
    /// Keeps the layout free of holes; always zero.
    pub _pad: u16,
}

impl Endpoint {
    /// Address and port.
    #[inline(always)]
    pub const fn new(ip: Ip, port: PortBe) -> Self {
        Self { ip, port, _pad: 0 }
    }
}

const _: () = assert!(size_of::<Ip>() == 16 && align_of::<Ip>() == 4);
const _: () = assert!(size_of::<PortBe>() == 2);
const _: () = assert!(size_of::<Endpoint>() == 20 && align_of::<Endpoint>() == 4);
