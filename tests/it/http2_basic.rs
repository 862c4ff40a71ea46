//! HTTP/2 downstream by prior knowledge: what a client gets from here and from endpoints in either version.

use std::io::Write;
use std::time::Duration;

use crate::harness::bytes::{Digest, random};
use crate::harness::client::Client;
use crate::harness::h2::raw::{self, RawClient};
use crate::harness::h2::{self as h2t, H2Origin, connect, fetch, get, post, request, run};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    a_route_answers_from_here,
    requests_reach_endpoints_of_either_version,
    bodies_go_both_ways_between_all_pairs,
    trailers_go_both_ways_between_all_pairs,
    interim_responses_reach_the_client,
    a_response_without_body_ends_with_its_head,
    cookie_crumbs_are_one_field_to_an_http1_endpoint,
    many_streams_share_one_connection_to_an_endpoint,
    empty_data_before_trailers_fails_nobody,
    an_early_response_does_not_wait_for_the_body,
    a_client_that_reads_nothing_holds_back_the_endpoint,
    an_endpoint_that_reads_nothing_holds_back_the_client,
    a_preface_in_pieces_is_a_preface,
    an_idle_connection_is_closed_with_goaway,
    http1_clients_reach_http2_endpoints,
    as_many_fields_as_are_taken_go_up_unless_ours_are_too_many,
    an_early_response_in_http2_ends_an_http1_connection,
);

/// The two kinds of origin, each with how its cluster is configured.
fn to_both(engine: Engine) -> (Origin, H2Origin, Setup, Setup) {
    let (one, two) = (Origin::serving(), H2Origin::start());
    let to_one = Setup::to(engine, &one);
    let to_two = Setup::to_all(engine, &[two.address()]).cluster_keys("protocol = \"h2\"");
    (one, two, to_one, to_two)
}

fn a_route_answers_from_here(engine: Engine) {
    let gateway = Setup::new(engine)
        .route("path = \"/ok\"\nrespond = { status = 200, body = \"ok\\n\", headers = { \"x-a\" = \"b\" } }")
        .route("path = \"/moved\"\nredirect = { path = \"/new\" }")
        .start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let ok = fetch(&mut send, get("/ok")).await.unwrap();
        assert_eq!((ok.status, ok.text().as_str(), ok.field("x-a")), (200, "ok\n", Some("b")));
        assert!(ok.field("date").is_some() && ok.field("connection").is_none());
        let head = fetch(&mut send, request("HEAD", "/ok")).await.unwrap();
        assert_eq!((head.status, head.body.len(), head.field("content-length")), (200, 0, Some("3")));
        let moved = fetch(&mut send, get("/moved?q")).await.unwrap();
        assert_eq!((moved.status, moved.field("location")), (308, Some("http://site.test/new?q")));
        assert_eq!(fetch(&mut send, get("/nothing")).await.unwrap().status, 404);
    });
    assert_eq!(gateway.metric("ringfort_http2_streams_total", ""), 4.0);
    eventually("every stream is over", || gateway.metric("ringfort_http2_streams_active", "") == 0.0);
}

fn requests_reach_endpoints_of_either_version(engine: Engine) {
    let (one, two, to_one, to_two) = to_both(engine);
    for setup in [&to_one, &to_two] {
        let gateway = setup.start();
        run(async {
            let mut send = connect(gateway.web()).await;
            let mut asked = get("/a/../b?c=d");
            asked.headers_mut().insert("x-own", "1".parse().unwrap());
            asked.headers_mut().insert("x-forwarded-for", "9.9.9.9".parse().unwrap());
            let response = fetch(&mut send, asked).await.unwrap();
            assert_eq!(response.status, 200);
            assert!(response.field("x-origin").is_some());
        });
    }
    let seen = &one.requests()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/b?c=d"));
    assert_eq!(seen.fields.get("host"), Some("site.test"));
    assert_eq!(seen.fields.get("x-forwarded-for"), Some("127.0.0.1"));
    let seen = &two.seen()[0];
    assert_eq!((seen.method.as_str(), seen.uri.as_str()), ("GET", "http://site.test/b?c=d"));
    for (name, value) in [
        ("x-own", "1"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "site.test"),
    ] {
        assert_eq!(seen.fields.get(name).unwrap(), value, "{name}");
    }
    assert!(!seen.fields.contains_key("host") && !seen.fields.contains_key("transfer-encoding"));
}

