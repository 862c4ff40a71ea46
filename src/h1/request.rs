//! Request heads. Either a head is taken whole, with every fact a proxy needs found in it, or it is refused with
//! one reason: nothing is repaired. Never decides where a request goes.

use crate::h1::head::{Facts, FieldLines, FieldSet, FieldSlots, HeadLimits, Parsed, collect, reject_fields};
use crate::h1::target::{Target, is_target_byte};
use crate::http::framing::{BodyFraming, decide_request};
use crate::http::websocket::WEBSOCKET;
use crate::http::{Authority, Reject, Version, is_protocol, is_token_byte};
use crate::limits;

/// A request head that is safe to route and to forward. Borrows the received bytes.
#[derive(Clone, Debug)]
pub struct RequestHead<'h, 'b> {
    /// As sent: never changed to upper case.
    pub method: &'b str,
    pub target: Target<'b>,
    pub version: Version,
    /// Bytes of the head, with the empty line at its end: the body starts there.
    pub head_len: usize,
    /// `host[:port]` the request is for: that of the target where it has one, else `Host`. Empty only in HTTP/1.0
    /// without `Host`.
    pub authority: &'b str,
    /// `authority` without the port. Any case; an IPv6 address in brackets.
    pub host: &'b str,
    pub framing: BodyFraming,
    /// Whether the client lets this connection carry another request.
    pub keep_alive: bool,
    /// The client waits for a 100 before it sends its body. The writer forwards the expectation where this is true:
    /// whoever answers it here sets it to false before writing.
    pub expect_continue: bool,
    /// The one protocol that the client asks to change to, in a way that may be forwarded: in HTTP/1.1, without a
    /// body, listed in `Connection`, for WebSocket with `GET`. Every other upgrade is stripped (RFC 9110 §7.8 lets a
    /// server ignore it), and so is this one unless the writer finds it here.
    pub upgrade: Option<&'b str>,
    /// May be sent twice (RFC 9110 §9.2.2).
    pub idempotent: bool,
    pub is_head: bool,
    /// Of `OPTIONS` and `TRACE` only. At 0 the request is answered here; else the writer forwards one less.
    pub max_forwards: Option<u32>,
    /// The client says it reads trailer fields.
    pub te_trailers: bool,
    pub(super) lines: FieldLines<'h, 'b>,
    pub(super) dropped: FieldSet,
    pub(super) forwarded: FieldSet,
    pub(super) trailer: FieldSet,
}

impl<'h, 'b> RequestHead<'h, 'b> {
    /// All fields, in order, as sent.
    pub fn fields(&self) -> &'h [httparse::Header<'b>] {
        self.lines.fields
    }

    /// The value of the first field of this name (any case).
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        self.lines.find(name)
    }
}

/// Parses the request head at the start of `bytes`. The verdict on some bytes stands whatever follows them.
pub fn parse_request<'h, 'b>(
    bytes: &'b [u8],
    slots: &'h mut FieldSlots<'b>,
    limits: &HeadLimits,
) -> Result<Parsed<RequestHead<'h, 'b>>, Reject> {
    // RFC 9112 §2.2: one empty line before a request is tolerated. httparse would skip any number of them.
    let skipped = match bytes {
        [] | [b'\r'] => return Ok(Parsed::Partial),
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    };
    let window = &bytes[skipped..bytes.len().min(skipped + limits.head_bytes_max)];
    if matches!(window, [b'\r' | b'\n', ..]) {
        return Err(Reject::BAD_REQUEST_LINE);
    }
    let fields_max = limits.fields_max.min(limits::FIELDS_CEILING);
    let mut request = httparse::Request::new(&mut []);
    let outcome = request.parse_with_uninit_headers(window, &mut slots.0[..fields_max]);
    match (outcome, request) {
        (
            Ok(httparse::Status::Complete(len)),
            httparse::Request { method: Some(method), path: Some(path), version: Some(version), headers },
        ) if method.len() <= limits::METHOD_BYTES_MAX && path.len() <= limits.target_bytes_max => {
            let (lines, facts) = collect(&window[..len], headers)?;
            let version = if version == 0 { Version::Http10 } else { Version::Http11 };
            judge(method, path, version, lines, &facts).map(|mut head| {
                head.head_len += skipped;
                Parsed::Complete(head)
            })
        }
        (outcome, request) => judge_unfinished(window, outcome, &request, limits),
    }
}

