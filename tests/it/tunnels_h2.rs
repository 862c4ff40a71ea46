//! Tunnels where one side or both speak HTTP/2: extended CONNECT (RFC 8441), and CONNECT.

use std::io::Read;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};

use crate::harness::bytes::random;
use crate::harness::h2::raw::{END_HEADERS, HEADERS, RawClient, block, frame};
use crate::harness::h2::{H2Origin, connect, fetch, get, run, send_all};
use crate::harness::origin::{Origin, Peer};
use crate::harness::setup::Setup;
use crate::harness::tls::{Leaf, Pki};
use crate::harness::websocket::{ACCEPT, KEY};
use crate::harness::{Engine, SOON, eventually, on_both_engines};

on_both_engines!(
    an_extended_connect_becomes_an_upgrade,
    an_endpoint_that_does_not_keep_to_the_handshake_is_502,
    a_refused_extended_connect_is_a_response,
    extended_connect_is_for_what_a_route_names,
    an_upgrade_becomes_an_extended_connect,
    an_upgrade_that_cannot_be_translated_is_refused,
    an_extended_connect_is_passed_on_as_one,
    an_endpoint_that_takes_no_extended_connect_is_502,
    an_endpoint_that_may_choose_its_version_is_asked_in_http1,
    connect_passes_between_all_versions,
    a_reset_passes_with_the_code_of_its_kind,
    long_streams_pass_with_flow_control,
    a_silent_tunnel_ends_and_its_connection_lives_on,
    a_tunnel_lives_through_a_drain,
    a_route_edits_the_answers_that_open_tunnels,
    open_tunnels_count_against_the_memory_of_their_worker,
);

/// An extended CONNECT for WebSocket.
fn extended(path: &str) -> Request<()> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://site.test{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request
}

fn plain_connect(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap()
}

/// Asks, with `early` sent before there is an answer.
async fn ask(
    send: &mut SendRequest<Bytes>,
    request: Request<()>,
    early: &[u8],
) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
    let mut ready = send.clone().ready().await?;
    let (response, mut stream) = ready.send_request(request, false)?;
    if !early.is_empty() {
        send_all(&mut stream, early, false).await?;
    }
    Ok((response.await?, stream))
}

/// The next `len` bytes, or all until the end.
async fn read(body: &mut RecvStream, len: usize) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while all.len() < len {
        let Some(data) = body.data().await else { break };
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    Ok(all)
}

fn accept_of(key: &str) -> String {
    tungstenite::handshake::derive_accept_key(key.as_bytes())
}

/// The head with which an endpoint in HTTP/1.1 opens what was asked for.
fn switching(request: &crate::harness::origin::Request) -> String {
    let accept = accept_of(request.fields.get("sec-websocket-key").unwrap_or_default());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
}

/// An origin in HTTP/1.1 that opens each tunnel and sends back what comes, to its end.
fn echoing() -> Origin {
    Origin::start(|peer| {
        while let Some(request) = peer.read_request() {
            if request.method != "CONNECT" && !request.fields.has("upgrade") {
                if peer.serve(&request).is_err() {
                    return;
                }
                continue;
            }
            let head = match request.method.as_str() {
                "CONNECT" => "HTTP/1.1 200 Open\r\nContent-Length: 7\r\n\r\n".to_owned(),
                _ => switching(&request),
            };
            let _ = peer.send(head.as_bytes());
            return echo(peer);
        }
    })
}

fn echo(peer: &mut Peer) {
    loop {
        let heard = std::mem::take(&mut peer.reader.buf);
        if peer.send(&heard).is_err() || !matches!(peer.reader.fill(), Ok(n) if n > 0) {
            return;
        }
    }
}

fn h2_origin() -> H2Origin {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    H2Origin::with(builder)
}

fn to_h2(engine: Engine, origin: &H2Origin) -> Setup {
    Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"")
}

