//! Which fields mean something to a proxy, found by length and first letter so that all others cost one jump.
//! Names only: what a value means is decided by whoever asked.

/// What a field is to a proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FieldKind {
    Connection,
    ContentLength,
    Date,
    Expect,
    /// `Forwarded`, `X-Real-IP`, `X-Request-Id` and every `X-Forwarded-*` that has no kind of its own.
    ForwardedOther,
    /// `X-Forwarded-Client-Cert`: asserts an identity, so only a trusted proxy may send it.
    ForwardedClientCert,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    Host,
    /// `Keep-Alive`, `Proxy-Connection`, `HTTP2-Settings`: meant for one hop, whatever `Connection` says.
    HopByHop,
    MaxForwards,
    Other,
    Te,
    Trailer,
    TransferEncoding,
    /// `Content_Length` and its like: a CGI-style backend reads `_` as `-`, we do not.
    UnderscoredFraming,
    Upgrade,
}

/// Classifies a field name, which must be a valid token (any case).
#[inline]
pub fn classify(name: &[u8]) -> FieldKind {
    match name.len() {
        2 if is(name, b"te") => FieldKind::Te,
        4 if is(name, b"host") => FieldKind::Host,
        4 if is(name, b"date") => FieldKind::Date,
        6 if is(name, b"expect") => FieldKind::Expect,
        7 if is(name, b"upgrade") => FieldKind::Upgrade,
        7 if is(name, b"trailer") => FieldKind::Trailer,
        9 if is(name, b"forwarded") || is_dashed(name, b"x-real-ip") => FieldKind::ForwardedOther,
        10 if is(name, b"connection") => FieldKind::Connection,
        10 if is(name, b"keep-alive") => FieldKind::HopByHop,
        12 if is(name, b"max-forwards") => FieldKind::MaxForwards,
        12 if is_dashed(name, b"x-request-id") => FieldKind::ForwardedOther,
        14 if is_dashed(name, b"content-length") => unless_underscored(name, FieldKind::ContentLength),
        14 if is(name, b"http2-settings") => FieldKind::HopByHop,
        16 if is(name, b"proxy-connection") => FieldKind::HopByHop,
        17 if is_dashed(name, b"transfer-encoding") => unless_underscored(name, FieldKind::TransferEncoding),
        13.. if name[0] | 0x20 == b'x' => classify_forwarded(name),
        _ => FieldKind::Other,
    }
}

/// Whether the engine alone writes this field (framing, hop by hop, `Host`). Configured edits of such fields
/// are refused by `config` and ignored by the writers.
pub fn is_engine_owned(name: &[u8]) -> bool {
    matches!(
        classify(name),
        FieldKind::Connection
            | FieldKind::ContentLength
            | FieldKind::Host
            | FieldKind::HopByHop
            | FieldKind::Te
            | FieldKind::TransferEncoding
            | FieldKind::UnderscoredFraming
            | FieldKind::Upgrade
    )
}

/// Whether this field must not be merged or forwarded from a trailer section (RFC 9110 §6.5.1): framing,
/// routing, authentication, request modifiers, content format, and what only a trusted hop may say.
pub fn is_forbidden_in_trailer(name: &[u8]) -> bool {
    const FORBIDDEN: [&str; 24] = [
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "expires",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "retry-after",
        "set-cookie",
        "vary",
        "via",
        "warning",
        "www-authenticate",
    ];
    classify(name) != FieldKind::Other
        || FORBIDDEN.iter().any(|forbidden| forbidden.as_bytes().eq_ignore_ascii_case(name))
}

fn classify_forwarded(name: &[u8]) -> FieldKind {
    match name.len() {
        15 if is_dashed(name, b"x-forwarded-for") => FieldKind::ForwardedFor,
        16 if is_dashed(name, b"x-forwarded-host") => FieldKind::ForwardedHost,
        17 if is_dashed(name, b"x-forwarded-proto") => FieldKind::ForwardedProto,
        23 if is_dashed(name, b"x-forwarded-client-cert") => FieldKind::ForwardedClientCert,
        _ if is_dashed(&name[..12], b"x-forwarded-") => FieldKind::ForwardedOther,
        _ => FieldKind::Other,
    }
}

