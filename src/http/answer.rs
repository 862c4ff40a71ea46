//! Responses of our own: refusals, and the fixed answers of routes. Small and plain; a failure names the side it
//! happened on. Decides nothing: status, text and connection handling come from the caller.

use bytes::Bytes;

use crate::http::{Version, write_decimal};

/// The `Connection` field of an answer: HTTP/1.1 persists unless told otherwise, HTTP/1.0 only if told so
/// (RFC 9112 §9.3).
pub const fn connection_option(keep_alive: bool, client_version: Version) -> Option<&'static str> {
    match (keep_alive, client_version) {
        (false, _) => Some("close"),
        (true, Version::Http10) => Some("keep-alive"),
        (true, Version::Http11) => None,
    }
}

/// Appends a whole answer. `connection` is the value of its `Connection` field, if any. `text` is one sentence; the standard one of the status where it is empty.
/// `fields` are extra header fields (names and values valid), `date` an IMF-fixdate. `keep_alive` is for HTTP/1.1
/// clients: an HTTP/1.0 client that shall stay needs a `Connection: keep-alive` among `fields`.
pub fn write_answer(
    out: &mut Vec<u8>,
    status: u16,
    text: &str,
    connection: Option<&str>,
    is_head: bool,
    fields: &[(&str, &str)],
    date: Option<&str>,
) {
    let phrase = reason_phrase(status);
    let text = if text.is_empty() { standard_text(status) } else { text };
    // "502 Bad Gateway\n" and the sentence with its line end.
    let body_len = 3 + 1 + phrase.len() + 1 + text.len() + usize::from(!text.is_empty());
    let fields_len: usize = fields.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    out.reserve(192 + phrase.len() + body_len + fields_len);
    write_status_line(out, status, phrase);
    let has_body = !forbids_body(status);
    if has_body {
        out.extend_from_slice(b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: ");
        write_decimal(out, body_len as u64);
        out.extend_from_slice(b"\r\n");
    }
    for (name, value) in fields {
        write_field(out, name, value);
    }
    write_ending(out, connection, date);
    if has_body && !is_head {
        write_decimal(out, u64::from(status));
        out.push(b' ');
        out.extend_from_slice(phrase.as_bytes());
        out.push(b'\n');
        out.extend_from_slice(text.as_bytes());
        if !text.is_empty() {
            out.push(b'\n');
        }
    }
}

/// An answer whose bytes are made once, for routes that always say the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prepared {
    /// Status line and fixed fields, up to where `Date` and `Connection` go.
    start: Box<[u8]>,
    body: Bytes,
    status: u16,
}

impl Prepared {
    /// `fields` carry the `Content-Type`, if any; names and values are valid.
    pub fn new(status: u16, fields: &[(&str, &str)], body: &[u8]) -> Self {
        let mut start = Vec::new();
        write_status_line(&mut start, status, reason_phrase(status));
        for (name, value) in fields {
            write_field(&mut start, name, value);
        }
        let body = if forbids_body(status) { Bytes::new() } else { Bytes::copy_from_slice(body) };
        if !forbids_body(status) {
            start.extend_from_slice(b"Content-Length: ");
            write_decimal(&mut start, body.len() as u64);
            start.extend_from_slice(b"\r\n");
        }
        Self { start: start.into(), body, status }
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body, shared with all who send it, whether or not a request's method lets it be sent.
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// Bytes of the body, whether or not a request's method lets it be sent.
    pub fn body_len(&self) -> usize {
        self.body.len()
    }

    pub fn write(&self, out: &mut Vec<u8>, connection: Option<&str>, is_head: bool, date: Option<&str>) {
        out.reserve(self.start.len() + self.body.len() + 64);
        out.extend_from_slice(&self.start);
        write_ending(out, connection, date);
        if !is_head {
            out.extend_from_slice(&self.body);
        }
    }
}

/// The phrase registered for a status; empty where there is none.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a Teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        _ => "",
    }
}

