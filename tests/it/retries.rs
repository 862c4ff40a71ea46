//! Requests that are sent again: after which failures, how often beside all others, and within which time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::gateway::{Gateway, free_port, fresh_listener};
use crate::harness::h2::{H2Origin, connect, fetch, get, run};
use crate::harness::origin::{Origin, accept_request, fill_backlog};
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    a_status_that_is_listed_is_tried_again_elsewhere,
    the_last_try_is_what_the_client_gets,
    a_request_that_may_have_been_begun_is_repeated_only_where_it_may_be,
    an_endpoint_that_says_nothing_is_left_after_its_try,
    all_tries_end_by_the_deadline_of_the_whole,
    connecting_for_another_try_ends_by_the_deadline_of_the_whole,
    an_endpoint_that_had_hardly_any_time_left_is_not_blamed,
    a_connection_that_ends_without_an_answer_is_tried_again,
    retries_keep_to_their_budget,
    nothing_is_tried_again_that_is_not_listed,
    streams_are_tried_again_as_well,
);

/// Answers every request with this status, and counts them.
fn answering(status: u16) -> (Origin, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let origin = Origin::start(move |peer| {
        while let Some(request) = peer.read_request() {
            counter.fetch_add(1, Ordering::SeqCst);
            let answer = format!("HTTP/1.1 {status} Word\r\nContent-Length: 4\r\n\r\nbody");
            if peer.send(answer.as_bytes()).is_err() || request.method.is_empty() {
                return;
            }
        }
    });
    (origin, count)
}

fn gateway(engine: Engine, endpoints: &[&Origin], retry: &str) -> Gateway {
    let endpoints: Vec<String> = endpoints.iter().map(|origin| origin.address()).collect();
    let keys = format!("retries_max = 1\nretry = {{ {retry} }}");
    Setup::to_all(engine, &endpoints).cluster_keys(&keys).ejection(0, 1_000).start()
}

fn a_status_that_is_listed_is_tried_again_elsewhere(engine: Engine) {
    for on in ["gateway-error", "5xx", "503", "500-503"] {
        let ((busy, asked), well) = (answering(503), Origin::serving());
        let gateway = gateway(engine, &[&busy, &well], &format!("on = [\"{on}\"]"));
        let mut client = gateway.client();
        for n in 0..40 {
            let response = client.get(&format!("/{n}"));
            assert_eq!(response.status, 200, "{on}");
            assert!(response.text().starts_with(&format!("GET /{n} ")));
        }
        let asked = asked.load(Ordering::SeqCst);
        assert!(asked > 5, "{asked}");
        assert_eq!(gateway.metric("ringfort_upstream_retries_total", "site"), asked as f64);
        assert_eq!(
            gateway.metric("ringfort_upstream_requests_total", "5xx"),
            asked as f64,
            "each is counted"
        );
    }
}

fn the_last_try_is_what_the_client_gets(engine: Engine) {
    let ((one, first), (other, second)) = (answering(502), answering(502));
    let gateway = gateway(engine, &[&one, &other], "on = [\"gateway-error\"]");
    let response = gateway.get("/");
    assert_eq!((response.status, response.text().as_str()), (502, "body"));
    let counts = [first, second].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(counts, [1, 1], "each endpoint once");
}

fn a_request_that_may_have_been_begun_is_repeated_only_where_it_may_be(engine: Engine) {
    let post = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n";
    for (keys, wanted) in [("", 1), (", non_idempotent = true", 2)] {
        let ((one, first), (other, second)) = (answering(503), answering(503));
        let gateway = gateway(engine, &[&one, &other], &format!("on = [\"503\"]{keys}"));
        let mut client = gateway.client();
        client.send(post);
        assert_eq!(client.read_response().status, 503);
        let asked = first.load(Ordering::SeqCst) + second.load(Ordering::SeqCst);
        assert_eq!(asked, wanted, "{keys}");
        assert_eq!(client.post("/", b"body").status, 503);
        let asked = first.load(Ordering::SeqCst) + second.load(Ordering::SeqCst);
        assert_eq!(asked, wanted + 1, "a body goes once: {keys}");
    }
}

fn an_endpoint_that_says_nothing_is_left_after_its_try(engine: Engine) {
    let mute = Origin::start(|peer| while peer.read_request().is_some() {});
    let well = Origin::serving();
    let retry = "on = [\"timeout\"], per_try_timeout_ms = 300";
    let gateway = gateway(engine, &[&mute, &well], retry);
    let mut slow = 0;
    for _ in 0..10 {
        let started = Instant::now();
        assert_eq!(gateway.get("/").status, 200);
        slow += usize::from(started.elapsed() >= Duration::from_millis(290));
    }
    assert_eq!(slow, mute.requests().len());
    assert!(slow > 0);
}

