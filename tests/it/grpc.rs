//! gRPC through the gateway: messages both ways at once, statuses, deadlines, and failures of our own in its words.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;

use crate::harness::h2::{self as h2t, H2Origin, connect, fetch, post, run};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    messages_go_both_ways_while_the_call_lasts,
    a_call_ends_with_the_status_of_its_trailers,
    our_own_failures_are_trailers_only,
    a_deadline_of_the_client_is_kept,
    what_a_deadline_cuts_off_is_counted,
    a_call_may_rest_longer_than_a_body,
);

fn call(path: &str) -> Request<()> {
    let mut call = h2t::request("POST", path);
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    call.headers_mut().insert("te", "trailers".parse().unwrap());
    call
}

fn to(engine: Engine, origin: &H2Origin) -> Setup {
    Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"")
}

/// H22: a thousand messages back and forth, each answered before the next is sent.
fn messages_go_both_ways_while_the_call_lasts(engine: Engine) {
    let origin = H2Origin::start();
    let gateway = to(engine, &origin).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, mut stream) = send.send_request(call("/echo"), false).unwrap();
        let mut response = response.await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let started = Instant::now();
        for number in 0..1_000_u32 {
            stream.send_data(Bytes::copy_from_slice(&number.to_be_bytes()), false).unwrap();
            let echoed = response.body_mut().data().await.unwrap().unwrap();
            let _ = response.body_mut().flow_control().release_capacity(echoed.len());
            assert_eq!(echoed, number.to_be_bytes()[..]);
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        stream.send_trailers(h2t::trailers(&[("x-client", "ends")])).unwrap();
        let (rest, trailers) = h2t::read_body(response.body_mut()).await.unwrap();
        let trailers = trailers.unwrap();
        assert_eq!(
            (rest.len(), &trailers["grpc-status"], &trailers["x-sum"]),
            (0, &"0".parse().unwrap(), &"done".parse().unwrap())
        );
    });
    let seen = &origin.seen()[0];
    assert_eq!(seen.fields["te"], "trailers");
    assert_eq!(seen.trailers.as_ref().unwrap()["x-client"], "ends");
}

fn a_call_ends_with_the_status_of_its_trailers(engine: Engine) {
    let origin = H2Origin::start();
    let gateway = to(engine, &origin).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let message = crate::harness::bytes::random(4, 400_000);
        let echoed = post(&mut send, call("/echo"), &message, None);
        let echoed = echoed.await.unwrap();
        assert_eq!(echoed.trailer("grpc-status"), Some("0"));
        assert!(echoed.body == message);
        let only = post(&mut send, call("/trailers-only/5"), b"x", None).await.unwrap();
        assert_eq!((only.status, only.field("grpc-status"), only.body.len()), (200, Some("5"), 0));
        // One that ends without a status.
        assert_eq!(post(&mut send, call("/status/200"), b"x", None).await.unwrap().status, 200);
    });
    let counted = |status: &str| {
        gateway.metric("ringfort_upstream_grpc_responses_total", &format!("status=\"{status}\""))
    };
    eventually("they are counted", || {
        (counted("ok"), counted("not_found"), counted("none")) == (1.0, 1.0, 1.0)
    });
}

