//! Tunnels on HTTP/1.1: WebSocket and other upgrades, and CONNECT: what opens one, what passes, how it ends.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tungstenite::Message;

use crate::harness::bytes::random;
use crate::harness::client::{Client, Response, reset};
use crate::harness::gateway::Gateway;
use crate::harness::message::{NoMessage, find, show};
use crate::harness::origin::{Origin, Peer};
use crate::harness::setup::Setup;
use crate::harness::websocket::{self, ACCEPT, KEY};
use crate::harness::{Engine, SOON, eventually, on_both_engines};

on_both_engines!(
    websocket_messages_pass_both_ways_and_are_counted,
    bytes_behind_the_request_wait_for_101_and_arrive_exactly,
    a_refusal_is_a_response_and_the_connection_goes_on,
    bytes_behind_a_refused_request_are_nobodys_request,
    a_connection_of_a_tunnel_carries_nothing_else,
    a_half_close_is_passed_on_and_the_other_direction_goes_on,
    a_reset_on_either_side_is_a_reset_on_the_other,
    a_silent_tunnel_ends_at_its_deadline_and_a_ping_keeps_one,
    a_tunnel_lives_through_a_drain_until_its_deadline,
    only_protocols_that_the_route_names_are_asked_for,
    a_change_to_what_nobody_asked_for_is_502,
    a_bad_handshake_is_the_endpoints_to_judge,
    a_dead_endpoint_is_told_and_the_connection_goes_on,
    a_client_that_leaves_before_the_answer_frees_the_endpoint,
    connect_opens_a_tunnel_where_a_route_allows_it,
    connect_refused_is_a_response_and_the_end,
    connect_is_routed_by_host_and_by_no_path,
);

/// An upgrade to this protocol, with `more` field lines.
fn upgrade(protocol: &str, more: &str) -> String {
    format!(
        "GET /chat?room=1 HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n{more}\r\n"
    )
}

fn opening_head() -> String {
    upgrade("websocket", &format!("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"))
}

fn switching() -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    )
}

/// An origin that answers each upgrade with 101 and goes on with `script`, and serves the rest.
fn opening(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Origin {
    Origin::start(move |peer| {
        while let Some(request) = peer.read_request() {
            if request.fields.has("upgrade") {
                let _ = peer.send(switching().as_bytes());
                return script(peer);
            }
            if peer.serve(&request).is_err() {
                return;
            }
        }
    })
}

/// A client whose tunnel is open.
#[track_caller]
fn opened(gateway: &Gateway) -> Client {
    let mut client = gateway.client();
    client.send(opening_head());
    let response = client.read_response();
    assert_eq!(response.status, 101, "{response:?}");
    client
}

#[track_caller]
fn read_exactly(client: &mut Client, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    client.reader.read_length(len as u64, &mut |piece| all.extend_from_slice(piece));
    assert_eq!(all.len(), len, "{}", show(&all));
    all
}

fn websocket_messages_pass_both_ways_and_are_counted(engine: Engine) {
    let origin = Origin::start(websocket::serve);
    let gateway = Setup::to(engine, &origin).start();
    let stream = TcpStream::connect(("127.0.0.1", gateway.web())).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let (mut socket, response) = tungstenite::client("ws://a.test/chat", stream).unwrap();
    assert_eq!(response.status(), 101);
    gateway.wait_for_metric("ringfort_tunnels_active", "web", |value| value == 1.0);
    for len in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        let message = Message::binary(random(len as u64, len));
        socket.send(message.clone()).unwrap();
        assert_eq!(socket.read().unwrap(), message, "{len} bytes");
    }
    socket.send(Message::text("grüße")).unwrap();
    assert_eq!(socket.read().unwrap(), Message::text("grüße"));
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    drop(socket);
    gateway.wait_for_metric("ringfort_tunnels_active", "web", |value| value == 0.0);
    assert_eq!(gateway.metric("ringfort_tunnels_opened_total", "websocket"), 1.0);
    assert_eq!(gateway.metric("ringfort_requests_total", "1xx"), 1.0);
    gateway.wait_for_metric("ringfort_sessions_ended_total", "tunnel_closed", |value| value == 1.0);
}

