//! The chunked transfer coding (RFC 9112 §7.1): decoded in place, strictly, at any split of the input.
//! Chunk extensions are checked, counted and dropped; trailer fields are checked and kept for the caller.
//! Never copies the payload of a lone chunk.

use std::ops::Range;

use crate::http::{Reject, is_token_byte};
use crate::limits;

/// Most bytes of a chunk header that we write: 16 hex digits and CRLF.
pub const CHUNK_HEADER_BYTES_MAX: usize = 18;
/// What follows the payload of each chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// What ends a body without trailer fields.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Where one body stands. Small, and owns no memory until a trailer field arrives.
#[derive(Clone, Debug)]
pub struct Decoder {
    state: State,
    /// Of the size being read; then, bytes of the chunk still to come.
    left: u64,
    size_digits: u8,
    extension_bytes: usize,
    extension_bytes_total: usize,
    trailers: Vec<u8>,
    trailer_fields: usize,
}

/// What one call made of its input.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decoded {
    /// Bytes of the input taken: all of it unless `done`, when the rest belongs to the next message.
    pub consumed: usize,
    /// Where in the input buffer the payload now stands, in one piece.
    pub payload: Range<usize>,
    /// The last chunk and the trailer section were read.
    pub done: bool,
}

/// ```text
/// Size → (extension states) → SizeLf → Data → DataCr → DataLf → Size …
///                               └ size 0 → TrailerStart → (TrailerLine → TrailerLf)* → EndLf → Done
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Size,
    /// White space that only an extension may follow.
    BeforeSemicolon,
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Value,
    Quoted,
    QuotedPair,
    AfterQuoted,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerLine,
    TrailerLf,
    EndLf,
    Done,
    /// A broken body stays broken.
    Failed(Reject),
}

impl Decoder {
    pub const fn new() -> Self {
        Self {
            state: State::Size,
            left: 0,
            size_digits: 0,
            extension_bytes: 0,
            extension_bytes_total: 0,
            trailers: Vec::new(),
            trailer_fields: 0,
        }
    }

    /// Takes what was received next. The payload found in it is moved together within `buf`; bytes of `buf` outside
    /// `payload` and before `consumed` are spent.
    pub fn decode(&mut self, buf: &mut [u8]) -> Result<Decoded, Reject> {
        self.run(buf).inspect_err(|reject| self.state = State::Failed(*reject))
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The trailer section once `is_done`: whole field lines, each with its CRLF, syntax checked, nothing dropped yet
    /// (see `write_last_chunk`). Empty where there is none.
    pub fn trailers(&self) -> &[u8] {
        if self.is_done() { &self.trailers } else { &[] }
    }

    fn run(&mut self, buf: &mut [u8]) -> Result<Decoded, Reject> {
        let mut at = 0;
        let mut payload = 0..0;
        while at < buf.len() && self.state != State::Done {
            match self.state {
                State::Data => {
                    let len = usize::try_from(self.left).map_or(usize::MAX, |left| left).min(buf.len() - at);
                    if payload.is_empty() {
                        payload = at..at + len;
                    } else {
                        buf.copy_within(at..at + len, payload.end);
                        payload.end += len;
                    }
                    at += len;
                    self.left -= len as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                }
                State::TrailerLine => at += self.take_trailer_line(&buf[at..])?,
                _ => {
                    self.state = self.step(buf[at])?;
                    at += 1;
                }
            }
        }
        Ok(Decoded { consumed: at, payload, done: self.is_done() })
    }

    /// One byte outside of payload and trailer lines.
    #[inline]
    fn step(&mut self, byte: u8) -> Result<State, Reject> {
        match (self.state, byte) {
            (State::Size, b'0'..=b'9') => self.add_digit(byte - b'0'),
            (State::Size, b'a'..=b'f') => self.add_digit(byte - b'a' + 10),
            (State::Size, b'A'..=b'F') => self.add_digit(byte - b'A' + 10),
            (State::Size, b'\r') if self.size_digits > 0 => Ok(State::SizeLf),
            (State::Size, b';' | b' ' | b'\t') if self.size_digits > 0 => self.step_extension(byte),
            (State::Size, _) => Err(Reject::BAD_CHUNK_SIZE),
            (State::SizeLf, b'\n') => Ok(self.begin_chunk()),
            (State::SizeLf, _) => Err(Reject::BAD_CHUNK_SIZE),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size),
            (State::DataCr | State::DataLf, _) => Err(Reject::BAD_CHUNK_END),
            (State::TrailerStart, b'\r') => Ok(State::EndLf),
            (State::TrailerStart, _) => self.begin_trailer_line(byte),
            (State::TrailerLf, b'\n') => {
                self.trailers.extend_from_slice(b"\r\n");
                Ok(State::TrailerStart)
            }
            (State::EndLf, b'\n') => self.finish(),
            (State::TrailerLf | State::EndLf, _) => Err(Reject::BAD_TRAILER),
            (State::Failed(reject), _) => Err(reject),
            // `run` never steps through payload, trailer lines or a finished body.
            (state @ (State::Data | State::TrailerLine | State::Done), _) => Ok(state),
            _ => self.step_extension(byte),
        }
    }