fn an_extended_connect_becomes_an_upgrade(engine: Engine) {
    let (tell, told) = mpsc::channel();
    let origin = Origin::start(move |peer| {
        let Some(request) = peer.read_request() else { return };
        let _ = peer.stream().set_read_timeout(Some(Duration::from_millis(150)));
        let early = peer.reader.fill().is_ok();
        let _ = peer.stream().set_read_timeout(Some(SOON));
        let _ = peer.send(format!("{}GREETING", switching(&request)).as_bytes());
        let _ = tell.send((request, early));
        echo(peer);
    });
    let gateway = Setup::to(engine, &origin).start();
    let data = random(3, 3_000);
    run(async {
        let mut send = connect(gateway.web()).await;
        // The client hears of it before it asks.
        let _ = fetch(&mut send, get("/target")).await;
        assert!(send.is_extended_connect_protocol_enabled());
    });
    let _ = told.recv_timeout(SOON);
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, mut up) = ask(&mut send, extended("/chat?room=1"), &data).await.unwrap();
        assert_eq!(response.status(), 200);
        for name in ["connection", "upgrade", "sec-websocket-accept", "content-length"] {
            assert!(!response.headers().contains_key(name), "{:?}", response.headers());
        }
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        let mut down = response.into_body();
        assert_eq!(read(&mut down, 3_008).await.unwrap(), [b"GREETING", &data[..]].concat());
        up.send_data("last".into(), true).unwrap();
        assert_eq!(read(&mut down, usize::MAX).await.unwrap(), b"last");
        assert!(down.is_end_stream(), "the end is passed on as an end");
    });
    let (request, early) = told.recv_timeout(SOON).unwrap();
    assert!(!early, "bytes of the tunnel went up before 101");
    assert_eq!((request.method.as_str(), request.target.as_str()), ("GET", "/chat?room=1"));
    assert_eq!(request.fields.all("connection"), ["Upgrade"]);
    assert_eq!(request.fields.all("upgrade"), ["websocket"]);
    assert_eq!(request.fields.get("sec-websocket-version"), Some("13"));
    assert_eq!(request.fields.get("sec-websocket-key").map(str::len), Some(24));
    assert!(!request.fields.has("transfer-encoding") && !request.fields.has("content-length"));
    assert_eq!(gateway.metric("ringfort_tunnels_opened_total", "websocket"), 1.0);
    gateway.wait_for_metric("ringfort_tunnels_active", "web", |value| value == 0.0);
    assert_eq!(gateway.metric("ringfort_tunnels_ended_total", "tunnel_closed"), 1.0);
    gateway.wait_for_metric("ringfort_http2_streams_active", "web", |value| value == 0.0);
    eventually("the endpoint's connection is closed", || origin.open() == 0);
}

fn an_endpoint_that_does_not_keep_to_the_handshake_is_502(engine: Engine) {
    for answer in [
        format!(
            "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        ),
        "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".into(),
        "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n".into(),
        // In HTTP/2 a success would be a tunnel.
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into(),
        "HTTP/1.1 204 No Content\r\n\r\n".into(),
    ] {
        let origin = Origin::raw(answer.as_bytes());
        let gateway = Setup::to(engine, &origin).start();
        run(async {
            let mut send = connect(gateway.web()).await;
            let (response, _) = ask(&mut send, extended("/"), b"").await.unwrap();
            assert_eq!(response.status(), 502, "{answer}");
        });
        eventually("the endpoint's connection is closed", || origin.open() == 0);
        assert_eq!(gateway.metric("ringfort_tunnels_opened_total", ""), 0.0, "{answer}");
    }
}

fn a_refused_extended_connect_is_a_response(engine: Engine) {
    let origin = Origin::start(|peer| {
        while let Some(request) = peer.read_request() {
            let refusal: &[u8] =
                b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
            let sent = if request.fields.has("upgrade") { peer.send(refusal) } else { peer.serve(&request) };
            if sent.is_err() {
                return;
            }
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, _up) = ask(&mut send, extended("/"), b"bytes for a tunnel").await.unwrap();
        assert_eq!(response.status(), 403);
        assert_eq!(read(&mut response.into_body(), usize::MAX).await.unwrap(), b"no");
        // The connection that was asked is spent; that of the client lives on.
        assert_eq!(fetch(&mut send, get("/after")).await.unwrap().status, 200);
    });
    assert_eq!(origin.accepted(), 2);
    eventually("the connection that was asked is closed", || origin.open() == 1);
    assert!(!origin.raw_bytes().windows(5).any(|bytes| bytes == b"bytes"));
}

fn extended_connect_is_for_what_a_route_names(engine: Engine) {
    let origin = echoing();
    let gateway = Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("path = \"/none\"\ncluster = \"site\"\ntunnels = []")
        .route("path = \"/own\"\nrespond = { status = 200, body = \"ok\\n\" }")
        .route("path = \"/away\"\nredirect = { status = 307, host = \"b.test\" }")
        .route("cluster = \"site\"")
        .start();
    run(async {
        let mut send = connect(gateway.web()).await;
        for (path, status) in [("/none", 501), ("/own", 501), ("/away", 307), ("/", 200)] {
            let (response, _) = ask(&mut send, extended(path), b"").await.unwrap();
            assert_eq!(response.status(), status, "{path}");
        }
        let mut other = extended("/");
        other.extensions_mut().insert(Protocol::from_static("connect-udp"));
        let (response, _) = ask(&mut send, other, b"").await.unwrap();
        assert_eq!(response.status(), 501);
    });
    // Where no route names any, it is not offered, and asking for it all the same is an error (RFC 8441 §4).
    let gateway = Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("cluster = \"site\"\ntunnels = []")
        .start();
    let mut client = RawClient::connect(gateway.web());
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "site.test"),
    ];
    client.send(&frame(HEADERS, END_HEADERS, 1, &block(&fields)));
    assert_eq!(client.verdict(1), Some(Reason::PROTOCOL_ERROR.into()));
}