fn bytes_behind_the_request_wait_for_101_and_arrive_exactly(engine: Engine) {
    let (tell, told) = mpsc::channel();
    let origin = Origin::start(move |peer| {
        let Some(request) = peer.read_request() else { return };
        // Whatever came behind the head would be here by now.
        let _ = peer.stream().set_read_timeout(Some(Duration::from_millis(150)));
        let early = peer.reader.fill();
        let _ = tell.send((request, early.is_err() && peer.reader.buf.is_empty()));
        let _ = peer.stream().set_read_timeout(Some(SOON));
        let _ = peer.send(format!("{}GREETING", switching()).as_bytes());
        while peer.reader.buf.len() < 5_000 + 4 && peer.reader.fill().is_ok_and(|n| n > 0) {}
        let heard = std::mem::take(&mut peer.reader.buf);
        let _ = peer.send(&heard);
    });
    let gateway = Setup::to(engine, &origin).start();
    let early = random(7, 5_000);
    let mut client = gateway.client();
    client.send([opening_head().as_bytes(), &early].concat());
    let (request, waited) = told.recv_timeout(SOON).unwrap();
    assert!(waited, "bytes of the tunnel went up before 101");
    assert_eq!(request.fields.all("connection"), ["Upgrade"]);
    assert_eq!(request.fields.all("upgrade"), ["websocket"]);
    assert_eq!(
        (request.target.as_str(), request.fields.get("sec-websocket-key")),
        ("/chat?room=1", Some(KEY))
    );
    let response = client.read_response();
    assert_eq!(response.status, 101);
    assert_eq!(response.fields.get("sec-websocket-accept"), Some(ACCEPT));
    assert_eq!(response.fields.all("connection"), ["Upgrade"]);
    client.send("late");
    assert_eq!(read_exactly(&mut client, 8), b"GREETING");
    assert_eq!(read_exactly(&mut client, 5_004), [&early[..], b"late"].concat());
}