/// The checks that need the whole head.
#[inline]
fn judge<'h, 'b>(
    method: &'b str,
    target: &'b str,
    version: Version,
    lines: FieldLines<'h, 'b>,
    facts: &Facts<'b>,
) -> Result<RequestHead<'h, 'b>, Reject> {
    let target = Target::parse(target, method)?;
    let (authority, host) = judge_host(version, &target, facts)?;
    let framing = decide_request(version, &facts.lengths)?;
    let expect_continue = judge_expect(version, framing, facts)?;
    let limits_hops = matches!(method, "OPTIONS" | "TRACE");
    if method == "TRACE" && framing != BodyFraming::None {
        return Err(Reject::TRACE_WITH_BODY);
    }
    let mut dropped = facts.dropped.union(&facts.upgrades);
    let mut max_forwards = None;
    if limits_hops && let Some(value) = facts.max_forwards {
        max_forwards = Some(parse_max_forwards(value).ok_or(Reject::BAD_MAX_FORWARDS)?);
        let all = lines.fields.iter().enumerate();
        all.filter(|(_, field)| field.name.eq_ignore_ascii_case("max-forwards"))
            .for_each(|(index, _)| dropped.insert(index));
    }
    let connection = facts.connection;
    Ok(RequestHead {
        method,
        target,
        version,
        head_len: lines.len(),
        authority,
        host,
        framing,
        keep_alive: !connection.close && (version == Version::Http11 || connection.keep_alive),
        expect_continue,
        upgrade: if connection.upgrade { asked_protocol(method, version, framing, facts) } else { None },
        idempotent: matches!(method, "GET" | "HEAD" | "PUT" | "DELETE" | "OPTIONS" | "TRACE"),
        is_head: method == "HEAD",
        max_forwards,
        te_trailers: facts.te_trailers,
        lines,
        dropped,
        forwarded: facts.forwarded,
        trailer: facts.trailer,
    })
}

/// RFC 9112 §3.2: exactly one valid `Host` in HTTP/1.1. A target's own authority wins over it (§3.2.2).
#[inline]
fn judge_host<'b>(
    version: Version,
    target: &Target<'b>,
    facts: &Facts<'b>,
) -> Result<(&'b str, &'b str), Reject> {
    if facts.host_repeated {
        return Err(Reject::DUPLICATE_HOST);
    }
    let sent = match facts.host {
        Some(value) => Some(Authority::parse(value).ok_or(Reject::BAD_HOST)?),
        None if version == Version::Http10 => None,
        None => return Err(Reject::MISSING_HOST),
    };
    let effective = match target {
        Target::Absolute { authority, .. } | Target::Authority(authority) => Some(*authority),
        Target::Origin { .. } | Target::Asterisk => sent,
    };
    Ok(effective.map_or(("", ""), |authority| (authority.text, authority.host)))
}

/// RFC 9110 §10.1.1: `100-continue` is the only expectation, and HTTP/1.0 has none.
#[inline]
fn judge_expect(version: Version, framing: BodyFraming, facts: &Facts) -> Result<bool, Reject> {
    let Some(value) = facts.expect else { return Ok(false) };
    if facts.expect_repeated || !value.eq_ignore_ascii_case(b"100-continue") {
        return Err(Reject::EXPECTATION);
    }
    Ok(version == Version::Http11 && framing.has_body())
}

/// h2c would carry requests past every rule here (RFC 9113 §3.1 has done away with it); of a list of protocols nobody
/// knows which one the answer will mean.
fn asked_protocol<'b>(
    method: &str,
    version: Version,
    framing: BodyFraming,
    facts: &Facts<'b>,
) -> Option<&'b str> {
    if version != Version::Http11 || framing.has_body() || facts.upgrade_repeated || method == "CONNECT" {
        return None;
    }
    let protocol = std::str::from_utf8(facts.upgrade?).ok()?;
    if protocol.eq_ignore_ascii_case(WEBSOCKET) {
        return (method == "GET").then_some(WEBSOCKET);
    }
    (is_protocol(protocol) && !protocol.eq_ignore_ascii_case("h2c")).then_some(protocol)
}

