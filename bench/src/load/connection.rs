//! One connection of the load generator and the response that it waits for. Never decides what to send next.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::Shape;
use crate::wire;

/// A body up to this long is compared octet by octet on every response.
const VERIFY_BYTES_MAX: usize = 4096;

pub(super) struct Connection {
    stream: Option<TcpStream>,
    phase: Phase,
    due: Instant,
    /// Octets of a response head that came in pieces.
    head: Vec<u8>,
    /// Responses completed on this connection.
    responses: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Idle,
    /// Octets of the request sent so far.
    Sending(usize),
    Head,
    /// Octets of the body still to come.
    Body(usize),
    /// The response is complete; the proxy is to close (churn).
    Ending,
}

pub(super) enum Progress {
    Waiting,
    /// The response is complete and right, and the connection is free again.
    Complete,
    Failed(String),
}

impl Default for Connection {
    fn default() -> Self {
        Self { stream: None, phase: Phase::Idle, due: Instant::now(), head: Vec::new(), responses: 0 }
    }
}

impl Connection {
    pub(super) fn busy(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// When the request under way was due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Sends a request, on a new connection if there is none.
    pub(super) fn begin(
        &mut self,
        shape: &Shape,
        due: Instant,
        slot: usize,
        registry: &Registry,
    ) -> Progress {
        self.due = due;
        self.phase = Phase::Sending(0);
        if self.stream.is_none() {
            match connect(shape, slot, registry) {
                Ok(stream) => self.stream = Some(stream),
                Err(error) => return Progress::Failed(format!("connect to {}: {error}", shape.address)),
            }
        }
        match self.send(shape) {
            Ok(()) => Progress::Waiting,
            Err(error) => Progress::Failed(format!("send: {error}")),
        }
    }

    /// Takes what the socket has. `read_closed`: the peer has sent its end.
    pub(super) fn proceed(&mut self, shape: &Shape, buffer: &mut [u8], read_closed: bool) -> Progress {
        if let Phase::Sending(_) = self.phase
            && let Err(error) = self.send(shape)
        {
            return Progress::Failed(format!("connect or send: {error}"));
        }
        loop {
            let Some(stream) = &mut self.stream else { return Progress::Waiting };
            let count = match stream.read(buffer) {
                Ok(0) => return self.ended(),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if would_wait(&error) => return Progress::Waiting,
                Err(error) => return Progress::Failed(format!("receive while {:?}: {error}", self.phase)),
            };
            match self.receive(&buffer[..count], shape) {
                Ok(true) => return Progress::Complete,
                Ok(false) => {}
                Err(why) => return Progress::Failed(why),
            }
            // epoll(7): a short read of a stream socket means that it is drained.
            if count < buffer.len() && !read_closed && self.phase != Phase::Ending {
                return Progress::Waiting;
            }
        }
    }

    /// Drops the connection after an error.
    pub(super) fn discard(&mut self) {
        *self = Self { due: self.due, ..Self::default() };
    }

    fn ended(&mut self) -> Progress {
        if self.phase == Phase::Ending {
            self.discard();
            return Progress::Complete;
        }
        Progress::Failed(format!(
            "connection closed while {:?}, after {} responses on it",
            self.phase, self.responses
        ))
    }

    fn send(&mut self, shape: &Shape) -> io::Result<()> {
        let (Some(stream), Phase::Sending(mut sent)) = (&mut self.stream, self.phase) else { return Ok(()) };
        while sent < shape.request.len() {
            match stream.write(&shape.request[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if would_wait(&error) => {
                    self.phase = Phase::Sending(sent);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.phase = Phase::Head;
        Ok(())
    }

    /// Whether the exchange is over.
    fn receive(&mut self, bytes: &[u8], shape: &Shape) -> Result<bool, String> {
        match self.phase {
            Phase::Head if self.head.is_empty() => match self.read_head(bytes, shape)? {
                Some(used) => self.read_body(&bytes[used..], shape),
                None => {
                    self.head.extend_from_slice(bytes);
                    Ok(false)
                }
            },
            Phase::Head => {
                let mut joined = std::mem::take(&mut self.head);
                joined.extend_from_slice(bytes);
                match self.read_head(&joined, shape)? {
                    Some(used) => self.read_body(&joined[used..], shape),
                    None => {
                        self.head = joined;
                        Ok(false)
                    }
                }
            }
            Phase::Body(_) => self.read_body(bytes, shape),
            Phase::Idle | Phase::Sending(_) | Phase::Ending => {
                Err(format!("{} octets that nobody asked for, while {:?}", bytes.len(), self.phase))
            }
        }
    }

    fn read_head(&mut self, bytes: &[u8], shape: &Shape) -> Result<Option<usize>, String> {
        let Some(head) = wire::response_head(bytes)? else { return Ok(None) };
        if head.status != 200 {
            return Err(format!("status {}", head.status));
        }
        if head.body_bytes != shape.body.len() as u64 {
            return Err(format!("Content-Length {}, not {}", head.body_bytes, shape.body.len()));
        }
        self.phase = Phase::Body(shape.body.len());
        Ok(Some(head.len))
    }

    fn read_body(&mut self, bytes: &[u8], shape: &Shape) -> Result<bool, String> {
        let Phase::Body(left) = self.phase else { return Ok(false) };
        if bytes.len() > left {
            return Err(format!("{} octets behind the end of the body", bytes.len() - left));
        }
        let at = shape.body.len() - left;
        let verify = shape.verify_all || shape.body.len() <= VERIFY_BYTES_MAX || self.responses == 0;
        if verify && bytes != &shape.body[at..at + bytes.len()] {
            return Err(format!("body differs from the origin's within octets {at}..{}", at + bytes.len()));
        }
        if bytes.len() < left {
            self.phase = Phase::Body(left - bytes.len());
            return Ok(false);
        }
        self.responses += 1;
        self.phase = if shape.churn { Phase::Ending } else { Phase::Idle };
        Ok(!shape.churn)
    }
}

fn connect(shape: &Shape, slot: usize, registry: &Registry) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(shape.address)?;
    stream.set_nodelay(true)?;
    registry.register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}
