//! One line of the access log as bytes. Whatever came from the wire is escaped: nobody outside can end a line, begin
//! another, forge a field or move a terminal's cursor. Never writes one anywhere.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::spec::Format;
use crate::base::calendar::Moment;
use crate::http::write_decimal;

/// Longest part of any text that came from the wire which is shown, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 4_096;

/// What a line tells. What is absent is left out of JSON and `-` in text.
#[derive(Clone, Debug, Default)]
pub struct Entry<'a> {
    /// `request`, `tunnel`, or `session` for a connection.
    pub kind: &'a str,
    /// Wall clock at which it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    pub duration: Duration,
    pub worker: u32,
    pub listener: &'a str,
    /// Such as `HTTP/1.1`, or that of the listener where nobody spoke yet.
    pub protocol: &'a str,
    pub client: Option<IpAddr>,
    pub method: Option<&'a [u8]>,
    pub host: Option<&'a [u8]>,
    /// As received, with its query.
    pub target: Option<&'a [u8]>,
    /// Sent to the client.
    pub status: Option<u16>,
    pub grpc_status: Option<u8>,
    pub termination: &'a str,
    /// Why a TLS handshake failed.
    pub tls_failure: Option<&'a str>,
    /// Payload from the client.
    pub received_bytes: u64,
    /// Payload to the client.
    pub sent_bytes: u64,
    pub route: Option<&'a str>,
    pub cluster: Option<&'a str>,
    pub endpoint: Option<SocketAddr>,
    /// Times that an endpoint was asked.
    pub attempts: u32,
    /// From the request sent upstream to the first byte of the response.
    pub first_byte: Option<Duration>,
    pub tls_version: Option<&'a str>,
    pub tls_cipher: Option<&'a str>,
    pub tls_resumed: Option<bool>,
    pub server_name: Option<&'a [u8]>,
    pub alpn: Option<&'a [u8]>,
    /// SPIFFE id of the client's certificate, else its subject.
    pub identity: Option<&'a str>,
    pub trace_id: Option<&'a str>,
    pub referer: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    /// The share of its like that is logged, where that is not all.
    pub sample_ratio: Option<f64>,
}

/// Appends the line with its newline.
pub fn write_line(out: &mut Vec<u8>, format: Format, entry: &Entry<'_>) {
    match format {
        Format::Json => json(out, entry),
        Format::Text => text(out, entry),
    }
    out.push(b'\n');
}

fn json(out: &mut Vec<u8>, entry: &Entry<'_>) {
    let e = entry;
    out.extend_from_slice(b"{\"ts\":\"");
    write_rfc_3339(out, e.started_unix_ms);
    out.extend_from_slice(b"\",\"kind\":\"");
    out.extend_from_slice(e.kind.as_bytes());
    out.extend_from_slice(b"\",\"duration_ms\":");
    write_millis(out, e.duration);
    field(out, "worker", |out| write_decimal(out, e.worker.into()));
    string(out, "listener", Some(e.listener.as_bytes()));
    string(out, "protocol", Some(e.protocol.as_bytes()));
    if let Some(client) = e.client {
        shown(out, "client", client);
    }
    string(out, "method", e.method);
    string(out, "host", e.host);
    string(out, "path", e.target);
    number(out, "status", e.status.map(u64::from));
    number(out, "grpc_status", e.grpc_status.map(u64::from));
    string(out, "termination", Some(e.termination.as_bytes()));
    string(out, "tls_failure", e.tls_failure.map(str::as_bytes));
    number(out, "received_bytes", Some(e.received_bytes));
    number(out, "sent_bytes", Some(e.sent_bytes));
    string(out, "route", e.route.map(str::as_bytes));
    string(out, "cluster", e.cluster.map(str::as_bytes));
    if let Some(endpoint) = e.endpoint {
        shown(out, "endpoint", endpoint);
    }
    number(out, "attempts", Some(u64::from(e.attempts)).filter(|attempts| *attempts > 0));
    if let Some(first_byte) = e.first_byte {
        field(out, "first_byte_ms", |out| write_millis(out, first_byte));
    }
    string(out, "tls_version", e.tls_version.map(str::as_bytes));
    string(out, "tls_cipher", e.tls_cipher.map(str::as_bytes));
    if let Some(resumed) = e.tls_resumed {
        field(out, "tls_resumed", |out| out.extend_from_slice(if resumed { b"true" } else { b"false" }));
    }
    string(out, "server_name", e.server_name);
    string(out, "alpn", e.alpn);
    string(out, "identity", e.identity.map(str::as_bytes));
    string(out, "trace_id", e.trace_id.map(str::as_bytes));
    string(out, "referer", e.referer);
    string(out, "user_agent", e.user_agent);
    if let Some(ratio) = e.sample_ratio {
        field(out, "sample_ratio", |out| out.extend_from_slice(ratio.to_string().as_bytes()));
    }
    out.push(b'}');
}

