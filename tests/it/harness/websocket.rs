//! WebSocket for tests: a server by tungstenite, frames by hand, and a client's byte stream over any version of HTTP.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, WebSocket};

use super::SOON;
use super::client::Client;
use super::h2::{connect, send_all};
use super::origin::Peer;
use super::tls::TlsClient;

/// The example of RFC 6455 §1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Answers an opening and serves what it asks for: with an extension, frames come back as they are; else a WebSocket
/// server sends every message back, and says in the clear how it ended: what it made of the bytes shows to the last one.
pub fn serve(peer: &mut Peer) {
    let Some(request) = peer.read_request() else { return };
    let key = request.fields.get("sec-websocket-key").unwrap_or_default();
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let mut head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n"
    );
    let extension = request.fields.get("sec-websocket-extensions");
    if let Some(extension) = extension {
        head.push_str(&format!("Sec-WebSocket-Extensions: {extension}\r\n"));
    }
    if peer.send((head + "\r\n").as_bytes()).is_err() {
        return;
    }
    if extension.is_some() {
        return echo_frames(peer);
    }
    let read = std::mem::take(&mut peer.reader.buf);
    let Ok(stream) = peer.stream().try_clone() else { return };
    let config = WebSocketConfig::default().max_message_size(Some(64 << 20)).max_frame_size(Some(64 << 20));
    echo_messages(WebSocket::from_partially_read(stream, read, Role::Server, Some(config)));
}

fn echo_messages(mut socket: WebSocket<TcpStream>) {
    let error = loop {
        let message = match socket.read() {
            Ok(message) => message,
            Err(error) => break error,
        };
        if (message.is_text() || message.is_binary())
            && let Err(error) = socket.send(message)
        {
            break error;
        }
    };
    let _ = socket.flush();
    let stream = socket.get_mut();
    if !matches!(error, Error::ConnectionClosed) {
        let _ = stream.write_all(format!("\nended: {error}").as_bytes());
    }
    leave(stream);
}

/// Sends each frame back unmasked, its first byte kept: extension bits are the two ends' own matter.
fn echo_frames(peer: &mut Peer) {
    while let Ok((first, payload)) = read_frame(peer) {
        if peer.send(&frame(first, None, &payload)).is_err() || first & 15 == CLOSE {
            break;
        }
    }
    leave(peer.stream());
}

/// Bytes nobody read would make the kernel answer with a reset, which destroys what was sent.
fn leave(stream: &mut TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let mut rest = [0; 65_536];
    while matches!(stream.read(&mut rest), Ok(n) if n > 0) {}
}

pub const CLOSE: u8 = 8;

