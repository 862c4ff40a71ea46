//! What every runtime here does alike: the parser, the answer, the sizes. Never waits and never touches a
//! socket beyond opening the listener.

use std::io;
use std::net::{SocketAddr, TcpListener};

use clap::ValueEnum;
use ringfort_bench::origin::listening_socket;
use ringfort_bench::wire;

/// Octets of a receive buffer, on every runtime that lets its user choose.
pub const BUFFER_BYTES: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Work {
    /// Bytes to the upstream address and back, with half-close
    Relay,
    /// HTTP/1.1 keep-alive requests answered with 100 bytes
    Respond,
}

/// One server on one thread.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub work: Work,
    pub listen: SocketAddr,
    pub upstream: SocketAddr,
}

/// Requests of one connection, with what came in pieces.
#[derive(Default)]
pub struct Requests {
    partial: Vec<u8>,
}

impl Job {
    /// A listener with SO_REUSEPORT, as each worker of a thread-per-core server has its own.
    pub fn listener(&self, blocking: bool) -> io::Result<TcpListener> {
        let socket = listening_socket(self.listen, true)?;
        socket.set_nonblocking(!blocking)?;
        Ok(socket.into())
    }
}

impl Requests {
    /// Takes received bytes; how many requests they complete.
    pub fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.partial.is_empty() {
            let (count, used) = complete_requests(bytes)?;
            self.partial.extend_from_slice(&bytes[used..]);
            return Ok(count);
        }
        self.partial.extend_from_slice(bytes);
        let (count, used) = complete_requests(&self.partial)?;
        self.partial.drain(..used);
        Ok(count)
    }
}

/// The answer to each request.
pub fn answer() -> Vec<u8> {
    wire::response("200 OK", &wire::body(wire::SMALL_BYTES), false)
}

fn complete_requests(bytes: &[u8]) -> io::Result<(usize, usize)> {
    let (mut count, mut used) = (0, 0);
    while used < bytes.len() {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(&bytes[used..]).map_err(io::Error::other)? {
            httparse::Status::Complete(len) => {
                used += len;
                count += 1;
            }
            httparse::Status::Partial => break,
        }
    }
    Ok((count, used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_pieces_and_in_a_row_are_counted_once() {
        let two = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for cut in 0..two.len() {
            let mut requests = Requests::default();
            let first = requests.take(&two[..cut]).expect("a prefix");
            let second = requests.take(&two[cut..]).expect("the rest");
            assert_eq!(first + second, 2, "cut at {cut}");
        }
    }
}
