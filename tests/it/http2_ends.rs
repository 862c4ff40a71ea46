//! How streams and connections of HTTP/2 end: resets in both directions, endpoints that go away, drain.

use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use h2::Reason;

use crate::harness::client::Client;
use crate::harness::gateway::fresh_listener;
use crate::harness::h2::raw::{self, RawClient, frame};
use crate::harness::h2::{self as h2t, H2Origin, connect, fetch, get, post, request, run};
use crate::harness::message::End;
use crate::harness::origin::{Origin, fill_backlog};
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines, process};

on_both_engines!(
    a_client_that_resets_is_felt_by_the_endpoint,
    a_client_that_leaves_is_felt_by_the_endpoint,
    connections_in_the_making_are_given_up_a_few_in_a_turn,
    a_response_that_is_cut_never_looks_whole,
    an_endpoint_that_resets_before_it_answers_is_a_502,
    a_refused_stream_is_tried_again,
    a_stream_above_the_last_one_is_tried_again,
    an_endpoint_that_goes_away_gets_no_new_requests,
    a_broken_connection_to_an_endpoint_is_replaced,
    a_silent_connection_to_an_endpoint_gets_no_new_requests,
    a_target_that_http2_has_no_form_for_is_encoded_and_ejects_nobody,
    a_refusing_endpoint_leaves_its_requests_to_another,
    a_refusing_endpoint_leaves_its_tunnels_to_another,
    an_idle_connection_gives_way_to_one_that_is_needed,
    an_endpoint_that_floods_is_left_counted_and_logged,
    an_endpoint_that_speaks_http1_is_a_502,
    no_endpoint_is_a_503_or_502,
    a_busy_cluster_is_a_503,
    drain_is_two_goaways_and_streams_finish,
    requests_that_cross_a_drain_are_answered_or_told_to_be_unseen,
    an_idle_connection_is_drained_at_once,
    the_last_request_of_a_connection_is_told,
    a_stalled_reader_is_given_up,
    an_own_answer_waits_for_a_client_that_takes_some_of_it,
    a_window_that_shrinks_holds_no_connection,
    a_slow_reader_gets_all_when_its_connection_ends,
);

fn h2_setup(engine: Engine, origin: &H2Origin) -> Setup {
    Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"")
}

fn a_client_that_resets_is_felt_by_the_endpoint(engine: Engine) {
    let two = H2Origin::start();
    let gateway = h2_setup(engine, &two).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, mut stream) = send.send_request(request("POST", "/wait"), false).unwrap();
        while two.log().begun.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stream.send_reset(Reason::CANCEL);
        drop(response);
        while two.log().resets.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(*two.log().resets.lock().unwrap(), [u32::from(Reason::CANCEL)]);
        assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
    });
    assert_eq!(two.accepted(), 1, "the connection carries on");
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, mut stream) = send.send_request(request("POST", "/up"), false).unwrap();
        h2t::send_all(&mut stream, b"some", false).await.unwrap();
        while two.log().begun.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stream.send_reset(Reason::INTERNAL_ERROR);
        drop(response);
        while two.seen().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let broken = &two.seen()[1];
    assert!(broken.body.is_empty() && broken.broken.is_some(), "{broken:?}");
    // An HTTP/1.1 endpoint sees its connection end, and the request never looks whole.
    let one = Origin::start(|peer| {
        let _ = peer.read_request_head();
        peer.wait_for_end();
    });
    let gateway = Setup::to(engine, &one).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, mut stream) = send.send_request(request("POST", "/x"), false).unwrap();
        h2t::send_all(&mut stream, b"some", false).await.unwrap();
        while one.open() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stream.send_reset(Reason::CANCEL);
        drop(response);
        while one.open() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    eventually("every stream is over", || gateway.metric("ringfort_http2_streams_active", "") == 0.0);
}

fn a_client_that_leaves_is_felt_by_the_endpoint(engine: Engine) {
    let two = H2Origin::start();
    let gateway = h2_setup(engine, &two).start();
    let mut client = RawClient::connect(gateway.web());
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/wait"), (":authority", "a.test")];
    client.send(&frame(raw::HEADERS, 5, 1, &raw::block(&fields)));
    eventually("the endpoint has it", || two.log().begun.load(Ordering::SeqCst) == 1);
    drop(client);
    eventually("the endpoint learns", || *two.log().resets.lock().unwrap() == [u32::from(Reason::CANCEL)]);
    eventually("nothing is left", || gateway.metric("ringfort_connections_active", "") == 0.0);
    eventually("the memory is back", || gateway.metric("ringfort_http2_streams_active", "") == 0.0);
}

