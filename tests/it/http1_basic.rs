//! The HTTP/1.1 gateway on ordinary traffic: message forms, connection reuse, bodies of any size.

use std::time::{Duration, Instant};

use crate::harness::bytes::{Digest, Pattern, random, write_pattern};
use crate::harness::client::{Client, Response};
use crate::harness::message::End;
use crate::harness::origin::{Origin, Request};
use crate::harness::setup::Setup;
use crate::harness::{Engine, SOON, eventually, on_both_engines, process};

on_both_engines!(
    a_get_reaches_the_origin_and_its_answer_comes_back,
    a_connection_serves_many_requests,
    pipelined_requests_are_answered_in_order,
    ten_thousand_pipelined_requests_do_not_hold_up_others,
    bodies_of_every_size_arrive_intact_both_ways,
    chunked_bodies_arrive_intact_both_ways,
    trailers_reach_the_other_side,
    expect_continue_is_answered_before_the_body,
    an_http10_client_never_sees_an_interim_or_chunked_response,
    an_http10_client_may_ask_for_keep_alive,
    head_and_bodiless_statuses_carry_no_body,
    hop_by_hop_fields_stay_on_their_hop,
    forwarded_fields_tell_the_connection_and_not_the_client,
    absolute_form_is_routed_by_its_target,
    options_asterisk_is_answered,
    connection_close_is_honoured,
    a_long_body_costs_constant_memory,
    a_client_that_leaves_cancels_the_request,
    an_early_response_reaches_the_client,
    an_early_final_answer_of_ours_leaves_the_next_request_intact,
    an_upgrade_is_refused_cleanly,
    a_response_without_length_ends_with_its_connection,
    interim_responses_are_passed_on,
    a_request_in_single_bytes_is_served,
    stray_bytes_behind_a_closing_request_do_not_destroy_its_response,
    an_early_response_says_that_the_connection_closes,
    an_http10_client_may_ask_for_keep_alive_where_a_route_responds,
);

fn a_get_reaches_the_origin_and_its_answer_comes_back(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let response = gateway.get("/some/path?query=1&x=%20");
    assert_eq!((response.status, response.version.as_str()), (200, "HTTP/1.1"));
    assert!(response.text().starts_with("GET /some/path?query=1&x=%20 "), "{}", response.text());
    let request = only(&origin);
    assert_eq!((request.version.as_str(), request.fields.all("host")), ("HTTP/1.1", vec!["a.test"]));
}

fn a_connection_serves_many_requests(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    for n in 0..200 {
        assert!(client.get(&format!("/n/{n}")).text().contains(&format!(" /n/{n} ")));
    }
    assert_eq!(origin.accepted(), 1, "the upstream connection is reused too");
    assert_eq!(origin.requests().len(), 200);
}

fn pipelined_requests_are_answered_in_order(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    let post = "POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello";
    let chunked =
        "POST /c HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    client.send(format!("{}{post}{chunked}{}", plain("/late/50"), plain("/last")));
    for (method, target) in [("GET", "/late/50"), ("POST", "/p"), ("POST", "/c"), ("GET", "/last")] {
        let text = client.read_response().text();
        assert!(text.starts_with(&format!("{method} {target} ")), "{text}");
    }
}

fn ten_thousand_pipelined_requests_do_not_hold_up_others(engine: Engine) {
    const COUNT: usize = 10_000;
    let gateway = Setup::answering(engine).start();
    let data = gateway.data_process();
    let before = process::anonymous_bytes(data);
    let mut greedy = gateway.client();
    let mut writer = greedy.stream().try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        use std::io::Write;
        writer.write_all(plain("/n").repeat(COUNT).as_bytes())
    });
    let mut other = gateway.client();
    let mut slowest = Duration::ZERO;
    for n in 0..COUNT {
        assert_eq!(greedy.read_response().status, 200, "response {n}");
        if n % 500 == 0 {
            let start = Instant::now();
            assert_eq!(other.get("/other").status, 200);
            slowest = slowest.max(start.elapsed());
        }
    }
    sender.join().unwrap().unwrap();
    let grown = process::anonymous_bytes(data).saturating_sub(before);
    assert!(grown < 4 << 20, "memory grew by {grown} bytes");
    assert!(slowest < Duration::from_secs(1), "another connection waited {slowest:?}");
}

