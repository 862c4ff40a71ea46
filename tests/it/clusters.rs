//! Endpoints: how requests spread, what is retried, what is taken out, and which answer a failure gives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::client::Client;
use crate::harness::gateway::{free_port, fresh_listener};
use crate::harness::message::End;
use crate::harness::origin::{Origin, fill_backlog};
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines, process};

on_both_engines!(
    requests_spread_over_all_endpoints,
    a_busy_endpoint_gets_less,
    a_dead_pooled_connection_is_retried_for_an_idempotent_request,
    a_request_that_may_have_been_served_is_not_repeated,
    a_refused_connection_is_retried_on_another_endpoint,
    a_failing_endpoint_is_ejected_and_comes_back,
    nobody_listening_is_answered_at_once,
    an_endpoint_that_closes_without_answer_gives_502,
    a_late_answer_gives_504,
    a_full_backlog_gives_an_answer_at_the_connect_deadline,
    an_unused_pooled_connection_is_closed_after_its_timeout,
    a_pooled_connection_that_spoke_unasked_is_not_reused,
    bytes_that_waited_beside_the_next_request_do_not_answer_it,
    a_name_is_resolved,
    an_idle_connection_gives_way_at_the_limit_of_the_cluster,
    an_endpoint_that_truncates_is_ejected_whatever_the_method,
);

fn requests_spread_over_all_endpoints(engine: Engine) {
    let origins = [Origin::serving(), Origin::serving(), Origin::serving()];
    let gateway = Setup::to_all(engine, &origins.each_ref().map(Origin::address)).start();
    let mut client = gateway.client();
    for _ in 0..300 {
        assert_eq!(client.get("/").status, 200);
    }
    let counts = origins.each_ref().map(|origin| origin.requests().len());
    assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
}

fn a_busy_endpoint_gets_less(engine: Engine) {
    let busy = Origin::start(|peer| {
        while let Some(request) = peer.read_request() {
            std::thread::sleep(Duration::from_millis(60));
            if peer.serve(&request).is_err() {
                return;
            }
        }
    });
    let quick = Origin::serving();
    let gateway = Setup::to_all(engine, &[busy.address(), quick.address()]).start();
    let port = gateway.web();
    let clients: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::connect(port);
                (0..40).for_each(|_| assert_eq!(client.get("/").status, 200));
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    let (busy, quick) = (busy.requests().len(), quick.requests().len());
    assert!(quick > busy * 2, "busy {busy}, quick {quick}");
}

/// An origin that serves one request on its first connection, then closes that connection when the second one
/// arrives, unanswered. Later connections serve. Returns the number of requests seen whole.
fn closing_on_the_second_request() -> Origin {
    Origin::start(|peer| {
        if peer.connection > 0 {
            while peer.serve_one() {}
        } else if peer.serve_one() {
            peer.read_request();
        }
    })
}

fn a_dead_pooled_connection_is_retried_for_an_idempotent_request(engine: Engine) {
    let origin = closing_on_the_second_request();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    assert_eq!(client.get("/1").status, 200);
    assert_eq!(client.get("/2").status, 200, "retried on a new connection");
    assert_eq!(origin.targets(), ["/1", "/2", "/2"]);
}

fn a_request_that_may_have_been_served_is_not_repeated(engine: Engine) {
    let origin = closing_on_the_second_request();
    let mut gateway = Setup::to(engine, &origin).start();
    gateway.expect_log("site");
    let mut client = gateway.client();
    assert_eq!(client.get("/1").status, 200);
    let response = client.post("/2", b"x");
    assert_eq!(response.status, 502);
    assert_eq!(origin.targets(), ["/1", "/2"], "a POST is not sent twice");
}

fn a_refused_connection_is_retried_on_another_endpoint(engine: Engine) {
    let origin = Origin::serving();
    let dead = format!("127.0.0.1:{}", free_port());
    let mut gateway = Setup::to_all(engine, &[dead, origin.address()]).start();
    gateway.expect_log("eject");
    let mut client = gateway.client();
    for n in 0..40 {
        assert_eq!(
            client.post(&format!("/{n}"), b"body").status,
            200,
            "nothing was sent: any method may go elsewhere"
        );
    }
    assert_eq!(origin.requests().len(), 40);
}

