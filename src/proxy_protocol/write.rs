//! Writes a header.

use std::io::Write;
use std::net::IpAddr;

use super::{Addresses, SIGNATURE, Version};

/// Appends the header for a connection between these two, without TLVs. Without addresses it is a connection of our
/// own, such as a health probe: LOCAL, or in version 1 UNKNOWN (§2.1, §2.2).
pub fn write(out: &mut Vec<u8>, version: Version, addresses: Option<&Addresses>) {
    match (version, addresses) {
        (Version::V1, None) => out.extend_from_slice(b"PROXY UNKNOWN\r\n"),
        (Version::V1, Some(Addresses { source, destination })) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            let (source, destination) = (source.port(), destination.port());
            // Writing to a Vec cannot fail.
            let _ = write!(out, "PROXY {family} {from} {to} {source} {destination}\r\n");
        }
        (Version::V2, None) => {
            out.extend_from_slice(&SIGNATURE);
            out.extend_from_slice(&[0x20, 0, 0, 0]);
        }
        (Version::V2, Some(Addresses { source, destination })) => {
            out.extend_from_slice(&SIGNATURE);
            let (family, len) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
            out.extend_from_slice(&[0x21, family, 0, len]);
            for end in [source, destination] {
                match end.ip() {
                    IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
                    IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
                }
            }
            for end in [source, destination] {
                out.extend_from_slice(&end.port().to_be_bytes());
            }
        }
    }
}
