//! A raw HTTP/1.1 client: sends exactly the bytes a test says and reports exactly what came back.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::SOON;
use super::bytes::Digest;
use super::message::{End, Fields, NoMessage, Reader, show};

/// What one response was, and how it ended.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub version: String,
    pub fields: Fields,
    /// The first mebibyte of the body.
    pub body: Vec<u8>,
    /// Digest of the whole body.
    pub digest: String,
    pub body_len: u64,
    pub trailers: Fields,
    pub end: End,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the peer announced that it closes after this response.
    pub fn closes(&self) -> bool {
        self.fields.all("connection").iter().any(|v| v.to_ascii_lowercase().contains("close"))
    }
}

/// Over TCP, or over TLS on it.
pub struct Client<S = TcpStream> {
    pub reader: Reader<S>,
}

impl Client {
    #[track_caller]
    pub fn connect(port: u16) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self::over(
            TcpStream::connect_timeout(&address, SOON).unwrap_or_else(|e| panic!("connect to {port}: {e}")),
        )
    }

    /// Connects where the gateway may refuse; `None` when it did so before the connection was seen to stand.
    pub fn try_connect(port: u16) -> Option<Self> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(Self::over)
    }

    /// Connects with a small receive buffer, so that what it does not read stays with the sender.
    pub fn connect_narrow(port: u16) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
        Self::over(socket.into())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        Self { reader: Reader::new(stream) }
    }

    pub fn read_timeout(&mut self, timeout: Duration) {
        self.stream().set_read_timeout(Some(timeout)).unwrap();
    }

    /// Whether nothing (no byte, no end) comes for `time`.
    pub fn stays_open_and_silent(&mut self, time: Duration) -> bool {
        self.read_timeout(time);
        let silent = match self.reader.fill() {
            Ok(_) => false,
            Err(error) => matches!(error.kind(), std::io::ErrorKind::WouldBlock),
        };
        self.read_timeout(SOON);
        silent
    }

    pub fn shutdown_write(&mut self) {
        self.stream().shutdown(Shutdown::Write).unwrap();
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        reset(self.reader.stream);
    }
}

impl<S: Read + Write> Client<S> {
    pub fn stream(&mut self) -> &mut S {
        &mut self.reader.stream
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap_or_else(|error| panic!("send: {error}"));
    }

    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream().write_all(bytes.as_ref())
    }

    /// A whole GET and its response.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        self.read_response()
    }

    /// A request with a body of known length, and its response.
    #[track_caller]
    pub fn post(&mut self, path: &str, body: &[u8]) -> Response {
        self.send(format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len()));
        self.send(body);
        self.read_response()
    }

    /// The next response to a method other than HEAD; fails the test when none comes.
    #[track_caller]
    pub fn read_response(&mut self) -> Response {
        self.try_read_response("GET").unwrap_or_else(|none| panic!("expected a response, got {none:?}"))
    }

    /// The next response, interim ones included, to a request of `method`.
    pub fn try_read_response(&mut self, method: &str) -> Result<Response, NoMessage> {
        let head = self.reader.read_head()?;
        let malformed = || NoMessage::Malformed(head.start_line.clone());
        let (version, rest) = head.start_line.split_once(' ').ok_or_else(malformed)?;
        let status: u16 = rest.get(..3).and_then(|s| s.parse().ok()).ok_or_else(malformed)?;
        let (mut body, mut digest) = (Vec::new(), Digest::default());
        let mut sink = |piece: &[u8]| {
            digest.add(piece);
            let room = (1usize << 20).saturating_sub(body.len());
            body.extend_from_slice(&piece[..piece.len().min(room)]);
        };
        let mut trailers = Fields::default();
        let bodiless = method == "HEAD" || status / 100 == 1 || status == 204 || status == 304;
        let end = if bodiless {
            End::Complete
        } else if head.fields.all("transfer-encoding") == ["chunked"] {
            assert!(!head.fields.has("content-length"), "both framings in {head:?}");
            let (end, fields) = self.reader.read_chunked(&mut sink);
            trailers = fields;
            end
        } else if let Some(len) = head.fields.get("content-length") {
            let len = len.parse().map_err(|_| malformed())?;
            self.reader.read_length(len, &mut sink)
        } else {
            self.reader.read_until_close(&mut sink)
        };
        let version = version.to_string();
        let (body_len, digest) = (digest.len, digest.text());
        Ok(Response { status, version, fields: head.fields, body, digest, body_len, trailers, end })
    }

    /// Reads until the gateway ends the connection (FIN or reset) and fails when it sends a byte or keeps it open.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let rest = self.read_to_end();
        assert!(rest.is_ok(), "the connection is still open");
        let rest = rest.unwrap_or_default();
        assert!(rest.is_empty(), "expected the end of the connection, got {}", show(&rest));
    }

    /// What comes until the end of the connection; `Err` with what came when it stays open.
    pub fn read_to_end(&mut self) -> Result<Vec<u8>, Vec<u8>> {
        loop {
            match self.reader.fill() {
                Ok(0) => return Ok(std::mem::take(&mut self.reader.buf)),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => {
                    return Err(std::mem::take(&mut self.reader.buf));
                }
                Err(_) => return Ok(std::mem::take(&mut self.reader.buf)),
            }
        }
    }

    /// How long until the gateway ends the connection, reading and dropping what comes.
    pub fn time_to_end(&mut self) -> Duration {
        let start = Instant::now();
        let _ = self.read_to_end();
        start.elapsed()
    }
}

/// Closes with a reset instead of a FIN.
pub fn reset(stream: TcpStream) {
    let socket = Socket::from(stream);
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// One GET on a connection of its own.
#[track_caller]
pub fn get(port: u16, path: &str) -> Response {
    Client::connect(port).get(path)
}

/// One request over any stream, the response read to the end of the connection.
pub fn exchange(stream: &mut (impl Read + Write), request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}