/// The streams of a client that leaves while 100 connections are made for it: whoever else is served must not wait until
/// all their sockets are closed.
fn connections_in_the_making_are_given_up_a_few_in_a_turn(engine: Engine) {
    const STREAMS: u32 = 100;
    let listener = fresh_listener();
    let fillers = fill_backlog(&listener);
    let address = listener.local_addr().unwrap().to_string();
    let gateway = Setup::to_all(engine, &[address]).connect_timeout_ms(10_000).start();
    let turns = || gateway.metric("ringfort_worker_loop_turns_total", "");
    // Workers count at times.
    let counted_since = |then: f64| {
        eventually("turns are counted", || turns() > then);
        turns()
    };
    let open = || process::open_files(gateway.data_process());
    // Some for whoever reads the metrics.
    let most_idle = open() + 8;
    let mut client = RawClient::connect(gateway.web());
    for number in 0..STREAMS {
        client.send(&frame(raw::HEADERS, raw::END_HEADERS | raw::END_STREAM, 2 * number + 1, &raw::get(&[])));
    }
    eventually("all connect", || open() > most_idle + STREAMS as usize - 16);
    let before = counted_since(turns());
    drop(client);
    eventually("all are given up", || open() <= most_idle);
    let took = counted_since(turns()) - before;
    assert!(took >= f64::from(STREAMS) / 15.0, "{took} turns");
    drop(fillers);
}

fn a_response_that_is_cut_never_looks_whole(engine: Engine) {
    let one = Origin::start(|peer| {
        if peer.read_request().is_some() {
            let _ = peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
            std::thread::sleep(Duration::from_millis(50));
            peer.reset();
        }
    });
    let gateway = Setup::to(engine, &one).start();
    let cut = |path: &str, gateway: u16| {
        let path = path.to_owned();
        run(async move {
            let mut send = connect(gateway).await;
            let (response, _) = send.send_request(get(&path), true).unwrap();
            let mut response = response.await.unwrap();
            h2t::read_body(response.body_mut()).await.expect_err("cut off").reason()
        })
    };
    assert_eq!(cut("/", gateway.web()), Some(Reason::INTERNAL_ERROR));
    let two = H2Origin::start();
    let gateway = h2_setup(engine, &two).start();
    for (code, wanted) in [
        (Reason::INTERNAL_ERROR, Reason::INTERNAL_ERROR),
        (Reason::CANCEL, Reason::CANCEL),
        (Reason::ENHANCE_YOUR_CALM, Reason::ENHANCE_YOUR_CALM),
        (Reason::PROTOCOL_ERROR, Reason::INTERNAL_ERROR),
    ] {
        let path = format!("/cut/{}", u32::from(code));
        assert_eq!(cut(&path, gateway.web()), Some(wanted), "{code}");
    }
    let mut client = gateway.client();
    let response = client.get("/cut/2");
    assert_eq!((response.status, response.end == End::Complete), (200, false));
}

fn an_endpoint_that_resets_before_it_answers_is_a_502(engine: Engine) {
    let two = H2Origin::start();
    let gateway = h2_setup(engine, &two).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        assert_eq!(fetch(&mut send, get("/reset/2")).await.unwrap().status, 502);
        assert_eq!(post(&mut send, request("POST", "/reset/2"), b"abc", None).await.unwrap().status, 502);
        assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
    });
    assert_eq!(gateway.get("/reset/2").status, 502);
}

fn a_refused_stream_is_tried_again(engine: Engine) {
    let two = H2Origin::start();
    let gateway = h2_setup(engine, &two).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        // Not idempotent: only the refusal makes it safe.
        let (response, _) = send.send_request(request("POST", "/refuse-once"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    });
    assert_eq!(gateway.metric("ringfort_upstream_retries_total", ""), 1.0);
    // A refusal that lasts is told.
    assert_eq!(gateway.get("/reset/7").status, 502);
    let two = H2Origin::start();
    let gateway = h2_setup(engine, &two).start();
    assert_eq!(gateway.client().get("/refuse-once").status, 200);
}