/// One sentence that says which side failed, where nothing more exact is known.
pub fn standard_text(status: u16) -> &'static str {
    match status {
        400 => "The request is not valid HTTP.",
        403 => "The gateway does not allow this request.",
        404 => "The gateway has no route for this request.",
        405 => "The gateway does not serve this method here.",
        408 => "The client did not send its request in time.",
        413 => "The request is larger than the gateway takes.",
        414 => "The request target is longer than the gateway takes.",
        417 => "The only expectation known here is 100-continue.",
        421 => "The certificate of this connection does not cover the requested host.",
        429 => "The client sends more than the gateway allows it.",
        431 => "The header fields are larger than the gateway takes.",
        500 => "The gateway failed.",
        501 => "The gateway does not implement this.",
        502 => "The upstream server failed to answer with a valid response.",
        503 => "The gateway has no upstream server to answer this now.",
        504 => "The upstream server did not answer in time.",
        505 => "Only HTTP/1.1 and HTTP/1.0 are spoken here.",
        508 => "The request came back to the gateway.",
        _ => "",
    }
}

/// Statuses that never have a body, nor a length (RFC 9110 §8.6, §15.3.5, §15.4.5).
fn forbids_body(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

fn write_status_line(out: &mut Vec<u8>, status: u16, phrase: &str) {
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(phrase.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_ending(out: &mut Vec<u8>, connection: Option<&str>, date: Option<&str>) {
    if let Some(date) = date {
        write_field(out, "Date", date);
    }
    if let Some(connection) = connection {
        write_field(out, "Connection", connection);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, text: &str, keep_alive: bool, is_head: bool) -> String {
        let mut out = Vec::new();
        let fields = [("Retry-After", "1")];
        write_answer(
            &mut out,
            status,
            text,
            connection_option(keep_alive, Version::Http11),
            is_head,
            &fields,
            Some("D"),
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_answer_is_plain_text_with_its_length() {
        assert_eq!(
            answer(503, "", false, false),
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 79\r\n\
             Retry-After: 1\r\nDate: D\r\nConnection: close\r\n\r\n503 Service Unavailable\n\
             The gateway has no upstream server to answer this now.\n"
        );
    }

    #[test]
    fn every_answer_has_the_length_it_announces() {
        for status in 200..=599 {
            let text = answer(status, "Because.", true, false);
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let told = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            assert_eq!(told.map_or(0, |n| n.parse().unwrap()), body.len(), "{status}");
        }
    }

    #[test]
    fn a_head_request_gets_the_length_without_the_body() {
        let text = answer(404, "", true, true);
        assert!(text.contains("Content-Length: 5") && text.ends_with("Date: D\r\n\r\n"), "{text}");
    }

    #[test]
    fn failures_name_the_side() {
        for (status, side) in [(502, "upstream"), (503, "upstream"), (504, "upstream"), (408, "client")] {
            assert!(standard_text(status).contains(side));
        }
        for status in [400, 404, 405, 408, 413, 414, 417, 421, 429, 431, 500, 501, 502, 503, 504, 505] {
            assert!(!standard_text(status).is_empty() && !reason_phrase(status).is_empty(), "{status}");
        }
    }

    #[test]
    fn a_prepared_answer_is_written_as_often_as_asked() {
        let prepared = Prepared::new(200, &[("Content-Type", "text/plain")], b"hello\n");
        let mut out = Vec::new();
        prepared.write(&mut out, None, false, Some("D"));
        let want =
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nDate: D\r\n\r\nhello\n";
        assert_eq!(std::str::from_utf8(&out).unwrap(), want);
        out.clear();
        prepared.write(&mut out, Some("close"), true, None);
        assert!(out.ends_with(b"Content-Length: 6\r\nConnection: close\r\n\r\n"));
        assert_eq!(Prepared::new(204, &[], b"x").body_len(), 0);
    }
}
