//! One connection of the load generator and the response that it waits for. Never decides what to send next.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::Shape;
use super::secure::Secure;
use crate::tls::Handshake;
use crate::wire;

/// A body up to this long is compared octet by octet on every response.
const VERIFY_BYTES_MAX: usize = 4096;

pub(super) struct Connection {
    stream: Option<TcpStream>,
    secure: Option<Box<Secure>>,
    phase: Phase,
    due: Instant,
    /// It is a WebSocket.
    upgraded: bool,
    /// Octets of a response head that came in pieces.
    head: Vec<u8>,
    /// Responses completed on this connection.
    responses: u64,
    /// Connections opened on this slot.
    opened: u64,
    news: News,
}

/// What TLS came to since it was last asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    pub(super) handshake: Option<Handshake>,
    pub(super) tickets: u64,
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
        Self {
            stream: None,
            secure: None,
            phase: Phase::Idle,
            due: Instant::now(),
            upgraded: false,
            head: Vec::new(),
            responses: 0,
            opened: 0,
            news: News::default(),
        }
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
        if self.stream.is_none()
            && let Err(error) = self.connect(shape, slot, registry)
        {
            return Progress::Failed(format!("connect to {}: {error}", shape.address));
        }
        match self.send(shape) {
            Ok(()) => Progress::Waiting,
            Err(error) => Progress::Failed(format!("send: {error}")),
        }
    }

    /// Takes what the socket has. `read_closed`: the peer has sent its end.
    pub(super) fn proceed(&mut self, shape: &Shape, buffer: &mut [u8], read_closed: bool) -> Progress {
        if let Err(error) = self.send(shape) {
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
            match self.decrypt(&buffer[..count], shape) {
                Ok(true) => return Progress::Complete,
                Ok(false) => {}
                Err(why) => return Progress::Failed(why),
            }
            // A connection that has become a WebSocket begins with its first message.
            if let (Phase::Sending(_), Err(error)) = (self.phase, self.send(shape)) {
                return Progress::Failed(format!("send: {error}"));
            }
            // epoll(7): a short read of a stream socket means that it is drained.
            if count < buffer.len() && !read_closed && self.phase != Phase::Ending {
                return Progress::Waiting;
            }
        }
    }

    /// Drops the connection after an error.
    pub(super) fn discard(&mut self) {
        *self = Self { due: self.due, opened: self.opened, news: self.news, ..Self::default() };
    }

    /// What TLS came to since the last call.
    pub(super) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    fn connect(&mut self, shape: &Shape, slot: usize, registry: &Registry) -> io::Result<()> {
        let mut stream = TcpStream::connect(shape.address)?;
        stream.set_nodelay(true)?;
        registry.register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        self.stream = Some(stream);
        if let Some(terms) = &shape.secure {
            self.secure = Some(Box::new(terms.start(slot, self.opened)?));
        }
        self.opened += 1;
        Ok(())
    }

    fn ended(&mut self) -> Progress {
        if self.phase == Phase::Ending {
            if self.secure.as_ref().is_some_and(|secure| !secure.peer_closed()) {
                return Progress::Failed("connection closed without close_notify".to_owned());
            }
            self.discard();
            return Progress::Complete;
        }
        Progress::Failed(format!(
            "connection closed while {:?}, after {} responses on it",
            self.phase, self.responses
        ))
    }

    fn send(&mut self, shape: &Shape) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        if let Some(secure) = &mut self.secure {
            if let Phase::Sending(_) = self.phase {
                secure.write(&shape.request)?;
                self.phase = Phase::Head;
            }
            return secure.flush(stream);
        }
        let Phase::Sending(mut sent) = self.phase else { return Ok(()) };
        let message = shape.message.as_ref().filter(|_| self.upgraded);
        let bytes = message.unwrap_or(&shape.request);
        while sent < bytes.len() {
            match stream.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if would_wait(&error) => {
                    self.phase = Phase::Sending(sent);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.phase = if self.upgraded { Phase::Body(shape.body.len()) } else { Phase::Head };
        Ok(())
    }

    /// Takes what came from the socket, through TLS where there is TLS; whether the exchange is over.
    fn decrypt(&mut self, bytes: &[u8], shape: &Shape) -> Result<bool, String> {
        let (Some(mut secure), Some(terms)) = (self.secure.take(), &shape.secure) else {
            return self.receive(bytes, shape);
        };
        let (shaken, tickets) = (secure.handshake().is_some(), secure.tickets());
        let outcome = secure.receive(bytes, terms, |plain| self.receive(plain, shape));
        self.news.tickets += secure.tickets() - tickets;
        if !shaken {
            self.news.handshake = secure.handshake();
        }
        self.secure = Some(secure);
        // Behind an error there is still an alert to be sent, which the proxy's log may tell of.
        let sent = self.send(shape).map_err(|error| format!("send: {error}"));
        outcome.and_then(|complete| sent.map(|()| complete))
    }

    /// Takes plaintext; whether the exchange is over.
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
        if shape.message.is_some() {
            let head = wire::websocket_head(bytes)?;
            if head.is_some() {
                (self.upgraded, self.phase) = (true, Phase::Sending(0));
            }
            return Ok(head);
        }
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
        let Phase::Body(left) = self.phase else {
            return if bytes.is_empty() {
                Ok(false)
            } else {
                Err("octets before the first message".to_owned())
            };
        };
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

pub(super) fn would_wait(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}