fn bodies_go_both_ways_between_all_pairs(engine: Engine) {
    const BYTES: usize = 3_000_000;
    let (one, two, to_one, to_two) = to_both(engine);
    let sent = random(5, BYTES);
    let digest = Digest::of(&sent).text();
    let wanted = random(BYTES as u64, BYTES);
    for (name, setup) in [("2 to 1", &to_one), ("2 to 2", &to_two)] {
        let gateway = setup.start();
        run(async {
            let mut send = connect(gateway.web()).await;
            let down = fetch(&mut send, get(&format!("/bytes/{BYTES}"))).await.unwrap();
            assert!(down.body == wanted, "{name}");
            assert_eq!(down.field("content-length"), Some(BYTES.to_string().as_str()), "{name}");
            let up = post(&mut send, request("POST", "/up"), &sent, None).await.unwrap();
            assert_eq!(up.text(), format!("POST /up {digest}\n"), "{name}");
            let mut known = request("PUT", "/known");
            known.headers_mut().insert("content-length", BYTES.into());
            let up = post(&mut send, known, &sent, None).await.unwrap();
            assert_eq!(up.text(), format!("PUT /known {digest}\n"), "{name}");
        });
        // The memory of it all is given back.
        gateway.wait_for_metric("ringfort_worker_buffers_in_use", "", |value| value == 0.0);
    }
    let chunked = one.requests()[1].fields.get("transfer-encoding") == Some("chunked");
    assert!(chunked && one.requests()[2].fields.get("content-length").is_some());
    assert_eq!(two.seen().len(), 3);
}

fn trailers_go_both_ways_between_all_pairs(engine: Engine) {
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: abc\r\nContent-Length: 9\r\n\r\n";
    let one = Origin::raw(chunked);
    let two = H2Origin::start();
    let to_two = Setup::to_all(engine, &[two.address()]).cluster_keys("protocol = \"h2\"");
    for setup in [&Setup::to(engine, &one), &to_two] {
        let gateway = setup.start();
        run(async {
            let mut send = connect(gateway.web()).await;
            let sent = h2t::trailers(&[("x-up", "yes"), ("content-type", "x")]);
            let response = post(&mut send, request("POST", "/stream/3"), b"abc", Some(sent)).await.unwrap();
            assert_eq!(response.status, 200);
            assert_eq!(response.trailer("x-sum"), Some("abc"));
            assert_eq!(response.trailer("content-length"), None);
        });
    }
    let trailers = &one.requests()[0].trailers;
    assert_eq!((trailers.get("x-up"), trailers.get("content-type")), (Some("yes"), None));
    let seen = two.seen()[0].trailers.clone().unwrap();
    assert!(seen.get("x-up").unwrap() == "yes" && !seen.contains_key("content-type"));
}

fn interim_responses_reach_the_client(engine: Engine) {
    let one = Origin::raw(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    );
    let two = H2Origin::start();
    let to_two = Setup::to_all(engine, &[two.address()]).cluster_keys("protocol = \"h2\"");
    for setup in [&Setup::to(engine, &one), &to_two] {
        let gateway = setup.start();
        run(async {
            let mut send = connect(gateway.web()).await.ready().await.unwrap();
            let (mut response, _) = send.send_request(get("/info"), true).unwrap();
            let early = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!((early.status().as_u16(), early.headers()["link"].as_bytes()), (103, &b"</a>"[..]));
            assert_eq!(response.await.unwrap().status(), 200);
        });
    }
    // From HTTP/2 to a client in HTTP/1.1.
    let gateway = to_two.start();
    let mut client = gateway.client();
    client.send("GET /info HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let early = client.reader.read_head().unwrap();
    assert!(early.start_line.starts_with("HTTP/1.1 103") && early.fields.get("link") == Some("</a>"));
    assert_eq!(client.read_response().status, 200);
}

fn a_response_without_body_ends_with_its_head(engine: Engine) {
    let (_one, _two, to_one, to_two) = to_both(engine);
    for setup in [&to_one, &to_two] {
        let gateway = setup.start();
        run(async {
            let mut send = connect(gateway.web()).await.ready().await.unwrap();
            for (method, path, status) in
                [("GET", "/status/204", 204), ("GET", "/status/304", 304), ("HEAD", "/bytes/500", 200)]
            {
                let (response, _) = send.send_request(request(method, path), true).unwrap();
                let response = response.await.unwrap();
                assert_eq!(
                    (response.status().as_u16(), response.body().is_end_stream()),
                    (status, true),
                    "{path}"
                );
            }
        });
    }
}

fn cookie_crumbs_are_one_field_to_an_http1_endpoint(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let mut asked = get("/");
        for crumb in ["a=1", "b=2", "c=3"] {
            asked.headers_mut().append("cookie", crumb.parse().unwrap());
        }
        assert_eq!(fetch(&mut send, asked).await.unwrap().status, 200);
    });
    assert_eq!(origin.requests()[0].fields.get("cookie"), Some("a=1; b=2; c=3"));
}

