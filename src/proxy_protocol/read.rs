//! Reads a header. Refuses at the first byte that no header can have there, so that nobody is waited for in vain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Addresses, FIXED_BYTES, LINE_BYTES_MAX, SIGNATURE, Version, crc32c};
use crate::limits::PROXY_HEADER_BYTES_MAX;

/// What the bytes so far are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Read {
    /// The beginning of a header, or nothing yet.
    Partial,
    /// A header of `len` bytes; what follows is the connection's own.
    Complete {
        version: Version,
        /// `None`: nothing is said of the connection (LOCAL, UNKNOWN, UNSPEC), or nothing that a connection over TCP
        /// can have (a Unix socket's names, datagrams). The connection's own addresses count (§2.2).
        addresses: Option<Addresses>,
        len: usize,
    },
    Malformed(Malformed),
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Malformed {
    /// The connection begins with something else.
    Missing,
    /// A line of version 1 that is none, or is longer than 107 bytes.
    Line,
    /// Version, command or family that the specification does not have.
    Kind,
    /// Beyond `limits::PROXY_HEADER_BYTES_MAX`.
    TooLong,
    /// Shorter than its family's addresses.
    TooShort,
    /// A TLV that goes past the header's end, or is not of its type's length.
    Tlv,
    Checksum,
}

/// Reads the header at the beginning of `bytes`. Says the same of every longer input.
pub fn read(bytes: &[u8]) -> Read {
    if bytes.first() == Some(&SIGNATURE[0]) {
        return read_v2(bytes).unwrap_or_else(Read::Malformed);
    }
    read_v1(bytes).unwrap_or_else(Read::Malformed)
}

const LINE_PREFIX: &[u8] = b"PROXY ";

/// §2.1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443` and CRLF.
fn read_v1(bytes: &[u8]) -> Result<Read, Malformed> {
    let shared = bytes.len().min(LINE_PREFIX.len());
    if bytes[..shared] != LINE_PREFIX[..shared] {
        return Err(Malformed::Missing);
    }
    let window = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = window.iter().position(|byte| *byte == b'\r') else {
        let printable = window.iter().all(|byte| matches!(byte, b' '..=b'~'));
        let may_grow = printable && window.len() < LINE_BYTES_MAX;
        return if may_grow { Ok(Read::Partial) } else { Err(Malformed::Line) };
    };
    match window.get(end + 1) {
        Some(b'\n') => {}
        None if window.len() < LINE_BYTES_MAX => {
            read_line(&window[..end])?;
            return Ok(Read::Partial);
        }
        _ => return Err(Malformed::Line),
    }
    let addresses = read_line(&window[..end])?;
    Ok(Read::Complete { version: Version::V1, addresses, len: end + 2 })
}

/// A whole line without its end.
fn read_line(line: &[u8]) -> Result<Option<Addresses>, Malformed> {
    let text = std::str::from_utf8(line).map_err(|_| Malformed::Line)?;
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(Malformed::Line);
    }
    let mut words = text.split(' ').skip(1);
    let is_v4 = match words.next() {
        Some("TCP4") => true,
        Some("TCP6") => false,
        // §2.1: what follows is ignored.
        Some("UNKNOWN") => return Ok(None),
        _ => return Err(Malformed::Line),
    };
    let mut next = || words.next().ok_or(Malformed::Line);
    let (source, destination) = (ip(next()?, is_v4)?, ip(next()?, is_v4)?);
    let (from, to) = (port(next()?)?, port(next()?)?);
    if words.next().is_some() {
        return Err(Malformed::Line);
    }
    Ok(Some(Addresses::new(SocketAddr::new(source, from), SocketAddr::new(destination, to))))
}

fn ip(text: &str, is_v4: bool) -> Result<IpAddr, Malformed> {
    let parsed = match is_v4 {
        true => text.parse::<Ipv4Addr>().map(IpAddr::V4),
        false => text.parse::<Ipv6Addr>().map(IpAddr::V6),
    };
    parsed.map_err(|_| Malformed::Line)
}

/// §2.1: decimal without leading zeros.
fn port(text: &str) -> Result<u16, Malformed> {
    let decimal = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| decimal).ok_or(Malformed::Line)
}