fn all_tries_end_by_the_deadline_of_the_whole(engine: Engine) {
    let mutes = [(); 3].map(|()| Origin::start(|peer| while peer.read_request().is_some() {}));
    let endpoints = mutes.each_ref().map(Origin::address);
    let keys = "retries_max = 8\nrequest_timeout_ms = 500\n\
                retry = { on = [\"timeout\"], per_try_timeout_ms = 200 }";
    let gateway = Setup::to_all(engine, &endpoints).cluster_keys(keys).ejection(0, 1_000).start();
    let started = Instant::now();
    assert_eq!(gateway.get("/").status, 504);
    let took = started.elapsed();
    assert!((Duration::from_millis(480)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert_eq!(mutes.iter().map(|mute| mute.requests().len()).sum::<usize>(), 3, "200, 200 and 100 ms");
}

fn connecting_for_another_try_ends_by_the_deadline_of_the_whole(engine: Engine) {
    let listener = fresh_listener();
    let address = listener.local_addr().unwrap().to_string();
    let keys = "request_timeout_ms = 1500\nretry = { on = [\"timeout\"], per_try_timeout_ms = 700 }";
    let setup = Setup::to_all(engine, &[address]).cluster_keys(keys).ejection(0, 1_000);
    let gateway = setup.connect_timeout_ms(30_000).start();
    let mut client = gateway.client();
    let started = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let mute = accept_request(&listener);
    let fillers = fill_backlog(&listener);
    assert_eq!(client.read_response().status, 504);
    let took = started.elapsed();
    assert!((Duration::from_millis(1_480)..Duration::from_secs(8)).contains(&took), "{took:?}");
    drop((mute, fillers));
}

fn an_endpoint_that_had_hardly_any_time_left_is_not_blamed(engine: Engine) {
    let mute = Origin::start(|peer| while peer.read_request().is_some() {});
    let well = Origin::serving();
    let keys = "request_timeout_ms = 500\nretry = { on = [\"timeout\"], per_try_timeout_ms = 400 }\n\
                ejection = { consecutive_failures = 1, base_ms = 60000, max_ms = 60000, max_ejected_percent = 100 }";
    let mut gateway = Setup::to_all(engine, &[mute.address(), well.address()]).cluster_keys(keys).start();
    gateway.expect_log(&mute.address());
    let ejections = || gateway.metric("ringfort_upstream_ejections_total", "site");
    // The other one has 100 ms then, and answers after 150.
    eventually("the one that says nothing is ejected", || {
        gateway.get("/late/150");
        ejections() > 0.0
    });
    assert_eq!((ejections(), gateway.get("/late/150").status), (1.0, 200));
    assert!(well.targets().len() > 1);
}

fn a_connection_that_ends_without_an_answer_is_tried_again(engine: Engine) {
    let closing = Origin::start(|peer| {
        peer.read_request();
    });
    let well = Origin::serving();
    let gateway = gateway(engine, &[&closing, &well], "on = [\"reset\"]");
    for _ in 0..20 {
        assert_eq!(gateway.get("/").status, 200);
    }
    assert!(!closing.requests().is_empty());
    assert_eq!(gateway.metric("ringfort_upstream_retries_total", "site"), closing.requests().len() as f64);
}

fn retries_keep_to_their_budget(engine: Engine) {
    let ((one, first), (other, second)) = (answering(503), answering(503));
    let retry = "on = [\"503\"], budget_percent = 10, budget_min_per_s = 0";
    let gateway = gateway(engine, &[&one, &other], retry);
    let mut client = gateway.client();
    (0..200).for_each(|_| assert_eq!(client.get("/").status, 503));
    let asked = first.load(Ordering::SeqCst) + second.load(Ordering::SeqCst);
    assert!((201..=220).contains(&asked), "{asked}");
    let refused = gateway.metric("ringfort_upstream_overflows_total", "limit=\"retries\"");
    assert_eq!(refused, (200 - (asked - 200)) as f64);
}

fn nothing_is_tried_again_that_is_not_listed(engine: Engine) {
    let dead = format!("127.0.0.1:{}", free_port());
    let well = Origin::serving();
    let keys = "retries_max = 4\nretry = { on = [\"503\"] }";
    let gateway =
        Setup::to_all(engine, &[dead, well.address()]).cluster_keys(keys).ejection(0, 1_000).start();
    let mut client = gateway.client();
    let refused = (0..40).filter(|_| client.get("/").status == 502).count();
    assert!(refused > 5, "{refused}");
    assert_eq!(gateway.metric("ringfort_upstream_retries_total", "site"), 0.0);
}

/// Both sides in HTTP/2, and HTTP/2 to an endpoint in HTTP/1.1.
fn streams_are_tried_again_as_well(engine: Engine) {
    let ((busy, asked), well) = (answering(503), Origin::serving());
    let gateway = gateway(engine, &[&busy, &well], "on = [\"503\"]");
    run(async {
        let mut send = connect(gateway.web()).await;
        for _ in 0..20 {
            assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
        }
    });
    assert!(asked.load(Ordering::SeqCst) > 0);
    let two = H2Origin::start();
    let keys = "protocol = \"h2\"\nretries_max = 2\nrequest_timeout_ms = 900\n\
                retry = { on = [\"timeout\"], per_try_timeout_ms = 200 }";
    let gateway = Setup::to_all(engine, &[two.address()]).cluster_keys(keys).ejection(0, 1_000).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        assert_eq!(fetch(&mut send, get("/late/5000")).await.unwrap().status, 504);
    });
    assert_eq!(gateway.get("/late/5000").status, 504);
    assert_eq!(two.seen().len(), 6, "three tries each");
}