fn upgrade(more: &str) -> String {
    format!(
        "GET /chat?room=1 HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{more}\r\n"
    )
}

fn opening_head() -> String {
    upgrade(&format!("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nOrigin: http://a.test\r\n"))
}

fn an_upgrade_becomes_an_extended_connect(engine: Engine) {
    let origin = h2_origin();
    let gateway = to_h2(engine, &origin).start();
    let mut client = gateway.client();
    client.send(opening_head() + "early");
    let response = client.read_response();
    assert_eq!(response.status, 101, "{response:?}");
    assert_eq!(response.fields.all("connection"), ["Upgrade"]);
    assert_eq!(response.fields.all("upgrade"), ["websocket"]);
    assert_eq!(response.fields.all("sec-websocket-accept"), [ACCEPT]);
    assert_eq!(response.fields.get("x-origin"), Some("h2"));
    client.send(" late");
    client.shutdown_write();
    assert_eq!(client.read_to_end().unwrap(), b"early late");
    let seen = &origin.seen()[0];
    assert_eq!((seen.method.as_str(), seen.protocol.as_deref()), ("CONNECT", Some("websocket")));
    assert_eq!(seen.uri, "http://a.test/chat?room=1");
    assert_eq!(seen.fields["origin"], "http://a.test");
    assert_eq!(seen.fields["sec-websocket-version"], "13");
    for name in ["sec-websocket-key", "connection", "upgrade", "content-length"] {
        assert!(!seen.fields.contains_key(name), "{:?}", seen.fields);
    }
    // Others share the endpoint's connection, before and after.
    assert_eq!(gateway.get("/after").status, 200);
    assert_eq!(origin.accepted(), 1);
    gateway.wait_for_metric("ringfort_sessions_ended_total", "tunnel_closed", |value| value == 1.0);
    assert_eq!(gateway.metric("ringfort_tunnels_ended_total", "tunnel_closed"), 1.0);
}

fn an_upgrade_that_cannot_be_translated_is_refused(engine: Engine) {
    let origin = h2_origin();
    let gateway = to_h2(engine, &origin).start();
    let mut client = gateway.client();
    for request in [
        upgrade("Sec-WebSocket-Version: 13\r\n"),
        upgrade("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n"),
        upgrade(&format!(
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Key: {KEY}\r\n"
        )),
    ] {
        client.send(&request);
        assert_eq!(client.read_response().status, 400, "{request}");
    }
    client.send(upgrade(&format!("Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: {KEY}\r\n")));
    let response = client.read_response();
    assert_eq!((response.status, response.fields.get("sec-websocket-version")), (426, Some("13")));
    assert_eq!(response.fields.get("upgrade"), Some("websocket"));
    // A response like any other, and the connection goes on.
    client.send(opening_head().replace("/chat?room=1", "/status/403"));
    assert_eq!(client.read_response().status, 403);
    assert_eq!(client.get("/after").status, 200);
    assert_eq!(origin.seen().len(), 2);
    assert_eq!(gateway.metric("ringfort_tunnels_opened_total", ""), 0.0);
}

