//! One probe of one endpoint: a connection, a handshake, a request, as its cluster is spoken to. What an endpoint answers is
//! judged by the parsers that judge its responses. Never keeps a connection.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpSocket, TcpStream};

use crate::h1::{FieldSlots, HeadLimits, Parsed, parse_response};
use crate::health::check::{HttpProbe, Probe};
use crate::limits;
use crate::proxy::snapshot::{self, ClusterProtocol};
use crate::proxy_protocol;
use crate::sys::socket_options::SocketOptions;
use crate::tls::{Client, Phase, Processed, Purpose, Session, explain, sealed_bytes_max};

/// How endpoints see who asks.
const USER_AGENT: &str = concat!("ringfort-health/", env!("CARGO_PKG_VERSION"));

/// How the endpoints of one cluster are probed.
#[derive(Clone)]
pub(super) struct Prober {
    pub(super) protocol: ClusterProtocol,
    pub(super) tls: Shared,
    /// The cluster has TLS, whether or not it can be used.
    is_secure: bool,
    socket: SocketOptions,
    /// Of the header that connections begin with: it says that nobody else is behind this one.
    proxy_protocol: Option<proxy_protocol::Version>,
}

/// The TLS of a cluster, which changes with its certificates.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Option<Arc<Client>>>>);

impl Shared {
    pub(super) fn replace(&self, client: Arc<Client>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(client);
    }

    fn get(&self) -> Option<Arc<Client>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Prober {
    pub(super) fn new(spec: &snapshot::Cluster) -> Self {
        Self {
            protocol: spec.protocol,
            tls: Shared::default(),
            is_secure: spec.tls.is_some(),
            socket: spec.socket.clone(),
            proxy_protocol: spec.proxy_protocol,
        }
    }

    /// Probes once.
    ///
    /// # Errors
    /// What the endpoint failed of.
    pub(super) async fn probe(&self, probe: &Probe, endpoint: SocketAddr) -> Result<(), String> {
        let mut socket = self.connect(endpoint).await.map_err(|error| format!("cannot connect: {error}"))?;
        if *probe == Probe::Tcp {
            return Ok(());
        }
        let Some(client) = self.tls.get() else {
            return match probe {
                Probe::Http(http) if !self.is_secure => self.ask(http, endpoint, socket, false).await,
                _ => Err("TLS: its certificates cannot be used".to_owned()),
            };
        };
        let purpose = match (probe, self.protocol) {
            (Probe::Http(_), ClusterProtocol::H2) => Purpose::Http,
            (Probe::Http(_), _) => Purpose::Http1,
            _ => Purpose::Relay,
        };
        let session = client.session(endpoint.ip(), purpose).map_err(|error| explain(&error))?;
        let mut tls = Secured { session, received: Vec::new(), out: Vec::new() };
        tls.handshake(&mut socket).await?;
        let Probe::Http(http) = probe else { return Ok(()) };
        if purpose == Purpose::Http && tls.session.agreed().alpn_protocol() != Some(b"h2") {
            return Err("the endpoint did not choose HTTP/2 by ALPN".to_owned());
        }
        let (near, far) = tokio::io::duplex(limits::RECV_BUF_BYTES);
        tokio::select! {
            biased;
            asked = self.ask(http, endpoint, near, true) => asked,
            error = tls.carry(&mut socket, far) => Err(error),
        }
    }

    async fn connect(&self, endpoint: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = if endpoint.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        self.socket.apply(&socket)?;
        let mut stream = socket.connect(endpoint).await?;
        stream.set_nodelay(true)?;
        if let Some(version) = self.proxy_protocol {
            let mut header = Vec::new();
            proxy_protocol::write(&mut header, version, None);
            stream.write_all(&header).await?;
        }
        Ok(stream)
    }

    /// Sends the request and judges the response.
    async fn ask(
        &self,
        http: &HttpProbe,
        endpoint: SocketAddr,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        is_secure: bool,
    ) -> Result<(), String> {
        let address = endpoint.to_string();
        let host = http.host.as_deref().unwrap_or(&address);
        let status = match self.protocol {
            ClusterProtocol::H2 => ask_http2(stream, host, &http.path, is_secure).await,
            ClusterProtocol::Http1 | ClusterProtocol::Auto => ask_http1(stream, host, &http.path).await,
        }?;
        if http.passes(status) { Ok(()) } else { Err(format!("it answered {status}")) }
    }
}

/// The status of the final response.
async fn ask_http1(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
) -> Result<u16, String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("cannot send: {error}"))?;
    let mut received = Vec::new();
    loop {
        while let Some((status, head_len)) = parse(&received)? {
            if status >= 200 {
                return Ok(status);
            }
            received.drain(..head_len);
        }
        if received.len() > limits::HEAD_BYTES_CEILING {
            return Err("its response has too long a head".to_owned());
        }
        match stream.read_buf(&mut received).await {
            Ok(0) => return Err("it closed the connection without an answer".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(format!("cannot receive: {error}")),
        }
    }
}

/// Status and length of a response head, once it is whole.
fn parse(bytes: &[u8]) -> Result<Option<(u16, usize)>, String> {
    let limits = HeadLimits { head_bytes_max: limits::HEAD_BYTES_CEILING, ..HeadLimits::OURS };
    match parse_response(bytes, &mut FieldSlots::new(), &limits, false) {
        Ok(Parsed::Complete(head)) => Ok(Some((head.status, head.head_len))),
        Ok(Parsed::Partial) => Ok(None),
        Err(reject) => Err(format!("its response is invalid: {}", reject.text)),
    }
}