fn many_streams_share_one_connection_to_an_endpoint(engine: Engine) {
    let origin = H2Origin::start();
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"").start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let mut all = Vec::new();
        for _ in 0..100 {
            let (response, _) = send.send_request(get("/late/100"), true).unwrap();
            all.push(response);
        }
        for response in all {
            assert_eq!(response.await.unwrap().status(), 200);
        }
        assert_eq!(fetch(&mut send, get("/again")).await.unwrap().status, 200);
    });
    assert_eq!(origin.accepted(), 1);
    assert_eq!(gateway.metric("ringfort_upstream_http2_streams_total", ""), 101.0);
    eventually("it is idle", || gateway.metric("ringfort_upstream_connections_active", "") == 0.0);
    assert_eq!(gateway.metric("ringfort_upstream_connections_idle", ""), 1.0);
}

/// The crate ends a connection on which a hundred empty frames came, ever.
fn empty_data_before_trailers_fails_nobody(engine: Engine) {
    let origin = H2Origin::start();
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"").start();
    let mut client = gateway.client();
    for _ in 0..150 {
        let response = client.get("/empty");
        assert_eq!((response.status, response.text().as_str()), (200, "some"));
    }
    // As many at once as a connection to an endpoint takes.
    run(async {
        let mut send = connect(gateway.web()).await;
        for _ in 0..4 {
            let mut calls = Vec::new();
            for _ in 0..90 {
                calls.push(send.send_request(get("/empty"), true).unwrap().0);
            }
            for call in calls {
                let response = h2t::whole(call.await.unwrap()).await.unwrap();
                assert_eq!((response.status, response.text().as_str()), (200, "some"));
            }
            send = send.ready().await.unwrap();
        }
    });
    assert!((2..40).contains(&origin.accepted()), "{}", origin.accepted());
}

fn an_early_response_does_not_wait_for_the_body(engine: Engine) {
    let early = b"HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\nearly";
    let one = Origin::start(move |peer| {
        while peer.read_request_head().is_some() {
            let _ = peer.send(early);
            peer.wait_for_end();
        }
    });
    let two = H2Origin::start();
    let to_two = Setup::to_all(engine, &[two.address()]).cluster_keys("protocol = \"h2\"");
    for setup in [&Setup::to(engine, &one), &to_two] {
        let gateway = setup.start();
        run(async {
            let mut send = connect(gateway.web()).await;
            let (response, mut stream) = send.send_request(request("POST", "/early"), false).unwrap();
            h2t::send_all(&mut stream, &[7; 1_000], false).await.unwrap();
            let response = h2t::whole(response.await.unwrap()).await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (403, "early"));
            // The connection lives on.
            let again = post(&mut send, request("POST", "/early"), b"x", None).await.unwrap();
            assert_eq!(again.status, 403);
        });
    }
}