fn bodies_of_every_size_arrive_intact_both_ways(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    for len in [0, 1, 2, 1023, 4096, 16_383, 16_384, 16_385, 48_000, 65_536, 131_072, 200_001, 3 << 20] {
        let body = random(len as u64, len);
        let response = client.post("/echo", &body);
        assert!(response.text().contains(&Digest::of(&body).text()), "{len} bytes up: {}", response.text());
        let response = client.get(&format!("/bytes/{len}"));
        assert_eq!(
            (response.end, &response.digest),
            (End::Complete, &Digest::of(&body).text()),
            "{len} down"
        );
    }
    assert_eq!(origin.accepted(), 1);
}

fn chunked_bodies_arrive_intact_both_ways(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    for (len, step) in [(0, 1), (1, 1), (300, 1), (5_000, 7), (100_000, 1_000), (1 << 20, 40_000)] {
        let body = random(len as u64 + 1, len);
        let mut request = b"POST /up HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in body.chunks(step) {
            request.extend_from_slice(format!("{:X};note=\"a;b\"\r\n", piece.len()).as_bytes());
            request.extend_from_slice(piece);
            request.extend_from_slice(b"\r\n");
            if request.len() > 200_000 {
                client.send(std::mem::take(&mut request));
            }
        }
        request.extend_from_slice(b"0\r\n\r\n");
        client.send(request);
        let text = client.read_response().text();
        assert!(text.contains(&Digest::of(&body).text()), "{len} bytes in chunks of {step}: {text}");
        let response = client.get(&format!("/chunked/{len}"));
        let wanted = Digest::of(&random(len as u64, len)).text();
        assert_eq!((response.end, &response.digest), (End::Complete, &wanted), "{len} bytes down");
    }
}

