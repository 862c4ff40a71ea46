//! HTTP/2 for tests: a client and an origin on the `h2` crate, and frames by hand where the crate would not send what a
//! test wants sent.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};

use super::SOON;
use super::bytes::{Digest, random};
use super::gateway::fresh_listener;

/// Runs a test's client side, at most for a bound.
#[track_caller]
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(SOON * 3, test).await });
    // Connections that a test leaves open must not keep it.
    runtime.shutdown_background();
    ended.expect("the test ends in time")
}

/// A connection with prior knowledge, driven beside the test.
pub async fn connect(port: u16) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    send
}

pub fn get(path: &str) -> Request<()> {
    request("GET", path)
}

pub fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://site.test{path}")).body(()).unwrap()
}

/// A response with its body.
#[derive(Debug)]
pub struct Whole {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Whole {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.as_ref()?.get(name)?.to_str().ok()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// The rest of a body and its trailers.
pub async fn read_body(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        bytes.extend_from_slice(&data);
        let _ = body.flow_control().release_capacity(data.len());
    }
    Ok((bytes, body.trailers().await?))
}

pub async fn whole(response: Response<RecvStream>) -> Result<Whole, h2::Error> {
    let (head, mut body) = response.into_parts();
    let (bytes, trailers) = read_body(&mut body).await?;
    Ok(Whole { status: head.status.as_u16(), fields: head.headers, body: bytes, trailers })
}

/// One request without a body.
pub async fn fetch(send: &mut SendRequest<Bytes>, request: Request<()>) -> Result<Whole, h2::Error> {
    let mut ready = send.clone().ready().await?;
    let (response, _) = ready.send_request(request, true)?;
    whole(response.await?).await
}

/// One request with this body, and trailers if there are any.
pub async fn post(
    send: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: &[u8],
    trailers: Option<HeaderMap>,
) -> Result<Whole, h2::Error> {
    let mut ready = send.clone().ready().await?;
    let (response, mut stream) = ready.send_request(request, false)?;
    let uploading = async {
        let ends = trailers.is_none();
        send_all(&mut stream, body, ends).await?;
        if let Some(trailers) = trailers {
            stream.send_trailers(trailers)?;
        }
        Ok::<_, h2::Error>(())
    };
    let (_, response) = tokio::join!(uploading, response);
    whole(response?).await
}

/// Sends bytes as the peer's window allows.
pub async fn send_all(stream: &mut SendStream<Bytes>, bytes: &[u8], ends: bool) -> Result<(), h2::Error> {
    let mut left = Bytes::copy_from_slice(bytes);
    while !left.is_empty() {
        stream.reserve_capacity(left.len());
        if stream.capacity() == 0 {
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error),
                None => return Err(Reason::CANCEL.into()),
            }
        }
        let piece = left.split_to(stream.capacity().min(left.len()));
        stream.send_data(piece, ends && left.is_empty())?;
    }
    if bytes.is_empty() && ends {
        stream.send_data(Bytes::new(), true)?;
    }
    Ok(())
}

pub fn trailers(fields: &[(&'static str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
}

/// A request as it reached an origin in HTTP/2.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// `:protocol`.
    pub protocol: Option<String>,
    pub uri: String,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
    /// How the body ended, if not well.
    pub broken: Option<String>,
}

#[derive(Default)]
pub struct Log {
    seen: Mutex<Vec<Seen>>,
    accepted: AtomicUsize,
    /// Streams begun.
    pub begun: AtomicUsize,
    /// Codes of resets that came while an origin waited.
    pub resets: Mutex<Vec<u32>>,
}

/// An origin in HTTP/2 with prior knowledge.
pub struct H2Origin {
    port: u16,
    log: Arc<Log>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl H2Origin {
    pub fn start() -> Self {
        Self::with(h2::server::Builder::new())
    }

    pub fn with(builder: h2::server::Builder) -> Self {
        let listener = fresh_listener();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Log::default());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let for_thread = log.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, builder, for_thread) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { port, log, stop: Some(stop) }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Requests that came whole, or broke off.
    pub fn seen(&self) -> Vec<Seen> {
        self.log.seen.lock().unwrap().clone()
    }

    pub fn accepted(&self) -> usize {
        self.log.accepted.load(Ordering::SeqCst)
    }

    pub fn log(&self) -> &Log {
        &self.log
    }
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

async fn accept(listener: std::net::TcpListener, builder: h2::server::Builder, log: Arc<Log>) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let _ = stream.set_nodelay(true);
        log.accepted.fetch_add(1, Ordering::SeqCst);
        let (builder, log) = (builder.clone(), log.clone());
        tokio::spawn(async move {
            let Ok(mut connection) = builder.handshake(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                log.begun.fetch_add(1, Ordering::SeqCst);
                if request.uri().path() == "/goaway" {
                    connection.graceful_shutdown();
                }
                tokio::spawn(serve(log.clone(), request, respond));
            }
        });
    }
}

