//! Limits of a cluster: connections, those who wait for one, and all requests under way.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::client::Client;
use crate::harness::gateway::{Gateway, fresh_listener};
use crate::harness::h2::{H2Origin, connect, fetch, get, run};
use crate::harness::origin::{Origin, accept_request, fill_backlog};
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    who_finds_all_connections_in_use_waits_for_one,
    too_many_waiting_are_refused,
    waiting_ends_with_the_connect_deadline,
    nobody_waits_behind_one_whose_connect_hangs,
    an_endpoint_that_takes_no_connections_gets_no_more_than_its_share,
    a_client_that_leaves_gives_its_place_away,
    requests_over_the_limit_are_refused_over_all_workers,
    streams_wait_for_room_on_connections_in_http2,
    a_relay_counts_as_a_request,
);

/// Answers `/held` when it is let go, and all else at once.
fn holding() -> (Origin, Arc<AtomicBool>) {
    let go = Arc::new(AtomicBool::new(false));
    let gone = go.clone();
    let origin = Origin::start(move |peer| {
        while let Some(request) = peer.read_request() {
            if request.target == "/held" {
                eventually("it is let go", || gone.load(Ordering::SeqCst));
            }
            if peer.serve(&request).is_err() {
                return;
            }
        }
    });
    (origin, go)
}

/// So many clients, each with a request of this path; they are answered in no certain order.
fn ask_at_once(gateway: &Gateway, clients: usize, path: &str) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..clients).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    }
    clients
}

fn statuses(clients: &mut [Client]) -> Vec<u16> {
    let mut statuses: Vec<u16> = clients.iter_mut().map(|client| client.read_response().status).collect();
    statuses.sort_unstable();
    statuses
}

fn nothing_is_left(gateway: &Gateway) {
    for gauge in ["active", "pending"] {
        gateway.wait_for_metric(&format!("ringfort_upstream_requests_{gauge}"), "site", |left| left == 0.0);
    }
}

fn who_finds_all_connections_in_use_waits_for_one(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).cluster_keys("connections_max = 2").start();
    let mut clients = ask_at_once(&gateway, 12, "/late/40");
    assert_eq!(statuses(&mut clients), [200; 12]);
    assert!(origin.accepted() <= 2, "{} connections", origin.accepted());
    nothing_is_left(&gateway);
    assert_eq!(gateway.metric("ringfort_upstream_overflows_total", ""), 0.0);
}

fn too_many_waiting_are_refused(engine: Engine) {
    for (pending_max, limit) in [(0, "connections"), (2, "pending")] {
        let (origin, go) = holding();
        let keys = format!("connections_max = 1\npending_max = {pending_max}");
        let gateway = Setup::to(engine, &origin).cluster_keys(&keys).start();
        let mut clients = ask_at_once(&gateway, 1, "/held");
        eventually("it is on its way", || !origin.targets().is_empty());
        let mut waiting = ask_at_once(&gateway, pending_max, "/next");
        gateway.wait_for_metric("ringfort_upstream_requests_pending", "site", |count| {
            count == pending_max as f64
        });
        let response = gateway.get("/refused");
        assert_eq!(response.status, 503);
        assert!(response.text().contains("upstream"), "{}", response.text());
        assert_eq!(gateway.metric("ringfort_upstream_overflows_total", limit), 1.0);
        go.store(true, Ordering::SeqCst);
        clients.append(&mut waiting);
        assert_eq!(statuses(&mut clients), vec![200; 1 + pending_max]);
        nothing_is_left(&gateway);
        assert!(!origin.targets().contains(&"/refused".to_owned()));
    }
}

fn waiting_ends_with_the_connect_deadline(engine: Engine) {
    let (origin, go) = holding();
    let keys = "connections_max = 1\nconnect_timeout_ms = 200";
    let gateway = Setup::to(engine, &origin).cluster_keys(keys).start();
    let mut first = ask_at_once(&gateway, 1, "/held");
    eventually("it is on its way", || !origin.targets().is_empty());
    let started = Instant::now();
    assert_eq!(gateway.get("/waits").status, 503);
    assert!(started.elapsed() >= Duration::from_millis(190), "{:?}", started.elapsed());
    assert_eq!(gateway.metric("ringfort_upstream_overflows_total", "connections"), 1.0);
    go.store(true, Ordering::SeqCst);
    assert_eq!(statuses(&mut first), [200]);
    nothing_is_left(&gateway);
}

