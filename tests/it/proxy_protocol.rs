//! The PROXY protocol: read from proxies that are trusted, before whatever else the connection speaks; written to endpoints.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::client::Client;
use crate::harness::gateway::Gateway;
use crate::harness::h2::raw::{self, RawClient};
use crate::harness::origin::{Origin, Peer};
use crate::harness::setup::Setup;
use crate::harness::tls::{Leaf, Pki};
use crate::harness::{Engine, SOON, eventually, on_both_engines};

on_both_engines!(
    the_client_that_a_trusted_proxy_names_is_forwarded,
    a_header_in_single_bytes_is_read,
    a_header_that_names_nobody_leaves_the_peers_own_address,
    the_header_comes_before_tls_and_before_http2,
    the_named_client_is_judged_as_a_trusted_proxy,
    a_peer_that_is_not_trusted_is_reset,
    a_peer_that_is_not_trusted_may_be_a_client_of_its_own,
    a_trusted_proxy_without_a_valid_header_is_reset_and_nothing_is_forwarded,
    a_header_that_does_not_come_in_time_is_cut,
    endpoints_are_told_of_the_client,
    a_connection_that_names_a_client_is_used_once,
    relays_pass_on_who_the_client_is,
    the_header_goes_before_the_handshake_with_an_endpoint,
    tls_that_is_passed_on_keeps_the_header_apart_from_the_hello,
);

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 for 198.51.100.7:40000 to 192.0.2.1:443, with a TLV.
fn v2() -> Vec<u8> {
    let rest = [198, 51, 100, 7, 192, 0, 2, 1, 0x9c, 0x40, 0x01, 0xbb, 4, 0, 2, 9, 9];
    [SIGNATURE, &[0x21, 0x11, 0, rest.len() as u8], &rest].concat()
}

const V1: &[u8] = b"PROXY TCP4 198.51.100.7 192.0.2.1 40000 443\r\n";
const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nHost: site.test\r\n\r\n";

fn trusting(setup: Setup, keys: &str) -> Setup {
    setup.sections(&format!("[listener.proxy_protocol]\n{keys}\n"))
}

const LOOPBACK: &str = "trusted = [\"127.0.0.0/8\"]";

fn to(engine: Engine, origin: &Origin) -> Setup {
    trusting(Setup::to(engine, origin), LOOPBACK)
}

fn forwarded_for(origin: &Origin) -> Option<String> {
    origin.requests().last()?.fields.get("x-forwarded-for").map(str::to_owned)
}

fn headers(gateway: &Gateway, outcome: &str) -> f64 {
    gateway
        .metric("ringfort_proxy_protocol_headers_total", &format!("listener=\"web\",outcome=\"{outcome}\""))
}

/// Sends these bytes, and says whether the connection was reset without an answer.
fn is_reset(gateway: &Gateway, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.web())).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    // A reset that came before these bytes shows when they are written, and not again.
    let written = stream.write_all(bytes);
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    let is_reset = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
    written.is_err_and(is_reset) || ended.is_err_and(is_reset)
}

fn the_client_that_a_trusted_proxy_names_is_forwarded(engine: Engine) {
    let origin = Origin::serving();
    let gateway = to(engine, &origin).start();
    for (n, header) in [V1, &v2()].into_iter().enumerate() {
        let mut client = gateway.client();
        client.send([header, REQUEST].concat());
        assert_eq!(client.read_response().status, 200);
        assert_eq!(forwarded_for(&origin).as_deref(), Some("198.51.100.7"));
        // The connection goes on, for the same client.
        assert_eq!(client.get("/again").status, 200);
        assert_eq!(forwarded_for(&origin).as_deref(), Some("198.51.100.7"));
        assert_eq!(headers(&gateway, ["v1", "v2"][n]), 1.0);
    }
    let mut client = gateway.client();
    client.send([b"PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n", REQUEST].concat());
    assert_eq!(client.read_response().status, 200);
    assert_eq!(forwarded_for(&origin).as_deref(), Some("2001:db8::7"));
}