fn a_failing_endpoint_is_ejected_and_comes_back(engine: Engine) {
    let healthy = Arc::new(AtomicBool::new(false));
    let switch = healthy.clone();
    let attempts = Arc::new(AtomicUsize::new(0));
    let counter = attempts.clone();
    let flaky = Origin::start(move |peer| {
        counter.fetch_add(1, Ordering::SeqCst);
        while switch.load(Ordering::SeqCst) && peer.serve_one() {}
    });
    let steady = Origin::serving();
    let mut gateway = Setup::to_all(engine, &[flaky.address(), steady.address()]).ejection(3, 300).start();
    gateway.expect_log("eject");
    gateway.expect_log(&flaky.address());
    gateway.expect_log("site");
    let mut client = gateway.client();
    for _ in 0..60 {
        let response = client.get("/");
        assert!(matches!(response.status, 200 | 502), "{}", response.status);
    }
    let while_down = attempts.load(Ordering::SeqCst);
    assert!(while_down < 20, "{while_down} attempts at an endpoint that fails every one");
    healthy.store(true, Ordering::SeqCst);
    eventually("the endpoint serves again after its ejection", || {
        client.get("/");
        flaky.requests().len() > 3
    });
}

fn nobody_listening_is_answered_at_once(engine: Engine) {
    let dead = format!("127.0.0.1:{}", free_port());
    let mut gateway = Setup::to_all(engine, &[dead]).start();
    gateway.expect_log("eject");
    let start = Instant::now();
    let response = gateway.get("/");
    assert!(matches!(response.status, 502 | 503), "{}", response.status);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(names_the_failing_side(&response.text()), "{}", response.text());
}

fn an_endpoint_that_closes_without_answer_gives_502(engine: Engine) {
    let origin = Origin::start(|peer| {
        peer.read_request();
    });
    let mut gateway = Setup::to(engine, &origin).start();
    gateway.expect_log("eject");
    let mut client = gateway.client();
    let response = client.get("/");
    assert_eq!(response.status, 502);
    assert!(names_the_failing_side(&response.text()), "{}", response.text());
    assert!(response.body_len < 300, "small and plain");
    assert_eq!(client.get("/again").status / 100, 5, "the client's connection is kept");
}

fn a_late_answer_gives_504(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).request_timeout_ms(300).start();
    gateway.expect_log("eject");
    let mut client = gateway.client();
    let start = Instant::now();
    let response = client.get("/late/3000");
    assert_eq!(response.status, 504);
    let took = start.elapsed();
    assert!((Duration::from_millis(280)..Duration::from_millis(1500)).contains(&took), "{took:?}");
    assert!(names_the_failing_side(&response.text()), "{}", response.text());
    eventually("the late connection is closed, not pooled", || origin.accepted() > 0);
    assert_eq!(client.get("/next").status, 200);
    assert_eq!(origin.accepted(), 2);
}

fn a_full_backlog_gives_an_answer_at_the_connect_deadline(engine: Engine) {
    let listener = fresh_listener();
    let address = listener.local_addr().unwrap();
    let fillers = fill_backlog(&listener);
    let mut gateway = Setup::to_all(engine, &[address.to_string()]).connect_timeout_ms(300).start();
    gateway.expect_log("eject");
    let start = Instant::now();
    let response = gateway.get("/");
    assert!(matches!(response.status, 502..=504), "{}", response.status);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop(fillers);
}

fn an_unused_pooled_connection_is_closed_after_its_timeout(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).pool_idle_timeout_ms(200).start();
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(origin.open(), 1);
    eventually("the pooled connection is closed", || origin.open() == 0);
}