fn nobody_waits_behind_one_whose_connect_hangs(engine: Engine) {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let listener = fresh_listener();
    let address = listener.local_addr().unwrap().to_string();
    let gateway = Setup::to_all(engine, &[address])
        .cluster_keys("connections_max = 2")
        .ejection(0, 1_000)
        .connect_timeout_ms(60_000)
        .start();
    let mut clients = ask_at_once(&gateway, 2, "/");
    let (mut ends, mut stays) = (accept_request(&listener), accept_request(&listener));
    let _fillers = fill_backlog(&listener);
    let pending = |wanted: f64| {
        gateway.wait_for_metric("ringfort_upstream_requests_pending", "site", |count| count == wanted);
    };
    let hangs = ask_at_once(&gateway, 1, "/hangs");
    pending(1.0);
    // Its connection ends with this answer: the one that waits is to make another, and cannot.
    ends.stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
    pending(0.0);
    stays.stream.write_all(ANSWER).unwrap();
    assert_eq!(statuses(&mut clients), [200; 2]);
    // That connection is free, and is taken by whoever asks next.
    let mut next = ask_at_once(&gateway, 1, "/next");
    assert!(stays.read_head().unwrap().start_line.starts_with("GET /next "));
    stays.stream.write_all(ANSWER).unwrap();
    assert_eq!(statuses(&mut next), [200]);
    drop(hangs);
    nothing_is_left(&gateway);
}

fn an_endpoint_that_takes_no_connections_gets_no_more_than_its_share(engine: Engine) {
    let listener = fresh_listener();
    let _fillers = fill_backlog(&listener);
    let (origin, go) = holding();
    let endpoints = [listener.local_addr().unwrap().to_string(), origin.address()];
    let gateway = Setup::to_all(engine, &endpoints).connect_timeout_ms(60_000).start();
    let mut clients = Vec::new();
    eventually("one is with the other one", || {
        clients.append(&mut ask_at_once(&gateway, 1, "/held"));
        !origin.targets().is_empty()
    });
    clients.append(&mut ask_at_once(&gateway, 20, "/held"));
    eventually("half of them are with the other one", || origin.targets().len() >= 9);
    go.store(true, Ordering::SeqCst);
    drop(clients);
    nothing_is_left(&gateway);
    drop(gateway);
    let multiplexing = H2Origin::start();
    let endpoints = [listener.local_addr().unwrap().to_string(), multiplexing.address()];
    let setup = Setup::to_all(engine, &endpoints).cluster_keys("protocol = \"h2\"");
    let gateway = setup.connect_timeout_ms(60_000).start();
    let clients = ask_at_once(&gateway, 20, "/late/2000");
    eventually("and so in HTTP/2", || multiplexing.seen().len() >= 9);
    drop(clients);
    nothing_is_left(&gateway);
}

fn a_client_that_leaves_gives_its_place_away(engine: Engine) {
    let (origin, go) = holding();
    let keys = "connections_max = 1\npending_max = 1";
    let gateway = Setup::to(engine, &origin).cluster_keys(keys).start();
    let mut first = ask_at_once(&gateway, 1, "/held");
    eventually("it is on its way", || !origin.targets().is_empty());
    let pending = |wanted: f64| {
        gateway.wait_for_metric("ringfort_upstream_requests_pending", "site", |count| count == wanted);
    };
    let leaving = ask_at_once(&gateway, 1, "/leaves");
    pending(1.0);
    drop(leaving);
    pending(0.0);
    let mut stays = ask_at_once(&gateway, 1, "/stays");
    pending(1.0);
    go.store(true, Ordering::SeqCst);
    assert_eq!((statuses(&mut first), statuses(&mut stays)), (vec![200], vec![200]));
    assert_eq!(origin.targets(), ["/held", "/stays"]);
    nothing_is_left(&gateway);
}

fn requests_over_the_limit_are_refused_over_all_workers(engine: Engine) {
    let (origin, go) = holding();
    let setup = Setup::to(engine, &origin).cluster_keys("requests_max = 3");
    // As many workers as there are CPUs, two where it can be.
    let text = setup.text().replace("cpus = \"0\"", "cpus = \"all\"");
    let gateway = Gateway::start(&text);
    let mut clients = ask_at_once(&gateway, 3, "/held");
    eventually("they are on their way", || origin.targets().len() == 3);
    for _ in 0..10 {
        let response = gateway.get("/refused");
        assert_eq!(response.status, 503, "whichever worker is asked");
    }
    assert_eq!(gateway.metric("ringfort_upstream_overflows_total", "limit=\"requests\""), 10.0);
    go.store(true, Ordering::SeqCst);
    assert_eq!(statuses(&mut clients), [200; 3]);
    nothing_is_left(&gateway);
    for _ in 0..10 {
        assert_eq!(gateway.get("/").status, 200);
    }
}

fn streams_wait_for_room_on_connections_in_http2(engine: Engine) {
    let origin = H2Origin::start();
    let keys = "protocol = \"h2\"\nhttp2_connections_max = 1\nhttp2_streams_max = 2";
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys(keys).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
        let all: Vec<_> = (0..20).map(|_| send.send_request(get("/late/30"), true).unwrap().0).collect();
        for response in all {
            assert_eq!(response.await.unwrap().status(), 200);
        }
    });
    assert_eq!(origin.accepted(), 1);
    nothing_is_left(&gateway);
}

fn a_relay_counts_as_a_request(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).relay("").cluster_keys("requests_max = 1").start();
    let mut relayed = Client::connect(gateway.port("relay"));
    assert_eq!(relayed.get("/").status, 200);
    assert_eq!(gateway.get("/").status, 503);
    drop(relayed);
    eventually("its place is free", || gateway.get("/").status == 200);
    nothing_is_left(&gateway);
}