fn an_extended_connect_is_passed_on_as_one(engine: Engine) {
    let origin = h2_origin();
    let gateway = to_h2(engine, &origin).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let mut request = extended("/chat");
        request.headers_mut().insert("sec-websocket-key", KEY.parse().unwrap());
        let (response, mut up) = ask(&mut send, request, b"early").await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["x-origin"]),
            (http::StatusCode::OK, &"h2".parse().unwrap())
        );
        assert!(!response.headers().contains_key("sec-websocket-accept"));
        let mut down = response.into_body();
        assert_eq!(read(&mut down, 5).await.unwrap(), b"early");
        up.send_data("x".into(), true).unwrap();
        assert_eq!(read(&mut down, usize::MAX).await.unwrap(), b"x");
        let (response, _) = ask(&mut send, extended("/status/404"), b"").await.unwrap();
        assert_eq!(response.status(), 404);
    });
    let seen = &origin.seen()[0];
    assert_eq!((seen.protocol.as_deref(), seen.uri.as_str()), (Some("websocket"), "http://site.test/chat"));
    assert!(!seen.fields.contains_key("sec-websocket-key"));
}

fn an_endpoint_that_takes_no_extended_connect_is_502(engine: Engine) {
    let origin = H2Origin::start();
    let gateway = to_h2(engine, &origin).start();
    let mut client = gateway.client();
    client.send(opening_head());
    assert_eq!(client.read_response().status, 502);
    assert_eq!(client.get("/after").status, 200);
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, _) = ask(&mut send, extended("/"), b"").await.unwrap();
        assert_eq!(response.status(), 502);
    });
    assert_eq!(origin.seen().len(), 1, "{:?}", origin.seen());
}

/// A gateway before itself: as an endpoint in TLS it chooses HTTP/2, and would take no extended CONNECT.
fn an_endpoint_that_may_choose_its_version_is_asked_in_http1(engine: Engine) {
    let (pki, origin) = (Pki::new(), echoing());
    let (cert, key) = pki.issue("site", &Leaf::server(&["site.test"]));
    let gateway = Setup::new(engine)
        .sections(&format!(
            "[[listener]]\nname = \"secure\"\nlisten = \"127.0.0.1:{{port:secure}}\"\n\
             [listener.tls]\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]\n\
             [[route]]\nlistener = \"secure\"\ncluster = \"site\"\n\
             [[cluster]]\nname = \"loop\"\nendpoints = [\"127.0.0.1:{{port:secure}}\"]\nprotocol = \"auto\"\n\
             [cluster.tls]\nca = {:?}\nserver_name = \"site.test\"",
            pki.path("ca.pem")
        ))
        .cluster("site", &[origin.address()])
        .route("cluster = \"loop\"")
        .start();
    let mut client = gateway.client();
    client.send(opening_head().replace("a.test", "site.test"));
    assert_eq!(client.read_response().status, 101);
    client.send("x");
    client.shutdown_write();
    assert_eq!(client.read_to_end().unwrap(), b"x");
    assert_eq!(gateway.metric("ringfort_http2_connections_total", "secure"), 0.0);
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, mut up) = ask(&mut send, extended("/"), b"y").await.unwrap();
        assert_eq!(response.status(), 200);
        up.send_data("z".into(), true).unwrap();
        assert_eq!(read(&mut response.into_body(), usize::MAX).await.unwrap(), b"yz");
    });
    // What asks for no change goes as the endpoint chose.
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    assert_eq!(gateway.metric("ringfort_http2_connections_total", "secure"), 1.0);
}