/// GOAWAY names stream 1 as the last one: stream 3 was not processed, whatever it was.
fn a_stream_above_the_last_one_is_tried_again(engine: Engine) {
    let origin = Origin::start(|peer| {
        let stream = peer.stream().try_clone().unwrap();
        let mut gateway = RawClient::over(stream);
        gateway.expect_preface();
        gateway.send(&frame(raw::SETTINGS, 0, 0, &[]));
        let mut streams = Vec::new();
        while let Some(next) = gateway.next() {
            if next.kind == raw::HEADERS {
                streams.push(next.stream);
            }
            if peer.connection == 0 && streams.len() == 2 {
                gateway.send(&frame(raw::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]));
                gateway.send(&frame(raw::HEADERS, 5, 1, &[0x88]));
                streams.clear();
            } else if peer.connection > 0 && next.kind == raw::HEADERS {
                gateway.send(&frame(raw::HEADERS, 5, next.stream, &[0x88]));
            }
        }
    });
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"").start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let (first, _) = send.send_request(request("POST", "/1"), true).unwrap();
        let (second, _) = send.send_request(request("POST", "/2"), true).unwrap();
        assert_eq!(first.await.unwrap().status(), 200);
        assert_eq!(second.await.unwrap().status(), 200);
    });
    assert_eq!(origin.accepted(), 2);
}

fn an_endpoint_that_goes_away_gets_no_new_requests(engine: Engine) {
    let two = H2Origin::start();
    let gateway = h2_setup(engine, &two).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let (slow, _) = send.send_request(get("/late/300"), true).unwrap();
        assert_eq!(fetch(&mut send, get("/goaway")).await.unwrap().status, 200);
        while two.accepted() == 1 {
            assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
        }
        // What was on its way finishes.
        assert_eq!(slow.await.unwrap().status(), 200);
    });
    assert_eq!(two.accepted(), 2);
}

fn a_broken_connection_to_an_endpoint_is_replaced(engine: Engine) {
    let origin = Origin::start(|peer| {
        let stream = peer.stream().try_clone().unwrap();
        let mut gateway = RawClient::over(stream);
        gateway.expect_preface();
        gateway.send(&frame(raw::SETTINGS, 0, 0, &[]));
        let mut answered = 0;
        while let Some(next) = gateway.next() {
            if next.kind == raw::HEADERS {
                if answered == 1 && peer.connection == 0 {
                    return;
                }
                gateway.send(&frame(raw::HEADERS, 5, next.stream, &[0x88]));
                answered += 1;
            }
        }
    });
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"").start();
    let mut client = gateway.client();
    assert_eq!(client.get("/1").status, 200);
    // The second request dies with its connection, unanswered: a GET is sent again on another one.
    assert_eq!(client.get("/2").status, 200);
    assert_eq!(origin.accepted(), 2);
}

fn a_silent_connection_to_an_endpoint_gets_no_new_requests(engine: Engine) {
    let origin = Origin::start(|peer| {
        let stream = peer.stream().try_clone().unwrap();
        let mut gateway = RawClient::over(stream);
        gateway.expect_preface();
        gateway.send(&frame(raw::SETTINGS, 0, 0, &[]));
        while let Some(next) = gateway.next() {
            // The first connection is as one whose other end has vanished.
            if next.kind == raw::HEADERS && peer.connection > 0 {
                gateway.send(&frame(raw::HEADERS, 5, next.stream, &[0x88]));
            }
        }
    });
    let keys = "protocol = \"h2\"\nconnect_timeout_ms = 200\nrequest_timeout_ms = 400";
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys(keys).start();
    // What the connection begins with is heard during the first request.
    assert_eq!(gateway.get("/1").status, 504);
    assert_eq!(gateway.get("/2").status, 504);
    assert_eq!(gateway.get("/3").status, 200);
    assert_eq!(origin.accepted(), 2);
}

