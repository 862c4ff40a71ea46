//! The origin behind the proxies: one thread that answers fixed bodies and keeps every connection alive.
//! Echoes
//! messages of WebSockets. Never the bottleneck by design: no allocation a request, one receive and one send each.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::wire;

const LISTENER: Token = Token(usize::MAX);
const READ_BYTES: usize = 64 * 1024;
const BACKLOG: i32 = 4096;

/// One origin, listening.
pub struct Origin {
    poll: Poll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    answers: Answers,
    buffer: Box<[u8]>,
}

struct Connection {
    stream: TcpStream,
    /// Octets of requests that came in pieces.
    partial: Vec<u8>,
    /// Octets of a request's body still to be skipped.
    skip: u64,
    /// What is being sent, and how much of it is.
    sending: Option<(Answer, usize)>,
    close: bool,
    /// It is a WebSocket, and this is where echoes are made.
    echo: Option<Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Answer {
    Small,
    Large,
    /// The connection becomes a WebSocket.
    Switching,
    Echo,
    Missing,
}

struct Answers {
    small: Vec<u8>,
    large: Vec<u8>,
    switching: Vec<u8>,
    missing: Vec<u8>,
}

/// A connection goes on, or is over.
#[derive(PartialEq)]
enum Next {
    Keep,
    Close,
}

impl Origin {
    /// Listens on `listen`; port 0 lets the kernel choose one.
    pub fn bind(listen: SocketAddr) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::from_std(listening_socket(listen, false)?.into());
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let answers = Answers {
            small: wire::response("200 OK", &wire::body(wire::SMALL_BYTES), false),
            large: wire::response("200 OK", &wire::body(wire::LARGE_BYTES), false),
            switching: wire::websocket_response(),
            missing: wire::response("404 Not Found", b"paths here: /small /100k /echo\n", false),
        };
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Ok(Self { poll, listener, connections: Vec::new(), free: Vec::new(), answers, buffer })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the process is killed.
    pub fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept()?;
                } else {
                    self.handle(event.token().0, event.is_writable(), event.is_read_closed());
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let (stream, _) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.connections[slot] = Some(Connection::register(stream, slot, self.poll.registry())?);
        }
    }

    fn handle(&mut self, slot: usize, writable: bool, read_closed: bool) {
        let Some(connection) = self.connections.get_mut(slot).and_then(Option::as_mut) else { return };
        let next = connection.proceed(&self.answers, &mut self.buffer, writable, read_closed);
        // A connection that broke is the proxy's to report: it shows as an error at the load generator.
        if !matches!(next, Ok(Next::Keep)) {
            self.connections[slot] = None;
            self.free.push(slot);
        }
    }
}

impl Connection {
    fn register(mut stream: TcpStream, slot: usize, registry: &Registry) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        registry.register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, partial: Vec::new(), skip: 0, sending: None, close: false, echo: None })
    }

    fn proceed(
        &mut self,
        answers: &Answers,
        buffer: &mut [u8],
        writable: bool,
        read_closed: bool,
    ) -> io::Result<Next> {
        if writable && self.sending.is_some() {
            // What came behind the request whose answer was waiting is answered once that answer has gone.
            if self.send(answers)? == Next::Close || self.receive(&[], answers)? == Next::Close {
                return Ok(Next::Close);
            }
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Ok(Next::Close),
                Ok(count) => {
                    if self.receive(&buffer[..count], answers)? == Next::Close {
                        return Ok(Next::Close);
                    }
                    // epoll(7): a short read of a stream socket means that it is drained.
                    if count < buffer.len() && !read_closed {
                        return Ok(Next::Keep);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Keep),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers the whole requests in `bytes` and keeps the rest.
    fn receive(&mut self, bytes: &[u8], answers: &Answers) -> io::Result<Next> {
        if self.partial.is_empty() && self.sending.is_none() {
            let Some(used) = self.answer_all(bytes, answers)? else { return Ok(Next::Close) };
            self.partial.extend_from_slice(&bytes[used..]);
            return Ok(Next::Keep);
        }
        let mut joined = std::mem::take(&mut self.partial);
        joined.extend_from_slice(bytes);
        let Some(used) = self.answer_all(&joined, answers)? else { return Ok(Next::Close) };
        joined.drain(..used);
        self.partial = joined;
        Ok(Next::Keep)
    }

    /// How many octets were used; `None` when the connection is over.
    fn answer_all(&mut self, bytes: &[u8], answers: &Answers) -> io::Result<Option<usize>> {
        let mut at = 0;
        while at < bytes.len() && self.sending.is_none() {
            if self.skip > 0 {
                let skipped = self.skip.min((bytes.len() - at) as u64);
                self.skip -= skipped;
                at += skipped as usize;
                continue;
            }
            if let Some(echo) = &mut self.echo {
                let Some(len) = wire::websocket_echo(&bytes[at..], echo).map_err(io::Error::other)? else {
                    break;
                };
                at += len;
                self.sending = Some((Answer::Echo, 0));
                if self.send(answers)? == Next::Close {
                    return Ok(None);
                }
                continue;
            }
            let Some(head) = wire::request_head(&bytes[at..]).map_err(io::Error::other)? else { break };
            let answer = match &bytes[at..][head.target] {
                b"/small" => Answer::Small,
                b"/100k" => Answer::Large,
                b"/echo" => Answer::Switching,
                _ => Answer::Missing,
            };
            at += head.len;
            self.skip = head.body_bytes;
            self.close = head.close;
            self.sending = Some((answer, 0));
            if self.send(answers)? == Next::Close {
                return Ok(None);
            }
        }
        Ok(Some(at))
    }

    fn send(&mut self, answers: &Answers) -> io::Result<Next> {
        let Some((answer, mut sent)) = self.sending.take() else { return Ok(Next::Keep) };
        let bytes = match (answer, &self.echo) {
            (Answer::Echo, Some(echo)) => echo,
            _ => answers.bytes(answer),
        };
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.sending = Some((answer, sent));
                    return Ok(Next::Keep);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if let Answer::Switching = answer {
            self.echo = Some(Vec::new());
        }
        Ok(if self.close { Next::Close } else { Next::Keep })
    }
}

impl Answers {
    fn bytes(&self, answer: Answer) -> &[u8] {
        match answer {
            Answer::Small => &self.small,
            Answer::Large => &self.large,
            Answer::Switching => &self.switching,
            Answer::Echo | Answer::Missing => &self.missing,
        }
    }
}

/// A non-blocking listening socket; `shared` sets SO_REUSEPORT.
pub fn listening_socket(listen: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
