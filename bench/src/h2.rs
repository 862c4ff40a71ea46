//! A client of HTTP/2 in plaintext that can do one thing: ask once and stay. For telling whether a proxy answers, and
//! for connections that idle.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER_BYTES: usize = 9;
const ANSWER_MAX: Duration = Duration::from_secs(5);

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const SETTINGS: u8 = 4;
}

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` in the static table (RFC 7541 appendix A).
const STATUS_200: u8 = 0x88;

/// A connection that has had one response.
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects, asks for `target` and reads the whole response, which must be 200.
    pub fn open(address: SocketAddr, target: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut bytes = PREFACE.to_vec();
        write_frame(&mut bytes, kind::SETTINGS, 0, 0, &[]);
        write_frame(&mut bytes, kind::HEADERS, END_HEADERS | END_STREAM, 1, &fields(target));
        write_frame(&mut bytes, kind::SETTINGS, ACK, 0, &[]);
        stream.write_all(&bytes)?;
        let mut connection = Self { stream };
        connection.read_response()?;
        Ok(connection)
    }

    fn read_response(&mut self) -> io::Result<()> {
        let mut answered = false;
        loop {
            let mut header = [0; HEADER_BYTES];
            self.stream.read_exact(&mut header)?;
            let [a, b, c, kind, flags, stream @ ..] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.stream.read_exact(&mut payload)?;
            if u32::from_be_bytes(stream) != 1 {
                continue;
            }
            match kind {
                kind::HEADERS if !answered && first_field(&payload) != Some(STATUS_200) => {
                    return Err(io::Error::other("not status 200"));
                }
                kind::HEADERS | kind::DATA if flags & END_STREAM != 0 => return Ok(()),
                kind::HEADERS | kind::DATA => answered = true,
                _ => return Err(io::Error::other(format!("a frame of type {kind} instead of a response"))),
            }
        }
    }

    /// Whether the other side still holds it.
    pub fn check(&self) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let mut buf = [0; 4096];
        loop {
            match (&self.stream).read(&mut buf) {
                Ok(0) => return Err(io::Error::other("an idle connection was closed")),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The first octet of the first field: updates of the table's size may come before it (RFC 7541 §6.3).
fn first_field(block: &[u8]) -> Option<u8> {
    let mut octets = block.iter().copied();
    loop {
        let octet = octets.next()?;
        if octet & 0xe0 != 0x20 {
            return Some(octet);
        }
        if octet & 0x1f == 0x1f {
            octets.find(|octet| octet & 0x80 == 0)?;
        }
    }
}

fn write_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// `:method: GET`, `:scheme: http` by the static table, the other two as literals that no table gets.
fn fields(target: &str) -> Vec<u8> {
    let mut fields = vec![0x82, 0x86];
    for (name, value) in [(4, target), (1, "bench.test")] {
        fields.extend_from_slice(&[name, value.len() as u8]);
        fields.extend_from_slice(value.as_bytes());
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_stands_behind_size_updates() {
        assert_eq!(first_field(&[0x3f, 0xe1, 0x1f, 0x20, 0x88, 0x54]), Some(0x88));
        assert_eq!(first_field(&[0x88]), Some(0x88));
        assert_eq!(first_field(&[0x3f, 0xe1]), None);
    }
}