fn a_refusal_is_a_response_and_the_connection_goes_on(engine: Engine) {
    let origin = Origin::start(|peer| {
        while let Some(request) = peer.read_request() {
            let refusal: &[u8] = match request.target.as_str() {
                "/chat?room=1" if request.fields.get("x-ask") == Some("426") => {
                    b"HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Version: 13\r\nContent-Length: 3\r\n\r\nold"
                }
                "/chat?room=1" if request.fields.get("x-ask") == Some("403") => {
                    b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"
                }
                "/chat?room=1" => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage",
                _ => {
                    let _ = peer.serve(&request);
                    continue;
                }
            };
            let _ = peer.send(refusal);
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    for (ask, status, body) in [("426", 426, "old"), ("403", 403, "no"), ("200", 200, "page")] {
        client.send(opening_head().replace("\r\n\r\n", &format!("\r\nX-Ask: {ask}\r\n\r\n")));
        let response = client.read_response();
        assert_eq!((response.status, response.text().as_str()), (status, body));
        assert!(!response.closes(), "{response:?}");
        if status == 426 {
            assert_eq!(response.fields.get("sec-websocket-version"), Some("13"));
            assert_eq!(response.fields.get("upgrade"), Some("websocket"));
        }
        // The connection that was asked is spent, whatever the endpoint thinks.
        eventually("the endpoint's connection is closed", || origin.open() == 0);
    }
    assert_eq!(client.get("/after").status, 200);
    assert_eq!(origin.accepted(), 4);
    assert_eq!(gateway.metric("ringfort_tunnels_opened_total", ""), 0.0);
}

fn bytes_behind_a_refused_request_are_nobodys_request(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send(opening_head() + "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let response = client.read_response();
    assert!(response.status == 200 && response.closes(), "{response:?}");
    client.expect_end();
    assert_eq!(origin.targets(), ["/chat?room=1"]);
    assert!(find(&origin.raw_bytes(), b"smuggled").is_none());
    gateway.wait_for_metric("ringfort_sessions_ended_total", "tunnel_refused", |value| value == 1.0);
}

fn a_connection_of_a_tunnel_carries_nothing_else(engine: Engine) {
    let origin = opening(|peer| {
        let _ = peer.send(b"x");
        // The endpoint could well go on in HTTP behind its tunnel.
        peer.wait_for_end();
    });
    let gateway = Setup::to(engine, &origin).start();
    // A connection of the pool is not taken for a tunnel.
    assert_eq!(gateway.get("/first").status, 200);
    assert_eq!((origin.accepted(), origin.open()), (1, 1));
    let mut client = opened(&gateway);
    assert_eq!(read_exactly(&mut client, 1), b"x");
    assert_eq!(origin.accepted(), 2);
    client.shutdown_write();
    client.expect_end();
    eventually("the tunnel's connection is closed", || origin.open() == 1);
    assert_eq!(gateway.get("/second").status, 200);
    assert_eq!(origin.accepted(), 2, "the pooled connection still serves");
}

fn a_half_close_is_passed_on_and_the_other_direction_goes_on(engine: Engine) {
    let origin = opening(|peer| {
        let mut all = Vec::new();
        let _ = peer.stream().read_to_end(&mut all);
        let _ = peer.send(format!("heard {}", all.len()).as_bytes());
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = opened(&gateway);
    client.send([1; 1_000]);
    client.shutdown_write();
    assert_eq!(client.read_to_end().unwrap(), b"heard 1000");

    let (tell, told) = mpsc::channel();
    let origin = opening(move |peer| {
        let _ = peer.send(b"bye");
        let _ = peer.stream().shutdown(Shutdown::Write);
        let mut all = Vec::new();
        let _ = peer.stream().read_to_end(&mut all);
        let _ = tell.send(all);
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = opened(&gateway);
    assert_eq!(client.read_to_end().unwrap(), b"bye");
    client.send("still here");
    drop(client);
    assert_eq!(told.recv_timeout(SOON).unwrap(), b"still here");
}

fn a_reset_on_either_side_is_a_reset_on_the_other(engine: Engine) {
    let (tell, told) = mpsc::channel();
    let origin = opening(move |peer| {
        let mut byte = [0; 1];
        let _ = peer.stream().read_exact(&mut byte);
        if &byte == b"r" {
            return peer.reset();
        }
        let _ = tell.send(peer.stream().read(&mut byte).map_err(|error| error.kind()));
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = opened(&gateway);
    client.send("r");
    let start = Instant::now();
    let end = client.stream().read(&mut [0; 8]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    gateway.wait_for_metric("ringfort_sessions_ended_total", "upstream_reset", |value| value == 1.0);

    let mut client = opened(&gateway);
    client.send("x");
    std::thread::yield_now();
    gateway.wait_for_metric("ringfort_tunnels_active", "web", |value| value == 1.0);
    reset(client.reader.stream);
    assert_eq!(told.recv_timeout(Duration::from_secs(2)), Ok(Err(std::io::ErrorKind::ConnectionReset)));
    gateway.wait_for_metric("ringfort_tunnels_active", "web", |value| value == 0.0);
}

fn a_silent_tunnel_ends_at_its_deadline_and_a_ping_keeps_one(engine: Engine) {
    let origin = opening(Peer::wait_for_end);
    let gateway = Setup::to(engine, &origin).timeout("tunnel_idle_timeout_ms", 400).start();
    let mut silent = opened(&gateway);
    let mut pinging = opened(&gateway);
    let start = Instant::now();
    let pings = std::thread::spawn(move || {
        while start.elapsed() < Duration::from_millis(1_000) {
            pinging.send([0x89, 0x80, 1, 2, 3, 4]);
            std::thread::sleep(Duration::from_millis(100));
        }
        pinging
    });
    let took = silent.time_to_end();
    assert!((Duration::from_millis(350)..Duration::from_secs(2)).contains(&took), "{took:?}");
    gateway.wait_for_metric("ringfort_sessions_ended_total", "idle_timeout", |value| value == 1.0);
    let mut pinging = pings.join().unwrap();
    assert!(pinging.stays_open_and_silent(Duration::from_millis(50)));
}

fn a_tunnel_lives_through_a_drain_until_its_deadline(engine: Engine) {
    let origin = opening(|peer| {
        let mut byte = [0; 1];
        while peer.stream().read_exact(&mut byte).is_ok() && peer.send(&byte).is_ok() {}
    });
    let mut gateway = Setup::to(engine, &origin).drain(100, 1_500).start();
    let mut client = opened(&gateway);
    let start = Instant::now();
    gateway.terminate();
    while start.elapsed() < Duration::from_millis(800) {
        client.send("a");
        assert_eq!(read_exactly(&mut client, 1), b"a");
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = client.read_to_end();
    let took = start.elapsed();
    assert!((Duration::from_millis(1_300)..Duration::from_secs(5)).contains(&took), "{took:?}");
    assert!(gateway.wait_exit(SOON).is_some_and(|status| status.success()));
}

fn only_protocols_that_the_route_names_are_asked_for(engine: Engine) {
    let origin = Origin::start(|peer| {
        while let Some(request) = peer.read_request() {
            let Some(protocol) = request.fields.get("upgrade") else {
                if peer.serve(&request).is_err() {
                    return;
                }
                continue;
            };
            let head = format!("HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\nhello");
            let _ = peer.send(head.as_bytes());
            return peer.wait_for_end();
        }
    });
    let gateway = Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("path_prefix = \"/chat\"\nhosts = [\"foo.test\"]\ncluster = \"site\"\ntunnels = [\"Foo/1\"]")
        .route("hosts = [\"none.test\"]\ncluster = \"site\"\ntunnels = []")
        .route("cluster = \"site\"")
        .start();
    for (host, protocol, opens) in [
        ("foo.test", "foo/1", true),
        ("foo.test", "websocket", false),
        ("foo.test", "foo", false),
        ("none.test", "websocket", false),
        ("a.test", "WebSocket", true),
        ("a.test", "foo/1", false),
        ("a.test", "h2c", false),
    ] {
        origin.forget();
        let mut client = gateway.client();
        client.send(upgrade(protocol, "").replace("a.test", host));
        let response = client.read_response();
        assert_eq!(response.status == 101, opens, "{host} {protocol}: {response:?}");
        if opens {
            assert_eq!(read_exactly(&mut client, 5), b"hello");
        } else {
            let seen = &origin.requests()[0];
            assert!(
                !seen.fields.has("upgrade") && !seen.fields.has("connection"),
                "{host} {protocol}: {seen:?}"
            );
            assert_eq!(client.get("/after").status, 200, "{host} {protocol}");
        }
    }
    assert_eq!(gateway.metric("ringfort_tunnels_opened_total", "other"), 1.0);
}

fn a_change_to_what_nobody_asked_for_is_502(engine: Engine) {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket, foo\r\nConnection: Upgrade\r\n\r\n",
    ] {
        let origin = Origin::raw(answer.as_bytes());
        let gateway = Setup::to(engine, &origin).start();
        let mut client = gateway.client();
        client.send(opening_head());
        let response = client.read_response();
        assert_eq!(response.status, 502, "{answer}");
        eventually("the endpoint's connection is closed", || origin.open() == 0);
        assert_eq!(gateway.metric("ringfort_tunnels_opened_total", ""), 0.0);
    }
}

/// H18 of the table of bad inputs.
fn a_bad_handshake_is_the_endpoints_to_judge(engine: Engine) {
    let origin = Origin::start(|peer| {
        while let Some(request) = peer.read_request() {
            let good = request.method == "GET"
                && request.fields.get("upgrade") == Some("websocket")
                && request.fields.get("sec-websocket-version") == Some("13")
                && request.fields.has("sec-websocket-key");
            let answer =
                if good { switching() } else { "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n".into() };
            if peer.send(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    for (what, request) in [
        ("no key", opening_head().replace("Sec-WebSocket-Key", "X-Key")),
        ("another version", opening_head().replace("Version: 13", "Version: 8")),
        ("not listed in Connection", opening_head().replace("keep-alive, Upgrade", "keep-alive")),
        ("POST", opening_head().replace("GET", "POST").replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n")),
        ("HTTP/1.0", opening_head().replace("HTTP/1.1", "HTTP/1.0")),
        ("two protocols", opening_head().replace("websocket", "websocket, foo")),
    ] {
        let mut client = gateway.client();
        client.send(request);
        assert_eq!(client.read_response().status, 400, "{what}");
    }
    assert_eq!(gateway.metric("ringfort_tunnels_opened_total", ""), 0.0);
}

fn a_dead_endpoint_is_told_and_the_connection_goes_on(engine: Engine) {
    let origin = Origin::start(|peer| {
        // Reads the question and leaves.
        let _ = peer.read_request_head();
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send(opening_head());
    let response = client.read_response();
    assert!(response.status == 502 && !response.closes(), "{response:?}");
    client.send(opening_head() + "early");
    let response = client.read_response();
    assert!(response.status == 502 && response.closes(), "{response:?}");
    client.expect_end();
}

fn a_client_that_leaves_before_the_answer_frees_the_endpoint(engine: Engine) {
    let (tell, told) = mpsc::channel();
    let origin = Origin::start(move |peer| {
        let _ = peer.read_request_head();
        let _ = tell.send(());
        peer.wait_for_end();
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send(opening_head());
    told.recv_timeout(SOON).unwrap();
    drop(client);
    eventually("the endpoint's connection is closed", || origin.open() == 0);
    gateway.wait_for_metric("ringfort_sessions_ended_total", "client_aborted", |value| value == 1.0);
}

const CONNECT: &str = "CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n";

/// Everything CONNECT may ask for goes to one origin.
fn connecting(engine: Engine, origin: &Origin) -> Setup {
    Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("cluster = \"site\"\ntunnels = [\"connect\"]")
}

fn connect_opens_a_tunnel_where_a_route_allows_it(engine: Engine) {
    for lengths in ["", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        let (tell, told) = mpsc::channel();
        let origin = Origin::start(move |peer| {
            let Some(request) = peer.read_request() else { return };
            let _ = peer.stream().set_read_timeout(Some(Duration::from_millis(100)));
            let early = peer.reader.fill().is_ok();
            let _ = tell.send((request, early));
            let _ = peer.stream().set_read_timeout(Some(SOON));
            let _ = peer.send(format!("HTTP/1.1 200 Open\r\n{lengths}X-Hop: 1\r\n\r\nhello").as_bytes());
            while let Ok(n) = peer.reader.fill() {
                let heard = std::mem::take(&mut peer.reader.buf);
                if n == 0 || peer.send(&heard).is_err() {
                    return;
                }
            }
        });
        let gateway = connecting(engine, &origin).start();
        let mut client = gateway.client();
        client.send(format!("{CONNECT}early"));
        let (request, early) = told.recv_timeout(SOON).unwrap();
        assert!(!early, "bytes of the tunnel went up before 200");
        assert_eq!((request.method.as_str(), request.target.as_str()), ("CONNECT", "db.test:5432"));
        assert_eq!(request.fields.all("host"), ["db.test:5432"]);
        let head = client.reader.read_head().unwrap();
        assert!(head.start_line.starts_with("HTTP/1.1 200"), "{head:?}");
        for name in ["content-length", "transfer-encoding", "connection"] {
            assert!(!head.fields.has(name), "{lengths}: {head:?}");
        }
        assert_eq!(head.fields.get("x-hop"), Some("1"));
        client.send(" late");
        assert_eq!(read_exactly(&mut client, 15), b"helloearly late", "{lengths}");
        client.shutdown_write();
        client.expect_end();
        gateway.wait_for_metric("ringfort_sessions_ended_total", "tunnel_closed", |value| value == 1.0);
        assert_eq!(gateway.metric("ringfort_tunnels_opened_total", "connect"), 1.0);
    }
}

fn connect_refused_is_a_response_and_the_end(engine: Engine) {
    let origin = Origin::raw(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    let gateway = connecting(engine, &origin).start();
    let mut client = gateway.client();
    client.send(CONNECT);
    let response = client.read_response();
    assert_eq!((response.status, response.text().as_str(), response.closes()), (403, "no", true));
    client.expect_end();
    eventually("the endpoint's connection is closed", || origin.open() == 0);

    // A body has no place in it, and 101 is no answer to it.
    let mut client = gateway.client();
    client.send(CONNECT.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello"));
    assert_eq!(client.read_response().status, 400);
    let origin = Origin::raw(b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let gateway = connecting(engine, &origin).start();
    let mut client = gateway.client();
    client.send(CONNECT);
    assert_eq!(client.read_response().status, 502);
}

fn connect_is_routed_by_host_and_by_no_path(engine: Engine) {
    let origin = Origin::raw(b"HTTP/1.1 200 OK\r\n\r\n");
    let gateway = Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("hosts = [\"db.test\"]\ncluster = \"site\"\ntunnels = [\"connect\"]")
        .route("hosts = [\"web.test\"]\npath_prefix = \"/\"\ncluster = \"site\"")
        .route("cluster = \"site\"\nhosts = [\"plain.test\"]")
        .start();
    let answer = |target: &str| -> Result<Response, NoMessage> {
        let mut client = gateway.client();
        client.send(CONNECT.replace("db.test:5432", target));
        client.try_read_response("HEAD")
    };
    assert_eq!(answer("db.test:5432").unwrap().status, 200);
    assert_eq!(answer("DB.test:1").unwrap().status, 200);
    for refused in ["web.test:80", "plain.test:80", "other.test:443"] {
        let response = answer(refused).unwrap();
        assert_eq!((response.status, response.closes()), (405, true), "{refused}");
    }
    assert_eq!(origin.accepted(), 2);
}