fn a_header_in_single_bytes_is_read(engine: Engine) {
    let origin = Origin::serving();
    let gateway = to(engine, &origin).start();
    for header in [V1, &v2()] {
        let mut client = gateway.client();
        for byte in header {
            client.send([*byte]);
        }
        client.send(REQUEST);
        assert_eq!(client.read_response().status, 200);
        assert_eq!(forwarded_for(&origin).as_deref(), Some("198.51.100.7"));
    }
    // The largest there is, and nothing behind it for a while.
    let tlv = [&[0xea, 0x0f, 0xe1][..], &[7; 0x0fe1]].concat();
    let len = (12 + tlv.len()) as u16;
    assert_eq!(16 + usize::from(len), 4096);
    let header = [SIGNATURE, &[0x21, 0x11], &len.to_be_bytes(), &v2()[16..28], &tlv].concat();
    let mut client = gateway.client();
    client.send(&header[..1000]);
    assert!(client.stays_open_and_silent(Duration::from_millis(100)));
    client.send(&header[1000..]);
    assert!(client.stays_open_and_silent(Duration::from_millis(100)));
    client.read_timeout(SOON);
    client.send(REQUEST);
    assert_eq!(client.read_response().status, 200);
}

fn a_header_that_names_nobody_leaves_the_peers_own_address(engine: Engine) {
    let origin = Origin::serving();
    let gateway = to(engine, &origin).start();
    let local = [SIGNATURE, &[0x20, 0x11, 0, 12], &[9; 12]].concat();
    let unix = [SIGNATURE, &[0x21, 0x31, 0, 216], &[0; 216]].concat();
    let nobody: [&[u8]; 4] = [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN 1.2.3.4 x\r\n", &local, &unix];
    for header in nobody {
        let mut client = gateway.client();
        client.send([header, REQUEST].concat());
        assert_eq!(client.read_response().status, 200);
        assert_eq!(forwarded_for(&origin).as_deref(), Some("127.0.0.1"));
    }
    assert_eq!(headers(&gateway, "unnamed"), 4.0);
}

/// One request on a new connection in HTTP/2, answered.
fn get_over_http2(stream: TcpStream) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut client = RawClient::over(stream);
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.send(&raw::frame(raw::SETTINGS, 0, 0, &[]));
    client.send(&raw::frame(raw::HEADERS, raw::END_STREAM | raw::END_HEADERS, 1, &raw::get(&[])));
    assert_eq!(client.verdict(1), None);
}

fn the_header_comes_before_tls_and_before_http2(engine: Engine) {
    let (pki, origin) = (Pki::new(), Origin::serving());
    let (cert, key) = pki.issue("gateway", &Leaf::server(&["site.test"]));
    let keys = format!("{LOOPBACK}\n[listener.tls]\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]");
    let gateway = trusting(Setup::to(engine, &origin), &keys).start();
    for header in [V1, &v2()] {
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.web())).unwrap();
        stream.write_all(header).unwrap();
        let mut client = pki.client().try_over(stream, "site.test").unwrap();
        client.send(REQUEST);
        assert_eq!(client.read_response().status, 200);
        let seen = origin.requests().pop().unwrap();
        assert_eq!(seen.fields.get("x-forwarded-for"), Some("198.51.100.7"));
        assert_eq!(seen.fields.get("x-forwarded-proto"), Some("https"));
    }
    let plain = to(engine, &origin).start();
    let mut stream = TcpStream::connect(("127.0.0.1", plain.web())).unwrap();
    stream.write_all(&v2()).unwrap();
    get_over_http2(stream);
    assert_eq!(forwarded_for(&origin).as_deref(), Some("198.51.100.7"));
}

/// Whose forwarded fields are kept is asked of the address that the header names.
fn the_named_client_is_judged_as_a_trusted_proxy(engine: Engine) {
    let origin = Origin::serving();
    let setup = Setup::to(engine, &origin).sections("trusted_proxies = [\"198.51.100.0/24\"]");
    let gateway = trusting(setup, LOOPBACK).start();
    let request = b"GET /x HTTP/1.1\r\nHost: site.test\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    for (header, wanted) in [
        (V1, "203.0.113.9, 198.51.100.7"),
        (&b"PROXY TCP4 192.0.2.77 192.0.2.1 40000 443\r\n"[..], "192.0.2.77"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    ] {
        let mut client = gateway.client();
        client.send([header, request].concat());
        assert_eq!(client.read_response().status, 200);
        assert_eq!(forwarded_for(&origin).as_deref(), Some(wanted));
    }
}

