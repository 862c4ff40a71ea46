//! The words of HTTP that no version owns: framing, field names, authority, path, our own answers.
//! Pure: reads no clock and no socket; a protocol engine (`h1`) brings bytes, `proxy` brings time.

pub mod answer;
pub mod authority;
pub mod cookie;
pub mod date;
pub mod field_kind;
pub mod forwarded;
pub mod framing;
pub mod grpc;
pub mod path;
pub mod reject;
pub mod traceparent;
pub mod websocket;

pub use answer::{Prepared, write_answer};
pub use authority::Authority;
pub use field_kind::FieldKind;
pub use forwarded::{Forwarded, ForwardedPolicy};
pub use framing::BodyFraming;
pub use path::normalize_path;
pub use reject::Reject;
pub use traceparent::{TracePolicy, Traceparent};

/// The versions an HTTP/1 message may carry. Anything else is rejected with 505.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Version {
    Http10,
    Http11,
}

impl Version {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
        }
    }
}

/// Hands out the digits of a number without the formatting machinery, which costs more than the rest of a short head.
pub fn decimal<T>(mut number: u64, take: impl FnOnce(&[u8]) -> T) -> T {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    take(&digits[at..])
}

/// Appends a decimal number.
pub fn write_decimal(out: &mut Vec<u8>, number: u64) {
    decimal(number, |digits| out.extend_from_slice(digits));
}

/// Whether this byte may stand in a token: method, field name, connection option (RFC 9110 §5.6.2).
pub const fn is_token_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*'
        | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

/// Whether this names a protocol to change to: a token, perhaps with a version behind a slash (RFC 9110 §7.8).
pub fn is_protocol(text: &str) -> bool {
    let is_token = |text: &str| !text.is_empty() && text.bytes().all(is_token_byte);
    match text.split_once('/') {
        Some((name, version)) => is_token(name) && is_token(version),
        None => is_token(text),
    }
}

/// Strips optional white space, SP and HTAB only (RFC 9110 §5.6.3). `u8::is_ascii_whitespace` would also take
/// form feed, which is a way to smuggle.
pub fn trim_ows(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_written_in_full() {
        for number in [0, 7, 10, 999, 1_000, u64::MAX] {
            let mut out = Vec::new();
            write_decimal(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }

    #[test]
    fn only_space_and_tab_are_optional_white_space() {
        assert_eq!(trim_ows(b" \t a b \t"), b"a b");
        assert_eq!(trim_ows(b"\x0ca"), b"\x0ca");
        assert_eq!(trim_ows(b"  "), b"");
    }
}
