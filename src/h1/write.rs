//! Heads written towards the other side. Framing, `Host` and `Connection` are made from what was decided, never
//! copied; hop-by-hop fields and those that `Connection` listed stay behind; then our own fields, then the route's
//! edits. Appends to one buffer and allocates nothing else.

use crate::base::field_edits::FieldEdits;
use crate::h1::chunked::{LAST_CHUNK, trailer_lines};
use crate::h1::head::{FieldLines, FieldSet};
use crate::h1::request::RequestHead;
use crate::h1::response::ResponseHead;
use crate::http::field_kind::{FieldKind, classify, is_engine_owned, is_forbidden_in_trailer};
use crate::http::forwarded::write_ip;
use crate::http::{BodyFraming, Forwarded, ForwardedPolicy, Version, write_decimal};

/// Appends the head of `head`'s request as it goes upstream, always as HTTP/1.1. `path_and_query` and `authority`
/// are what routing made of the head's own; valid and without control characters.
pub fn write_request(
    out: &mut Vec<u8>,
    head: &RequestHead,
    path_and_query: (&str, Option<&str>),
    authority: &str,
    forwarded: &Forwarded,
    edits: &FieldEdits,
) {
    let (path, query) = path_and_query;
    let own_len = edits_len(edits) + forwarded.client_cert.map_or(0, str::len);
    out.reserve(head.head_len + path.len() + query.map_or(0, str::len) + 2 * authority.len() + 320 + own_len);
    out.extend_from_slice(head.method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_bytes());
    if let Some(query) = query {
        out.push(b'?');
        out.extend_from_slice(query.as_bytes());
    }
    // RFC 9110 §7.2: Host first, and made from the target that was routed by.
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(authority.as_bytes());
    out.extend_from_slice(b"\r\n");

    let mut without = head.dropped;
    if head.framing != BodyFraming::Chunked {
        without = without.union(&head.trailer);
    }
    if !head.forwarded.is_empty() {
        drop_forwarded(&mut without, head, forwarded.policy);
    }
    drop_edited(&mut without, &head.lines, edits);
    if forwarded.traceparent.is_some() {
        drop_trace(&mut without, &head.lines);
    }
    head.lines.copy(out, &without);

    write_framing(out, head.framing, None);
    if head.expect_continue {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
    if let Some(hops) = head.max_forwards {
        out.extend_from_slice(b"Max-Forwards: ");
        write_decimal(out, u64::from(hops.saturating_sub(1)));
        out.extend_from_slice(b"\r\n");
    }
    if let Some(protocol) = head.upgrade {
        out.extend_from_slice(b"Connection: Upgrade\r\n");
        write_field(out, b"Upgrade", protocol.as_bytes());
    }
    write_forwarded(out, head, forwarded, edits);
    if let Some(traceparent) = forwarded.traceparent
        && !edits.drops(b"traceparent")
    {
        write_field(out, b"traceparent", traceparent);
    }
    write_edits(out, edits);
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of `head`'s response as it goes to a client of `client_version`. `framing_to_client` is how the
/// body will be sent (see `framing_to_client` beside `ResponseHead`); a body that ends by closing overrides
/// `keep_alive`. `date` is added where the upstream sent none (RFC 9110 §6.6.1).
pub fn write_response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    framing_to_client: BodyFraming,
    client_version: Version,
    keep_alive: bool,
    edits: &FieldEdits,
    date: Option<&str>,
) {
    out.reserve(head.head_len + 192 + edits_len(edits));
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, u64::from(head.status));
    out.push(b' ');
    out.extend_from_slice(head.reason.as_bytes());
    out.extend_from_slice(b"\r\n");

    let mut without = head.dropped;
    if head.framing != BodyFraming::Chunked || framing_to_client != BodyFraming::Chunked {
        without = without.union(&head.trailer);
    }
    if !head.interim {
        drop_edited(&mut without, &head.lines, edits);
    }
    head.lines.copy(out, &without);

    if head.upgrade {
        out.extend_from_slice(b"Connection: Upgrade\r\n");
        write_edits(out, edits);
    }
    if head.interim || head.upgrade {
        out.extend_from_slice(b"\r\n");
        return;
    }
    write_framing(out, framing_to_client, head.content_length);
    let stays = keep_alive && framing_to_client != BodyFraming::UntilClose;
    write_connection(out, stays, client_version, head.status == 426);
    if let Some(date) = date
        && !head.has_date
        && !edits.drops(b"date")
    {
        write_field(out, b"Date", date.as_bytes());
    }
    write_edits(out, edits);
    out.extend_from_slice(b"\r\n");
}

