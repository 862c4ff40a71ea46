//! A scripted origin: one thread a connection, every byte and every whole request counted.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::bytes::{Digest, random};
use super::client::reset;
use super::gateway::fresh_listener;
use super::message::{End, Fields, Reader};
use super::{SOON, eventually};

/// One whole request as it reached the origin.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub version: String,
    pub fields: Fields,
    pub body_len: u64,
    /// Digest of the whole body.
    pub digest: String,
    pub trailers: Fields,
}

/// What an origin saw so far.
#[derive(Default)]
pub struct Log {
    requests: Mutex<Vec<Request>>,
    raw: Arc<Mutex<Vec<u8>>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    streams: Mutex<Vec<TcpStream>>,
    stopping: AtomicBool,
}

pub struct Origin {
    port: u16,
    log: Arc<Log>,
}

/// One connection as the script of an origin sees it.
pub struct Peer {
    pub reader: Reader<TcpStream>,
    /// Counted from 0 in the order of accepting.
    pub connection: usize,
    log: Arc<Log>,
}

impl Origin {
    /// An origin that runs `script` on each connection and closes it when the script returns.
    pub fn start(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        let listener = fresh_listener();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Log::default());
        let (for_accept, script) = (log.clone(), Arc::new(script));
        std::thread::spawn(move || accept_loop(&listener, &for_accept, &script));
        Self { port, log }
    }

    /// The origin most tests use: serves the paths of [`Peer::serve`] for as long as the peer asks.
    pub fn serving() -> Self {
        Self::start(|peer| while peer.serve_one() {})
    }

    /// An origin that answers each whole request with these raw bytes.
    pub fn raw(response: &[u8]) -> Self {
        let response = response.to_vec();
        Self::start(move |peer| {
            while peer.read_request().is_some() {
                if peer.send(&response).is_err() {
                    return;
                }
            }
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Whole requests seen so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log.requests.lock().unwrap().clone()
    }

    /// The targets of the whole requests seen so far.
    pub fn targets(&self) -> Vec<String> {
        self.log.requests.lock().unwrap().iter().map(|r| r.target.clone()).collect()
    }

    /// Every byte received so far, over all connections.
    pub fn raw_bytes(&self) -> Vec<u8> {
        self.log.raw.lock().unwrap().clone()
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.log.accepted.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.log.open.load(Ordering::SeqCst)
    }

    pub fn forget(&self) {
        self.log.requests.lock().unwrap().clear();
        self.log.raw.lock().unwrap().clear();
    }

    /// Closes every connection that is open now.
    pub fn close_all(&self) {
        for stream in self.log.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.log.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
        self.close_all();
    }
}

impl Peer {
    /// The next whole request; `None` when the peer closed or what came is no whole request.
    pub fn read_request(&mut self) -> Option<Request> {
        let head = self.read_request_head()?;
        self.read_request_body(head)
    }

    /// The next request up to the end of its head; it is not counted yet.
    pub fn read_request_head(&mut self) -> Option<Request> {
        let head = self.reader.read_head().ok()?;
        let mut words = head.start_line.split(' ');
        let mut word = || words.next().unwrap_or_default().to_string();
        let (method, target, version) = (word(), word(), word());
        let (fields, trailers) = (head.fields, Fields::default());
        Some(Request { method, target, version, fields, body_len: 0, digest: String::new(), trailers })
    }

    /// Reads the body that belongs to `request`; counts and returns it when it came whole.
    pub fn read_request_body(&mut self, mut request: Request) -> Option<Request> {
        let mut digest = Digest::default();
        let mut sink = |piece: &[u8]| digest.add(piece);
        let length = request.fields.get("content-length").map(|len| len.parse().unwrap_or(u64::MAX));
        let end = if request.fields.has("transfer-encoding") {
            let (end, trailers) = self.reader.read_chunked(&mut sink);
            request.trailers = trailers;
            end
        } else {
            self.reader.read_length(length.unwrap_or(0), &mut sink)
        };
        request.body_len = digest.len;
        request.digest = digest.text();
        if end != End::Complete {
            return None;
        }
        self.log.requests.lock().unwrap().push(request.clone());
        Some(request)
    }

    /// Serves one request by its path and says whether the connection goes on:
    /// `/bytes/N` and `/chunked/N` answer N random bytes of seed N, `/late/MS` answers after that many
    /// milliseconds, `/status/N` that status, anything else the digest of the request's body.
    pub fn serve_one(&mut self) -> bool {
        let Some(request) = self.read_request_head() else { return false };
        if request.fields.get("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue"))
            && self.send(b"HTTP/1.1 100 Continue\r\n\r\n").is_err()
        {
            return false;
        }
        let Some(request) = self.read_request_body(request) else { return false };
        self.serve(&request).is_ok()
    }

    pub fn serve(&mut self, request: &Request) -> io::Result<()> {
        let path = request.target.split('?').next().unwrap_or_default();
        let number = path.rsplit('/').next().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
        let head_only = request.method == "HEAD";
        if path.starts_with("/chunked/") {
            self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for piece in random(number as u64, number).chunks(if head_only { usize::MAX } else { 16_384 }) {
                self.send(format!("{:x}\r\n", piece.len()).as_bytes())?;
                self.send(piece)?;
                self.send(b"\r\n")?;
            }
            return self.send(b"0\r\n\r\n");
        }
        if path.starts_with("/late/") {
            std::thread::sleep(Duration::from_millis(number as u64));
        }
        let (status, body) = match path {
            _ if path.starts_with("/bytes/") => (200, random(number as u64, number)),
            _ if path.starts_with("/status/") => (number, Vec::new()),
            _ => (200, format!("{} {} {}\n", request.method, request.target, request.digest).into_bytes()),
        };
        let length = if status == 204 || status == 304 { String::new() } else { length_line(body.len()) };
        let mut message =
            format!("HTTP/1.1 {status} Word\r\nX-Origin: {}\r\n{length}\r\n", self.port()).into_bytes();
        if !head_only {
            message.extend_from_slice(&body);
        }
        self.send(&message)
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.stream.write_all(bytes)
    }

    /// Waits until the gateway ends this connection, reading and dropping what comes.
    pub fn wait_for_end(&mut self) {
        while matches!(self.reader.fill(), Ok(n) if n > 0) {
            self.reader.buf.clear();
        }
    }

    /// Ends the connection by a reset.
    pub fn reset(&mut self) {
        if let Ok(stream) = self.reader.stream.try_clone() {
            reset(stream);
        }
        // The last descriptor's close sends the reset; linger 0 is a property of the socket they share.
        self.log
            .streams
            .lock()
            .unwrap()
            .retain(|s| s.peer_addr().ok() != self.reader.stream.peer_addr().ok());
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.reader.stream
    }

    fn port(&self) -> u16 {
        self.reader.stream.local_addr().map_or(0, |address| address.port())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.log.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Connections that nobody accepts fill the backlog: the next SYN gets no answer, for as long as they are kept.
#[must_use]
pub fn fill_backlog(listener: &TcpListener) -> Vec<TcpStream> {
    socket2::SockRef::from(listener).listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
    (0..4).filter_map(connect).collect()
}

/// The next connection to this listener, past the head of its first request.
pub fn accept_request(listener: &TcpListener) -> Reader<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    eventually("a connection comes", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let stream = accepted.unwrap().0;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut reader = Reader::new(stream);
    reader.read_head().unwrap();
    reader
}

fn length_line(len: usize) -> String {
    format!("Content-Length: {len}\r\n")
}

fn accept_loop(
    listener: &TcpListener,
    log: &Arc<Log>,
    script: &Arc<impl Fn(&mut Peer) + Send + Sync + 'static>,
) {
    for stream in listener.incoming() {
        if log.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
        let _ = stream.set_write_timeout(Some(Duration::from_secs(60)));
        if let Ok(copy) = stream.try_clone() {
            log.streams.lock().unwrap().push(copy);
        }
        let connection = log.accepted.fetch_add(1, Ordering::SeqCst);
        log.open.fetch_add(1, Ordering::SeqCst);
        let (log, script) = (log.clone(), script.clone());
        std::thread::spawn(move || {
            let mut reader = Reader::new(stream);
            reader.tap = Some(log.raw.clone());
            let mut peer = Peer { reader, connection, log };
            script(&mut peer);
            let own = peer.reader.stream.peer_addr().ok();
            peer.log.streams.lock().unwrap().retain(|s| s.peer_addr().ok() != own);
        });
    }
}

/// Serves as an origin process of its own when a test re-executes this binary with `RINGFORT_IT_ORIGIN` set, so
/// that the test can kill or stop it; otherwise there is nothing to check.
#[test]
fn child_origin() {
    if std::env::var_os("RINGFORT_IT_ORIGIN").is_none() {
        return;
    }
    let origin = Origin::serving();
    println!("\nport {}", origin.port());
    // The test that started this process kills it; its end closes the pipe otherwise.
    let _ = io::stdin().read_line(&mut String::new());
}

/// An origin in a process of its own.
pub struct ChildOrigin {
    child: std::process::Child,
    pub port: u16,
}

impl ChildOrigin {
    pub fn start() -> Self {
        use std::io::{BufRead, BufReader};
        use std::process::{Command, Stdio};
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "harness::origin::child_origin", "--nocapture"])
            .env("RINGFORT_IT_ORIGIN", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("port ")?.parse().ok());
        Self { child, port: port.expect("the origin process prints its port") }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn stop(&self) {
        super::process::stop(self.child.id());
    }

    pub fn signal(&self, signal: i32) {
        super::process::signal(self.child.id(), signal);
    }
}

impl Drop for ChildOrigin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