fn a_target_that_http2_has_no_form_for_is_encoded_and_ejects_nobody(engine: Engine) {
    let two = H2Origin::start();
    let gateway = h2_setup(engine, &two).ejection(1, 10_000).start();
    let mut client = gateway.client();
    for _ in 0..3 {
        assert_eq!(client.get("/a\"<b>`?q=\"x\"<y>`").status, 200);
    }
    // An authority with no form there either.
    client.send("GET / HTTP/1.1\r\nHost: a_b!$&'()*+,;=%zz\r\n\r\n");
    let status = client.read_response().status;
    assert!(status == 200 || status == 400, "{status}");
    assert!(two.seen()[0].uri.ends_with("/a%22%3Cb%3E%60?q=%22x%22%3Cy%3E%60"), "{:?}", two.seen()[0]);
    assert_eq!(gateway.metric("ringfort_upstream_ejections_total", ""), 0.0);
}

/// Answers in HTTP/2: refuses each stream.
fn refusing() -> Origin {
    Origin::start(|peer| {
        let stream = peer.stream().try_clone().unwrap();
        let mut gateway = RawClient::over(stream);
        gateway.expect_preface();
        gateway.send(&frame(raw::SETTINGS, 0, 0, &[]));
        while let Some(next) = gateway.next() {
            if next.kind == raw::HEADERS {
                gateway.send(&frame(raw::RST_STREAM, 0, next.stream, &[0, 0, 0, 7]));
            }
        }
    })
}

fn a_refusing_endpoint_leaves_its_requests_to_another(engine: Engine) {
    let (well, refusing) = (H2Origin::start(), refusing());
    let endpoints = [well.address(), refusing.address()];
    let keys = "protocol = \"h2\"\nretries_max = 1";
    let mut gateway = Setup::to_all(engine, &endpoints).cluster_keys(keys).ejection(3, 10_000).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        for _ in 0..40 {
            let (response, _) = send.send_request(request("POST", "/"), true).unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
        }
    });
    let mut client = gateway.client();
    for _ in 0..10 {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(gateway.metric("ringfort_upstream_ejections_total", "") >= 1.0);
    gateway.expect_log("ejected");
}

fn a_refusing_endpoint_leaves_its_tunnels_to_another(engine: Engine) {
    let (well, refusing) = (H2Origin::start(), refusing());
    let mut gateway = Setup::new(engine)
        .cluster("site", &[well.address(), refusing.address()])
        .cluster_keys("protocol = \"h2\"\nretries_max = 1")
        .route("cluster = \"site\"\ntunnels = [\"connect\"]")
        .ejection(3, 10_000)
        .start();
    run(async {
        let mut send = connect(gateway.web()).await;
        for _ in 0..40 {
            let (response, _) = send.send_request(request("CONNECT", "db.test:1"), false).unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
            std::future::poll_fn(|cx| send.poll_ready(cx)).await.unwrap();
        }
    });
    assert!(gateway.metric("ringfort_upstream_ejections_total", "") >= 1.0);
    gateway.expect_log("ejected");
}

fn an_idle_connection_gives_way_to_one_that_is_needed(engine: Engine) {
    let (one, other) = (H2Origin::start(), H2Origin::start());
    let keys = "protocol = \"h2\"\nconnections_max = 1";
    let endpoints = [one.address(), other.address()];
    let gateway = Setup::to_all(engine, &endpoints).cluster_keys(keys).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        while one.seen().is_empty() || other.seen().is_empty() {
            assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
        }
        // One that is in use stays; its endpoint has room for another request, the other endpoint has none.
        let (slow, _) = send.send_request(get("/late/300"), true).unwrap();
        for _ in 0..5 {
            assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
        }
        assert_eq!(slow.await.unwrap().status(), 200);
    });
}

fn an_endpoint_that_floods_is_left_counted_and_logged(engine: Engine) {
    let origin = Origin::start(|peer| {
        let mut stream = peer.stream().try_clone().unwrap();
        let mut gateway = RawClient::over(stream.try_clone().unwrap());
        gateway.expect_preface();
        gateway.send(&frame(raw::SETTINGS, 0, 0, &[]));
        // Frames of a kind that nobody knows (RFC 9113 §5.5).
        let batch = frame(0xfa, 0, 0, &[]).repeat(1_000);
        while stream.write_all(&batch).is_ok() {}
    });
    let mut gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"").start();
    assert_eq!(gateway.get("/").status, 502);
    gateway.wait_for_metric("ringfort_upstream_http2_floods_total", "", |floods| floods >= 1.0);
    gateway.expect_log("flooded");
}

