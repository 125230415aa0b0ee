//! Networks as text: `10.0.0.0/8`, `fd00::/8`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use super::Cidr;

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `ADDRESS/PREFIX`.
    #[error("not a network; write an address and a prefix length, such as `10.0.0.0/8` or `fd00::/8`")]
    Form,
    /// An address alone.
    #[error("an address without a prefix length; did you mean `{0}`?")]
    NoPrefix(Cidr),
    /// More bits than the address has.
    #[error("the prefix length is above {0}")]
    PrefixTooLong(u8),
    /// The address has bits outside of the network.
    #[error("the address has bits outside of the network; did you mean `{0}`?")]
    HostBits(Cidr),
    /// IPv4 written as IPv6. Both would mean the same connections, and one spelling is enough.
    #[error("an IPv4 network written as IPv6; did you mean `{0}`?")]
    Mapped(Cidr),
}

impl Cidr {
    /// The network of this prefix length that holds `address`; `prefix` must not exceed the bits of the address.
    fn around(address: IpAddr, prefix: u8) -> Self {
        let network = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
        };
        Self { network, prefix }
    }

    /// Whether `address` is one of its addresses. An IPv4-mapped address is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4() && Self::around(address, self.prefix).network == self.network
    }
}

/// Leading bits of an IPv4-mapped IPv6 address that are always the same.
const MAPPED_BITS: u8 = 96;

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| CidrError::Form)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let Some(prefix) = prefix else {
            return Err(CidrError::NoPrefix(Self::around(address, bits)));
        };
        if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(CidrError::Form);
        }
        let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or(CidrError::PrefixTooLong(bits))?;
        if let (IpAddr::V6(_), IpAddr::V4(v4), Some(short)) =
            (address, address.to_canonical(), prefix.checked_sub(MAPPED_BITS))
        {
            return Err(CidrError::Mapped(Self::around(v4.into(), short)));
        }
        let cidr = Self::around(address, prefix);
        if cidr.network == address { Ok(cidr) } else { Err(CidrError::HostBits(cidr)) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_and_anything_else_says_what_was_meant() {
        for (text, expected) in [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("fd00::/8", Ok("fd00::/8")),
            ("::/0", Ok("::/0")),
            ("::1/128", Ok("::1/128")),
            ("169.254.169.254/32", Ok("169.254.169.254/32")),
            ("10.1.2.3/8", Err("the address has bits outside of the network; did you mean `10.0.0.0/8`?")),
            ("fd00::1/64", Err("the address has bits outside of the network; did you mean `fd00::/64`?")),
            ("10.1.2.3", Err("an address without a prefix length; did you mean `10.1.2.3/32`?")),
            ("::1", Err("an address without a prefix length; did you mean `::1/128`?")),
            ("10.0.0.0/33", Err("the prefix length is above 32")),
            ("::/129", Err("the prefix length is above 128")),
            ("::/300", Err("the prefix length is above 128")),
            ("::ffff:10.1.0.0/112", Err("an IPv4 network written as IPv6; did you mean `10.1.0.0/16`?")),
        ] {
            let read = text.parse::<Cidr>().map(|cidr| cidr.to_string()).map_err(|error| error.to_string());
            assert_eq!(read, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
        for text in ["", "/", "10/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "a.example/8"] {
            assert_eq!(text.parse::<Cidr>(), Err(CidrError::Form), "{text}");
        }
    }
}