/// Serves one request by its path, see the arms.
async fn serve(log: Arc<Log>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let number = path.rsplit('/').next().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    let kind = path.split('/').nth(1).unwrap_or_default();
    let answer = |status: u16| Response::builder().status(status).header("x-origin", "h2");
    if head.method == http::Method::CONNECT {
        if kind == "status" {
            note(&log, &head, Vec::new(), None, None);
            let _ = respond.send_response(answer(number as u16).body(()).unwrap(), true);
            return;
        }
        return tunnel(&log, &head, body, respond).await;
    }
    match kind {
        // Answers before it has read anything, and reads nothing.
        "early" => {
            let response = answer(403).header("content-length", "5").body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            let _ = send_all(&mut stream, b"early", true).await;
            return;
        }
        "reset" => return respond.send_reset(Reason::from(number as u32)),
        // Refuses the first stream of the path there is, serves the second.
        "refuse-once" if log.begun.load(Ordering::SeqCst) == 1 => {
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        "echo" => {
            let response = answer(200).header("content-type", "application/grpc").body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            while let Some(data) = body.data().await {
                let Ok(data) = data else { return note(&log, &head, Vec::new(), None, Some("reset")) };
                let _ = body.flow_control().release_capacity(data.len());
                let _ = send_all(&mut stream, &data, false).await;
            }
            let sent = body.trailers().await.ok().flatten();
            note(&log, &head, Vec::new(), sent, None);
            let _ = stream.send_trailers(trailers(&[("grpc-status", "0"), ("x-sum", "done")]));
            return;
        }
        // Waits for the client to leave.
        "wait" => {
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            log.resets.lock().unwrap().push(reset.map_or(u32::MAX, u32::from));
            return;
        }
        _ => {}
    }
    let read = read_body(&mut body).await;
    let (bytes, sent_trailers) = match read {
        Ok(read) => read,
        Err(error) => return note(&log, &head, Vec::new(), None, Some(&error.to_string())),
    };
    let digest = Digest::of(&bytes).text();
    note(&log, &head, bytes, sent_trailers, None);
    match kind {
        "bytes" => {
            let response = answer(200).header("content-length", number).body(()).unwrap();
            if let Ok(mut stream) = respond.send_response(response, false) {
                let _ = send_all(&mut stream, &random(number as u64, number), true).await;
            }
        }
        "stream" => {
            let response = answer(200).header("trailer", "x-sum").body(()).unwrap();
            if let Ok(mut stream) = respond.send_response(response, false) {
                let _ = send_all(&mut stream, &random(number as u64, number), false).await;
                let _ = stream.send_trailers(trailers(&[("x-sum", "abc"), ("content-length", "9")]));
            }
        }
        // As some servers do before trailers.
        "empty" => {
            let mut stream = respond.send_response(answer(200).body(()).unwrap(), false).unwrap();
            let _ = send_all(&mut stream, b"some", false).await;
            let _ = stream.send_data(Bytes::new(), false);
            let _ = stream.send_trailers(trailers(&[("x-sum", "abc")]));
        }
        // In frames of 25 bytes, but for one of 300.
        "drops" => {
            let mut stream = respond.send_response(answer(200).body(()).unwrap(), false).unwrap();
            let bytes = random(number as u64, number);
            let (first, rest) = bytes.split_at(25);
            let (large, rest) = rest.split_at(300);
            for drop in [first, large].into_iter().chain(rest.chunks(25)) {
                let _ = send_all(&mut stream, drop, false).await;
            }
            let _ = stream.send_trailers(trailers(&[("x-sum", "abc")]));
        }
        "cut" => {
            let response = answer(200).body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            let _ = send_all(&mut stream, &random(1, 1_000), false).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.send_reset(Reason::from(number as u32));
        }
        "info" => {
            let early = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
            let _ = respond.send_informational(early);
            let _ = respond.send_response(answer(200).body(()).unwrap(), true);
        }
        "status" => {
            let _ = respond.send_response(answer(number as u16).body(()).unwrap(), true);
        }
        "late" => {
            tokio::time::sleep(Duration::from_millis(number as u64)).await;
            let _ = respond.send_response(answer(200).body(()).unwrap(), true);
        }
        "trailers-only" => {
            let response =
                answer(200).header("content-type", "application/grpc").header("grpc-status", number);
            let _ = respond.send_response(response.body(()).unwrap(), true);
        }
        _ => {
            let text = format!("{} {path} {digest}\n", head.method);
            if let Ok(mut stream) = respond.send_response(answer(200).body(()).unwrap(), false) {
                let _ = send_all(&mut stream, text.as_bytes(), true).await;
            }
        }
    }
}

/// Opens a tunnel and sends back what comes, to the end; with the path `/reset/N` until the first bytes.
async fn tunnel(
    log: &Log,
    head: &http::request::Parts,
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
) {
    note(log, head, Vec::new(), None, None);
    let response = Response::builder().status(200).header("x-origin", "h2").body(()).unwrap();
    let Ok(mut stream) = respond.send_response(response, false) else { return };
    while let Some(data) = body.data().await {
        let Ok(data) = data else {
            return note(log, head, Vec::new(), None, Some("reset"));
        };
        if head.uri.path().starts_with("/reset") {
            return stream.send_reset(Reason::INTERNAL_ERROR);
        }
        let _ = body.flow_control().release_capacity(data.len());
        let _ = send_all(&mut stream, &data, false).await;
    }
    let _ = stream.send_data(Bytes::new(), true);
}

fn note(
    log: &Log,
    head: &http::request::Parts,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    broken: Option<&str>,
) {
    log.seen.lock().unwrap().push(Seen {
        method: head.method.to_string(),
        protocol: head.extensions.get::<h2::ext::Protocol>().map(|protocol| protocol.as_str().to_owned()),
        uri: head.uri.to_string(),
        fields: head.headers.clone(),
        body,
        trailers,
        broken: broken.map(Into::into),
    });
}

/// Frames by hand.
pub mod raw {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::SOON;

    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;

    #[derive(Clone, Debug, Eq, PartialEq)]
    pub struct Frame {
        pub kind: u8,
        pub flags: u8,
        pub stream: u32,
        pub payload: Vec<u8>,
    }

    impl Frame {
        /// The code of a RST_STREAM or GOAWAY.
        pub fn code(&self) -> Option<u32> {
            let at = match self.kind {
                RST_STREAM => 0,
                GOAWAY => 4,
                _ => return None,
            };
            self.payload.get(at..at + 4).map(|code| u32::from_be_bytes(code.try_into().unwrap()))
        }
    }

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// A field block of literals that are never indexed.
    pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, value) in fields {
            bytes.push(0);
            for text in [name, value] {
                integer(&mut bytes, text.len());
                bytes.extend(text.as_bytes());
            }
        }
        bytes
    }

    /// RFC 7541 §5.1 with a prefix of seven bits.
    fn integer(bytes: &mut Vec<u8>, mut value: usize) {
        if value < 127 {
            return bytes.push(value as u8);
        }
        bytes.push(127);
        value -= 127;
        while value >= 128 {
            bytes.push(value as u8 | 128);
            value /= 128;
        }
        bytes.push(value as u8);
    }

    /// The fields of a GET of `/`, and these.
    pub fn get(extra: &[(&str, &str)]) -> Vec<u8> {
        let mut fields =
            vec![(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "site.test")];
        fields.extend(extra);
        block(&fields)
    }

    pub struct RawClient {
        pub stream: TcpStream,
        buf: Vec<u8>,
    }

    impl RawClient {
        /// A connection that has sent preface and SETTINGS, and acknowledges those of the gateway.
        pub fn connect(port: u16) -> Self {
            let mut client = Self::silent(port);
            client.greet();
            client
        }

        pub fn greet(&mut self) {
            self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            self.send(&frame(SETTINGS, 0, 0, &[]));
            self.send(&frame(SETTINGS, ACK, 0, &[]));
        }

        pub fn silent(port: u16) -> Self {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            Self::over(stream)
        }

        /// The other side's end of a connection, for an origin by hand.
        pub fn over(stream: TcpStream) -> Self {
            Self { stream, buf: Vec::new() }
        }

        /// Takes the preface of a client.
        pub fn expect_preface(&mut self) {
            let mut preface = [0; 24];
            let read = self.stream.read_exact(&mut preface);
            assert!(read.is_err() || preface.starts_with(b"PRI"), "{preface:?}");
        }

        /// Errors show in what is read.
        pub fn send(&mut self, bytes: &[u8]) {
            let _ = self.stream.write_all(bytes);
        }

        /// The next frame; `None` at the end of the connection.
        pub fn next(&mut self) -> Option<Frame> {
            loop {
                if self.buf.len() >= 9 {
                    let len = u32::from_be_bytes([0, self.buf[0], self.buf[1], self.buf[2]]) as usize;
                    if self.buf.len() >= 9 + len {
                        let rest = self.buf.split_off(9 + len);
                        let whole = std::mem::replace(&mut self.buf, rest);
                        let stream = u32::from_be_bytes(whole[5..9].try_into().unwrap());
                        let payload = whole[9..].to_vec();
                        return Some(Frame { kind: whole[3], flags: whole[4], stream, payload });
                    }
                }
                let mut buf = [0; 16_384];
                match self.stream.read(&mut buf) {
                    Ok(0) => return None,
                    Ok(n) => self.buf.extend_from_slice(&buf[..n]),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        panic!("the gateway neither sent a frame nor ended the connection")
                    }
                    Err(_) => return None,
                }
            }
        }

        /// The next frame for which `wanted` holds.
        pub fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
            loop {
                let frame = self.next()?;
                if wanted(&frame) {
                    return Some(frame);
                }
            }
        }

        /// How the stream was answered: the code of its reset, or of the connection's end; `None` for a response.
        pub fn verdict(&mut self, stream: u32) -> Option<u32> {
            let frame = self.until(|frame| {
                (frame.stream == stream && matches!(frame.kind, RST_STREAM | HEADERS)) || frame.kind == GOAWAY
            });
            frame.expect("an answer before the end").code()
        }
    }
}