fn an_endpoint_that_speaks_http1_is_a_502(engine: Engine) {
    let one = Origin::start(|peer| {
        let _ = peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        peer.wait_for_end();
    });
    let gateway = Setup::to_all(engine, &[one.address()]).cluster_keys("protocol = \"h2\"").start();
    assert_eq!(gateway.get("/").status, 502);
    eventually("the connection is given up", || one.open() == 0);
}

fn no_endpoint_is_a_503_or_502(engine: Engine) {
    let nobody = format!("127.0.0.1:{}", crate::harness::gateway::free_port());
    let mut gateway = Setup::to_all(engine, &[nobody]).cluster_keys("protocol = \"h2\"").start();
    run(async {
        let mut send = connect(gateway.web()).await;
        assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 502);
    });
    assert_eq!(gateway.get("/").status, 502);
    gateway.expect_log("ejected");
}

fn a_busy_cluster_is_a_503(engine: Engine) {
    let two = H2Origin::start();
    let keys = "http2_connections_max = 2\nhttp2_streams_max = 3\npending_max = 0";
    let gateway = h2_setup(engine, &two).cluster_keys(keys).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let all: Vec<_> = (0..7).map(|_| send.send_request(get("/late/500"), true).unwrap().0).collect();
        let mut statuses = Vec::new();
        for response in all {
            statuses.push(response.await.unwrap().status().as_u16());
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 503]);
    });
    assert_eq!(two.accepted(), 2);
}

fn drain_is_two_goaways_and_streams_finish(engine: Engine) {
    let one = Origin::serving();
    let mut gateway = Setup::to(engine, &one).drain(2_000, 10_000).start();
    let mut client = RawClient::connect(gateway.web());
    let late = |stream, path| {
        let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a.test")];
        frame(raw::HEADERS, 5, stream, &raw::block(&fields))
    };
    client.send(&late(1, "/late/700"));
    eventually("the endpoint has it", || one.requests().len() == 1);
    gateway.terminate();
    let first = client.until(|frame| frame.kind == raw::GOAWAY).expect("a first GOAWAY");
    assert_eq!((first.code(), &first.payload[..4]), (Some(0), &[0x7f, 0xff, 0xff, 0xff][..]));
    // A request that crossed it is served.
    client.send(&late(3, "/crossed"));
    let ping = client.until(|frame| frame.kind == raw::PING && frame.flags == 0).expect("a PING");
    client.send(&frame(raw::PING, 1, 0, &ping.payload));
    let (mut ends, mut last) = (Vec::new(), None);
    while let Some(next) = client.next() {
        match next.kind {
            raw::GOAWAY => last = Some(next.payload[..8].to_vec()),
            raw::DATA | raw::HEADERS if next.flags & raw::END_STREAM != 0 => ends.push(next.stream),
            _ => {}
        }
    }
    ends.sort_unstable();
    assert_eq!((ends, last), (vec![1, 3], Some(vec![0, 0, 0, 3, 0, 0, 0, 0])));
    let status = gateway.wait_exit(Duration::from_secs(10));
    assert_eq!(status.and_then(|s| s.code()), Some(0), "{}", gateway.log_text());
}

/// Many at once, from before the drain until nothing more can be sent: each is answered, or refused as one above the last
/// that was seen.
fn requests_that_cross_a_drain_are_answered_or_told_to_be_unseen(engine: Engine) {
    const AT_ONCE: usize = 24;
    let (one, two) = (Origin::serving(), H2Origin::start());
    for setup in [Setup::to(engine, &one), h2_setup(engine, &two)] {
        let mut gateway = setup.drain(1_000, 10_000).start();
        run(async {
            let send = connect(gateway.web()).await;
            let asking = (0..AT_ONCE).map(|_| {
                let mut send = send.clone();
                tokio::spawn(async move {
                    let mut answered = 0;
                    while let Ok(mut ready) = send.ready().await {
                        let Ok((response, _)) = ready.send_request(get("/late/5"), true) else { break };
                        match response.await {
                            Ok(response) => {
                                let whole = h2t::whole(response).await.unwrap();
                                assert_eq!(whole.status, 200);
                                answered += 1;
                            }
                            Err(error) => {
                                let unseen = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
                                assert!(unseen, "{error:?}");
                                break;
                            }
                        }
                        send = ready;
                    }
                    answered
                })
            });
            let asking: Vec<_> = asking.collect();
            let served = || gateway.metric("ringfort_http2_streams_total", "web");
            while served() < 100.0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            gateway.terminate();
            let mut answered = 0;
            for one in asking {
                answered += one.await.unwrap();
            }
            assert!(answered >= 100 - AT_ONCE, "{answered}");
        });
        let status = gateway.wait_exit(Duration::from_secs(10));
        assert_eq!(status.and_then(|s| s.code()), Some(0), "{}", gateway.log_text());
    }
}