fn a_peer_that_is_not_trusted_is_reset(engine: Engine) {
    let origin = Origin::serving();
    let gateway = trusting(Setup::to(engine, &origin), "trusted = [\"192.0.2.0/24\"]").start();
    for bytes in [V1, REQUEST, b""] {
        assert!(is_reset(&gateway, bytes), "{bytes:?}");
    }
    assert_eq!(headers(&gateway, "untrusted"), 3.0);
    let ended = "listener=\"web\",reason=\"proxy_untrusted\"";
    assert_eq!(gateway.metric("ringfort_sessions_ended_total", ended), 3.0);
    assert!(origin.requests().is_empty());
}

fn a_peer_that_is_not_trusted_may_be_a_client_of_its_own(engine: Engine) {
    let origin = Origin::serving();
    let keys = "trusted = [\"192.0.2.0/24\"]\nuntrusted = \"plain\"";
    let gateway = trusting(Setup::to(engine, &origin), keys).start();
    assert_eq!(gateway.get("/x").status, 200);
    assert_eq!(forwarded_for(&origin).as_deref(), Some("127.0.0.1"));
    // Its header is not one: it is a bad request.
    origin.forget();
    let mut client = gateway.client();
    client.send([V1, REQUEST].concat());
    assert_eq!(client.read_response().status, 400);
    assert!(origin.requests().is_empty());
}