/// §2.2.
fn read_v2(bytes: &[u8]) -> Result<Read, Malformed> {
    let shared = bytes.len().min(SIGNATURE.len());
    if bytes[..shared] != SIGNATURE[..shared] {
        return Err(Malformed::Missing);
    }
    let local = match bytes.get(12) {
        None => return Ok(Read::Partial),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Malformed::Kind),
    };
    let Some(&family) = bytes.get(13) else { return Ok(Read::Partial) };
    // §2.2: LOCAL may be of any family, which is not looked at. What else there is, is reserved.
    let address_bytes = match family {
        _ if local => 0,
        0x00 => 0,
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        0x31 | 0x32 => 216,
        _ => return Err(Malformed::Kind),
    };
    let Some(&[high, low]) = bytes.get(14..FIXED_BYTES) else { return Ok(Read::Partial) };
    let len = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if len > PROXY_HEADER_BYTES_MAX {
        return Err(Malformed::TooLong);
    }
    if len < FIXED_BYTES + address_bytes {
        return Err(Malformed::TooShort);
    }
    let Some(header) = bytes.get(..len) else { return Ok(Read::Partial) };
    let addresses = match family {
        _ if local => None,
        0x11 => addresses_v4(&header[FIXED_BYTES..]),
        0x21 => addresses_v6(&header[FIXED_BYTES..]),
        _ => None,
    };
    // UNSPEC and LOCAL: what follows is skipped by its length.
    if !local && family != 0 {
        check_tlvs(header, FIXED_BYTES + address_bytes)?;
    }
    Ok(Read::Complete { version: Version::V2, addresses, len })
}

fn addresses_v4(bytes: &[u8]) -> Option<Addresses> {
    let (source, rest) = bytes.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    ports(Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination).into(), rest)
}

fn addresses_v6(bytes: &[u8]) -> Option<Addresses> {
    let (source, rest) = bytes.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    ports(Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), rest)
}

fn ports(source: IpAddr, destination: IpAddr, rest: &[u8]) -> Option<Addresses> {
    let (&[a, b, c, d], _) = rest.split_first_chunk::<4>()?;
    let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(Addresses::new(SocketAddr::new(source, from), SocketAddr::new(destination, to)))
}

const TYPE_CRC32C: u8 = 0x03;
const TYPE_UNIQUE_ID: u8 = 0x05;
const UNIQUE_ID_BYTES_MAX: usize = 128;

/// §2.2.1 to 2.2.7: each within the header, together all of it; the checksum, where there is one, that of the header with
/// zeros in its place. None is made anything else of.
fn check_tlvs(header: &[u8], start: usize) -> Result<(), Malformed> {
    let mut at = start;
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else { return Err(Malformed::Tlv) };
        let value_at = at + 3;
        at = value_at + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(value_at..at).ok_or(Malformed::Tlv)?;
        match kind {
            TYPE_CRC32C => {
                let told = u32::from_be_bytes(value.try_into().map_err(|_| Malformed::Tlv)?);
                if crc32c(&[&header[..value_at], &[0; 4], &header[at..]]) != told {
                    return Err(Malformed::Checksum);
                }
            }
            TYPE_UNIQUE_ID if value.len() > UNIQUE_ID_BYTES_MAX => return Err(Malformed::Tlv),
            _ => {}
        }
    }
    Ok(())
}

