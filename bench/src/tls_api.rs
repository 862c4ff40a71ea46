//! The two ways to drive rustls as a server, one beside the other, in memory and on one thread: the buffered API, which
//! keeps what was received and what is to be sent itself, and the unbuffered one, which works in the caller's buffers.
//! Answers which of them the product should stand on. No socket, no proxy.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::certificate;
use crate::stats::Spread;

/// A buffer of the product's pool.
const BUFFER_BYTES: usize = 16_384 + 512;
const REQUEST_BYTES: usize = 100;
const RESPONSE_BYTES: usize = 300;
const LONG_BYTES: usize = 102_400;
const ROUNDS: usize = 7;
const EXCHANGES: u32 = 2_000;

/// One way to be a server.
trait Server {
    fn new(config: &Arc<ServerConfig>) -> Self;
    /// Takes received bytes; plaintext goes to `plain`, what is to be sent to `out`.
    fn receive(&mut self, input: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>);
    fn send(&mut self, plain: &[u8], out: &mut Vec<u8>);
}

struct Buffered(ServerConnection);

impl Server for Buffered {
    fn new(config: &Arc<ServerConfig>) -> Self {
        Self(ServerConnection::new(config.clone()).expect("a configuration"))
    }

    fn receive(&mut self, input: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) {
        let mut rest = &*input;
        while !rest.is_empty() {
            self.0.read_tls(&mut rest).expect("room");
            self.0.process_new_packets().expect("records");
            let mut reader = self.0.reader();
            loop {
                let start = plain.len();
                plain.resize(start + BUFFER_BYTES, 0);
                let read = reader.read(&mut plain[start..]).unwrap_or(0);
                plain.truncate(start + read);
                if read == 0 {
                    break;
                }
            }
        }
        self.flush(out);
    }

    fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        self.0.writer().write_all(plain).expect("room");
        self.flush(out);
    }
}

impl Buffered {
    fn flush(&mut self, out: &mut Vec<u8>) {
        while self.0.wants_write() {
            self.0.write_tls(out).expect("memory");
        }
    }
}

struct Unbuffered(UnbufferedServerConnection);

impl Server for Unbuffered {
    fn new(config: &Arc<ServerConfig>) -> Self {
        Self(UnbufferedServerConnection::new(config.clone()).expect("a configuration"))
    }

    fn receive(&mut self, input: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) {
        let mut consumed = 0;
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.0.process_tls_records(&mut input[consumed..]);
            let done = match state.expect("records") {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.expect("a record");
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    false
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                        let start = out.len();
                        out.resize(start + size.required_size, 0);
                        data.encode(&mut out[start..]).expect("room");
                    }
                    false
                }
                ConnectionState::TransmitTlsData(data) => {
                    data.done();
                    false
                }
                _ => true,
            };
            consumed += discard;
            if done {
                assert_eq!(consumed, input.len(), "the client's writes are whole records");
                return;
            }
        }
    }

    fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        let ConnectionState::WriteTraffic(mut traffic) =
            self.0.process_tls_records(&mut []).state.expect("an open session")
        else {
            panic!("the handshake is done");
        };
        let start = out.len();
        out.resize(start + plain.len() + 30 * plain.len().div_ceil(16_384), 0);
        let written = traffic.encrypt(plain, &mut out[start..]).expect("room");
        out.truncate(start + written);
    }
}

/// One session with its client.
struct Pair<S> {
    server: S,
    client: ClientConnection,
    /// CPU time of the server's calls, in nanoseconds.
    spent: u64,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    plain: Vec<u8>,
}

impl<S: Server> Pair<S> {
    /// With the handshake done, and its cost counted.
    fn shaken(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from(certificate::NAME).expect("a name");
        let mut pair = Self {
            server: S::new(server),
            client: ClientConnection::new(client.clone(), name).expect("a configuration"),
            spent: 0,
            to_server: Vec::new(),
            to_client: Vec::new(),
            plain: Vec::new(),
        };
        while pair.client.is_handshaking() || pair.client.wants_write() {
            pair.turn();
        }
        pair
    }