fn a_trusted_proxy_without_a_valid_header_is_reset_and_nothing_is_forwarded(engine: Engine) {
    let origin = Origin::serving();
    let gateway = to(engine, &origin).start();
    let mut damaged = v2();
    damaged[28] = 3;
    let overrun = [&v2()[..28], &[4, 0, 9, 0, 0], REQUEST].concat();
    let bad: [&[u8]; 6] = [
        REQUEST,
        b"\r\n\r\nGET / HTTP/1.1\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 40000\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 40000 443\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &damaged,
        &overrun,
    ];
    for bytes in bad {
        assert!(is_reset(&gateway, bytes), "{}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(headers(&gateway, "malformed"), bad.len() as f64);
    assert!(origin.requests().is_empty() && origin.accepted() == 0);
    // One that only looks whether the port is open is not one of them.
    drop(TcpStream::connect(("127.0.0.1", gateway.web())).unwrap());
    let closed = "listener=\"web\",reason=\"client_closed\"";
    gateway.wait_for_metric("ringfort_sessions_ended_total", closed, |ended| ended == 1.0);
    assert_eq!(headers(&gateway, "malformed"), bad.len() as f64);
}

fn a_header_that_does_not_come_in_time_is_cut(engine: Engine) {
    let origin = Origin::serving();
    let gateway = to(engine, &origin).timeout("handshake_timeout_ms", 300).start();
    for begun in [&b""[..], b"PROXY TCP4 ", &v2()[..20]] {
        let mut client = gateway.client();
        client.send(begun);
        let took = client.time_to_end();
        assert!(took >= Duration::from_millis(250), "{took:?}");
    }
    assert_eq!(headers(&gateway, "timed_out"), 3.0);
}

/// What an endpoint received before anything else: a header for each connection.
type Told = Arc<Mutex<Vec<Vec<u8>>>>;

/// An origin whose connections begin with a header.
fn told_origin() -> (Origin, Told) {
    let told = Told::default();
    let noted = told.clone();
    let origin = Origin::start(move |peer: &mut Peer| {
        let Some(header) = read_header(peer) else { return };
        noted.lock().unwrap().push(header);
        while peer.serve_one() {}
    });
    (origin, told)
}

fn read_header(peer: &mut Peer) -> Option<Vec<u8>> {
    let mut header = Vec::new();
    let mut byte = [0];
    loop {
        let whole = match header.first() {
            Some(b'P') => header.ends_with(b"\r\n"),
            Some(_) => header.len() >= 16 && header.len() == 16 + usize::from(header[15]),
            None => false,
        };
        if whole {
            return Some(header);
        }
        if peer.stream().read(&mut byte).ok()? == 0 {
            return None;
        }
        header.push(byte[0]);
    }
}

fn address(client: &mut Client) -> SocketAddr {
    client.stream().local_addr().unwrap()
}

fn header_of(version: &str, source: SocketAddr, destination: u16) -> Vec<u8> {
    if version == "v1" {
        return format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {destination}\r\n", source.port()).into_bytes();
    }
    let ports = [source.port().to_be_bytes(), destination.to_be_bytes()].concat();
    [SIGNATURE, &[0x21, 0x11, 0, 12, 127, 0, 0, 1, 127, 0, 0, 1], &ports].concat()
}

fn endpoints_are_told_of_the_client(engine: Engine) {
    for version in ["v1", "v2"] {
        let (origin, told) = told_origin();
        let keys = format!("proxy_protocol = \"{version}\"");
        let gateway = Setup::to(engine, &origin).cluster_keys(&keys).start();
        let mut client = gateway.client();
        let source = address(&mut client);
        assert_eq!(client.post("/echo", &[7; 100_000]).status, 200);
        assert_eq!(told.lock().unwrap().pop(), Some(header_of(version, source, gateway.web())));
        let stream = TcpStream::connect(("127.0.0.1", gateway.web())).unwrap();
        let source = stream.local_addr().unwrap();
        get_over_http2(stream);
        assert_eq!(told.lock().unwrap().pop(), Some(header_of(version, source, gateway.web())));
        // What a proxy in front said is said on.
        let named = trusting(Setup::to(engine, &origin).cluster_keys(&keys), LOOPBACK).start();
        let said = if version == "v1" { V1.to_vec() } else { [&v2()[..15], &[12], &v2()[16..28]].concat() };
        let mut client = named.client();
        client.send([V1, REQUEST].concat());
        assert_eq!(client.read_response().status, 200);
        assert_eq!(told.lock().unwrap().pop(), Some(said));
    }
}

fn a_connection_that_names_a_client_is_used_once(engine: Engine) {
    let (origin, told) = told_origin();
    let gateway = Setup::to(engine, &origin).cluster_keys("proxy_protocol = \"v2\"").start();
    let (mut one, mut other) = (gateway.client(), gateway.client());
    let sources = [address(&mut one), address(&mut other)];
    for _ in 0..3 {
        assert_eq!(one.get("/x").status, 200);
        assert_eq!(other.get("/x").status, 200);
    }
    assert_eq!(origin.accepted(), 6);
    let wanted: Vec<_> = sources.map(|source| header_of("v2", source, gateway.web())).into();
    assert_eq!(*told.lock().unwrap(), [&wanted[..]; 3].concat());
    eventually("connections are closed behind their request", || origin.open() == 0);
}

fn relays_pass_on_who_the_client_is(engine: Engine) {
    let (origin, told) = told_origin();
    let setup = Setup::to(engine, &origin).cluster_keys("proxy_protocol = \"v1\"");
    let gateway = setup.relay(&format!("[listener.proxy_protocol]\n{LOOPBACK}")).start();
    let mut client = Client::connect(gateway.port("relay"));
    client.send([V1, REQUEST].concat());
    assert_eq!(client.read_response().status, 200);
    assert_eq!(told.lock().unwrap().pop().as_deref(), Some(V1));
    // An endpoint that speaks first waits for nothing.
    let first = Origin::start(|peer| {
        let header = read_header(peer).unwrap_or_default();
        let _ = peer.send(&header);
        peer.wait_for_end();
    });
    let gateway = Setup::to(engine, &first).cluster_keys("proxy_protocol = \"v1\"").relay("").start();
    let mut silent = Client::connect(gateway.port("relay"));
    let source = address(&mut silent);
    let wanted = header_of("v1", source, gateway.port("relay"));
    let mut heard = vec![0; wanted.len()];
    silent.stream().read_exact(&mut heard).unwrap();
    assert_eq!(heard, wanted);
}

/// In front of a server: takes the header off, and passes the rest on.
fn told_in_front_of(server: SocketAddr) -> (Origin, Told) {
    let told = Told::default();
    let noted = told.clone();
    let front = Origin::start(move |peer: &mut Peer| {
        let Some(header) = read_header(peer) else { return };
        noted.lock().unwrap().push(header);
        let mut behind = TcpStream::connect(server).unwrap();
        let (mut up, mut down) = (behind.try_clone().unwrap(), peer.stream().try_clone().unwrap());
        let upward = std::thread::spawn(move || {
            let _ = std::io::copy(&mut down, &mut up);
            let _ = up.shutdown(std::net::Shutdown::Write);
        });
        let _ = std::io::copy(&mut behind, peer.stream());
        let _ = peer.stream().shutdown(std::net::Shutdown::Both);
        let _ = upward.join();
    });
    (front, told)
}

fn the_header_goes_before_the_handshake_with_an_endpoint(engine: Engine) {
    let pki = Pki::new();
    let pair = pki.issue("origin", &Leaf::server(&["site.test"]));
    let secure = pki.origin(&pair, false, crate::harness::tls::mirror);
    let (front, told) = told_in_front_of(secure);
    let keys = format!(
        "proxy_protocol = \"v2\"\n[cluster.tls]\nca = {:?}\nserver_name = \"site.test\"",
        pki.path("ca.pem")
    );
    let gateway = Setup::to(engine, &front).cluster_keys(&keys).start();
    let mut client = gateway.client();
    let source = address(&mut client);
    assert_eq!(client.get("/x").status, 200);
    assert_eq!(told.lock().unwrap().pop(), Some(header_of("v2", source, gateway.web())));
}

/// The hello is read for its name behind one header, and goes on behind another.
fn tls_that_is_passed_on_keeps_the_header_apart_from_the_hello(engine: Engine) {
    let pki = Pki::new();
    let pair = pki.issue("origin", &Leaf::server(&["site.test"]));
    let (front, told) = told_in_front_of(pki.origin(&pair, false, crate::harness::tls::mirror));
    let sections = format!(
        "[[listener]]\nname = \"pass\"\nlisten = \"127.0.0.1:{{port:pass}}\"\nprotocol = \"tls-passthrough\"\n\
         [listener.proxy_protocol]\n{LOOPBACK}\n\
         [[route]]\nlistener = \"pass\"\nhosts = [\"site.test\"]\ncluster = \"site\"\n\
         [access_log]\npath = \"access.log\""
    );
    let setup = Setup::new(engine).cluster("site", &[front.address()]).route("respond = { status = 404 }");
    let gateway = setup.cluster_keys("proxy_protocol = \"v2\"").sections(&sections).start();
    let pass = || TcpStream::connect(("127.0.0.1", gateway.port("pass"))).unwrap();
    let said = [&v2()[..15], &[12], &v2()[16..28]].concat();
    for header in [V1, &v2()] {
        let mut stream = pass();
        for byte in header {
            stream.write_all(&[*byte]).unwrap();
        }
        let mut client = pki.client().try_over(stream, "site.test").unwrap();
        client.send(REQUEST);
        assert_eq!(client.read_response().status, 200);
        assert_eq!(told.lock().unwrap().pop().as_ref(), Some(&said));
    }
    let log = gateway.config().with_file_name("access.log");
    eventually("both are logged by the name of their client", || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.matches("\"client\":\"198.51.100.7\"").count() == 2
    });
    // Header and hello are one stream: what is no hello is refused as without a header, and nobody is asked.
    let mut stream = pass();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&[V1, REQUEST].concat()).unwrap();
    let ended = stream.read_to_end(&mut Vec::new());
    assert!(ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    // A hello without a header from who must say one.
    assert!(pki.client().try_connect(gateway.port("pass"), "site.test").is_err());
    assert!(told.lock().unwrap().is_empty());
}