fn unless_underscored(name: &[u8], kind: FieldKind) -> FieldKind {
    if name.contains(&b'_') { FieldKind::UnderscoredFraming } else { kind }
}

/// Case-insensitive equality with a lower-case name of letters, digits and `-`. Setting bit 5 is an exact fold
/// there, because a token has no control characters; the fixed length lets the compiler compare whole words.
#[inline(always)]
fn is<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    name[0] | 0x20 == lower[0]
        && name.iter().zip(lower).fold(0, |differ, (byte, want)| differ | ((byte | 0x20) ^ want)) == 0
}

/// As [`is`], taking `_` for `-`, because backends that build variable names from fields do.
#[inline(always)]
fn is_dashed<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte | 0x20 };
    name[0] | 0x20 == lower[0]
        && name.iter().zip(lower).fold(0, |differ, (byte, want)| differ | (fold(*byte) ^ want)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [(&str, FieldKind); 23] = [
        ("te", FieldKind::Te),
        ("host", FieldKind::Host),
        ("date", FieldKind::Date),
        ("expect", FieldKind::Expect),
        ("upgrade", FieldKind::Upgrade),
        ("trailer", FieldKind::Trailer),
        ("forwarded", FieldKind::ForwardedOther),
        ("x-real-ip", FieldKind::ForwardedOther),
        ("x-request-id", FieldKind::ForwardedOther),
        ("connection", FieldKind::Connection),
        ("keep-alive", FieldKind::HopByHop),
        ("max-forwards", FieldKind::MaxForwards),
        ("content-length", FieldKind::ContentLength),
        ("http2-settings", FieldKind::HopByHop),
        ("proxy-connection", FieldKind::HopByHop),
        ("transfer-encoding", FieldKind::TransferEncoding),
        ("x-forwarded-for", FieldKind::ForwardedFor),
        ("x-forwarded-host", FieldKind::ForwardedHost),
        ("x-forwarded-proto", FieldKind::ForwardedProto),
        ("x-forwarded-port", FieldKind::ForwardedOther),
        ("x-forwarded-by", FieldKind::ForwardedOther),
        ("x-forwarded-client-cert", FieldKind::ForwardedClientCert),
        ("x-request-ide", FieldKind::Other),
    ];

    #[test]
    fn known_names_are_found_in_any_case_and_near_misses_are_not() {
        for (name, kind) in NAMES {
            assert_eq!(classify(name.as_bytes()), kind, "{name}");
            assert_eq!(classify(name.to_ascii_uppercase().as_bytes()), kind, "{name}");
            if !name.starts_with("x-forwarded-") {
                let mut near = name.as_bytes().to_vec();
                *near.last_mut().unwrap() = b'~';
                assert_eq!(classify(&near), FieldKind::Other, "{name}");
            }
        }
        assert_eq!(classify(b"x-forwarded-"), FieldKind::Other);
    }

    #[test]
    fn an_underscore_makes_no_second_framing_field() {
        for name in ["Content_Length", "TRANSFER_ENCODING"] {
            assert_eq!(classify(name.as_bytes()), FieldKind::UnderscoredFraming);
        }
        assert_eq!(classify(b"X_Forwarded_For"), FieldKind::ForwardedFor);
        assert_eq!(classify(b"x_forwarded-client_cert"), FieldKind::ForwardedClientCert);
        assert_eq!(classify(b"my_field"), FieldKind::Other);
    }

    #[test]
    fn trailers_may_not_frame_route_or_authenticate() {
        for name in ["Content-Length", "transfer-encoding", "Host", "Authorization", "Content-Type", "TE"] {
            assert!(is_forbidden_in_trailer(name.as_bytes()), "{name}");
        }
        for name in ["grpc-status", "x-checksum", "server-timing", "etag"] {
            assert!(!is_forbidden_in_trailer(name.as_bytes()), "{name}");
        }
    }
}
