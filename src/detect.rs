//! What a connection speaks, by its first bytes: for ports on which more than one protocol is welcome. Never consumes
//! anything, and never judges whether what follows is valid: that is the business of the protocol's own parser.

/// The client connection preface of HTTP/2 (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `ContentType.handshake` (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// What the bytes so far can be taken for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum First {
    /// More bytes are needed. After 24 bytes there is always an answer.
    Undecided,
    /// A TLS record of the handshake, of whatever version (RFC 8446 §5.1). SSLv2's hello is `Other`.
    Tls,
    /// The beginning of a method, or the empty line that may stand before it (RFC 9112 §2.2).
    Http1,
    /// The whole preface of HTTP/2 with prior knowledge.
    Http2Preface,
    Other,
}

/// Judges the first bytes of a connection, all that came so far. More bytes never change an answer once it is not
/// `Undecided`.
pub fn first(bytes: &[u8]) -> First {
    match bytes {
        [] | [HANDSHAKE] => First::Undecided,
        // RFC 8446 §5.1: legacy_record_version; its major byte has been 3 since SSLv3.
        [HANDSHAKE, 3, ..] => First::Tls,
        _ if bytes.starts_with(HTTP2_PREFACE) => First::Http2Preface,
        _ if HTTP2_PREFACE.starts_with(bytes) => First::Undecided,
        [b'\r' | b'\n', ..] => First::Http1,
        [byte, ..] if is_token(*byte) => First::Http1,
        _ => First::Other,
    }
}

/// `tchar` of RFC 9110 §5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Holds for any input: an answer stays the answer when more bytes come, and 24 bytes are enough for one.
///
/// # Panics
/// Where it does not hold.
pub fn fuzz_first(bytes: &[u8]) {
    let answers: Vec<First> = (0..=bytes.len().min(32)).map(|len| first(&bytes[..len])).collect();
    for pair in answers.windows(2) {
        assert!(pair[0] == First::Undecided || pair[0] == pair[1], "{pair:?} for {bytes:?}");
    }
    assert!(answers.get(HTTP2_PREFACE.len()) != Some(&First::Undecided), "undecided: {bytes:?}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_handshake_record_of_any_version_is_tls_from_its_second_byte() {
        assert_eq!(first(&[22]), First::Undecided);
        assert_eq!(first(&[22, 3]), First::Tls);
        assert_eq!(first(&[22, 3, 1, 2, 0]), First::Tls);
        assert_eq!(first(&[22, 3, 4]), First::Tls);
        assert_eq!(first(&[22, 2]), First::Other);
    }

    #[test]
    fn other_records_and_the_hello_of_sslv2_are_not_tls() {
        assert_eq!(first(&[21, 3, 1]), First::Other);
        assert_eq!(first(&[23, 3, 3]), First::Other);
        assert_eq!(first(&[0x80, 0x2e, 1, 0, 2]), First::Other);
    }

    #[test]
    fn the_preface_is_told_from_a_method_that_begins_like_it() {
        for len in 0..HTTP2_PREFACE.len() {
            assert_eq!(first(&HTTP2_PREFACE[..len]), First::Undecided, "{len}");
        }
        assert_eq!(first(HTTP2_PREFACE), First::Http2Preface);
        assert_eq!(first(&[HTTP2_PREFACE, &[0, 0, 18, 4][..]].concat()), First::Http2Preface);
        assert_eq!(first(b"PRINT"), First::Http1);
        assert_eq!(first(b"PRI * HTTP/2.0\r\nHost: a"), First::Http1);
        assert_eq!(first(b"PATCH"), First::Http1);
    }

    #[test]
    fn a_method_or_an_empty_line_is_http1() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"g", b"\r", b"\r\nGET /", b"\nGET /", b"M-SEARCH"] {
            assert_eq!(first(bytes), First::Http1, "{bytes:?}");
        }
        for bytes in [&b" GET"[..], b"\0", b"(", b"\x7f", b"\xff"] {
            assert_eq!(first(bytes), First::Other, "{bytes:?}");
        }
    }

    #[test]
    fn nothing_is_undecided() {
        assert_eq!(first(b""), First::Undecided);
    }

    proptest! {
        #[test]
        fn an_answer_stays_when_more_bytes_come(
            start in 0..=24usize,
            rest in proptest::collection::vec(any::<u8>(), 0..32),
        ) {
            fuzz_first(&rest);
            fuzz_first(&[&HTTP2_PREFACE[..start], &rest].concat());
        }
    }
}