async fn ask_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
    is_secure: bool,
) -> Result<u16, String> {
    let explain = |error: h2::Error| format!("HTTP/2: {error}");
    let scheme = if is_secure { "https" } else { "http" };
    let request = ::http::Request::builder()
        .version(::http::Version::HTTP_2)
        .uri(format!("{scheme}://{host}{path}"))
        .header("user-agent", USER_AGENT)
        .body(())
        .map_err(|error| error.to_string())?;
    let mut builder = h2::client::Builder::new();
    // Nothing but a head is wanted, and nothing pushed.
    builder.max_header_list_size(limits::HEAD_BYTES_CEILING as u32).enable_push(false);
    let (send, connection) = builder.handshake::<_, &[u8]>(stream).await.map_err(explain)?;
    let asking = async {
        let mut ready = send.ready().await.map_err(explain)?;
        let (response, _) = ready.send_request(request, true).map_err(explain)?;
        response.await.map(|response| response.status().as_u16()).map_err(explain)
    };
    tokio::select! {
        biased;
        status = asking => status,
        ended = connection => match ended {
            Ok(()) => Err("it closed the connection without an answer".to_owned()),
            Err(error) => Err(explain(error)),
        },
    }
}

/// A session of TLS over a socket.
struct Secured {
    session: Session,
    /// What was not processed yet.
    received: Vec<u8>,
    /// What is to be sent.
    out: Vec<u8>,
}

impl Secured {
    async fn handshake(&mut self, socket: &mut TcpStream) -> Result<(), String> {
        loop {
            let phase = self.process(socket, |_| {}).await?;
            if phase != Phase::Handshake {
                return Ok(());
            }
            self.receive(socket).await?;
        }
    }

    /// Passes bytes between the socket and `plain` until the endpoint breaks the session; its end ends `plain`.
    async fn carry(&mut self, socket: &mut TcpStream, plain: DuplexStream) -> String {
        let mut up = [0; 4_096];
        let (mut read, mut write) = tokio::io::split(plain);
        loop {
            let mut arrived = Vec::new();
            let phase = match self.process(socket, |bytes| arrived.extend_from_slice(bytes)).await {
                Ok(phase) => phase,
                Err(error) => return error,
            };
            if write.write_all(&arrived).await.is_err() {
                return "the probe is over".to_owned();
            }
            if phase == Phase::PeerClosed {
                let _ = write.shutdown().await;
                return std::future::pending().await;
            }
            let moved = tokio::select! {
                received = self.receive(socket) => received,
                bytes = read.read(&mut up) => {
                    let bytes = bytes.unwrap_or(0);
                    self.send(socket, &up[..bytes]).await
                }
            };
            if let Err(error) = moved {
                // What arrived before may be the answer.
                let _ = write.shutdown().await;
                tokio::task::yield_now().await;
                return error;
            }
        }
    }

    /// Takes what was received, and sends what the protocol asks for.
    async fn process(&mut self, socket: &mut TcpStream, plain: impl FnMut(&[u8])) -> Result<Phase, String> {
        let Processed { consumed, phase } = self.session.process(&mut self.received, &mut self.out, plain);
        self.received.drain(..consumed);
        let out = std::mem::take(&mut self.out);
        let sent = socket.write_all(&out).await;
        let phase = phase.map_err(|error| format!("TLS: {}", explain(&error)))?;
        sent.map_err(|error| format!("cannot send: {error}"))?;
        Ok(phase)
    }

    async fn receive(&mut self, socket: &mut TcpStream) -> Result<(), String> {
        if self.received.len() > limits::HELLO_BYTES_MAX {
            return Err("TLS: a message that does not end".to_owned());
        }
        match socket.read_buf(&mut self.received).await {
            Ok(0) => Err("it closed the connection".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("cannot receive: {error}")),
        }
    }

    async fn send(&mut self, socket: &mut TcpStream, plain: &[u8]) -> Result<(), String> {
        let mut sealed = vec![0; sealed_bytes_max(plain.len())];
        let written = self.session.encrypt(&mut self.received, plain, &mut sealed);
        let written = written.map_err(|error| format!("TLS: {}", explain(&error)))?;
        socket.write_all(&sealed[..written]).await.map_err(|error| format!("cannot send: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn status_of(response: &[u8]) -> Result<u16, String> {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(response).await.unwrap();
        far.shutdown().await.unwrap();
        ask_http1(near, "a.test", "/").await
    }

    #[tokio::test]
    async fn the_final_status_counts() {
        let response = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(status_of(response).await, Ok(204));
        assert_eq!(status_of(b"HTTP/1.0 503 Busy\r\nContent-Length: 3\r\n\r\nno").await, Ok(503));
    }

    #[tokio::test]
    async fn what_is_to_be_asked_in_tls_never_passes_without() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap();
        let prober = Prober {
            protocol: ClusterProtocol::Http1,
            tls: Shared::default(),
            is_secure: true,
            socket: SocketOptions::default(),
            proxy_protocol: None,
        };
        let http = HttpProbe { path: "/".into(), host: None, expected: vec![(200, 599)] };
        for probe in [Probe::Tls, Probe::Http(http)] {
            assert!(prober.probe(&probe, endpoint).await.is_err_and(|cause| cause.starts_with("TLS")));
        }
        assert_eq!(prober.probe(&Probe::Tcp, endpoint).await, Ok(()));
    }

    #[tokio::test]
    async fn what_is_no_response_fails() {
        for response in [&b""[..], b"HTTP/1.1 200", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 103 E\r\n\r\n"] {
            assert!(status_of(response).await.is_err(), "{response:?}");
        }
    }
}