fn connect_passes_between_all_versions(engine: Engine) {
    let allowed = |endpoint: String, keys: &str| {
        Setup::new(engine)
            .cluster("site", &[endpoint])
            .cluster_keys(keys)
            .route("hosts = [\"db.test\"]\ncluster = \"site\"\ntunnels = [\"connect\"]")
            .start()
    };
    let (old, new) = (echoing(), H2Origin::start());
    for (endpoint, keys) in [(old.address(), ""), (new.address(), "protocol = \"h2\"")] {
        let gateway = allowed(endpoint, keys);
        run(async {
            let mut send = connect(gateway.web()).await;
            let (response, mut up) = ask(&mut send, plain_connect("db.test:5432"), b"early").await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(!response.headers().contains_key("content-length"));
            let mut down = response.into_body();
            assert_eq!(read(&mut down, 5).await.unwrap(), b"early");
            up.send_data("late".into(), true).unwrap();
            assert_eq!(read(&mut down, usize::MAX).await.unwrap(), b"late");
            let (response, _) = ask(&mut send, plain_connect("other.test:1"), b"").await.unwrap();
            assert_eq!(response.status(), 405);
        });
        let mut client = gateway.client();
        client.send("CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\nearly");
        assert!(client.reader.read_head().unwrap().start_line.starts_with("HTTP/1.1 200"));
        client.shutdown_write();
        assert_eq!(client.read_to_end().unwrap(), b"early");
        assert_eq!(gateway.metric("ringfort_tunnels_opened_total", "connect"), 2.0);
    }
    assert_eq!(old.targets(), ["db.test:5432"; 2]);
    let seen: Vec<_> = new.seen().into_iter().map(|seen| (seen.method, seen.uri, seen.protocol)).collect();
    assert_eq!(seen, vec![("CONNECT".to_owned(), "db.test:5432".to_owned(), None); 2]);
}

fn a_reset_passes_with_the_code_of_its_kind(engine: Engine) {
    let (tell, told) = mpsc::channel();
    let origin = Origin::start(move |peer| {
        let Some(request) = peer.read_request() else { return };
        let connect = request.method == "CONNECT";
        let head = if connect { "HTTP/1.1 200 Open\r\n\r\n".to_owned() } else { switching(&request) };
        let _ = peer.send(head.as_bytes());
        let mut byte = [0; 1];
        let _ = peer.stream().read_exact(&mut byte);
        if &byte == b"r" {
            return peer.reset();
        }
        let _ = tell.send(peer.stream().read(&mut byte).map_err(|error| error.kind()));
    });
    let gateway = Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("cluster = \"site\"\ntunnels = [\"connect\", \"websocket\"]")
        .start();
    run(async {
        let mut send = connect(gateway.web()).await;
        for (request, code) in
            [(extended("/"), Reason::CANCEL), (plain_connect("a.test:1"), Reason::CONNECT_ERROR)]
        {
            let (response, mut up) = ask(&mut send, request, b"").await.unwrap();
            up.send_data("r".into(), false).unwrap();
            let error = read(&mut response.into_body(), usize::MAX).await.unwrap_err();
            assert_eq!(error.reason(), Some(code));
        }
        let (_response, mut up) = ask(&mut send, extended("/"), b"x").await.unwrap();
        // The byte has arrived where the tunnel shows as open and its stream is quiet.
        tokio::time::sleep(Duration::from_millis(100)).await;
        up.send_reset(Reason::CANCEL);
        tokio::time::sleep(Duration::from_millis(10)).await;
    });
    assert_eq!(told.recv_timeout(SOON), Ok(Err(std::io::ErrorKind::ConnectionReset)));

    // From an endpoint in HTTP/2, to a client in HTTP/1.1.
    let origin = h2_origin();
    let gateway = to_h2(engine, &origin).start();
    let mut client = gateway.client();
    client.send(opening_head().replace("/chat?room=1", "/reset"));
    assert_eq!(client.read_response().status, 101);
    client.send("x");
    let end = client.stream().read(&mut [0; 8]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    // And back.
    let mut client = gateway.client();
    client.send(opening_head());
    assert_eq!(client.read_response().status, 101);
    client.reset();
    eventually("the endpoint hears of it", || {
        origin.seen().iter().any(|seen| seen.broken.as_deref() == Some("reset"))
    });
}

fn long_streams_pass_with_flow_control(engine: Engine) {
    const BYTES: usize = 4 << 20;
    let (old, new) = (echoing(), h2_origin());
    let sent = random(11, BYTES);
    for gateway in [Setup::to(engine, &old).start(), to_h2(engine, &new).start()] {
        run(async {
            let mut send = connect(gateway.web()).await;
            let (response, mut up) = ask(&mut send, extended("/"), b"").await.unwrap();
            let mut down = response.into_body();
            let (sending, heard) = tokio::join!(send_all(&mut up, &sent, true), read(&mut down, usize::MAX));
            sending.unwrap();
            assert!(heard.unwrap() == sent);
        });
    }
}

fn a_silent_tunnel_ends_and_its_connection_lives_on(engine: Engine) {
    let origin = echoing();
    let gateway = Setup::to(engine, &origin).timeout("tunnel_idle_timeout_ms", 300).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, _up) = ask(&mut send, extended("/"), b"").await.unwrap();
        let start = Instant::now();
        let error = read(&mut response.into_body(), 1).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::CANCEL));
        assert!(start.elapsed() > Duration::from_millis(250), "{:?}", start.elapsed());
        assert_eq!(fetch(&mut send, get("/after")).await.unwrap().status, 200);
    });
    eventually("only the pooled connection is left", || origin.open() <= 1);
    let ended = |reason| gateway.metric("ringfort_tunnels_ended_total", reason);
    assert_eq!((ended("idle_timeout"), ended("web")), (1.0, 1.0), "of all reasons");
}