    /// What the client has to say, and the server's answer of the protocol to it.
    fn turn(&mut self) {
        self.to_server.clear();
        while self.client.wants_write() {
            self.client.write_tls(&mut self.to_server).expect("memory");
        }
        let Self { server, to_server, plain, to_client, spent, .. } = self;
        *spent += timed(|| server.receive(to_server, plain, to_client));
        self.deliver();
    }

    fn deliver(&mut self) -> u64 {
        let (mut rest, mut received) = (&*self.to_client, 0);
        let mut scratch = [0; BUFFER_BYTES];
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).expect("room");
            self.client.process_new_packets().expect("records");
            while let Ok(read @ 1..) = self.client.reader().read(&mut scratch) {
                received += read as u64;
            }
        }
        self.to_client.clear();
        received
    }

    fn exchange(&mut self, request: &[u8], response: &[u8]) {
        self.plain.clear();
        self.client.writer().write_all(request).expect("room");
        self.turn();
        assert_eq!(self.plain.len(), request.len());
        let Self { server, to_client, spent, .. } = self;
        *spent += timed(|| {
            for piece in response.chunks(16_384) {
                server.send(piece, to_client);
            }
        });
        assert_eq!(self.deliver(), response.len() as u64);
    }
}

fn timed(run: impl FnOnce()) -> u64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
    };
    let start = now();
    run();
    now() - start
}

/// Microseconds of the server's CPU: a handshake, a small exchange, a long response, a long request.
fn measure<S: Server>(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> [f64; 4] {
    let each =
        |pair: &Pair<S>, before: u64, count: u32| (pair.spent - before) as f64 / f64::from(count) / 1_000.0;
    let handshakes = EXCHANGES / 10;
    let shaken: u64 = (0..handshakes).map(|_| Pair::<S>::shaken(server, client).spent).sum();
    let mut pair = Pair::<S>::shaken(server, client);
    let (small, long) = (vec![b'x'; RESPONSE_BYTES], vec![b'x'; LONG_BYTES]);
    let mut cost = |request: &[u8], response: &[u8], count: u32| {
        let before = pair.spent;
        for _ in 0..count {
            pair.exchange(request, response);
        }
        each(&pair, before, count)
    };
    let exchanges = [
        cost(&small[..REQUEST_BYTES], &small, EXCHANGES),
        cost(&small[..REQUEST_BYTES], &long, EXCHANGES / 10),
        cost(&long[..16_384], &small, EXCHANGES / 10),
    ];
    [shaken as f64 / f64::from(handshakes) / 1_000.0, exchanges[0], exchanges[1], exchanges[2]]
}

/// Prints the table.
///
/// # Errors
/// Where no certificate can be made.
pub fn run() -> io::Result<()> {
    let (certificate, key) = certificate::issue()?;
    let certificate = certificate.der().clone();
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let provider = Arc::new(provider);
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], private)
        .map_err(io::Error::other)?;
    server.send_tls13_tickets = 0;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).map_err(io::Error::other)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (server, client) = (Arc::new(server), Arc::new(client));
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        rounds[0].push(measure::<Buffered>(&server, &client));
        rounds[1].push(measure::<Unbuffered>(&server, &client));
    }
    let middle = |rounds: &[[f64; 4]], column: usize| {
        let values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
        Spread::of(&values).map_or(0.0, |spread| spread.median)
    };
    println!(
        "rustls as a server, CPU µs of one thread, median of {ROUNDS} interleaved rounds; TLS 1.3, AES-128, X25519, P-256"
    );
    println!(
        "{:12} {:>10} {:>14} {:>10} {:>10}",
        "API", "handshake", "100 B → 300 B", "→ 100 kB", "16 KiB →"
    );
    for (name, rounds) in [("buffered", &rounds[0]), ("unbuffered", &rounds[1])] {
        let [handshake, small, down, up] = [0, 1, 2, 3].map(|column| middle(rounds, column));
        println!("{name:12} {handshake:>10.1} {small:>14.2} {down:>10.1} {up:>10.1}");
    }
    Ok(())
}