/// Calls `visit` with the name and value of each field that goes to a client of another version: those of the
/// connection and of framing left out, the route's edits and a date put in as `write_response` does.
pub fn response_fields(
    head: &ResponseHead,
    edits: &FieldEdits,
    date: Option<&str>,
    mut visit: impl FnMut(&[u8], &[u8]),
) {
    for (index, field) in head.lines.fields.iter().enumerate() {
        let stays_behind = head.dropped.contains(index)
            || (head.framing != BodyFraming::Chunked && head.trailer.contains(index))
            || (!head.interim && edits.drops(field.name.as_bytes()));
        if !stays_behind {
            visit(field.name.as_bytes(), field.value);
        }
    }
    if head.interim {
        return;
    }
    if let Some(date) = date
        && !head.upgrade
        && !head.has_date
        && !edits.drops(b"date")
    {
        visit(b"date", date.as_bytes());
    }
    for (name, value) in edits.appended().filter(|(name, _)| !is_engine_owned(name.as_bytes())) {
        visit(name.as_bytes(), value.as_bytes());
    }
}

/// Appends the end of a chunked body with the trailer fields that may pass (RFC 9110 §6.5.1). `trailers` is what a
/// decoder kept; empty where there is none.
pub fn write_last_chunk(out: &mut Vec<u8>, trailers: &[u8]) {
    if trailers.is_empty() {
        out.extend_from_slice(LAST_CHUNK);
        return;
    }
    out.reserve(LAST_CHUNK.len() + trailers.len());
    out.extend_from_slice(b"0\r\n");
    for (line, name_len) in trailer_lines(trailers) {
        if !is_forbidden_in_trailer(&line[..name_len]) {
            out.extend_from_slice(line);
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn write_framing(out: &mut Vec<u8>, framing: BodyFraming, told_without_body: Option<u64>) {
    let length = match framing {
        BodyFraming::Length(length) => Some(length),
        BodyFraming::None => told_without_body,
        BodyFraming::Chunked => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
            None
        }
        BodyFraming::UntilClose => None,
    };
    if let Some(length) = length {
        out.extend_from_slice(b"Content-Length: ");
        write_decimal(out, length);
        out.extend_from_slice(b"\r\n");
    }
}

/// Says only what is not the default of the client's version.
fn write_connection(out: &mut Vec<u8>, stays: bool, client_version: Version, upgrade_required: bool) {
    let line: &[u8] = match (stays, client_version, upgrade_required) {
        (true, Version::Http11, false) => b"",
        (true, Version::Http11, true) => b"Connection: Upgrade\r\n",
        (true, Version::Http10, _) => b"Connection: keep-alive\r\n",
        (false, Version::Http11, true) => b"Connection: close, Upgrade\r\n",
        (false, _, _) => b"Connection: close\r\n",
    };
    out.extend_from_slice(line);
}

/// Takes out what the policy does not let pass of the fields about the client.
fn drop_forwarded(without: &mut FieldSet, head: &RequestHead, policy: ForwardedPolicy) {
    for index in head.forwarded.iter() {
        let name = head.lines.fields[index].name.as_bytes();
        let drops = match policy {
            ForwardedPolicy::Replace => true,
            // Written anew as one line. A trusted proxy passes on spellings that it does not know: not so here.
            ForwardedPolicy::Append => {
                matches!(classify(name), FieldKind::ForwardedFor | FieldKind::ForwardedClientCert)
                    || name.contains(&b'_')
            }
            // Asserts an identity: the policy cannot let it pass.
            ForwardedPolicy::Off => classify(name) == FieldKind::ForwardedClientCert,
        };
        if drops {
            without.insert(index);
        }
    }
}

fn write_forwarded(out: &mut Vec<u8>, head: &RequestHead, forwarded: &Forwarded, edits: &FieldEdits) {
    if forwarded.policy == ForwardedPolicy::Off {
        return;
    }
    let appends = forwarded.policy == ForwardedPolicy::Append && !head.forwarded.is_empty();
    let (mut has_proto, mut has_host, mut has_client_cert) = (false, false, false);
    let writes_for = !edits.drops(b"x-forwarded-for");
    if writes_for {
        out.extend_from_slice(b"X-Forwarded-For: ");
    }
    if appends {
        for index in head.forwarded.iter().filter(|&index| !head.dropped.contains(index)) {
            let field = &head.lines.fields[index];
            if field.name.contains('_') {
                continue;
            }
            match classify(field.name.as_bytes()) {
                FieldKind::ForwardedProto => has_proto = true,
                FieldKind::ForwardedHost => has_host = true,
                FieldKind::ForwardedClientCert => has_client_cert |= !field.value.is_empty(),
                FieldKind::ForwardedFor if writes_for && !field.value.is_empty() => {
                    out.extend_from_slice(field.value);
                    out.extend_from_slice(b", ");
                }
                _ => {}
            }
        }
    }
    if writes_for {
        write_ip(out, forwarded.client_ip);
        out.extend_from_slice(b"\r\n");
    }
    if !has_proto && !edits.drops(b"x-forwarded-proto") {
        write_field(out, b"X-Forwarded-Proto", forwarded.proto.as_bytes());
    }
    if !has_host && !head.authority.is_empty() && !edits.drops(b"x-forwarded-host") {
        write_field(out, b"X-Forwarded-Host", head.authority.as_bytes());
    }
    if (has_client_cert || forwarded.client_cert.is_some()) && !edits.drops(b"x-forwarded-client-cert") {
        write_client_cert(out, head, forwarded.client_cert, has_client_cert);
    }
}

/// `appends`: those of a trusted proxy come first, in one line, as Envoy's `APPEND_FORWARD` has it.
fn write_client_cert(out: &mut Vec<u8>, head: &RequestHead, own: Option<&str>, appends: bool) {
    out.extend_from_slice(b"X-Forwarded-Client-Cert: ");
    let received = head.forwarded.iter().filter(|&index| appends && !head.dropped.contains(index));
    let received = received.map(|index| &head.lines.fields[index]).filter(|field| {
        classify(field.name.as_bytes()) == FieldKind::ForwardedClientCert && !field.name.contains('_')
    });
    let elements = received.map(|field| field.value).chain(own.map(str::as_bytes));
    for (index, element) in elements.filter(|element| !element.is_empty()).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(element);
    }
    out.extend_from_slice(b"\r\n");
}

/// Both fields belong to a trace that does not go on (Trace Context §3.3).
fn drop_trace(without: &mut FieldSet, lines: &FieldLines) {
    for (index, field) in lines.fields.iter().enumerate() {
        if field.name.eq_ignore_ascii_case("traceparent") || field.name.eq_ignore_ascii_case("tracestate") {
            without.insert(index);
        }
    }
}

fn drop_edited(without: &mut FieldSet, lines: &FieldLines, edits: &FieldEdits) {
    if edits.remove.is_empty() && edits.set.is_empty() {
        return;
    }
    for (index, field) in lines.fields.iter().enumerate() {
        if edits.drops(field.name.as_bytes()) {
            without.insert(index);
        }
    }
}

/// Fields the engine owns are not the operator's to write: framing above all.
fn write_edits(out: &mut Vec<u8>, edits: &FieldEdits) {
    for (name, value) in edits.appended().filter(|(name, _)| !is_engine_owned(name.as_bytes())) {
        write_field(out, name.as_bytes(), value.as_bytes());
    }
}

fn edits_len(edits: &FieldEdits) -> usize {
    edits.appended().map(|(name, value)| name.len() + value.len() + 4).sum()
}

#[inline]
fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
