//! What an upstream is told about the client. The fields themselves are written by the protocol engine, after
//! the removal of what `Connection` lists, so that no client can strip them (RFC 9110 §7.6.1).

use std::io::Write;
use std::net::IpAddr;

use super::Traceparent;

/// What happens to `X-Forwarded-*`, `Forwarded` and `X-Real-IP` that came with a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ForwardedPolicy {
    /// Dropped, and `X-Forwarded-For`, `-Proto`, `-Host` and `-Client-Cert` set from the connection. For untrusted peers.
    #[default]
    Replace,
    /// The peer is a trusted proxy: our view of it is added to `X-Forwarded-For` and `-Client-Cert`, the others stay
    /// where present.
    Append,
    /// Neither read nor written. `X-Forwarded-Client-Cert` is dropped all the same.
    Off,
}

/// The client as an upstream shall see it.
#[derive(Clone, Copy, Debug)]
pub struct Forwarded<'a> {
    pub policy: ForwardedPolicy,
    pub client_ip: IpAddr,
    /// `http` or `https`: how the client reached us.
    pub proto: &'a str,
    /// The element of `X-Forwarded-Client-Cert` for the certificate that the client presented. Visible ASCII and spaces.
    pub client_cert: Option<&'a str>,
    /// The trace that begins here; those that came are dropped. `None`: they go on as they came.
    pub traceparent: Option<&'a Traceparent>,
}

/// Appends an address; IPv4 in IPv6 is shown as IPv4.
pub fn write_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let (mut text, mut len) = ([b'.'; 16], 0);
            for octet in v4.octets() {
                if octet >= 100 {
                    text[len] = b'0' + octet / 100;
                    len += 1;
                }
                if octet >= 10 {
                    text[len] = b'0' + octet / 10 % 10;
                    len += 1;
                }
                text[len] = b'0' + octet % 10;
                // Past the dot that already stands there.
                len += 2;
            }
            out.extend_from_slice(&text[..len - 1]);
        }
        IpAddr::V6(v6) => {
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{v6}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_in_their_canonical_form() {
        for (ip, want) in [
            ("192.0.2.10", "192.0.2.10"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:DB8:0::1", "2001:db8::1"),
        ] {
            let mut out = Vec::new();
            write_ip(&mut out, ip.parse().unwrap());
            assert_eq!(out, want.as_bytes());
        }
    }
}
