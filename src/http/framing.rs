//! The one decision where a body ends. Taken once per message; both sides' framing is written from it and never
//! copied from the sender's fields, so that no two parsers can read one message two ways (RFC 9112 §6.3).

use crate::http::reject::Reject;
use crate::http::{Version, trim_ows};

/// Where the body of a message ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BodyFraming {
    /// There is no body.
    None,
    /// This many bytes.
    Length(u64),
    /// The chunked transfer coding.
    Chunked,
    /// Until the sender closes. Responses only: a request is never read to its close (CVE-2026-2835).
    UntilClose,
}

impl BodyFraming {
    /// Whether a body byte can follow.
    pub fn has_body(self) -> bool {
        !matches!(self, Self::None | Self::Length(0))
    }
}

/// What one message says about its length, as found in its fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct LengthFields<'b> {
    pub content_length: Option<&'b [u8]>,
    /// Whether a later `Content-Length` line repeats the first.
    pub content_length_repeated: bool,
    /// Whether a later `Content-Length` line has another value.
    pub content_length_differs: bool,
    pub transfer_encoding: Option<&'b [u8]>,
    pub transfer_encoding_repeated: bool,
}

impl<'b> LengthFields<'b> {
    pub fn add_content_length(&mut self, value: &'b [u8]) {
        match self.content_length {
            None => self.content_length = Some(value),
            Some(first) => {
                self.content_length_repeated = true;
                self.content_length_differs |= first != value;
            }
        }
    }

    pub fn add_transfer_encoding(&mut self, value: &'b [u8]) {
        self.transfer_encoding_repeated = self.transfer_encoding.is_some();
        self.transfer_encoding = self.transfer_encoding.or(Some(value));
    }
}

/// Decides the framing of a request's body.
pub fn decide_request(version: Version, fields: &LengthFields) -> Result<BodyFraming, Reject> {
    match (fields.transfer_encoding, fields.content_length) {
        (None, None) => Ok(BodyFraming::None),
        (None, Some(_)) if fields.content_length_repeated => Err(Reject::DUPLICATE_CONTENT_LENGTH),
        (None, Some(length)) => {
            parse_length(length).map(BodyFraming::Length).ok_or(Reject::BAD_CONTENT_LENGTH)
        }
        // RFC 9112 §6.1: a transfer coding in HTTP/1.0 is faulty framing, whatever else is there.
        (Some(_), _) if version == Version::Http10 => Err(Reject::TRANSFER_ENCODING_IN_HTTP10),
        // RFC 9112 §6.3: both lengths present; whichever reading we forward, the next hop may choose the other.
        (Some(_), Some(_)) => Err(Reject::AMBIGUOUS_LENGTH),
        (Some(coding), None) => decide_coding(coding, fields.transfer_encoding_repeated),
    }
}

/// How a response ends, and what that means for its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ResponseFraming {
    pub framing: BodyFraming,
    /// A valid length given, also where it announces no body (answer to HEAD, 304). Never for 1xx and 204.
    pub content_length: Option<u64>,
    /// Whether the lengths given agree, so that the connection may carry another response.
    pub consistent: bool,
}

/// Decides the framing of a response's body. The rejects are 502: an upstream is at fault.
pub fn decide_response(
    version: Version,
    status: u16,
    request_was_head: bool,
    fields: &LengthFields,
) -> Result<ResponseFraming, Reject> {
    if fields.content_length_differs {
        return Err(Reject::DUPLICATE_CONTENT_LENGTH.by_upstream());
    }
    let mut content_length = match fields.content_length {
        None => None,
        Some(value) => Some(parse_repeated_length(value).ok_or(Reject::BAD_CONTENT_LENGTH.by_upstream())?),
    };
    let mut chunked = false;
    let mut consistent = true;
    if let Some(coding) = fields.transfer_encoding {
        if version == Version::Http10 {
            return Err(Reject::TRANSFER_ENCODING_IN_HTTP10.by_upstream());
        }
        decide_coding(coding, fields.transfer_encoding_repeated).map_err(Reject::by_upstream)?;
        chunked = true;
        // RFC 9112 §6.3 item 3: the transfer coding wins, and the connection is not trusted after it.
        consistent = content_length.take().is_none();
    }
    let never_a_body = matches!(status, 100..=199 | 204);
    if never_a_body {
        content_length = None;
    }
    let framing = if never_a_body || status == 304 || request_was_head {
        BodyFraming::None
    } else if chunked {
        BodyFraming::Chunked
    } else {
        content_length.map_or(BodyFraming::UntilClose, BodyFraming::Length)
    };
    Ok(ResponseFraming { framing, content_length, consistent })
}

/// RFC 9110 §8.6: `1*DIGIT`, no sign, no list. Above 2^63 − 1 it is an attack, not a length.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 20 {
        return None;
    }
    let mut length = 0_u64;
    for byte in value {
        if !byte.is_ascii_digit() {
            return None;
        }
        length = length.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
    }
    (length <= i64::MAX as u64).then_some(length)
}