    fn add_digit(&mut self, digit: u8) -> Result<State, Reject> {
        // Above 2^63 - 1 it is an attack, not a size; some next hop would read it as negative. No digit is ever
        // shifted out below that.
        if self.size_digits == 16 || self.left > i64::MAX as u64 >> 4 {
            return Err(Reject::BAD_CHUNK_SIZE);
        }
        self.size_digits += 1;
        self.left = self.left << 4 | u64::from(digit);
        Ok(State::Size)
    }

    fn begin_chunk(&mut self) -> State {
        self.size_digits = 0;
        self.extension_bytes = 0;
        if self.left == 0 { State::TrailerStart } else { State::Data }
    }

    /// `*( BWS ";" BWS name [ BWS "=" BWS value ] )`: read whole, so that nothing in it can pass for a line end.
    fn step_extension(&mut self, byte: u8) -> Result<State, Reject> {
        if byte != b'\r' {
            self.extension_bytes += 1;
            self.extension_bytes_total += 1;
            if self.extension_bytes > limits::CHUNK_EXTENSION_BYTES_MAX
                || self.extension_bytes_total > limits::CHUNK_EXTENSION_BYTES_TOTAL_MAX
            {
                return Err(Reject::CHUNK_EXTENSION_TOO_LARGE);
            }
        }
        let ends_value = matches!(self.state, State::Size | State::Name | State::Value | State::AfterQuoted);
        let ends_name = matches!(self.state, State::Name | State::AfterName);
        Ok(match (self.state, byte) {
            (State::Quoted, b'"') => State::AfterQuoted,
            (State::Quoted, b'\\') => State::QuotedPair,
            (State::Quoted | State::QuotedPair, b'\t' | b' '..=b'~' | 0x80..) => State::Quoted,
            (State::BeforeValue, b'"') => State::Quoted,
            (State::BeforeName | State::Name, _) if is_token_byte(byte) => State::Name,
            (State::BeforeValue | State::Value, _) if is_token_byte(byte) => State::Value,
            (_, b'\r') if ends_value => State::SizeLf,
            (_, b'=') if ends_name => State::BeforeValue,
            (_, b';') if ends_value || ends_name || self.state == State::BeforeSemicolon => State::BeforeName,
            (State::Name | State::AfterName, b' ' | b'\t') => State::AfterName,
            (State::BeforeName | State::BeforeValue | State::BeforeSemicolon, b' ' | b'\t') => self.state,
            (_, b' ' | b'\t') if ends_value => State::BeforeSemicolon,
            _ => return Err(Reject::BAD_CHUNK_EXTENSION),
        })
    }

    fn begin_trailer_line(&mut self, byte: u8) -> Result<State, Reject> {
        if !is_token_byte(byte) {
            return Err(Reject::BAD_TRAILER);
        }
        self.trailer_fields += 1;
        if self.trailer_fields > limits::TRAILER_FIELDS_MAX {
            return Err(Reject::TRAILER_TOO_LARGE);
        }
        self.take_trailer_bytes(&[byte])?;
        Ok(State::TrailerLine)
    }