fn an_idle_connection_is_drained_at_once(engine: Engine) {
    let two = H2Origin::start();
    let mut gateway = h2_setup(engine, &two).drain(300, 10_000).start();
    let mut silent = RawClient::connect(gateway.web());
    run(async {
        let mut send = connect(gateway.web()).await;
        assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
        gateway.terminate();
        // The crate's client answers the PING; the connection ends without waiting for the grace.
        while fetch(&mut send, get("/")).await.is_ok() {}
    });
    // One that answers no PING is left once the grace is over.
    while silent.next().is_some() {}
    let status = gateway.wait_exit(Duration::from_secs(5));
    assert_eq!(status.and_then(|s| s.code()), Some(0), "{}", gateway.log_text());
}

fn the_last_request_of_a_connection_is_told(engine: Engine) {
    let gateway = Setup::answering(engine).limits("requests_per_connection_max = 3").start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let mut served = 0;
        while fetch(&mut send, get("/")).await.is_ok() {
            served += 1;
            assert!(served < 20, "never told");
        }
        assert!(served >= 3);
    });
    eventually("it is counted", || {
        gateway.metric("ringfort_sessions_ended_total", "reason=\"requests_max\"") == 1.0
    });
}

/// Rows G10 and I3: a window that never opens holds a bounded part for a bounded time.
fn a_stalled_reader_is_given_up(engine: Engine) {
    let one = Origin::serving();
    let gateway = Setup::to(engine, &one).write_stall_timeout_ms(400).start();
    let mut client = RawClient::connect(gateway.web());
    let fields =
        [(":method", "GET"), (":scheme", "http"), (":path", "/bytes/1000000"), (":authority", "a.test")];
    client.send(&frame(raw::HEADERS, 5, 1, &raw::block(&fields)));
    let reset = client.until(|frame| frame.kind == raw::RST_STREAM).expect("the stream is reset");
    assert_eq!((reset.stream, reset.code()), (1, Some(8)));
    client.send(&frame(raw::HEADERS, 5, 3, &raw::get(&[])));
    client.send(&frame(raw::WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]));
    assert_eq!(client.verdict(3), None);
    eventually("the endpoint's connection is closed", || one.open() <= 1);
    // One that does not even read what the connection owes it.
    let mut narrow = Client::connect_narrow(gateway.web());
    narrow.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    narrow.send(frame(raw::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    narrow.send(frame(raw::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]));
    let fields =
        [(":method", "GET"), (":scheme", "http"), (":path", "/bytes/30000000"), (":authority", "a.test")];
    narrow.send(frame(raw::HEADERS, 5, 1, &raw::block(&fields)));
    gateway
        .wait_for_metric("ringfort_sessions_ended_total", "reason=\"write_stalled\"", |ended| ended == 1.0);
}

/// A client that reads slowly, with windows as large as they get.
fn narrow(port: u16) -> RawClient {
    let mut narrow = Client::connect_narrow(port);
    narrow.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    narrow.send(frame(raw::SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    narrow.send(frame(raw::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]));
    RawClient::over(narrow.stream().try_clone().unwrap())
}

fn request_of(stream: u32, path: &str) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a.test")];
    frame(raw::HEADERS, 5, stream, &raw::block(&fields))
}

