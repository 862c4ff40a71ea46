//! A hash that is the same on every machine and in every release, so that gateways beside each other agree about what
//! belongs where. Not against those who look for collisions: nothing is safe because of it.

use std::net::{IpAddr, SocketAddr};

/// FNV-1a (Fowler, Noll, Vo), mixed, since its low bits alone are uneven.
pub fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// An IPv4 address in an IPv6 one hashes as IPv4.
pub fn hash_ip(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(v4) => hash(&v4.octets()),
        IpAddr::V6(v6) => hash(&v6.octets()),
    }
}

pub fn hash_address(address: SocketAddr) -> u64 {
    mix(hash_ip(address.ip()) ^ u64::from(address.port()))
}

/// The finalizer of splitmix64 (Steele, Lea, Flood, 2014): a bijection, each bit of which depends on all bits.
pub const fn mix(hash: u64) -> u64 {
    let hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another value would send every key elsewhere after an upgrade.
    #[test]
    fn values_do_not_change_between_releases() {
        assert_eq!(hash(b""), mix(0xcbf2_9ce4_8422_2325));
        assert_eq!(hash(b"a"), mix(0xaf63_dc4c_8601_ec8c));
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("an address");
        assert_eq!(hash_ip(mapped), hash(&[192, 0, 2, 1]));
    }

    #[test]
    fn neighbours_are_spread_evenly() {
        let mut counts = [0u32; 16];
        for n in 0..16_000u32 {
            counts[(hash(&n.to_be_bytes()) % 16) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }
}
