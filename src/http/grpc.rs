//! What a gateway must know of gRPC (its "gRPC over HTTP2" specification): which messages are its, what a deadline says,
//! how a failure is told. Pure; never looks into a message.

use std::time::Duration;

/// The highest status code of gRPC.
const CODE_MAX: u8 = 16;
pub const DEADLINE_EXCEEDED: u8 = 4;
pub const UNAVAILABLE: u8 = 14;

/// Whether a `Content-Type` is gRPC's: `application/grpc`, perhaps with `+proto` or parameters. Not `grpc-web`.
pub fn is_grpc(content_type: &[u8]) -> bool {
    const NAME: &[u8] = b"application/grpc";
    content_type.len() >= NAME.len()
        && content_type[..NAME.len()].eq_ignore_ascii_case(NAME)
        && matches!(content_type.get(NAME.len()), None | Some(b'+' | b';' | b' '))
}

/// The time that a `grpc-timeout` leaves: up to eight digits and a unit. `None` where it is none.
pub fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(count * 3_600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The code for an HTTP status of our own ("HTTP to gRPC Status Code Mapping", with our words for what we know better).
pub const fn code_for_status(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 | 405 | 501 => 12,
        408 => DEADLINE_EXCEEDED,
        413 | 431 => 8,
        429 | 502..=504 => UNAVAILABLE,
        _ => 2,
    }
}

/// The number of a `grpc-status`, 0 to 16; `None` where it is not one of them.
pub fn parse_code(value: &[u8]) -> Option<u8> {
    let code = match *value {
        [digit @ b'0'..=b'9'] => digit - b'0',
        [b'1', digit @ b'0'..=b'9'] => 10 + digit - b'0',
        _ => return None,
    };
    (code <= CODE_MAX).then_some(code)
}

/// Appends a `grpc-message`: percent-encoded where a byte is not printable ASCII, or is `%`.
pub fn write_message(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(byte);
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_proper_is_grpc() {
        for good in ["application/grpc", "application/grpc+proto", "Application/gRPC; x=y"] {
            assert!(is_grpc(good.as_bytes()), "{good}");
        }
        for other in ["application/grpc-web", "application/grpcs", "application/json", ""] {
            assert!(!is_grpc(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn timeouts_have_digits_and_a_unit() {
        for (text, millis) in
            [("1H", 3_600_000), ("2M", 120_000), ("3S", 3_000), ("00000150m", 150), ("5000u", 5)]
        {
            assert_eq!(parse_timeout(text.as_bytes()), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse_timeout(b"7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S"] {
            assert_eq!(parse_timeout(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn codes_are_numbers_up_to_sixteen() {
        for code in 0..=CODE_MAX {
            assert_eq!(parse_code(code.to_string().as_bytes()), Some(code));
        }
        for bad in ["", "17", "-1", "x", "00", "161"] {
            assert_eq!(parse_code(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_message_is_percent_encoded_where_it_must_be() {
        let mut out = Vec::new();
        write_message(&mut out, "50 % fällt\n");
        assert_eq!(out, b"50 %25 f%C3%A4llt%0A");
    }
}