fn read_frame(peer: &mut Peer) -> io::Result<(u8, Vec<u8>)> {
    let mut read = |len: usize| {
        while peer.reader.buf.len() < len {
            if peer.reader.fill()? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
        Ok(peer.reader.buf.drain(..len).collect::<Vec<u8>>())
    };
    let start = read(2)?;
    let len = match start[1] & 127 {
        126 => read(2)?.into_iter().fold(0, |len, byte| len << 8 | usize::from(byte)),
        127 => read(8)?.into_iter().fold(0, |len, byte| len << 8 | usize::from(byte)),
        len => usize::from(len),
    };
    let mask = if start[1] & 128 == 0 { vec![0; 4] } else { read(4)? };
    let mut payload = read(len)?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok((start[0], payload))
}

/// A frame whose first byte (FIN, RSV, opcode) is this.
pub fn frame(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let masked = if mask.is_some() { 128 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..=125 => bytes.push(masked | len as u8),
        len @ 126..=65_535 => {
            bytes.push(masked | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(masked | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(mask.unwrap_or_default().iter().take(if mask.is_some() { 4 } else { 0 }));
    let key = mask.unwrap_or_default();
    bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// What a client sends and hears once its tunnel is open.
pub trait Wire: Read + Write + Send {}

impl<T: Read + Write + Send> Wire for T {}

/// A way for a client to reach the server.
pub enum Road {
    Http1 { port: u16 },
    Http1Tls { port: u16, client: TlsClient },
    Http2(Streams),
}

impl Road {
    /// Opens a WebSocket: its byte stream, and the extensions that were agreed on.
    pub fn open(&self, extensions: Option<&str>) -> (Box<dyn Wire>, Option<String>) {
        match self {
            Self::Http1 { port } => {
                let mut client = Client::connect(*port);
                let agreed = upgrade(&mut client, extensions);
                (Box::new(client.reader.stream), agreed)
            }
            Self::Http1Tls { port, client } => {
                let mut client = client.connect(*port, "a.test");
                let agreed = upgrade(&mut client, extensions);
                (Box::new(client.reader.stream), agreed)
            }
            Self::Http2(streams) => {
                let (stream, fields) = streams.open(extensions);
                let agreed =
                    fields.get("sec-websocket-extensions").map(|value| value.to_str().unwrap().into());
                (Box::new(stream), agreed)
            }
        }
    }
}

fn upgrade<S: Read + Write>(client: &mut Client<S>, extensions: Option<&str>) -> Option<String> {
    let extensions = extensions.map(|value| format!("Sec-WebSocket-Extensions: {value}\r\n"));
    client.send(format!(
        "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{}\r\n",
        extensions.unwrap_or_default()
    ));
    let response = client.read_response();
    assert_eq!((response.status, response.fields.get("sec-websocket-accept")), (101, Some(ACCEPT)));
    assert!(client.reader.buf.is_empty(), "a server that speaks first");
    response.fields.get("sec-websocket-extensions").map(Into::into)
}

type Order = (Option<String>, std::sync::mpsc::Sender<(UnixStream, HeaderMap)>);

/// A client's connection in HTTP/2, with prior knowledge, whose streams look like sockets.
pub struct Streams(tokio::sync::mpsc::UnboundedSender<Order>);

impl Streams {
    pub fn connect(port: u16) -> Self {
        let (orders, mut ordered) = tokio::sync::mpsc::unbounded_channel::<Order>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                // Not before it is wanted: the gateway would take it for a client that has nothing to say.
                let mut connection = None;
                while let Some((extensions, opened)) = ordered.recv().await {
                    if connection.is_none() {
                        connection = Some(connect(port).await);
                    }
                    let Some(send) = &mut connection else { return };
                    let (stream, fields) = open(send, extensions).await;
                    let _ = opened.send((stream, fields));
                }
            });
        });
        Self(orders)
    }

    fn open(&self, extensions: Option<&str>) -> (UnixStream, HeaderMap) {
        let (opened, opening) = std::sync::mpsc::channel();
        self.0.send((extensions.map(Into::into), opened)).unwrap();
        opening.recv_timeout(SOON).expect("a stream that opens")
    }
}

async fn open(send: &mut SendRequest<Bytes>, extensions: Option<String>) -> (UnixStream, HeaderMap) {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://a.test/chat")
        .header("sec-websocket-version", "13");
    if let Some(extensions) = extensions {
        request = request.header("sec-websocket-extensions", extensions);
    }
    let mut request = request.body(()).unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let mut ready = send.clone().ready().await.unwrap();
    let (response, up) = ready.send_request(request, false).unwrap();
    let (head, down) = response.await.unwrap().into_parts();
    assert_eq!(head.status, 200);
    let (near, far) = UnixStream::pair().unwrap();
    near.set_read_timeout(Some(SOON)).unwrap();
    near.set_write_timeout(Some(SOON)).unwrap();
    far.set_nonblocking(true).unwrap();
    let (read, write) = tokio::net::UnixStream::from_std(far).unwrap().into_split();
    tokio::spawn(pass_up(read, up));
    tokio::spawn(pass_down(down, write));
    (near, head.headers)
}

async fn pass_up(mut from: tokio::net::unix::OwnedReadHalf, mut to: SendStream<Bytes>) {
    use tokio::io::AsyncReadExt;
    let mut buf = vec![0; 65_536];
    while let Ok(n) = from.read(&mut buf).await {
        if send_all(&mut to, &buf[..n], n == 0).await.is_err() || n == 0 {
            return;
        }
    }
}

/// A stream that was reset shows as such in what the client hears.
async fn pass_down(mut from: RecvStream, mut to: tokio::net::unix::OwnedWriteHalf) {
    use tokio::io::AsyncWriteExt;
    while let Some(data) = from.data().await {
        let Ok(data) = data else {
            let _ = to.write_all(b"\nthe stream was reset").await;
            return;
        };
        let _ = from.flow_control().release_capacity(data.len());
        if to.write_all(&data).await.is_err() {
            return;
        }
    }
}
