//! The PROXY protocol, version 1 and 2: what a proxy in front says of the connection that it passes on, before the
//! connection's own bytes. Reads and writes the header by HAProxy's specification (`doc/proxy-protocol.txt`, revision
//! of 2020/03/05); sections cited are its. Never decides whom to believe, and keeps nothing of the TLVs.

use std::net::{IpAddr, SocketAddr};

mod read;
mod write;

pub use read::{Malformed, Read, fuzz_proxy_header, read};
pub use write::write;

/// What version 2 begins with (§2.2): no line of version 1 and no request of HTTP does.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1 with its CRLF (§2.1).
const LINE_BYTES_MAX: usize = 107;
/// Signature, version and command, family, length (§2.2).
const FIXED_BYTES: usize = 16;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    V1,
    V2,
}

/// Both ends of the connection as the first proxy saw it. Of one family, and IPv4 where that is what they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// Where it connected to.
    pub destination: SocketAddr,
}

impl Addresses {
    /// An IPv4 address in an IPv6 one (`::ffff:a.b.c.d`) becomes IPv4; where the families differ all the same, both
    /// are IPv6.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
        let (from, to) = match (from, to) {
            (IpAddr::V4(v4), IpAddr::V6(_)) => (v4.to_ipv6_mapped().into(), to),
            (IpAddr::V6(_), IpAddr::V4(v4)) => (from, v4.to_ipv6_mapped().into()),
            same => same,
        };
        Self {
            source: SocketAddr::new(from, source.port()),
            destination: SocketAddr::new(to, destination.port()),
        }
    }
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4) of `pieces` one behind the other.
fn crc32c(pieces: &[&[u8]]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < table.len() {
            let (mut crc, mut bit) = (byte as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    let bytes = pieces.iter().copied().flatten();
    !bytes.fold(u32::MAX, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnolis() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
    }

    #[test]
    fn addresses_are_of_one_family() {
        let at = |text: &str| text.parse().expect("an address");
        let mapped = Addresses::new(at("[::ffff:192.0.2.1]:5"), at("192.0.2.2:6"));
        assert_eq!(mapped, Addresses { source: at("192.0.2.1:5"), destination: at("192.0.2.2:6") });
        let mixed = Addresses::new(at("192.0.2.1:5"), at("[2001:db8::1]:6"));
        assert_eq!(mixed.source, at("[::ffff:192.0.2.1]:5"));
        assert_eq!(mixed.destination, at("[2001:db8::1]:6"));
    }
}