/// End-to-end flow control: what the client does not read stays with the endpoint, but for a bounded part.
fn a_client_that_reads_nothing_holds_back_the_endpoint(engine: Engine) {
    const BYTES: usize = 40_000_000;
    let (_one, _two, to_one, to_two) = to_both(engine);
    for setup in [&to_one, &to_two] {
        let gateway = setup.start();
        run(async {
            let mut send = connect(gateway.web()).await;
            let (response, _) = send.send_request(get(&format!("/bytes/{BYTES}")), true).unwrap();
            let mut response = response.await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            let received = gateway.metric("ringfort_upstream_received_bytes_total", "");
            let held = gateway.metric("ringfort_worker_memory_bytes", "");
            assert!(received < 8_000_000.0 && held < 4_000_000.0, "{received} {held}");
            let (body, _) = h2t::read_body(response.body_mut()).await.unwrap();
            assert!(body == random(BYTES as u64, BYTES));
        });
        // One in HTTP/1.1.
        let received = || gateway.metric("ringfort_upstream_received_bytes_total", "");
        let before = received();
        let mut client = Client::connect_narrow(gateway.web());
        client.send(format!("GET /bytes/{BYTES} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        assert!(client.reader.read_head().unwrap().start_line.contains("200"));
        std::thread::sleep(Duration::from_millis(300));
        let held = gateway.metric("ringfort_worker_memory_bytes", "");
        assert!(received() - before < 8_000_000.0 && held < 4_000_000.0, "{} {held}", received());
    }
}

/// The reverse, for all four pairs: what the endpoint does not take stays with the client, but for a bounded part.
fn an_endpoint_that_reads_nothing_holds_back_the_client(engine: Engine) {
    const BYTES: usize = 60_000_000;
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let one = Origin::start(move |peer| {
        let _ = peer.read_request_head();
        let _ = wait.lock().unwrap().recv();
    });
    let two = H2Origin::start();
    let to_two = Setup::to_all(engine, &[two.address()]).cluster_keys("protocol = \"h2\"");
    for setup in [&Setup::to(engine, &one), &to_two] {
        let gateway = setup.start();
        let held = || gateway.metric("ringfort_worker_memory_bytes", "");
        run(async {
            let mut send = connect(gateway.web()).await;
            let (_response, mut stream) = send.send_request(request("POST", "/wait"), false).unwrap();
            let body = vec![7; BYTES];
            let sending = h2t::send_all(&mut stream, &body, true);
            let sent = tokio::time::timeout(Duration::from_millis(400), sending).await;
            assert!(sent.is_err(), "the client is not held back: {sent:?}");
            assert!(held() < 4_000_000.0, "{}", held());
        });
        let mut client = gateway.client();
        client.send(format!("POST /wait HTTP/1.1\r\nHost: a.test\r\nContent-Length: {BYTES}\r\n\r\n"));
        client.stream().set_write_timeout(Some(Duration::from_millis(400))).unwrap();
        let sent = client.stream().write_all(&vec![7; BYTES]).map_err(|error| error.kind());
        assert_eq!(sent, Err(std::io::ErrorKind::WouldBlock), "the client is held back");
        assert!(held() < 4_000_000.0, "{}", held());
    }
    drop(done);
}

fn a_preface_in_pieces_is_a_preface(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let mut client = RawClient::silent(gateway.web());
    for piece in [&b"P"[..], b"RI * HT", b"TP/2.0\r\n\r\nSM\r", b"\n\r\n"] {
        client.send(piece);
        std::thread::sleep(Duration::from_millis(20));
    }
    client.send(&raw::frame(raw::SETTINGS, 0, 0, &[]));
    client.send(&raw::frame(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 1, &raw::get(&[])));
    assert_eq!(client.verdict(1), None);
    let post = Client::connect(gateway.web()).get("/");
    assert_eq!(post.status, 200);
}

fn an_idle_connection_is_closed_with_goaway(engine: Engine) {
    let gateway = Setup::answering(engine).idle_timeout_ms(200).header_timeout_ms(300).start();
    let mut client = RawClient::connect(gateway.web());
    client.send(&raw::frame(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 1, &raw::get(&[])));
    let goaway = client.until(|frame| frame.kind == raw::GOAWAY).expect("a GOAWAY");
    assert_eq!((goaway.code(), &goaway.payload[..4]), (Some(0), &[0, 0, 0, 1][..]));
    assert_eq!(client.next(), None);
    let mut silent = RawClient::connect(gateway.web());
    assert!(silent.until(|frame| frame.kind == raw::GOAWAY).is_some());
    drop((client, silent));
    let ended = |reason| gateway.metric("ringfort_sessions_ended_total", reason);
    eventually("both are counted", || {
        ended("reason=\"idle_timeout\"") == 1.0 && ended("reason=\"first_byte_timeout\"") == 1.0
    });
}

fn http1_clients_reach_http2_endpoints(engine: Engine) {
    const BYTES: usize = 2_000_000;
    let origin = H2Origin::start();
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"").start();
    let mut client = gateway.client();
    let down = client.get(&format!("/bytes/{BYTES}"));
    assert_eq!((down.status, down.body_len), (200, BYTES as u64));
    assert_eq!(down.digest, Digest::of(&random(BYTES as u64, BYTES)).text());
    let streamed = client.get("/stream/1000");
    assert_eq!(streamed.trailers.get("x-sum"), Some("abc"));
    let body = random(3, BYTES);
    client.send(format!("POST /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: {BYTES}\r\n\r\n"));
    client.send(&body);
    let up = client.read_response();
    assert_eq!(up.body, format!("POST /up {}\n", Digest::of(&body).text()).into_bytes());
    client.send("POST /up HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Up: 1\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    assert_eq!(client.get("/status/204").status, 204);
    client.send("OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    client.send("GET /old HTTP/1.0\r\n\r\n");
    let old = client.read_response();
    assert!(old.status == 200 && old.closes() && old.text().starts_with("GET /old"), "{old:?}");
    assert_eq!(origin.accepted(), 1);
    let seen = origin.seen();
    assert_eq!(seen[3].trailers.as_ref().unwrap()["x-up"], "1");
    assert_eq!(seen[2].uri, "http://a.test/up");
    assert_eq!((seen[5].method.as_str(), seen[5].uri.as_str()), ("OPTIONS", "http://a.test*"));
    assert_eq!(seen[6].uri, format!("http://{}/old", origin.address()));
}

fn an_early_response_in_http2_ends_an_http1_connection(engine: Engine) {
    let origin = H2Origin::start();
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"").start();
    let mut client = gateway.client();
    client.send("POST /early HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\nsome");
    let response = client.read_response();
    assert_eq!((response.status, response.text().as_str(), response.closes()), (403, "early", true));
    client.expect_end();
    // One that breaks off in the middle of its body is felt by the endpoint, whose connection goes on.
    let mut client = gateway.client();
    client.send("POST /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\nsome");
    eventually("the endpoint has it", || origin.log().begun.load(std::sync::atomic::Ordering::SeqCst) == 2);
    client.reset();
    eventually("the endpoint learns", || origin.seen().iter().any(|seen| seen.broken.is_some()));
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(origin.accepted(), 1);
}

/// The most that can be set: with ours it is more than HTTP/2 heads are read with.
fn as_many_fields_as_are_taken_go_up_unless_ours_are_too_many(engine: Engine) {
    let (_one, two, to_one, to_two) = to_both(engine);
    let limits = "fields_max = 256\nhead_bytes_max = 65536";
    let (to_one, to_two) = (to_one.limits(limits).start(), to_two.limits(limits).start());
    for (gateway, fields, status) in [(&to_one, 255, 200), (&to_two, 240, 200), (&to_two, 255, 431)] {
        let more: String = (0..fields).map(|number| format!("x-{number}: y\r\n")).collect();
        let mut client = gateway.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: site.test\r\n{more}\r\n"));
        assert_eq!(client.read_response().status, status, "{fields} to HTTP/1.1");
        assert_eq!(client.get("/after").status, 200, "the connection goes on");
        run(async {
            let mut send = connect(gateway.web()).await;
            let mut request = get("/");
            for number in 0..fields {
                let name: http::HeaderName = format!("x-{number}").parse().unwrap();
                request.headers_mut().insert(name, "y".parse().unwrap());
            }
            assert_eq!(fetch(&mut send, request).await.unwrap().status, status, "{fields} in HTTP/2");
        });
    }
    assert_eq!(two.seen().len(), 4, "what has too many goes nowhere");
}