    /// Takes a trailer line up to its CR; returns how many bytes that was.
    fn take_trailer_line(&mut self, bytes: &[u8]) -> Result<usize, Reject> {
        let end = memchr::memchr2(b'\r', b'\n', bytes);
        self.take_trailer_bytes(&bytes[..end.unwrap_or(bytes.len())])?;
        match end {
            None => Ok(bytes.len()),
            Some(end) if bytes[end] == b'\r' => {
                self.state = State::TrailerLf;
                Ok(end + 1)
            }
            Some(_) => Err(Reject::BAD_TRAILER),
        }
    }

    fn take_trailer_bytes(&mut self, bytes: &[u8]) -> Result<(), Reject> {
        if self.trailers.len() + bytes.len() > limits::TRAILER_BYTES_MAX {
            return Err(Reject::TRAILER_TOO_LARGE);
        }
        self.trailers.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(&self) -> Result<State, Reject> {
        let valid = trailer_lines(&self.trailers).all(|(line, name_len)| {
            let (name, value) = line.split_at(name_len);
            let value = value.strip_prefix(b":").and_then(|value| value.strip_suffix(b"\r\n"));
            name.iter().copied().all(is_token_byte)
                && value.is_some_and(|v| v.iter().all(|b| matches!(b, b'\t' | b' '..=b'~' | 0x80..)))
        });
        if valid { Ok(State::Done) } else { Err(Reject::BAD_TRAILER) }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// The lines of a trailer section, each with its CRLF and with the length of its name.
pub(super) fn trailer_lines(section: &[u8]) -> impl Iterator<Item = (&[u8], usize)> {
    section.split_inclusive(|&byte| byte == b'\n').map(|line| {
        let name_len = memchr::memchr(b':', line).unwrap_or(line.len());
        (line, name_len)
    })
}

/// Writes the line that starts a chunk of `len` bytes. `len` 0 would end the body: use [`LAST_CHUNK`].
pub fn write_chunk_header(out: &mut [u8; CHUNK_HEADER_BYTES_MAX], len: u64) -> &[u8] {
    debug_assert!(len > 0);
    let digits = (u64::BITS - len.leading_zeros()).div_ceil(4).max(1) as usize;
    for (index, slot) in out[..digits].iter_mut().enumerate() {
        *slot = b"0123456789abcdef"[(len >> (4 * (digits - 1 - index)) & 0xf) as usize];
    }
    out[digits..digits + 2].copy_from_slice(CHUNK_END);
    &out[..digits + 2]
}

/// Fuzzing: any bytes at any split give the same payload and verdict, without a panic. The first byte of the input
/// chooses the split.
pub fn fuzz_chunked_body(bytes: &[u8]) {
    let [split, body @ ..] = bytes else { return };
    let whole = decode_in_pieces(body, body.len().max(1));
    assert_eq!(whole, decode_in_pieces(body, usize::from(*split) + 1));
    assert_eq!(whole, decode_in_pieces(body, 1));
}

/// The payload, trailer section and total consumed, or the refusal. `None` while unfinished.
#[allow(clippy::type_complexity, reason = "named nowhere else")]
pub(super) fn decode_in_pieces(
    body: &[u8],
    piece_len: usize,
) -> Result<Option<(Vec<u8>, Vec<u8>, usize)>, Reject> {
    let mut decoder = Decoder::new();
    let (mut payload, mut consumed) = (Vec::new(), 0);
    for piece in body.chunks(piece_len) {
        let mut buf = piece.to_vec();
        let decoded = decoder.decode(&mut buf)?;
        payload.extend_from_slice(&buf[decoded.payload]);
        consumed += decoded.consumed;
        if decoded.done {
            return Ok(Some((payload, decoder.trailers().to_vec(), consumed)));
        }
        assert_eq!(decoded.consumed, piece.len());
    }
    Ok(None)
}