/// H20.
fn our_own_failures_are_trailers_only(engine: Engine) {
    let nobody = format!("127.0.0.1:{}", crate::harness::gateway::free_port());
    let origin = H2Origin::start();
    let mut gateway = Setup::new(engine)
        .cluster("nobody", &[nobody])
        .cluster("site", &[origin.address()])
        .cluster_keys("protocol = \"h2\"\nrequest_timeout_ms = 200")
        .route("path_prefix = \"/nobody\"\ncluster = \"nobody\"")
        .route("path_prefix = \"/site/\"\nrewrite_prefix = \"/\"\ncluster = \"site\"")
        .start();
    run(async {
        let mut send = connect(gateway.web()).await;
        for (path, code, text) in [
            ("/nobody", "14", "refused the connection"),
            ("/elsewhere", "12", "no route"),
            ("/site/wait", "4", "did not answer in time"),
            ("/site/reset/2", "14", "without answering"),
        ] {
            let failed = post(&mut send, call(path), b"x", None).await.unwrap();
            assert_eq!((failed.status, failed.field("grpc-status")), (200, Some(code)), "{path}");
            assert_eq!(failed.field("content-type"), Some("application/grpc"), "{path}");
            assert!(failed.field("grpc-message").unwrap().contains(text), "{path}: {failed:?}");
            assert!(failed.body.is_empty() && failed.trailers.is_none());
        }
        // To others it stays a status.
        assert_eq!(fetch(&mut send, h2t::get("/nobody")).await.unwrap().status, 502);
    });
    gateway.expect_log("ejected");
}

fn a_deadline_of_the_client_is_kept(engine: Engine) {
    let origin = H2Origin::start();
    let gateway = to(engine, &origin).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let mut hurried = call("/wait");
        hurried.headers_mut().insert("grpc-timeout", "200m".parse().unwrap());
        let started = Instant::now();
        let late = post(&mut send, hurried, b"x", None).await.unwrap();
        assert_eq!((late.status, late.field("grpc-status")), (200, Some("4")));
        assert!(started.elapsed() < Duration::from_secs(3));
        while origin.log().resets.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert_eq!(origin.accepted(), 1);
    let late = |name, label| gateway.metric(name, label);
    assert_eq!(late("ringfort_upstream_grpc_responses_total", "status=\"deadline_exceeded\""), 1.0);
    assert_eq!(late("ringfort_upstream_requests_total", "class=\"none\""), 1.0);
}

fn a_call_may_rest_longer_than_a_body(engine: Engine) {
    let origin = H2Origin::start();
    let gateway = to(engine, &origin).body_idle_timeout_ms(150).request_timeout_ms(150).start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let (response, mut stream) = send.send_request(call("/echo"), false).unwrap();
        let mut response = response.await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        h2t::send_all(&mut stream, b"still here", true).await.unwrap();
        let (echoed, _) = h2t::read_body(response.body_mut()).await.unwrap();
        assert_eq!(echoed, b"still here");
    });
}

/// The bytes that went before it, and the response that began or did not.
fn what_a_deadline_cuts_off_is_counted(engine: Engine) {
    const BYTES: f64 = 30_000.0;
    let (two, one) = (
        H2Origin::start(),
        Origin::start(|peer| while matches!(peer.reader.fill(), Ok(count) if count > 0) {}),
    );
    for gateway in [to(engine, &two).start(), Setup::to(engine, &one).start()] {
        run(async {
            let mut send = connect(gateway.web()).await;
            let mut call = call("/echo");
            call.headers_mut().insert("grpc-timeout", "400m".parse().unwrap());
            let (response, mut stream) = send.send_request(call, false).unwrap();
            h2t::send_all(&mut stream, &vec![7; BYTES as usize], false).await.unwrap();
            // Cut off in the middle, or told that the deadline has passed.
            let cut = match response.await {
                Ok(mut response) => {
                    h2t::read_body(response.body_mut()).await.is_err()
                        || response.headers().contains_key("grpc-status")
                }
                Err(_) => true,
            };
            assert!(cut);
        });
        gateway.wait_for_metric("ringfort_upstream_sent_bytes_total", "", |sent| sent >= BYTES);
        let class =
            |class: &str| gateway.metric("ringfort_upstream_requests_total", &format!("class=\"{class}\""));
        let counted = class("2xx") + class("none");
        assert_eq!(counted, 1.0, "{}", gateway.admin("/metrics").unwrap().text());
        assert_eq!(gateway.metric("ringfort_upstream_grpc_responses_total", "deadline_exceeded"), 1.0);
    }
}