/// Saturates: a larger number than fits is still "many".
fn parse_max_forwards(value: &[u8]) -> Option<u32> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        value
            .iter()
            .fold(0_u32, |hops, digit| hops.saturating_mul(10).saturating_add(u32::from(digit - b'0'))),
    )
}

/// A head that is not complete, not well formed, or longer than allowed. Checks go by position in the bytes, so
/// that the same bytes get the same verdict however they were split on the way.
#[cold]
fn judge_unfinished<T>(
    window: &[u8],
    outcome: Result<httparse::Status<usize>, httparse::Error>,
    request: &httparse::Request,
    limits: &HeadLimits,
) -> Result<Parsed<T>, Reject> {
    let method_len = window.iter().position(|&byte| !is_token_byte(byte)).unwrap_or(window.len());
    if method_len > limits::METHOD_BYTES_MAX {
        return Err(Reject::BAD_METHOD);
    }
    if let Some(method) = request.method {
        let target = &window[method.len() + 1..];
        let target_len = target.iter().position(|&byte| !is_target_byte(byte)).unwrap_or(target.len());
        if target_len > limits.target_bytes_max {
            return Err(Reject::TARGET_TOO_LONG);
        }
    }
    match outcome {
        Err(httparse::Error::Version) => judge_version(window, request),
        Err(error) => Err(reject_fields(
            error,
            match (request.method, request.path) {
                (None, _) => Reject::BAD_REQUEST_LINE,
                (_, None) => Reject::BAD_TARGET,
                _ => Reject::BAD_REQUEST_LINE,
            },
        )),
        Ok(_) if window.len() < limits.head_bytes_max => Ok(Parsed::Partial),
        Ok(_) if request.path.is_none() => Err(Reject::TARGET_TOO_LONG),
        Ok(_) => Err(Reject::HEAD_TOO_LARGE),
    }
}

/// `HTTP/` digit `.` digit is a version, if not one of ours; anything else is none (RFC 9112 §2.3).
fn judge_version<T>(window: &[u8], request: &httparse::Request) -> Result<Parsed<T>, Reject> {
    const PATTERN: &[u8; 8] = b"HTTP/0.0";
    let start = request.method.map_or(0, str::len) + request.path.map_or(0, str::len) + 2;
    let version = &window[start..window.len().min(start + PATTERN.len())];
    let fits = version.iter().zip(PATTERN).all(|(byte, want)| match want {
        b'0' => byte.is_ascii_digit(),
        _ => byte == want,
    });
    match fits {
        true if version.len() < PATTERN.len() => Ok(Parsed::Partial),
        true => Err(Reject::VERSION_NOT_SUPPORTED),
        false => Err(Reject::BAD_VERSION),
    }
}

/// Fuzzing: any bytes get a verdict without a panic, the verdict does not depend on what follows, and what is
/// accepted is accepted again once written.
pub fn fuzz_request_head(bytes: &[u8]) {
    let limits = HeadLimits::default();
    let mut slots = FieldSlots::new();
    let verdict = parse_request(bytes, &mut slots, &limits);
    let mut longer = bytes.to_vec();
    longer.extend_from_slice(b"\r\n\r\n\0");
    let mut longer_slots = FieldSlots::new();
    let longer_verdict = parse_request(&longer, &mut longer_slots, &limits);
    match verdict {
        Err(reject) => assert_eq!(longer_verdict.err(), Some(reject)),
        Ok(Parsed::Partial) => {}
        Ok(Parsed::Complete(head)) => {
            assert!(matches!(longer_verdict, Ok(Parsed::Complete(again)) if again.head_len == head.head_len));
            crate::h1::rewritten::check_request(&head);
        }
    }
}