/// The combined format of Apache and nginx, then `name=value` for the rest, always the same ones in the same order.
fn text(out: &mut Vec<u8>, entry: &Entry<'_>) {
    let e = entry;
    match e.client {
        Some(client) => out.extend_from_slice(client.to_string().as_bytes()),
        None => out.push(b'-'),
    }
    out.extend_from_slice(b" - ");
    word(out, e.identity.map(str::as_bytes));
    write_clf_time(out, e.started_unix_ms / 1_000);
    out.push(b'"');
    match (e.method, e.target) {
        (Some(method), Some(target)) => {
            escape_text(out, method);
            out.push(b' ');
            escape_text(out, target);
            out.push(b' ');
            out.extend_from_slice(e.protocol.as_bytes());
        }
        _ => out.push(b'-'),
    }
    out.extend_from_slice(b"\" ");
    match e.status {
        Some(status) => write_decimal(out, status.into()),
        None => out.push(b'-'),
    }
    out.push(b' ');
    write_decimal(out, e.sent_bytes);
    for value in [e.referer, e.user_agent] {
        out.extend_from_slice(b" \"");
        escape_text(out, value.unwrap_or(b"-"));
        out.push(b'"');
    }
    let endpoint = e.endpoint.map(|endpoint| endpoint.to_string());
    let mut pair = |name: &str, value: Option<&[u8]>| {
        out.push(b' ');
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        word(out, value);
    };
    let mut millis = Vec::new();
    write_millis(&mut millis, e.duration);
    pair("kind", Some(e.kind.as_bytes()));
    pair("listener", Some(e.listener.as_bytes()));
    pair("host", e.host);
    pair("duration_ms", Some(&millis));
    pair("received_bytes", Some(e.received_bytes.to_string().as_bytes()));
    pair("termination", Some(e.termination.as_bytes()));
    pair("route", e.route.map(str::as_bytes));
    pair("cluster", e.cluster.map(str::as_bytes));
    pair("endpoint", endpoint.as_deref().map(str::as_bytes));
    pair("tls", e.tls_version.or(e.tls_failure).map(str::as_bytes));
    pair("server_name", e.server_name);
    pair("trace_id", e.trace_id.map(str::as_bytes));
}

fn field(out: &mut Vec<u8>, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    write(out);
}

fn number(out: &mut Vec<u8>, name: &str, value: Option<u64>) {
    if let Some(value) = value {
        field(out, name, |out| write_decimal(out, value));
    }
}

fn string(out: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    if let Some(value) = value {
        field(out, name, |out| {
            out.push(b'"');
            escape_json(out, value);
            out.push(b'"');
        });
    }
}

/// A value whose text has nothing to escape.
fn shown(out: &mut Vec<u8>, name: &str, value: impl std::fmt::Display) {
    use std::io::Write;
    // Writing to memory cannot fail.
    field(out, name, |out| drop(write!(out, "\"{value}\"")));
}

/// A value of text that ends with a space or the line: in quotes unless it is one plain word.
fn word(out: &mut Vec<u8>, value: Option<&[u8]>) {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return out.push(b'-') };
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
    if value.iter().all(is_plain) && value != b"-" {
        return out.extend_from_slice(&value[..value.len().min(TEXT_BYTES_MAX)]);
    }
    out.push(b'"');
    escape_text(out, value);
    out.push(b'"');
}

/// RFC 8259 §7. What is no UTF-8 becomes U+FFFD; controls of either range and the line ends of Unicode are escaped, too:
/// terminals and JavaScript act on them.
fn escape_json(out: &mut Vec<u8>, value: &[u8]) {
    let value = &value[..value.len().min(TEXT_BYTES_MAX)];
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if value.iter().all(is_plain) {
        return out.extend_from_slice(value);
    }
    for chunk in value.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '"' | '\\' => out.extend_from_slice(&[b'\\', char as u8]),
                '\u{0}'..='\u{1f}'
                | '\u{7f}'..='\u{9f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' => {
                    let code = format!("\\u{:04x}", char as u32);
                    out.extend_from_slice(code.as_bytes());
                }
                _ => out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// As nginx does by default: quotes, backslashes and all that is not printable ASCII become `\xHH`.
fn escape_text(out: &mut Vec<u8>, value: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in value.iter().take(TEXT_BYTES_MAX) {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                out.extend_from_slice(&[
                    b'\\',
                    b'x',
                    HEX[usize::from(byte >> 4)],
                    HEX[usize::from(byte & 15)],
                ]);
            }
            _ => out.push(byte),
        }
    }
}

/// With three places.
fn write_millis(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    write_decimal(out, micros / 1_000);
    out.push(b'.');
    write_padded(out, micros % 1_000, 3);
}

/// In UTC with milliseconds.
fn write_rfc_3339(out: &mut Vec<u8>, unix_ms: u64) {
    let Moment { year, month, day, hour, minute, second, .. } = Moment::of_unix(unix_ms / 1_000);
    for (value, width, end) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (hour, 2, b':'),
        (minute, 2, b':'),
        (second, 2, b'.'),
        (unix_ms % 1_000, 3, b'Z'),
    ] {
        write_padded(out, value, width);
        out.push(end);
    }
}

/// As the common log format has it, in UTC: ` [23/Nov/2026:12:39:26 +0000] `.
fn write_clf_time(out: &mut Vec<u8>, unix_s: u64) {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let Moment { year, month, day, hour, minute, second, .. } = Moment::of_unix(unix_s);
    out.extend_from_slice(b" [");
    write_padded(out, day, 2);
    out.push(b'/');
    out.extend_from_slice(MONTHS[(month as usize + 11) % 12].as_bytes());
    out.push(b'/');
    for (value, width, end) in [(year, 4, b':'), (hour, 2, b':'), (minute, 2, b':'), (second, 2, b' ')] {
        write_padded(out, value, width);
        out.push(end);
    }
    out.extend_from_slice(b"+0000] ");
}

/// At least `width` digits, 1 to 4.
fn write_padded(out: &mut Vec<u8>, value: u64, width: u32) {
    for power in (1..width).rev() {
        if value < 10_u64.pow(power) {
            out.push(b'0');
        } else {
            break;
        }
    }
    write_decimal(out, value);
}

#[cfg(test)]
mod tests;