fn a_tunnel_lives_through_a_drain(engine: Engine) {
    let origin = echoing();
    let mut gateway = Setup::to(engine, &origin).drain(50, 1_200).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, mut up) = ask(&mut send, extended("/"), b"").await.unwrap();
        let mut down = response.into_body();
        let start = Instant::now();
        gateway.terminate();
        while start.elapsed() < Duration::from_millis(700) {
            send_all(&mut up, b"a", false).await.unwrap();
            assert_eq!(read(&mut down, 1).await.unwrap(), b"a");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(read(&mut down, 1).await.is_err(), "the deadline ends it, and not as if it were whole");
        assert!(start.elapsed() > Duration::from_millis(1_000), "{:?}", start.elapsed());
    });
    assert!(gateway.wait_exit(SOON).is_some_and(|status| status.success()));
}

/// 101 and 2xx alike, whoever speaks what.
fn a_route_edits_the_answers_that_open_tunnels(engine: Engine) {
    let (old, new) = (echoing(), h2_origin());
    for (endpoint, keys) in [(old.address(), ""), (new.address(), "protocol = \"h2\"")] {
        let gateway = Setup::new(engine)
            .cluster("site", &[endpoint])
            .cluster_keys(keys)
            .route(
                "cluster = \"site\"\ntunnels = [\"connect\", \"websocket\"]\n\
                 response_headers = { set = { \"x-edge\" = \"1\" }, remove = [\"x-origin\"] }",
            )
            .start();
        run(async {
            let mut send = connect(gateway.web()).await;
            for request in [extended("/"), plain_connect("db.test:1")] {
                let (response, _up) = ask(&mut send, request, b"").await.unwrap();
                assert_eq!(response.status(), 200);
                assert_eq!(response.headers()["x-edge"], "1");
                assert!(!response.headers().contains_key("x-origin"), "{:?}", response.headers());
            }
        });
        for (request, status) in
            [(opening_head(), "101"), ("CONNECT db.test:1 HTTP/1.1\r\nHost: db.test:1\r\n\r\n".into(), "200")]
        {
            let mut client = gateway.client();
            client.send(request);
            let head = client.reader.read_head().unwrap();
            assert!(head.start_line.contains(status), "{head:?}");
            assert_eq!(head.fields.all("x-edge"), ["1"]);
            assert!(!head.fields.has("x-origin"), "{head:?}");
            assert_eq!(head.fields.has("upgrade"), status == "101", "{head:?}");
        }
    }
}

fn open_tunnels_count_against_the_memory_of_their_worker(engine: Engine) {
    const TUNNELS: usize = 40;
    // What a session is taken to cost, and what a tunnel adds. Less is kept of each for the next.
    const BYTES: [usize; 2] = [1_024, 4_096];
    let origin = echoing();
    let gateway = Setup::to(engine, &origin).start();
    let memory = || gateway.metric("ringfort_worker_memory_bytes", "");
    let before = memory();
    let clients: Vec<_> = (0..TUNNELS)
        .map(|_| {
            let mut client = gateway.client();
            client.send(opening_head());
            assert_eq!(client.read_response().status, 101);
            client
        })
        .collect();
    eventually("each is charged", || memory() >= before + (TUNNELS * (BYTES[0] + BYTES[1])) as f64);
    drop(clients);
    eventually("each is given back", || memory() < before + (TUNNELS * BYTES[1]) as f64);
}
