//! A strict reader of HTTP/1.1 messages, written apart from the product so that it can disagree with it.
//! It keeps the evidence (raw fields, trailers, how the message ended) instead of repairing anything.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

/// Field lines in order, names as sent.
#[derive(Clone, Debug, Default)]
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// The first value of a field, name in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).into_iter().next()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

/// How a message ended on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// As its framing says.
    Complete,
    /// The connection ended (FIN or reset) before the framing said so.
    Truncated,
    /// Nothing came for the reader's time limit.
    TimedOut,
}

/// One head as it stood on the wire.
#[derive(Clone, Debug)]
pub struct Head {
    pub start_line: String,
    pub fields: Fields,
}

/// A buffered reader of messages over any byte stream with a read timeout.
pub struct Reader<S> {
    pub stream: S,
    pub buf: Vec<u8>,
    /// Every byte received is appended here when set.
    pub tap: Option<Arc<Mutex<Vec<u8>>>>,
}

/// Why no message came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NoMessage {
    /// FIN between messages.
    Closed,
    /// Reset.
    Reset,
    TimedOut,
    /// Bytes came and are no HTTP/1.1 head; the text shows them.
    Malformed(String),
}

impl<S: Read> Reader<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buf: Vec::new(), tap: None }
    }

    /// Receives once, appending to the buffer.
    pub fn fill(&mut self) -> io::Result<usize> {
        let mut piece = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(n) => {
                    self.buf.extend_from_slice(&piece[..n]);
                    if let Some(tap) = &self.tap {
                        tap.lock().unwrap().extend_from_slice(&piece[..n]);
                    }
                    return Ok(n);
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub fn read_head(&mut self) -> Result<Head, NoMessage> {
        let mut scanned = 0;
        let end = loop {
            if let Some(at) = find(&self.buf[scanned..], b"\r\n\r\n") {
                break scanned + at;
            }
            scanned = self.buf.len().saturating_sub(3);
            match self.fill() {
                Ok(0) if self.buf.is_empty() => return Err(NoMessage::Closed),
                Ok(0) => return Err(NoMessage::Malformed(show(&self.buf))),
                Ok(_) => {}
                Err(error) => return Err(no_message(&error)),
            }
        };
        let head: Vec<u8> = self.buf.drain(..end + 4).collect();
        parse_head(&head[..end]).ok_or_else(|| NoMessage::Malformed(show(&head)))
    }

    /// Reads a body of known length into `sink`.
    pub fn read_length(&mut self, mut len: u64, sink: &mut dyn FnMut(&[u8])) -> End {
        while len > 0 {
            if self.buf.is_empty() {
                match self.fill() {
                    Ok(0) => return End::Truncated,
                    Ok(_) => {}
                    Err(error) => return end_of(&error),
                }
            }
            let n = len.min(self.buf.len() as u64) as usize;
            sink(&self.buf[..n]);
            self.buf.drain(..n);
            len -= n as u64;
        }
        End::Complete
    }

    /// Reads a chunked body into `sink` and returns its trailers; a chunk line that is not strictly `HEX CRLF`
    /// is a truncation with the line as its only trailer, so that a test shows it.
    pub fn read_chunked(&mut self, sink: &mut dyn FnMut(&[u8])) -> (End, Fields) {
        let mut trailers = Fields::default();
        loop {
            let line = match self.read_line() {
                Ok(line) => line,
                Err(end) => return (end, trailers),
            };
            let strict = !line.is_empty() && line.bytes().all(|b| b.is_ascii_hexdigit());
            let Some(len) = strict.then(|| u64::from_str_radix(&line, 16).ok()).flatten() else {
                trailers.0.push(("bad-chunk-line".into(), line));
                return (End::Truncated, trailers);
            };
            if len == 0 {
                break;
            }
            match self.read_length(len, sink) {
                End::Complete => {}
                end => return (end, trailers),
            }
            match self.read_line() {
                Ok(line) if line.is_empty() => {}
                Ok(line) => {
                    trailers.0.push(("bad-chunk-end".into(), line));
                    return (End::Truncated, trailers);
                }
                Err(end) => return (end, trailers),
            }
        }
        loop {
            match self.read_line() {
                Ok(line) if line.is_empty() => return (End::Complete, trailers),
                Ok(line) => {
                    let (name, value) = line.split_once(':').unwrap_or((&line, ""));
                    trailers.0.push((name.into(), value.trim().into()));
                }
                Err(end) => return (end, trailers),
            }
        }
    }

    /// Reads until the peer closes: complete on FIN, truncated on reset.
    pub fn read_until_close(&mut self, sink: &mut dyn FnMut(&[u8])) -> End {
        loop {
            sink(&self.buf);
            self.buf.clear();
            match self.fill() {
                Ok(0) => return End::Complete,
                Ok(_) => {}
                Err(error) => return end_of(&error),
            }
        }
    }

    fn read_line(&mut self) -> Result<String, End> {
        let end = loop {
            if let Some(at) = find(&self.buf, b"\r\n") {
                break at;
            }
            match self.fill() {
                Ok(0) => return Err(End::Truncated),
                Ok(_) => {}
                Err(error) => return Err(end_of(&error)),
            }
        };
        let line = latin1(&self.buf[..end]);
        self.buf.drain(..end + 2);
        Ok(line)
    }
}

fn parse_head(head: &[u8]) -> Option<Head> {
    let text = latin1(head);
    let mut lines = text.split("\r\n");
    let start_line = lines.next()?.to_string();
    let mut fields = Fields::default();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.is_empty() || line.contains(['\r', '\n', '\0']) {
            return None;
        }
        fields.0.push((name.to_string(), value.trim().to_string()));
    }
    Some(Head { start_line, fields })
}

/// One character per byte, so that nothing is lost.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

/// Bytes for a failure message, shortened.
pub fn show(bytes: &[u8]) -> String {
    let text = bytes.iter().take(400).flat_map(|&b| std::ascii::escape_default(b)).map(char::from);
    let more = if bytes.len() > 400 { format!("… ({} bytes)", bytes.len()) } else { String::new() };
    text.collect::<String>() + &more
}

pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|window| window == needle)
}

fn no_message(error: &io::Error) -> NoMessage {
    match end_of(error) {
        End::TimedOut => NoMessage::TimedOut,
        _ => NoMessage::Reset,
    }
}

fn end_of(error: &io::Error) -> End {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => End::TimedOut,
        _ => End::Truncated,
    }
}

#[test]
fn a_chunk_line_with_an_extension_is_reported_not_repaired() {
    let mut reader = Reader::new(&b"5;a=b\r\nhello\r\n0\r\n\r\n"[..]);
    let (end, trailers) = reader.read_chunked(&mut |_| {});
    assert_eq!((end, trailers.get("bad-chunk-line")), (End::Truncated, Some("5;a=b")));
}

#[test]
fn a_body_cut_short_is_a_truncation() {
    let mut reader = Reader::new(&b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n123"[..]);
    let head = reader.read_head().unwrap();
    assert_eq!((head.start_line.as_str(), head.fields.get("a")), ("HTTP/1.1 200 OK", Some("b")));
    assert_eq!(reader.read_length(5, &mut |_| {}), End::Truncated);
}
