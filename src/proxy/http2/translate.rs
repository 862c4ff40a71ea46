//! Heads and trailers between HTTP/2 and the neutral form, which is that of HTTP/1.1. Pure. Refuses what HTTP/2 forbids
//! and HTTP/1.1 has no word for; all else is left to the one parser of heads. Never decides where a body ends: it
//! writes down what the frames said, and the parser decides.

use std::net::SocketAddr;

use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};

use crate::base::field_edits::FieldEdits;
use crate::h1::{RequestHead, ResponseHead, response_fields};
use crate::http::field_kind::{FieldKind, classify, is_forbidden_in_trailer};
use crate::http::{BodyFraming, decimal, is_protocol, is_token_byte, write_decimal};
use crate::limits;

use super::super::tunnel::Opening;
use super::usual_fields::{self, UsualFields};

/// A message that HTTP/2 calls malformed (RFC 9113 §8.1.1): the stream is reset, nothing of it goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Malformed;

/// Appends a request's head in the neutral form. `ended`: no DATA follows it.
///
/// # Errors
/// Where the request is malformed.
pub(super) fn write_request(
    out: &mut Vec<u8>,
    head: &http::request::Parts,
    ended: bool,
) -> Result<(), Malformed> {
    let authority = authority(head)?;
    let protocol = head.extensions.get::<Protocol>().map(Protocol::as_str);
    // RFC 8441 §5: what HTTP/1.1 asks for with GET and Upgrade.
    let method = if protocol.is_some() { Method::GET.as_str() } else { head.method.as_str() };
    write_token(out, method.as_bytes())?;
    out.push(b' ');
    if head.method == Method::CONNECT && protocol.is_none() {
        // RFC 9113 §8.5: the crate has seen that there is neither path nor scheme.
        write_visible(out, authority.ok_or(Malformed)?)?;
    } else {
        let path = head.uri.path_and_query().map_or("", |path| path.as_str());
        let names_the_server = path == "*" && head.method == Method::OPTIONS;
        if !path.starts_with('/') && !names_the_server {
            return Err(Malformed);
        }
        write_visible(out, path.as_bytes())?;
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(authority) = authority {
        out.extend_from_slice(b"host: ");
        write_visible(out, authority)?;
        out.extend_from_slice(b"\r\n");
    }
    let mut length = None;
    for (name, value) in &head.headers {
        match classify(name.as_str().as_bytes()) {
            FieldKind::Host => {}
            FieldKind::ContentLength if name == header::CONTENT_LENGTH => {
                length = Some(value.as_bytes());
                write_field(out, name, value)?;
            }
            FieldKind::Te if !value.as_bytes().eq_ignore_ascii_case(b"trailers") => return Err(Malformed),
            kind if is_of_a_connection(kind) => return Err(Malformed),
            FieldKind::Other if name == header::COOKIE => {}
            FieldKind::Other if protocol.is_some() && is_of_a_handshake(name) => {}
            _ => write_field(out, name, value)?,
        }
    }
    write_cookies(out, &head.headers)?;
    if let Some(protocol) = protocol {
        if !is_protocol(protocol) {
            return Err(Malformed);
        }
        out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
        out.extend_from_slice(protocol.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    // What follows CONNECT is no body (RFC 9113 §8.5).
    if head.method != Method::CONNECT {
        let wants_length = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        write_framing(out, length, ended, wants_length)?;
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Appends a response's head in the neutral form. `bodyless`: what was asked or answered has none. `opening`: the tunnel
/// that it opens.
///
/// # Errors
/// Where the response is malformed.
pub(super) fn write_response(
    out: &mut Vec<u8>,
    head: &http::response::Parts,
    ended: bool,
    bodyless: bool,
    opening: Option<&Opening>,
) -> Result<(), Malformed> {
    let mut switching = Vec::new();
    let mut write = |name: &str, value: &str| {
        switching.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    };
    let switches = opening.is_some_and(|opening| opening.switching_fields(&mut write).is_some());
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, if switches { 101 } else { u64::from(head.status.as_u16()) });
    out.extend_from_slice(if switches { b" Switching Protocols\r\n" } else { b" \r\n" });
    out.extend_from_slice(&switching);
    let mut length = None;
    for (name, value) in &head.headers {
        match classify(name.as_str().as_bytes()) {
            FieldKind::ContentLength if opening.is_some() => {}
            _ if opening.is_some() && is_of_a_handshake(name) => {}
            FieldKind::ContentLength if name == header::CONTENT_LENGTH => {
                length = Some(value.as_bytes());
                write_field(out, name, value)?;
            }
            kind if is_of_a_connection(kind) => return Err(Malformed),
            _ => write_field(out, name, value)?,
        }
    }
    if !bodyless {
        write_framing(out, length, ended, true)?;
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// The authority asked for: `:authority`, else `Host`, which must say the same where both are there (RFC 9113 §8.3.1).
fn authority(head: &http::request::Parts) -> Result<Option<&[u8]>, Malformed> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(Malformed);
    }
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    match (authority, host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => Err(Malformed),
        (authority, host) => Ok(authority.or(host)),
    }
}

/// Fields that mean something to one HTTP/1.1 connection (RFC 9113 §8.2.2).
const fn is_of_a_connection(kind: FieldKind) -> bool {
    matches!(
        kind,
        FieldKind::Connection | FieldKind::HopByHop | FieldKind::TransferEncoding | FieldKind::Upgrade
    )
}

/// Fields with which the two sides of a WebSocket convince each other in HTTP/1.1 (RFC 8441 §5).
fn is_of_a_handshake(name: &HeaderName) -> bool {
    *name == header::SEC_WEBSOCKET_KEY || *name == header::SEC_WEBSOCKET_ACCEPT
}

/// Says in the words of HTTP/1.1 where the frames end the body. `wants_length`: an absent body is told as such.
fn write_framing(
    out: &mut Vec<u8>,
    length: Option<&[u8]>,
    ended: bool,
    wants_length: bool,
) -> Result<(), Malformed> {
    match (length, ended) {
        (None, false) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        (None, true) if wants_length => out.extend_from_slice(b"content-length: 0\r\n"),
        // RFC 9113 §8.1.1: a length that the DATA frames do not add up to.
        (Some(length), true) if length.iter().any(|&digit| digit != b'0') => return Err(Malformed),
        _ => {}
    }
    Ok(())
}

/// RFC 9113 §8.2.3: crumbs are one field to everybody else.
fn write_cookies(out: &mut Vec<u8>, fields: &HeaderMap) -> Result<(), Malformed> {
    let mut separator: &[u8] = b"cookie: ";
    for crumb in fields.get_all(header::COOKIE) {
        out.extend_from_slice(separator);
        write_value(out, crumb.as_bytes())?;
        separator = b"; ";
    }
    if separator == b"; " {
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

fn write_field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) -> Result<(), Malformed> {
    let name = name.as_str().as_bytes();
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    write_value(out, value.as_bytes())?;
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// RFC 9113 §8.2.1: no white space at either end. That no control character ends a line is what [`HeaderValue`] promises,
/// and the parser of what is written here sees to it again.
fn write_value(out: &mut Vec<u8>, value: &[u8]) -> Result<(), Malformed> {
    let at_the_ends = [value.first(), value.last()];
    if at_the_ends.into_iter().flatten().any(|byte| matches!(byte, b' ' | b'\t')) {
        return Err(Malformed);
    }
    out.extend_from_slice(value);
    Ok(())
}

fn write_token(out: &mut Vec<u8>, token: &[u8]) -> Result<(), Malformed> {
    if token.is_empty() || !token.iter().copied().all(is_token_byte) {
        return Err(Malformed);
    }
    out.extend_from_slice(token);
    Ok(())
}

/// What stands in a request line: no space, no control character.
fn write_visible(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f)) {
        return Err(Malformed);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// The request that goes to an endpoint in HTTP/2, from the head that would go there in HTTP/1.1. `None` where a part
/// of it has no place in HTTP/2.
pub(super) fn request(
    head: &RequestHead<'_, '_>,
    scheme: &str,
    te_trailers: bool,
    usual: &UsualFields,
) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method.as_bytes()).ok()?;
    *request.version_mut() = Version::HTTP_2;
    let mut parts = uri::Parts::default();
    parts.authority = Some(Authority::try_from(head.authority).ok()?);
    if head.method != "CONNECT" {
        parts.scheme = Some(Scheme::try_from(scheme).ok()?);
        parts.path_and_query = Some(path_and_query(head.target.path(), head.target.query())?);
    }
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    if let Some(protocol) = head.upgrade {
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from(protocol));
    }
    let fields = request.headers_mut();
    // Host and what frames a body are none here: a map for one field too many can be of twice the size.
    let none_here = 1 + usize::from(head.framing == BodyFraming::Chunked);
    fields.reserve(head.fields().len().saturating_sub(none_here) + usize::from(te_trailers));
    for field in head.fields() {
        let name = field.name.as_bytes();
        match classify(name) {
            FieldKind::Host
            | FieldKind::Connection
            | FieldKind::HopByHop
            | FieldKind::Te
            | FieldKind::TransferEncoding
            | FieldKind::Upgrade => {}
            _ if head.upgrade.is_some() && name.eq_ignore_ascii_case(b"sec-websocket-key") => {}
            _ => append(fields, usual.field(name, field.value))?,
        }
    }
    if te_trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Some(request)
}

fn path_and_query(path: &str, query: Option<&str>) -> Option<PathAndQuery> {
    if query.is_none() && !path.bytes().any(is_encoded) {
        return PathAndQuery::try_from(path).ok();
    }
    let mut target = String::with_capacity(path.len() + query.map_or(0, str::len) + 16);
    push_encoded(&mut target, path);
    if let Some(query) = query {
        target.push('?');
        push_encoded(&mut target, query);
    }
    PathAndQuery::try_from(target).ok()
}

/// What stands in no target (RFC 3986 §2), is let pass all the same in HTTP/1.1 and refused by readers of HTTP/2.
const fn is_encoded(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`')
}

/// Appends a part of a target, percent-encoded where it has to be: it means the same (RFC 3986 §2.1).
fn push_encoded(target: &mut String, part: &str) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let mut rest = part;
    while let Some(at) = rest.bytes().position(is_encoded) {
        let byte = usize::from(rest.as_bytes()[at]);
        target.push_str(&rest[..at]);
        target.extend(['%', HEX[byte >> 4 & 15], HEX[byte & 15]]);
        rest = &rest[at + 1..];
    }
    target.push_str(rest);
}

/// A head that was written for HTTP/1.1 to no host, as HTTP/1.0 may ask, made one to `endpoint`. `None` where it has one.
pub(super) fn with_host(head: &[u8], endpoint: SocketAddr) -> Option<Vec<u8>> {
    const NO_HOST: &[u8] = b"Host: \r\n";
    let line_len = memchr::memchr(b'\n', head)? + 1;
    let rest = head[line_len..].strip_prefix(NO_HOST)?;
    let host = endpoint.to_string();
    Some([&head[..line_len], b"Host: ", host.as_bytes(), b"\r\n", rest].concat())
}

/// The response that goes to a client in HTTP/2. `None` where a part of it has no place there.
pub(super) fn response(
    head: &ResponseHead<'_, '_>,
    edits: &FieldEdits,
    date: Option<&str>,
    usual: &UsualFields,
) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).ok()?;
    *response.version_mut() = Version::HTTP_2;
    let fields = response.headers_mut();
    let length = match head.framing {
        BodyFraming::Length(length) => Some(length),
        BodyFraming::None => head.content_length,
        BodyFraming::Chunked | BodyFraming::UntilClose => None,
    };
    fields.reserve(head.fields().len() + edits.appended().count() + usize::from(date.is_some()));
    if let Some(length) = length {
        append(fields, decimal(length, |digits| usual.field(b"content-length", digits)))?;
    }
    let mut fits = true;
    response_fields(head, edits, date, |name, value| {
        if !matches!(classify(name), FieldKind::Upgrade) {
            fits &= append(fields, usual.field(name, value)).is_some();
        }
    });
    fits.then_some(response)
}

fn append(fields: &mut HeaderMap, field: Option<(HeaderName, HeaderValue)>) -> Option<()> {
    let (name, value) = field?;
    fields.try_append(name, value).ok()?;
    Some(())
}

/// Appends trailer fields in the form of a chunked body's trailer section, those left out that must not be there
/// (RFC 9110 §6.5.1).
///
/// # Errors
/// Where one is malformed, or all together are too large.
pub(super) fn write_trailers(out: &mut Vec<u8>, trailers: &HeaderMap) -> Result<(), Malformed> {
    if trailers.len() > limits::TRAILER_FIELDS_MAX {
        return Err(Malformed);
    }
    for (name, value) in trailers {
        if !is_forbidden_in_trailer(name.as_str().as_bytes()) {
            write_field(out, name, value)?;
        }
    }
    if out.len() > limits::TRAILER_BYTES_MAX { Err(Malformed) } else { Ok(()) }
}

/// Trailer fields from a trailer section; what has no place in HTTP/2 is left out.
pub(super) fn trailers(section: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in section.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let (name, value) = (&line[..colon], crate::http::trim_ows(&line[colon + 1..]));
        if !is_forbidden_in_trailer(name) {
            let _ = append(&mut fields, usual_fields::plain(name, value));
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h1::{FieldSlots, HeadLimits, Parsed, parse_request, parse_response};

    fn neutral(request: Request<()>, ended: bool) -> Result<String, Malformed> {
        let mut out = Vec::new();
        write_request(&mut out, &request.into_parts().0, ended)?;
        let text = String::from_utf8(out).unwrap();
        let mut slots = FieldSlots::new();
        let parsed = parse_request(text.as_bytes(), &mut slots, &HeadLimits::default());
        assert!(matches!(parsed, Ok(Parsed::Complete(_))), "{parsed:?}");
        Ok(text)
    }

    fn get() -> http::request::Builder {
        Request::builder().uri("http://a.test/x?y")
    }

    #[test]
    fn a_request_becomes_the_head_it_would_have_been_in_http1() {
        let request = get().header("accept", "*/*").body(()).unwrap();
        assert_eq!(
            neutral(request, true).unwrap(),
            "GET /x?y HTTP/1.1\r\nhost: a.test\r\naccept: */*\r\n\r\n"
        );
        let request = get().method("POST").body(()).unwrap();
        assert!(neutral(request, false).unwrap().ends_with("transfer-encoding: chunked\r\n\r\n"));
        let request = get().method("POST").body(()).unwrap();
        assert!(neutral(request, true).unwrap().ends_with("content-length: 0\r\n\r\n"));
        let request = get().method("POST").header("content-length", "7").body(()).unwrap();
        assert!(neutral(request, false).unwrap().ends_with("content-length: 7\r\n\r\n"));
    }

    #[test]
    fn cookie_crumbs_are_joined() {
        let request =
            get().header("cookie", "a=1").header("x", "y").header("cookie", "b=2").body(()).unwrap();
        assert!(neutral(request, true).unwrap().ends_with("x: y\r\ncookie: a=1; b=2\r\n\r\n"));
    }

    #[test]
    fn a_host_field_counts_where_there_is_no_authority_and_must_agree_where_there_is() {
        let request = Request::builder().uri("/x").header("host", "b.test").body(()).unwrap();
        assert!(neutral(request, true).unwrap().contains("\r\nhost: b.test\r\n"));
        assert!(neutral(get().header("host", "A.test").body(()).unwrap(), true).is_ok());
        assert_eq!(neutral(get().header("host", "b.test").body(()).unwrap(), true), Err(Malformed));
        let twice = get().header("host", "a.test").header("host", "a.test").body(()).unwrap();
        assert_eq!(neutral(twice, true), Err(Malformed));
    }

    #[test]
    fn what_http2_forbids_is_malformed() {
        for (name, value) in [
            ("connection", "close"),
            ("keep-alive", "1"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            ("x", " a"),
            ("x", "a\t"),
            ("content-length", "3"),
        ] {
            let request = get().header(name, value).body(()).unwrap();
            assert_eq!(neutral(request, true), Err(Malformed), "{name}: {value}");
        }
        assert!(neutral(get().header("te", "trailers").body(()).unwrap(), true).is_ok());
        let mut request = get().body(()).unwrap();
        *request.uri_mut() = Uri::from_static("*");
        assert_eq!(neutral(request, true), Err(Malformed));
    }

    #[test]
    fn a_head_without_host_gets_one() {
        let named =
            with_host(b"GET / HTTP/1.1\r\nHost: \r\nX: y\r\n\r\n", "[::1]:80".parse().unwrap()).unwrap();
        assert_eq!(named, b"GET / HTTP/1.1\r\nHost: [::1]:80\r\nX: y\r\n\r\n");
        assert_eq!(with_host(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "1.2.3.4:5".parse().unwrap()), None);
    }

    fn parsed_response(text: &str, check: impl Fn(&ResponseHead<'_, '_>)) {
        let mut slots = FieldSlots::new();
        match parse_response(text.as_bytes(), &mut slots, &HeadLimits::default(), false) {
            Ok(Parsed::Complete(head)) => check(&head),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_response_keeps_its_fields_and_loses_those_of_its_connection() {
        let text = "HTTP/1.1 200 OK\r\nConnection: close, X-Own\r\nX-Own: 1\r\nX-A: b\r\nSet-Cookie: c\r\n\
                    Set-Cookie: d\r\nTransfer-Encoding: chunked\r\nKeep-Alive: 5\r\n\r\n";
        parsed_response(text, |head| {
            let response =
                response(head, &FieldEdits::default(), Some("now"), &UsualFields::default()).unwrap();
            let fields: Vec<_> =
                response.headers().iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
            assert_eq!(fields, [("x-a", "b"), ("set-cookie", "c"), ("set-cookie", "d"), ("date", "now")]);
        });
    }

    #[test]
    fn a_response_in_http2_is_written_with_the_framing_of_its_frames() {
        for (length, ended, bodyless, want) in [
            (None, false, false, "transfer-encoding: chunked\r\n"),
            (None, true, false, "content-length: 0\r\n"),
            (Some("4"), false, false, "content-length: 4\r\n"),
            (Some("4"), true, true, "content-length: 4\r\n"),
            (None, true, true, ""),
        ] {
            let mut response = Response::builder().status(200);
            if let Some(length) = length {
                response = response.header("content-length", length);
            }
            let (head, ()) = response.body(()).unwrap().into_parts();
            let mut out = Vec::new();
            write_response(&mut out, &head, ended, bodyless, None).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), format!("HTTP/1.1 200 \r\n{want}\r\n"));
        }
        let (head, ()) = Response::builder().header("content-length", "4").body(()).unwrap().into_parts();
        assert_eq!(write_response(&mut Vec::new(), &head, true, false, None), Err(Malformed));
    }

    #[test]
    fn trailers_cross_without_those_that_must_not() {
        let fields = trailers(b"grpc-status: 0\r\nContent-Length: 4\r\nX-Sum:  abc \r\n");
        let mut out = Vec::new();
        write_trailers(&mut out, &fields).unwrap();
        assert_eq!(out, b"grpc-status: 0\r\nx-sum: abc\r\n");
    }

    proptest::proptest! {
        /// No field, method or target makes another field or another line of it.
        #[test]
        fn what_is_written_is_read_back_field_by_field(
            method in "[A-Z]{1,8}",
            path in "/[ -~]{0,12}",
            fields in proptest::collection::vec(("[a-z][a-z0-9-]{0,6}", "[\\t -~\u{80}-\u{ff}]{0,8}"), 0..6),
            ended: bool,
        ) {
            let mut request = Request::builder().method(method.as_str()).uri("http://a.test/");
            if let Ok(uri) = Uri::builder().scheme("http").authority("a.test").path_and_query(path.as_str()).build() {
                request = request.uri(uri);
            }
            for (name, value) in &fields {
                request = request.header(name, value);
            }
            let Ok(request) = request.body(()) else { return Ok(()) };
            let (head, ()) = request.into_parts();
            let mut out = Vec::new();
            if write_request(&mut out, &head, ended).is_err() {
                return Ok(());
            }
            let mut slots = FieldSlots::new();
            if let Ok(parsed) = parse_request(&out, &mut slots, &HeadLimits::default()) {
                let Parsed::Complete(parsed) = parsed else { panic!("a head that does not end: {out:?}") };
                proptest::prop_assert_eq!(parsed.head_len, out.len());
                proptest::prop_assert_eq!(parsed.method, head.method.as_str());
                for (name, value) in head.headers.iter().filter(|(name, _)| *name != header::COOKIE) {
                    let found = parsed.fields().iter().any(|field| {
                        field.name == name.as_str() && field.value == value.as_bytes()
                    });
                    proptest::prop_assert!(found, "{} {:?}", name, value);
                }
                // Beside them only those that we write: the host, and one that frames.
                proptest::prop_assert!(parsed.fields().len() <= head.headers.len() + 2);
            }
        }
    }
}