fn trailers_reach_the_other_side(engine: Engine) {
    let origin = Origin::start(|peer| {
        while peer.read_request().is_some() {
            let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                           2\r\nok\r\n0\r\nX-Sum: down\r\n\r\n";
            let _ = peer.send(answer);
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("2\r\nhi\r\n0\r\nX-Sum: up\r\n\r\n");
    let response = client.read_response();
    assert_eq!((response.text().as_str(), response.trailers.get("x-sum")), ("ok", Some("down")));
    assert_eq!(only(&origin).trailers.get("x-sum"), Some("up"));
}

fn expect_continue_is_answered_before_the_body(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send("POST /e HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.read_response().status, 100);
    assert!(origin.requests().is_empty());
    client.send("hello");
    let response = client.read_response();
    assert_eq!(response.status, 200);
    assert!(response.text().contains(&Digest::of(b"hello").text()));
    assert_eq!(client.get("/after").status, 200);
}

fn an_http10_client_never_sees_an_interim_or_chunked_response(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send("POST /e HTTP/1.0\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    client.send("hello");
    let response = client.read_response();
    assert_eq!((response.status, response.end), (200, End::Complete));
    client.expect_end();

    let mut client = gateway.client();
    client.send("GET /chunked/50000 HTTP/1.0\r\nHost: a.test\r\n\r\n");
    let response = client.read_response();
    assert_eq!(response.status, 200);
    assert!(!response.fields.has("transfer-encoding"), "{:?}", response.fields);
    assert_eq!(response.digest, Digest::of(&random(50_000, 50_000)).text());
}

fn an_http10_client_may_ask_for_keep_alive(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    for n in 0..3 {
        client.send(format!("GET /bytes/{n} HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n"));
        let response = client.read_response();
        assert_eq!((response.status, response.body_len), (200, n));
        let kept = response.fields.get("connection").is_some_and(|v| v.eq_ignore_ascii_case("keep-alive"));
        if !kept {
            return client.expect_end();
        }
    }
}

fn head_and_bodiless_statuses_carry_no_body(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send("HEAD /bytes/1000 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let response = client.try_read_response("HEAD").unwrap();
    assert_eq!((response.status, response.fields.get("content-length")), (200, Some("1000")));
    for status in [204, 304] {
        let response = client.get(&format!("/status/{status}"));
        assert_eq!((response.status, response.body_len), (status, 0));
        assert!(!response.fields.has("transfer-encoding"), "{:?}", response.fields);
    }
    assert_eq!(client.get("/after").status, 200);
}

fn hop_by_hop_fields_stay_on_their_hop(engine: Engine) {
    let origin = Origin::start(|peer| {
        while peer.read_request().is_some() {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X-Private\r\nX-Private: 1\r\n\
                           Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nX-Kept: 1\r\n\r\n";
            let _ = peer.send(answer);
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send(
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: X-Secret, keep-alive\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: h2c\r\nX-Kept: 1\r\n\r\n",
    );
    let response = client.read_response();
    assert_eq!(response.fields.get("x-kept"), Some("1"));
    for name in ["x-private", "keep-alive", "proxy-connection"] {
        assert!(!response.fields.has(name), "{name} in {:?}", response.fields);
    }
    let request = only(&origin);
    assert_eq!(request.fields.get("x-kept"), Some("1"));
    for name in ["x-secret", "keep-alive", "proxy-connection", "upgrade"] {
        assert!(!request.fields.has(name), "{name} in {:?}", request.fields);
    }
    assert!(request.fields.all("te").iter().all(|v| *v == "trailers"), "{:?}", request.fields);
}

fn forwarded_fields_tell_the_connection_and_not_the_client(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send(
        "GET / HTTP/1.1\r\nHost: a.test:81\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: evil.test\r\nForwarded: for=6.6.6.6\r\n\r\n",
    );
    assert_eq!(client.read_response().status, 200);
    let fields = only(&origin).fields;
    assert_eq!(fields.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(fields.all("x-forwarded-proto"), ["http"]);
    assert_eq!(fields.all("x-forwarded-host"), ["a.test:81"]);
    assert_eq!(fields.all("host"), ["a.test:81"]);
    assert!(!fields.has("forwarded"), "{fields:?}");
}

fn absolute_form_is_routed_by_its_target(engine: Engine) {
    let (api, site) = (Origin::serving(), Origin::serving());
    let gateway = Setup::new(engine)
        .route("hosts = [\"api.test\"]\ncluster = \"api\"")
        .route("cluster = \"site\"")
        .cluster("api", &[api.address()])
        .cluster("site", &[site.address()])
        .start();
    let mut client = gateway.client();
    client.send("GET http://api.test/x?y HTTP/1.1\r\nHost: other.test\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    let request = only(&api);
    assert_eq!((request.target.as_str(), request.fields.all("host")), ("/x?y", vec!["api.test"]));
    assert!(site.requests().is_empty());
}

fn options_asterisk_is_answered(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send("OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(client.read_response().status / 100, 2);
    assert!(origin.targets().iter().all(|target| target == "*"));
    assert_eq!(client.get("/after").status, 200);
}

fn connection_close_is_honoured(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    for request in [
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: x, Close\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n",
    ] {
        let mut client = gateway.client();
        client.send(request);
        let response = client.read_response();
        assert_eq!((response.status, response.closes()), (200, true), "{request}");
        client.expect_end();
    }
}

fn a_long_body_costs_constant_memory(engine: Engine) {
    const LEN: usize = 48 << 20;
    let origin = Origin::start(|peer| {
        while let Some(request) = peer.read_request() {
            let len = if request.method == "GET" { LEN } else { 0 };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n");
            if peer.send(head.as_bytes()).is_err() || write_pattern(peer.stream(), 5, len, 1 << 18).is_err() {
                return;
            }
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let data = gateway.data_process();
    assert_eq!(gateway.client().post("/up", &random(4, 100_000)).status, 200);
    let before = process::anonymous_bytes(data);

    let mut client = gateway.client();
    client.send(format!("POST /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: {LEN}\r\n\r\n"));
    let sent = write_pattern(client.stream(), 5, LEN, 1 << 18).unwrap();
    assert_eq!(client.read_response().status, 200);
    assert_eq!(origin.requests().last().unwrap().digest, sent);

    let response = gateway.get("/down");
    assert_eq!((response.end, response.digest), (End::Complete, sent));
    let grown = process::anonymous_bytes(data).saturating_sub(before);
    assert!(grown < 6 << 20, "memory grew by {grown} bytes over two bodies of {LEN}");
}

fn a_client_that_leaves_cancels_the_request(engine: Engine) {
    let origin = Origin::start(|peer| {
        if peer.read_request().is_some() {
            peer.wait_for_end();
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let leave: [fn(Client); 2] = [drop, Client::reset];
    for (n, leave) in leave.into_iter().enumerate() {
        let mut client = gateway.client();
        client.send(plain("/never"));
        eventually("the request is at the origin", || origin.requests().len() == n + 1);
        leave(client);
        eventually("the origin's connection is closed", || origin.open() == 0);
    }
}

fn an_early_response_reaches_the_client(engine: Engine) {
    let origin = Origin::start(|peer| {
        if peer.read_request_head().is_some() {
            let _ = peer
                .send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
            peer.wait_for_end();
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send("POST /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10000000\r\n\r\n");
    client.send(random(1, 20_000));
    let response = client.read_response();
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
    eventually("the origin's connection is closed, not pooled", || origin.open() == 0);
}

/// A close(2) over unread bytes makes the kernel send RST, which destroys what is still on its way.
fn stray_bytes_behind_a_closing_request_do_not_destroy_its_response(engine: Engine) {
    const LEN: usize = 1 << 20;
    let origin = Origin::start(|peer| {
        while peer.read_request().is_some() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n");
            let _ = peer.send(head.as_bytes());
            let _ = peer.send(&random(3, LEN));
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let wanted = Digest::of(&random(3, LEN)).text();
    for request in [
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        for (pieces, narrow) in [(1, false), (2, false), (1, true), (2, true)] {
            let mut client =
                if narrow { Client::connect_narrow(gateway.web()) } else { Client::connect(gateway.web()) };
            if pieces == 1 {
                client.send(format!("{request}\r\n"));
            } else {
                client.send(request);
                client.send("\r\n");
            }
            let response = client.read_response();
            assert_eq!(
                (response.status, response.end, &response.digest),
                (200, End::Complete, &wanted),
                "{request} in {pieces} pieces, narrow {narrow}"
            );
            client.expect_end();
        }
    }
}

/// The origin means to keep its connection; the client must learn that it need not finish.
fn an_early_response_says_that_the_connection_closes(engine: Engine) {
    let origin = Origin::start(|peer| {
        if peer.read_request_head().is_some() {
            let _ = peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
            peer.wait_for_end();
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    for (framing, piece) in
        [("Content-Length: 100000", "hello"), ("Transfer-Encoding: chunked", "5\r\nhello\r\n")]
    {
        let mut client = gateway.client();
        client.send(format!("POST /up HTTP/1.1\r\nHost: a.test\r\n{framing}\r\n\r\n{piece}"));
        let response = client.read_response();
        assert_eq!((response.status, response.text().as_str()), (403, "no"), "{framing}");
        assert_eq!(response.fields.all("connection"), ["close"], "{framing}");
        client.expect_end();
    }
    // One that comes behind the whole body says nothing of the kind.
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    assert!(!gateway.client().post("/up", b"hello").closes());
}

fn an_http10_client_may_ask_for_keep_alive_where_a_route_responds(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let mut client = gateway.client();
    for n in 0..3 {
        client.send("GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n");
        let response = client.read_response();
        assert_eq!((response.status, response.text().as_str()), (200, "ok\n"), "request {n}");
        assert_eq!(response.fields.all("connection"), ["keep-alive"], "request {n}");
    }
    client.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n");
    assert!(client.read_response().fields.all("connection").iter().all(|value| *value != "keep-alive"));
    client.expect_end();
}

fn an_early_final_answer_of_ours_leaves_the_next_request_intact(engine: Engine) {
    let gateway = Setup::new(engine)
        .route("path = \"/no\"\nrespond = { status = 403, body = \"no\\n\" }")
        .route("respond = { status = 200, body = \"yes\\n\" }")
        .start();
    // A body within the drain bound, long or short, arrives after the answer was made.
    for len in [5, 40_000, 5_000_000] {
        let mut client = gateway.client();
        client.send(format!("POST /no HTTP/1.1\r\nHost: a.test\r\nContent-Length: {len}\r\n\r\n"));
        let response = client.read_response();
        assert_eq!(response.status, 403);
        let body = random(2, len);
        if client.try_send(&body).and_then(|()| client.try_send(plain("/next"))).is_err() {
            continue;
        }
        match client.try_read_response("GET") {
            Ok(next) => assert_eq!((next.status, next.text().as_str()), (200, "yes\n"), "after {len} bytes"),
            Err(none) => assert!(len > 40_000 || response.closes(), "after {len} bytes: {none:?}"),
        }
    }
}

fn an_upgrade_is_refused_cleanly(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send(
        "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    );
    let response = client.read_response();
    assert_ne!(response.status, 101);
    if !response.closes() {
        assert_eq!(client.get("/after").status, 200);
    }
}

fn a_response_without_length_ends_with_its_connection(engine: Engine) {
    let origin = Origin::start(|peer| {
        if peer.read_request().is_some() {
            let _ = peer.send(b"HTTP/1.1 200 OK\r\n\r\n");
            let _ = write_pattern(peer.stream(), 9, 70_000, 4096);
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    for version in ["1.1", "1.0"] {
        let mut client = gateway.client();
        client.send(format!("GET / HTTP/{version}\r\nHost: a.test\r\n\r\n"));
        let response = client.read_response();
        let wanted = Digest::of(&random(9, 70_000)).text();
        assert_eq!(
            (response.status, response.end, response.digest),
            (200, End::Complete, wanted),
            "{version}"
        );
    }
}

fn interim_responses_are_passed_on(engine: Engine) {
    let origin = Origin::raw(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send(plain("/"));
    let hints = client.read_response();
    assert_eq!((hints.status, hints.fields.all("link")), (103, vec!["</a.css>"]));
    assert_eq!(final_and_interim(&mut client), [200]);
    client.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n");
    assert_eq!(final_and_interim(&mut client), [200], "no interim response to an HTTP/1.0 client");
}

fn a_request_in_single_bytes_is_served(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    let request =
        "POST /drip HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for byte in request.as_bytes() {
        client.send([*byte]);
    }
    assert!(client.read_response().text().contains(&Digest::of(b"hello").text()));
}

fn final_and_interim(client: &mut Client) -> Vec<u16> {
    let mut statuses = Vec::new();
    let start = Instant::now();
    while statuses.last().is_none_or(|status| status / 100 == 1) && start.elapsed() < SOON {
        let response: Response = client.read_response();
        statuses.push(response.status);
    }
    statuses
}

fn plain(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
}

#[track_caller]
fn only(origin: &Origin) -> Request {
    let requests = origin.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    requests[0].clone()
}

#[test]
fn the_pattern_is_the_same_in_pieces() {
    let mut pattern = Pattern::new(3);
    let pieces = [pattern.take(16), pattern.take(40)].concat();
    assert_eq!(pieces, random(3, 56));
}