/// A response has gone but for its last part, which the client's SETTINGS took the window from (RFC 9113 §6.9.2).
fn a_window_that_shrinks_holds_no_connection(engine: Engine) {
    let one = Origin::serving();
    let gateway = Setup::to(engine, &one).write_stall_timeout_ms(2_500).start();
    let mut client = narrow(gateway.web());
    // What nobody reads holds back what comes behind it.
    client.send(&request_of(1, "/bytes/30000000"));
    let (received, looks) = (Cell::new(0.0), Cell::new(0));
    gateway.wait_for_metric("ringfort_upstream_received_bytes_total", "", |bytes| {
        let stands = received.replace(bytes) == bytes && bytes > 0.0;
        looks.set(if stands { looks.get() + 1 } else { 0 });
        looks.get() == 50
    });
    client.send(&request_of(3, "/"));
    eventually("both requests are there", || one.requests().len() == 2);
    gateway.wait_for_metric("ringfort_http2_streams_active", "", |active| active == 1.0);
    let close = frame(raw::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    client.send(&[close, frame(raw::RST_STREAM, 0, 1, &[0, 0, 0, 8])].concat());
    let mut pinging = client.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        // What it goes on to say, and to hear, is no progress.
        let ping = frame(raw::PING, 0, 0, &[0; 8]);
        while Write::write_all(&mut pinging, &ping).is_ok() {
            std::thread::sleep(Duration::from_millis(150));
        }
    });
    let began = std::time::Instant::now();
    while let Some(next) = client.next() {
        assert!(next.kind != raw::DATA || next.stream == 1, "the window is closed");
        assert!(began.elapsed() < Duration::from_secs(9), "the connection is held");
    }
    gateway
        .wait_for_metric("ringfort_sessions_ended_total", "reason=\"write_stalled\"", |ended| ended == 1.0);
}

/// Part of its last response is still with the gateway when a connection has no more streams.
fn a_slow_reader_gets_all_when_its_connection_ends(engine: Engine) {
    const BYTES: usize = 8_000_000;
    let one = Origin::serving();
    let gateway =
        Setup::to(engine, &one).limits("requests_per_connection_max = 1").drain(200, 20_000).start();
    let mut client = narrow(gateway.web());
    client.send(&request_of(1, &format!("/bytes/{BYTES}")));
    gateway.wait_for_metric("ringfort_http2_streams_active", "", |active| active == 1.0);
    let (mut received, mut looked_at, mut ended, mut pauses) = (0, 0, false, 0);
    while let Some(next) = client.next() {
        if next.kind != raw::DATA {
            continue;
        }
        received += next.payload.len();
        ended |= next.flags & raw::END_STREAM != 0;
        if received - looked_at > 40_000 && pauses < 3 {
            looked_at = received;
            if gateway.metric("ringfort_http2_streams_active", "") == 0.0 {
                // Longer than connections linger that failed.
                std::thread::sleep(Duration::from_millis(2_200));
                pauses += 1;
            }
        }
    }
    assert_eq!((received, ended, pauses), (BYTES, true, 3));
}

fn an_own_answer_waits_for_a_client_that_takes_some_of_it(engine: Engine) {
    const BYTES: usize = 10_000;
    let gateway = Setup::new(engine)
        .route(&format!("respond = {{ status = 200, body = \"{}\" }}", "x".repeat(BYTES)))
        .write_stall_timeout_ms(600)
        .start();
    let mut client = RawClient::connect(gateway.web());
    client.send(&frame(raw::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    client.send(&frame(raw::HEADERS, 5, 1, &raw::get(&[])));
    assert_eq!(client.verdict(1), None);
    let mut received = 0;
    // Twice the time that one without progress gets.
    for _ in 0..5 {
        client.send(&frame(raw::WINDOW_UPDATE, 0, 1, &[0, 0, 0x07, 0xd0]));
        let data = client.until(|frame| frame.kind == raw::DATA || frame.kind == raw::RST_STREAM).unwrap();
        assert_eq!(data.kind, raw::DATA, "after {received} bytes");
        received += data.payload.len();
        std::thread::sleep(Duration::from_millis(250));
    }
    assert_eq!(received, BYTES);
    // One that takes nothing is given up.
    client.send(&frame(raw::HEADERS, 5, 3, &raw::get(&[])));
    let reset = client.until(|frame| frame.kind == raw::RST_STREAM).expect("the stream is reset");
    assert_eq!((reset.stream, reset.code()), (3, Some(8)));
}