/// A list of equal lengths is one length (RFC 9112 §6.3 item 5). Taken from upstreams only.
fn parse_repeated_length(value: &[u8]) -> Option<u64> {
    let mut lengths = value.split(|&b| b == b',').map(|item| parse_length(trim_ows(item)));
    let first = lengths.next()??;
    lengths.all(|next| next == Some(first)).then_some(first)
}

fn decide_coding(value: &[u8], repeated: bool) -> Result<BodyFraming, Reject> {
    if repeated {
        return Err(Reject::BAD_TRANSFER_ENCODING);
    }
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(BodyFraming::Chunked);
    }
    Err(if is_unimplemented_coding(value) {
        Reject::UNKNOWN_TRANSFER_CODING
    } else {
        Reject::BAD_TRANSFER_ENCODING
    })
}

/// Registered codings, alone or before a final `chunked`: well formed, but not ours to undo (RFC 9112 §7).
fn is_unimplemented_coding(value: &[u8]) -> bool {
    const REGISTERED: [&[u8]; 5] = [b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress"];
    let mut items = value.split(|&b| b == b',').map(trim_ows).peekable();
    let mut registered = 0;
    while let Some(item) = items.next() {
        if REGISTERED.iter().any(|name| name.eq_ignore_ascii_case(item)) {
            registered += 1;
        } else if !item.eq_ignore_ascii_case(b"chunked") || items.peek().is_some() {
            return false;
        }
    }
    registered > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths<'b>(content_length: Option<&'b str>, transfer_encoding: Option<&'b str>) -> LengthFields<'b> {
        let mut fields = LengthFields::default();
        content_length.into_iter().for_each(|value| fields.add_content_length(value.as_bytes()));
        transfer_encoding.into_iter().for_each(|value| fields.add_transfer_encoding(value.as_bytes()));
        fields
    }

    #[test]
    fn lengths_are_digits_only_and_do_not_overflow() {
        for good in ["0", "5", "010", "00", "9223372036854775807"] {
            assert_eq!(parse_length(good.as_bytes()), good.parse().ok(), "{good}");
        }
        for bad in
            ["", "+5", "-1", "-0", "0x5", "0o5", "5_0", "5 0", "1e1", "５", "5,5", "9223372036854775808"]
        {
            assert_eq!(parse_length(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_length(b"18446744073709551616"), None);
        assert_eq!(parse_length(&[b'9'; 40]), None);
    }

    #[test]
    fn no_request_with_two_framings_is_accepted() {
        for coding in ["chunked", "gzip", "identity", ""] {
            for length in ["0", "5", "x", ""] {
                for version in [Version::Http10, Version::Http11] {
                    assert!(decide_request(version, &lengths(Some(length), Some(coding))).is_err());
                }
            }
        }
    }

    #[test]
    fn registered_codings_are_not_implemented_and_malformed_ones_are_bad() {
        let decide = |coding| decide_request(Version::Http11, &lengths(None, Some(coding)));
        assert_eq!(decide("ChunKed"), Ok(BodyFraming::Chunked));
        for coding in ["gzip", "gzip, chunked", "Deflate,chunked"] {
            assert_eq!(decide(coding), Err(Reject::UNKNOWN_TRANSFER_CODING), "{coding}");
        }
        for coding in [
            "xchunked",
            "identity",
            "chunked, gzip",
            "chunked, chunked",
            "",
            ", chunked",
            "\"chunked\"",
            "chunked;a=b",
            "chunked,",
            "\x0bchunked",
        ] {
            assert_eq!(decide(coding), Err(Reject::BAD_TRANSFER_ENCODING), "{coding}");
        }
    }

    #[test]
    fn a_response_with_both_lengths_is_chunked_and_not_reused() {
        let decided =
            decide_response(Version::Http11, 200, false, &lengths(Some("5"), Some("chunked"))).unwrap();
        assert_eq!(decided.framing, BodyFraming::Chunked);
        assert!(!decided.consistent && decided.content_length.is_none());
    }

    #[test]
    fn equal_lengths_of_an_upstream_are_one_length_and_others_are_502() {
        let decide = |length| decide_response(Version::Http11, 200, false, &lengths(Some(length), None));
        assert_eq!(decide("5, 5").unwrap().framing, BodyFraming::Length(5));
        for length in ["5, 6", "", "x", "-1", "5,", "99999999999999999999"] {
            assert_eq!(decide(length).unwrap_err().status, 502, "{length}");
        }
    }

    #[test]
    fn responses_without_a_body_keep_only_a_length_that_may_be_told() {
        let decide =
            |status, head| decide_response(Version::Http11, status, head, &lengths(Some("9"), None)).unwrap();
        for (status, head, told) in
            [(200, true, Some(9)), (304, false, Some(9)), (204, false, None), (103, false, None)]
        {
            let decided = decide(status, head);
            assert_eq!((decided.framing, decided.content_length), (BodyFraming::None, told), "{status}");
        }
        assert_eq!(decide(200, false).framing, BodyFraming::Length(9));
    }
}
