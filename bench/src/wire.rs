//! The little HTTP/1.1 that the load generator and the origin speak. Never a general parser: it reads heads
//! that a conforming proxy writes and calls everything else wrong.

use std::ops::Range;

use memchr::memchr;

/// Octets of the body of `/small`.
pub const SMALL_BYTES: usize = 100;
/// Octets of the body of `/100k`.
pub const LARGE_BYTES: usize = 102_400;
/// A longer head than this is an error on either side.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The body of every answer of a given length: a pattern whose period (251, prime) divides no buffer size, so
/// that octets lost, doubled or moved by a proxy show.
pub fn body(len: usize) -> Vec<u8> {
    (0..len).map(|i| b' ' + u8::try_from(i % 251 % 95).unwrap_or(0)).collect()
}

/// What a response's head says about how to read on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ResponseHead {
    /// Octets of the head with its empty line.
    pub len: usize,
    pub status: u16,
    /// `Content-Length`.
    pub body_bytes: u64,
    /// The proxy will not use the connection again.
    pub close: bool,
}

/// What a request's head says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestHead {
    /// Octets of the head with its empty line.
    pub len: usize,
    /// Where the target stands in the bytes read.
    pub target: Range<usize>,
    pub body_bytes: u64,
    /// The client will not use the connection again.
    pub close: bool,
}

/// Reads a response head; `None` while its empty line is missing.
pub fn response_head(bytes: &[u8]) -> Result<Option<ResponseHead>, &'static str> {
    let mut status = 0;
    let mut body_bytes = None;
    let mut close = false;
    let mut wrong = None;
    let len = each_line(bytes, |line, first| {
        if first {
            match parse_status(line) {
                Some(parsed) => status = parsed,
                None => wrong = Some("not a response head of HTTP/1.1"),
            }
        } else if let Some(value) = field(line, b"content-length") {
            body_bytes = decimal(value);
        } else if let Some(value) = field(line, b"connection") {
            close |= value.eq_ignore_ascii_case(b"close");
        } else if field(line, b"transfer-encoding").is_some() {
            wrong = Some("response re-framed: Transfer-Encoding where the origin sent Content-Length");
        }
    });
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    match (len, body_bytes) {
        (None, _) if bytes.len() > HEAD_BYTES_MAX => Err("response head longer than 16 KiB"),
        (None, _) => Ok(None),
        (Some(_), None) => Err("response head without Content-Length"),
        (Some(len), Some(body_bytes)) => Ok(Some(ResponseHead { len, status, body_bytes, close })),
    }
}

/// Reads a request head; `None` while its empty line is missing.
pub fn request_head(bytes: &[u8]) -> Result<Option<RequestHead>, &'static str> {
    let mut target = None;
    let mut body_bytes = 0;
    let mut close = false;
    let len = each_line(bytes, |line, first| {
        if first {
            target = parse_target(line);
            close = line.ends_with(b"HTTP/1.0");
        } else if let Some(value) = field(line, b"content-length") {
            body_bytes = decimal(value).unwrap_or(u64::MAX);
        } else if let Some(value) = field(line, b"connection") {
            close |= value.eq_ignore_ascii_case(b"close");
        }
    });
    match (len, target) {
        (None, _) if bytes.len() > HEAD_BYTES_MAX => Err("request head longer than 16 KiB"),
        (None, _) => Ok(None),
        (Some(_), None) => Err("not a request head"),
        (Some(_), Some(_)) if body_bytes == u64::MAX => Err("unreadable Content-Length"),
        (Some(len), Some(target)) => Ok(Some(RequestHead { len, target, body_bytes, close })),
    }
}