/// What holds for any bytes: the verdict does not depend on how they arrive, and a header that was read can be written
/// and read again.
///
/// # Panics
/// Where it does not hold.
pub fn fuzz_proxy_header(bytes: &[u8]) {
    let whole = read(bytes);
    let mut verdicts = (0..=bytes.len()).map(|len| read(&bytes[..len]));
    let first = verdicts.find(|verdict| *verdict != Read::Partial).unwrap_or(Read::Partial);
    assert_eq!(first, whole, "{bytes:?}");
    let Read::Complete { version, addresses, len } = whole else { return };
    assert!(len <= bytes.len() && len <= PROXY_HEADER_BYTES_MAX);
    let mut written = Vec::new();
    super::write(&mut written, version, addresses.as_ref());
    let len = written.len();
    assert_eq!(read(&written), Read::Complete { version, addresses, len }, "{bytes:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complete(bytes: &[u8]) -> (Version, Option<Addresses>, usize) {
        match read(bytes) {
            Read::Complete { version, addresses, len } => (version, addresses, len),
            other => panic!("{other:?}: {:?}", String::from_utf8_lossy(bytes)),
        }
    }

    fn between(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        })
    }

    fn v2(kind: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([kind, family]);
        bytes.extend(u16::try_from(rest.len()).expect("it fits").to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb];

    fn with_tlvs(tlvs: &[u8]) -> Vec<u8> {
        v2(0x21, 0x11, &[&V4, tlvs].concat())
    }

    #[test]
    fn a_line_of_version_1_names_both_ends() {
        let (version, addresses, len) = complete(b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET /");
        assert_eq!((version, len), (Version::V1, 45));
        assert_eq!(addresses, between("192.0.2.1:56324", "198.51.100.2:443"));
        let (_, addresses, _) = complete(b"PROXY TCP6 2001:db8::1 2001:db8::2 0 65535\r\n");
        assert_eq!(addresses, between("[2001:db8::1]:0", "[2001:db8::2]:65535"));
        let longest = "f".repeat(4) + &":ffff".repeat(7);
        let (_, addresses, len) =
            complete(format!("PROXY TCP6 {longest} {longest} 65535 65535\r\n").as_bytes());
        assert!(addresses.is_some() && len <= LINE_BYTES_MAX, "{len}");
    }

    #[test]
    fn what_is_unknown_leaves_the_connections_own_addresses() {
        let unknown = format!("PROXY UNKNOWN {}\r\n", "f".repeat(LINE_BYTES_MAX - 16));
        assert_eq!(complete(unknown.as_bytes()), (Version::V1, None, LINE_BYTES_MAX));
        assert_eq!(complete(b"PROXY UNKNOWN\r\n").1, None);
        let unix = [0; 216];
        let kinds = [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, &V4),
            (0x21, 0x00, b"\x05"),
            (0x21, 0x12, &V4),
            (0x21, 0x31, &unix),
        ];
        for (kind, family, rest) in kinds {
            let bytes = v2(kind, family, rest);
            assert_eq!(complete(&bytes), (Version::V2, None, bytes.len()), "{kind:x} {family:x}");
        }
    }

    #[test]
    fn version_2_names_both_ends_and_its_tlvs_are_skipped() {
        let bytes = with_tlvs(b"\x02\0\x06a.test\x04\0\0\xea\0\x02\x01\x02");
        assert_eq!(
            complete(&[&bytes[..], b"GET /"].concat()),
            (Version::V2, between("192.0.2.1:56324", "198.51.100.2:443"), bytes.len())
        );
        let v6: Vec<u8> = (0..36).collect();
        let addresses = complete(&v2(0x21, 0x21, &v6)).1.expect("addresses");
        assert_eq!((addresses.source.port(), addresses.destination.port()), (0x2021, 0x2223));
        assert_eq!(addresses.source.ip().to_string(), "1:203:405:607:809:a0b:c0d:e0f");
    }

    #[test]
    fn a_checksum_is_verified() {
        let mut bytes = with_tlvs(b"\x03\0\x04\0\0\0\0\x04\0\x01\0");
        let crc = crc32c(&[&bytes]).to_be_bytes();
        let at = FIXED_BYTES + V4.len() + 3;
        bytes[at..at + 4].copy_from_slice(&crc);
        assert_eq!(complete(&bytes).2, bytes.len());
        for damaged in [FIXED_BYTES, at, bytes.len() - 1] {
            let mut bytes = bytes.clone();
            bytes[damaged] ^= 1;
            assert_eq!(read(&bytes), Read::Malformed(Malformed::Checksum), "byte {damaged}");
        }
    }

    #[test]
    fn malformed_headers_are_refused() {
        let long = format!("PROXY UNKNOWN {}", "f".repeat(LINE_BYTES_MAX));
        for (text, why) in [
            ("GET / HTTP/1.1\r\n", Malformed::Missing),
            ("proxy TCP4 1.2.3.4 1.2.3.4 1 1\r\n", Malformed::Missing),
            ("\r\nGET", Malformed::Missing),
            ("\x16\x03\x01", Malformed::Missing),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n", Malformed::Line),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 1\r\r\n", Malformed::Line),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", Malformed::Line),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 1 1 1\r\n", Malformed::Line),
            ("PROXY TCP4  1.2.3.4 1.2.3.4 1 1\r\n", Malformed::Line),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n", Malformed::Line),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n", Malformed::Line),
            ("PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n", Malformed::Line),
            ("PROXY TCP4 1.2.3.04 1.2.3.4 1 1\r\n", Malformed::Line),
            ("PROXY TCP4 1.2.3.256 1.2.3.4 1 1\r\n", Malformed::Line),
            ("PROXY TCP4 ::1 ::1 1 1\r\n", Malformed::Line),
            ("PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n", Malformed::Line),
            ("PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n", Malformed::Line),
            ("PROXY \r\n", Malformed::Line),
            (&long, Malformed::Line),
        ] {
            assert_eq!(read(text.as_bytes()), Read::Malformed(why), "{text:?}");
        }
        let huge = u16::try_from(PROXY_HEADER_BYTES_MAX - FIXED_BYTES + 1).expect("it fits").to_be_bytes();
        for (bytes, why) in [
            (v2(0x11, 0x11, &V4), Malformed::Kind),
            (v2(0x22, 0x11, &V4), Malformed::Kind),
            (v2(0x21, 0x13, &V4), Malformed::Kind),
            (v2(0x21, 0x41, &V4), Malformed::Kind),
            (v2(0x21, 0x11, &V4[..11]), Malformed::TooShort),
            (v2(0x21, 0x21, &V4), Malformed::TooShort),
            ([&SIGNATURE[..], &[0x21, 0x11], &huge].concat(), Malformed::TooLong),
            (with_tlvs(b"\x04"), Malformed::Tlv),
            (with_tlvs(b"\x04\0"), Malformed::Tlv),
            (with_tlvs(b"\x04\0\x02\0"), Malformed::Tlv),
            (with_tlvs(b"\x04\xff\xff\0"), Malformed::Tlv),
            (with_tlvs(b"\x03\0\x03\0\0\0"), Malformed::Tlv),
            (with_tlvs(&[&[5, 0, 129][..], &[0; 129]].concat()), Malformed::Tlv),
        ] {
            assert_eq!(read(&bytes), Read::Malformed(why), "{bytes:?}");
        }
    }

    /// Bytes that get past the first checks.
    fn likely() -> impl Strategy<Value = Vec<u8>> {
        let line = "PROXY (TCP[46]|UNKNOWN)( [0-9.:a-f]{1,12}){0,5}\r?\n?.{0,6}".prop_map(String::into_bytes);
        let binary = (0x20..0x23u8, any::<u8>(), prop::collection::vec(0..8u8, 0..60), -3..4i32);
        let binary = binary.prop_map(|(kind, family, rest, off)| {
            let mut bytes = v2(kind, family & 0x33, &rest);
            let len = (rest.len() as i32 + off).max(0) as u16;
            bytes[14..16].copy_from_slice(&len.to_be_bytes());
            bytes
        });
        prop_oneof![line, binary, prop::collection::vec(any::<u8>(), 0..40)]
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_how_the_bytes_arrive(bytes in likely()) {
            fuzz_proxy_header(&bytes);
        }

        #[test]
        fn what_was_written_is_read(
            v4 in any::<bool>(),
            (a, b, c, d) in any::<(u128, u128, u16, u16)>(),
            is_v1 in any::<bool>(),
        ) {
            let ip = |bits: u128| if v4 { IpAddr::V4(Ipv4Addr::from(bits as u32)) } else { IpAddr::V6(Ipv6Addr::from(bits)) };
            let addresses = Addresses::new(SocketAddr::new(ip(a), c), SocketAddr::new(ip(b), d));
            let version = if is_v1 { Version::V1 } else { Version::V2 };
            for addresses in [Some(addresses), None] {
                let mut bytes = Vec::new();
                super::super::write(&mut bytes, version, addresses.as_ref());
                prop_assert_eq!(complete(&bytes), (version, addresses, bytes.len()));
                fuzz_proxy_header(&bytes);
            }
        }
    }
}
