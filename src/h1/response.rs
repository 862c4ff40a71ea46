//! Response heads from upstreams, which are trusted no more than clients: a head is taken whole or is a 502.
//! Never decides whether to try another upstream.

use crate::h1::head::{Facts, FieldLines, FieldSet, FieldSlots, HeadLimits, Parsed, collect, reject_fields};
use crate::http::field_kind::{FieldKind, classify};
use crate::http::framing::{BodyFraming, decide_response};
use crate::http::{Reject, Version};
use crate::limits;

/// A response head that is safe to forward. Borrows the received bytes.
#[derive(Clone, Debug)]
pub struct ResponseHead<'h, 'b> {
    /// 100–599.
    pub status: u16,
    pub version: Version,
    /// As sent; empty where it was absent or not ASCII.
    pub reason: &'b str,
    /// Bytes of the head, with the empty line at its end: the body starts there.
    pub head_len: usize,
    pub framing: BodyFraming,
    /// The length announced, also where no body follows (answer to HEAD, 304).
    pub content_length: Option<u64>,
    /// Whether this connection may carry another exchange once the body was read: false after `Connection: close`,
    /// lengths that contradict, a body that ends by closing, and 101.
    pub keep_alive: bool,
    /// A 1xx other than 101: the final response is still to come.
    pub interim: bool,
    /// 101. Valid only in answer to an upgrade that was forwarded: where none was, the session answers 502.
    pub upgrade: bool,
    pub has_date: bool,
    pub(super) lines: FieldLines<'h, 'b>,
    pub(super) dropped: FieldSet,
    pub(super) trailer: FieldSet,
}

impl<'h, 'b> ResponseHead<'h, 'b> {
    /// All fields, in order, as sent.
    pub fn fields(&self) -> &'h [httparse::Header<'b>] {
        self.lines.fields
    }

    /// The value of the first field of this name (any case).
    pub fn field(&self, name: &str) -> Option<&'b [u8]> {
        self.lines.find(name)
    }
}

/// Parses the response head at the start of `bytes`. Every refusal is a 502.
pub fn parse_response<'h, 'b>(
    bytes: &'b [u8],
    slots: &'h mut FieldSlots<'b>,
    limits: &HeadLimits,
    request_was_head: bool,
) -> Result<Parsed<ResponseHead<'h, 'b>>, Reject> {
    match bytes.first() {
        None => return Ok(Parsed::Partial),
        Some(b'H') => {}
        // httparse would skip empty lines. An upstream sends none: they are the rest of another response.
        Some(_) => return Err(Reject::BAD_STATUS_LINE.by_upstream()),
    }
    let window = &bytes[..bytes.len().min(limits.head_bytes_max)];
    let fields_max = limits.fields_max.min(limits::FIELDS_CEILING);
    let mut response = httparse::Response::new(&mut []);
    let outcome = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        window,
        &mut slots.0[..fields_max],
    );
    match (outcome, response) {
        (
            Ok(httparse::Status::Complete(len)),
            httparse::Response { version: Some(version), code: Some(status), reason, headers },
        ) => {
            let (lines, facts) = collect(&window[..len], headers).map_err(Reject::by_upstream)?;
            let version = if version == 0 { Version::Http10 } else { Version::Http11 };
            judge(status, version, reason.unwrap_or_default(), request_was_head, lines, &facts)
                .map(Parsed::Complete)
        }
        (Err(error), _) => Err(reject_fields(error, Reject::BAD_STATUS_LINE).by_upstream()),
        (Ok(_), _) if window.len() < limits.head_bytes_max => Ok(Parsed::Partial),
        (Ok(_), _) => Err(Reject::HEAD_TOO_LARGE.by_upstream()),
    }
}

/// How to frame a response's body for a client of this version. HTTP/1.0 has no chunks, so its connection closes
/// after the body; an HTTP/1.1 client keeps its connection though the upstream's closes.
pub fn framing_to_client(head: &ResponseHead, client_version: Version) -> BodyFraming {
    match (head.framing, client_version) {
        (BodyFraming::Chunked, Version::Http10) => BodyFraming::UntilClose,
        (BodyFraming::UntilClose, Version::Http11) => BodyFraming::Chunked,
        (framing, _) => framing,
    }
}

#[inline]
fn judge<'h, 'b>(
    status: u16,
    version: Version,
    reason: &'b str,
    request_was_head: bool,
    lines: FieldLines<'h, 'b>,
    facts: &Facts<'b>,
) -> Result<ResponseHead<'h, 'b>, Reject> {
    if !(100..=599).contains(&status) {
        return Err(Reject::BAD_STATUS_LINE.by_upstream());
    }
    let decided = decide_response(version, status, request_was_head, &facts.lengths)?;
    let upgrade = status == 101;
    let asked_to_stay =
        !facts.connection.close && (version == Version::Http11 || facts.connection.keep_alive);
    // 101 and 426 are the two that must say which protocol (RFC 9110 §15.2.2, §15.5.22).
    let keeps_upgrade = matches!(status, 101 | 426);
    let mut dropped = if keeps_upgrade { facts.dropped } else { facts.dropped.union(&facts.upgrades) };
    // Of no use to a client, and an endpoint that echoes it would show one client's field to what caches for many.
    for index in facts.forwarded.iter() {
        if classify(lines.fields[index].name.as_bytes()) == FieldKind::ForwardedClientCert {
            dropped.insert(index);
        }
    }
    Ok(ResponseHead {
        status,
        version,
        reason,
        head_len: lines.len(),
        framing: decided.framing,
        content_length: decided.content_length,
        keep_alive: asked_to_stay
            && decided.consistent
            && !upgrade
            && decided.framing != BodyFraming::UntilClose,
        interim: status < 200 && !upgrade,
        upgrade,
        has_date: facts.has_date,
        lines,
        dropped,
        trailer: facts.trailer,
    })
}

/// Fuzzing: any bytes get a verdict without a panic, and what is accepted is accepted again once written.
pub fn fuzz_response_head(bytes: &[u8]) {
    for request_was_head in [false, true] {
        let mut slots = FieldSlots::new();
        match parse_response(bytes, &mut slots, &HeadLimits::default(), request_was_head) {
            Err(reject) => assert_eq!(reject.status, 502),
            Ok(Parsed::Partial) => {}
            Ok(Parsed::Complete(head)) => {
                crate::h1::rewritten::check_response(&head, request_was_head);
            }
        }
    }
}
