//! Host and port of a request. Narrower than RFC 3986: what a comma, a slash or user information could mean to the
//! next hop is not worth finding out (RFC 9110 §4.2.4, §7.2).

use std::net::Ipv6Addr;

/// A valid `host[:port]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Authority<'b> {
    /// As received.
    pub text: &'b str,
    /// Without the port; an IPv6 address keeps its brackets. Any case.
    pub host: &'b str,
    pub port: Option<u16>,
}

impl<'b> Authority<'b> {
    /// `None` where it is empty or has a byte no host has.
    pub fn parse(bytes: &'b [u8]) -> Option<Self> {
        let host_len = match bytes.first()? {
            b'[' => ipv6_literal_len(bytes)?,
            _ => bytes.iter().position(|&byte| !HOST_BYTES[usize::from(byte)]).unwrap_or(bytes.len()),
        };
        let port = match &bytes[host_len..] {
            _ if host_len == 0 => return None,
            // RFC 3986 §3.2.3 lets the port be empty after its colon.
            [] | [b':'] => None,
            [b':', digits @ ..] => Some(parse_port(digits)?),
            _ => return None,
        };
        let text = std::str::from_utf8(bytes).ok()?;
        Some(Self { text, host: &text[..host_len], port })
    }
}

/// The length of `[address]` at the start of `bytes`.
fn ipv6_literal_len(bytes: &[u8]) -> Option<usize> {
    // 45: the longest text of an IPv6 address, with an IPv4 address as its tail.
    let end = bytes.iter().take(47).position(|&byte| byte == b']')?;
    std::str::from_utf8(&bytes[1..end]).ok()?.parse::<Ipv6Addr>().ok()?;
    Some(end + 1)
}

fn parse_port(digits: &[u8]) -> Option<u16> {
    if digits.len() > 5 {
        return None;
    }
    digits.iter().try_fold(0_u16, |port, &digit| {
        let digit = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        port.checked_mul(10)?.checked_add(digit)
    })
}

/// Unreserved characters (RFC 3986 §2.3). Sub-delims and percent-encoding are allowed by the grammar of a
/// registered name, appear in no name anyone resolves, and separate lists elsewhere.
static HOST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'-' | b'.' | b'_' | b'~');
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_split_from_their_ports() {
        for (text, host, port) in [
            ("example.com", "example.com", None),
            ("EXAMPLE.com:8080", "EXAMPLE.com", Some(8080)),
            ("a:", "a", None),
            ("192.0.2.1:80", "192.0.2.1", Some(80)),
            ("[::1]:443", "[::1]", Some(443)),
            ("[2001:db8::192.0.2.1]", "[2001:db8::192.0.2.1]", None),
            ("my_service.local", "my_service.local", None),
        ] {
            assert_eq!(Authority::parse(text.as_bytes()), Some(Authority { text, host, port }), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            ":80",
            "a, b",
            "a/b",
            "u@a",
            "a b",
            "a:b",
            "a:80:80",
            "a:99999",
            "a:+1",
            "[::1",
            "[::1]x",
            "[1.2.3.4]",
            "[fe80::1%25eth0]",
            "a%2eb",
            "a#",
            "a?b",
            "a\\b",
            "é",
            "a\0",
            "[]",
            "*",
        ] {
            assert_eq!(Authority::parse(text.as_bytes()), None, "{text}");
        }
    }
}
