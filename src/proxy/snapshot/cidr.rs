//! A block of addresses, `10.0.0.0/8`. Never resolves names.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Base address with the bits beyond the prefix cleared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cidr {
    base: IpAddr,
    prefix_len: u8,
}

impl Cidr {
    /// Whether it is every address of its family.
    pub const fn is_everybody(&self) -> bool {
        self.prefix_len == 0
    }

    /// An IPv4 peer on a dual-stack socket (`::ffff:a.b.c.d`) is judged as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                mask_v4(address.to_bits(), self.prefix_len) == base.to_bits()
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                mask_v6(address.to_bits(), self.prefix_len) == base.to_bits()
            }
            _ => false,
        }
    }
}

fn mask_v4(bits: u32, prefix_len: u8) -> u32 {
    bits & u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0)
}

fn mask_v6(bits: u128, prefix_len: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix_len)
    }
}

impl FromStr for Cidr {
    type Err = &'static str;

    /// An address alone is a block of one. Bits set beyond the prefix are an error: one of the two is a slip.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix_len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let base: IpAddr = address.parse().map_err(|_| "not an IP address or block such as 10.0.0.0/8")?;
        let longest = if base.is_ipv4() { 32 } else { 128 };
        let prefix_len = match prefix_len {
            None => longest,
            Some(len) => len
                .parse::<u8>()
                .ok()
                .filter(|len| *len <= longest)
                .ok_or("the prefix length must be 0 to 32 for IPv4, 0 to 128 for IPv6")?,
        };
        let masked = match base {
            IpAddr::V4(v4) => mask_v4(v4.to_bits(), prefix_len) == v4.to_bits(),
            IpAddr::V6(v6) => mask_v6(v6.to_bits(), prefix_len) == v6.to_bits(),
        };
        if masked { Ok(Self { base, prefix_len }) } else { Err("bits are set beyond the prefix length") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn contains_exactly_its_block() {
        assert!(cidr("10.0.0.0/8").contains(ip("10.255.0.1")));
        assert!(!cidr("10.0.0.0/8").contains(ip("11.0.0.1")));
        assert!(cidr("0.0.0.0/0").contains(ip("1.2.3.4")));
        assert!(!cidr("0.0.0.0/0").contains(ip("::1")));
        assert!(cidr("fd00::/8").contains(ip("fd12::1")));
        assert!(cidr("::/0").contains(ip("::1")));
        assert!(cidr("192.0.2.7").contains(ip("192.0.2.7")) && !cidr("192.0.2.7").contains(ip("192.0.2.8")));
    }

    #[test]
    fn an_ipv4_peer_of_a_dual_stack_socket_is_ipv4() {
        assert!(cidr("10.0.0.0/8").contains(ip("::ffff:10.1.2.3")));
    }

    #[test]
    fn slips_are_refused() {
        for text in ["", "10.0.0.1/8", "10.0.0.0/33", "fd00::/129", "host", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