/// The request that the load generator sends: what a plain client such as wrk sends, and no more.
pub fn request(host: &str, target: &str, close: bool) -> Vec<u8> {
    let connection = if close { "Connection: close\r\n" } else { "" };
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ringfort-bench\r\nAccept: */*\r\n\
         {connection}\r\n"
    )
    .into_bytes()
}

/// The response that the origin sends.
pub fn response(status: &str, body: &[u8], close: bool) -> Vec<u8> {
    let connection = if close { "Connection: close\r\n" } else { "" };
    let mut out = format!(
        "HTTP/1.1 {status}\r\nServer: origin\r\nDate: Mon, 23 Nov 2026 00:00:00 GMT\r\n\
         Content-Type: text/plain\r\nContent-Length: {}\r\n{connection}\r\n",
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// The one key that is ever sent, and what answers it (RFC 6455 §1.3).
const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const WEBSOCKET_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Longer messages are of another form (RFC 6455 §5.2), which nobody here reads.
const MESSAGE_BYTES_MAX: usize = 125;
/// One whole binary message.
const FIN_BINARY: u8 = 0x82;
const MASKED: u8 = 0x80;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The request that asks for a WebSocket.
pub fn websocket_request(host: &str, target: &str) -> Vec<u8> {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ringfort-bench\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n\r\n"
    )
    .into_bytes()
}

/// What opens the WebSocket.
pub fn websocket_response() -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {WEBSOCKET_ACCEPT}\r\n\r\n"
    )
    .into_bytes()
}

/// Reads the answer to `websocket_request`; its octets, or `None` while its empty line is missing.
pub fn websocket_head(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
    let (mut switches, mut accepted) = (false, false);
    let len = each_line(bytes, |line, first| {
        if first {
            switches = parse_status(line) == Some(101);
        } else if let Some(value) = field(line, b"sec-websocket-accept") {
            accepted = value == WEBSOCKET_ACCEPT.as_bytes();
        }
    });
    match len {
        Some(_) if !switches => Err("not status 101"),
        Some(_) if !accepted => Err("Sec-WebSocket-Accept is not the origin's"),
        None if bytes.len() > HEAD_BYTES_MAX => Err("response head longer than 16 KiB"),
        len => Ok(len),
    }
}

/// A message as a client sends it, and its echo. At most 125 octets.
pub fn websocket_message(payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let len = payload.len().min(MESSAGE_BYTES_MAX);
    let mut message = vec![FIN_BINARY, MASKED | len as u8];
    message.extend_from_slice(&MASK);
    message.extend(payload[..len].iter().zip(MASK.iter().cycle()).map(|(octet, mask)| octet ^ mask));
    let mut echo = vec![FIN_BINARY, len as u8];
    echo.extend_from_slice(&payload[..len]);
    (message, echo)
}

/// Makes the echo of the first message of a client; the octets of that message, or `None` while it is not whole.
pub fn websocket_echo(bytes: &[u8], echo: &mut Vec<u8>) -> Result<Option<usize>, &'static str> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let len = usize::from(second & !MASKED);
    if *first != FIN_BINARY || second & MASKED == 0 || len > MESSAGE_BYTES_MAX {
        return Err("not a short masked binary message");
    }
    let Some((mask, payload)) = rest.split_at_checked(MASK.len()) else { return Ok(None) };
    let Some(payload) = payload.get(..len) else { return Ok(None) };
    echo.clear();
    echo.extend_from_slice(&[FIN_BINARY, len as u8]);
    echo.extend(payload.iter().zip(mask.iter().cycle()).map(|(octet, mask)| octet ^ mask));
    Ok(Some(2 + MASK.len() + len))
}

/// Calls `line` with each line up to the empty one, and returns the octets up to and with that one.
fn each_line(bytes: &[u8], mut line: impl FnMut(&[u8], bool)) -> Option<usize> {
    let mut at = 0;
    loop {
        let end = at + memchr(b'\n', &bytes[at..])?;
        let text = &bytes[at..end];
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.is_empty() && at > 0 {
            return Some(end + 1);
        }
        line(text, at == 0);
        at = end + 1;
    }
}

fn parse_status(line: &[u8]) -> Option<u16> {
    let digits = line.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    decimal(digits).and_then(|status| u16::try_from(status).ok())
}

fn parse_target(line: &[u8]) -> Option<Range<usize>> {
    let start = memchr(b' ', line)? + 1;
    let len = memchr(b' ', &line[start..])?;
    line[start + len + 1..].starts_with(b"HTTP/1.").then_some(start..start + len)
}

fn field<'b>(line: &'b [u8], name: &[u8]) -> Option<&'b [u8]> {
    let (found, value) = line.split_at_checked(name.len())?;
    if !found.eq_ignore_ascii_case(name) {
        return None;
    }
    value.strip_prefix(b":").map(<[u8]>::trim_ascii)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_head_is_read_once_its_empty_line_is_there() {
        let whole = response("200 OK", &body(SMALL_BYTES), false);
        let head_len = whole.len() - SMALL_BYTES;
        for cut in 0..head_len {
            assert_eq!(response_head(&whole[..cut]), Ok(None), "cut at {cut}");
        }
        let head = ResponseHead { len: head_len, status: 200, body_bytes: 100, close: false };
        assert_eq!(response_head(&whole), Ok(Some(head)));
    }

    #[test]
    fn a_reframed_response_is_wrong() {
        let text = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(response_head(text).is_err());
    }

    #[test]
    fn a_response_without_length_or_of_another_protocol_is_wrong() {
        assert!(response_head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(response_head(b"GET / HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn a_request_head_tells_target_and_close() {
        let text = request("a.test", "/small", true);
        let head = request_head(&text).ok().flatten().expect("a whole head");
        assert_eq!(&text[head.target.clone()], b"/small");
        assert!(head.close);
        assert_eq!(head.len, text.len());
        assert_eq!(request_head(&text[..text.len() - 1]), Ok(None));
    }

    #[test]
    fn the_body_pattern_differs_when_shifted() {
        let pattern = body(LARGE_BYTES);
        for shift in [1, 16, 4096, 16384, 65536] {
            assert_ne!(pattern[shift..], pattern[..LARGE_BYTES - shift], "shift {shift}");
        }
    }
}