/// D11: bytes that came before the next request can be no answer to it, however short before.
fn a_pooled_connection_that_spoke_unasked_is_not_reused(engine: Engine) {
    let spoken = Arc::new(AtomicUsize::new(0));
    let counter = spoken.clone();
    let origin = Origin::start(move |peer| {
        while peer.serve_one() {
            let _ = peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    for n in 0..200 {
        let text = client.get(&format!("/{n}")).text();
        assert!(text.starts_with(&format!("GET /{n} ")), "round {n}: {text}");
        // The bytes stand in the gateway's socket before the client asks again.
        while spoken.load(Ordering::SeqCst) <= n {
            std::hint::spin_loop();
        }
    }
}

/// The same where both come in one turn of the worker's loop: it was stopped while they arrived.
fn bytes_that_waited_beside_the_next_request_do_not_answer_it(engine: Engine) {
    let (speak, spoken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (order, done) = (speak.clone(), spoken.clone());
    let origin = Origin::start(move |peer| {
        while peer.serve_one() {
            eventually("the test stopped the gateway", || order.swap(false, Ordering::SeqCst));
            let _ = peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
            done.store(true, Ordering::SeqCst);
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let data = gateway.data_process();
    let mut client = gateway.client();
    client.get("/first");
    for request_first in [true, false] {
        process::stop(data);
        let mut ask = || client.send("GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n");
        if request_first {
            ask();
        }
        speak.store(true, Ordering::SeqCst);
        eventually("the origin spoke", || spoken.swap(false, Ordering::SeqCst));
        if !request_first {
            ask();
        }
        process::signal(data, libc::SIGCONT);
        let text = client.read_response().text();
        assert!(text.starts_with("GET /next "), "request first {request_first}: {text}");
    }
    speak.store(true, Ordering::SeqCst);
}

/// Nothing is in flight when a request comes, and the only connection allowed idles at either endpoint.
fn an_idle_connection_gives_way_at_the_limit_of_the_cluster(engine: Engine) {
    for limit in [1, 3] {
        let origins = [Origin::serving(), Origin::serving()];
        let gateway = Setup::to_all(engine, &origins.each_ref().map(Origin::address))
            .cluster_keys(&format!("connections_max = {limit}"))
            .start();
        let mut clients: Vec<_> = (0..limit).map(|_| gateway.client()).collect();
        for round in 0..40 {
            // As many at once as there may be connections, then none in flight.
            for client in &mut clients {
                client.send("GET /late/5 HTTP/1.1\r\nHost: a.test\r\n\r\n");
            }
            for client in &mut clients {
                let response = client.read_response();
                assert_eq!(response.status, 200, "limit {limit}, round {round}: {}", response.text());
            }
            gateway.wait_for_metric("ringfort_upstream_connections_active", "site", |active| active == 0.0);
            let open = gateway.metric("ringfort_upstream_connections_idle", "site");
            assert!(open <= f64::from(limit), "{open} connections at a limit of {limit}");
        }
        let counts = origins.each_ref().map(|origin| origin.requests().len());
        assert!(counts.iter().all(|count| *count > 0), "both endpoints serve: {counts:?}");
    }
}

fn an_endpoint_that_truncates_is_ejected_whatever_the_method(engine: Engine) {
    const FAILURES: usize = 3;
    for request in [
        "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let truncating = Origin::start(|peer| {
            if peer.read_request().is_some() {
                let _ = peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart");
            }
        });
        let steady = Origin::serving();
        let endpoints = [truncating.address(), steady.address()];
        let mut gateway = Setup::to_all(engine, &endpoints).ejection(FAILURES as u32, 20_000).start();
        gateway.expect_log("eject");
        let mut cut = 0;
        for _ in 0..60 {
            let mut client = gateway.client();
            client.send(request);
            cut += usize::from(client.read_response().end == End::Truncated);
        }
        assert_eq!((cut, truncating.requests().len()), (FAILURES, FAILURES), "{request}");
        gateway.wait_for_metric("ringfort_upstream_ejections_total", "site", |count| count == 1.0);
    }
}

fn a_name_is_resolved(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to_all(engine, &[format!("localhost:{}", origin.port())]).start();
    eventually("the name is resolved", || gateway.get("/").status == 200);
}

/// The text of a 502, 503 or 504 tells whose fault it was.
fn names_the_failing_side(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("upstream") || text.contains("endpoint")
}
