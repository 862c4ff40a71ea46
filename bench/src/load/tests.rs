use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use super::*;
use crate::origin::Origin;

mod secure;

fn plan(address: SocketAddr) -> Plan {
    Plan {
        address,
        target: "/small",
        body_bytes: wire::SMALL_BYTES,
        connections: 4,
        reuse: Reuse::KeepAlive,
        pace: Pace::Closed,
        verify_all: true,
        tls: None,
        websocket: false,
    }
}

fn origin() -> SocketAddr {
    let origin = Origin::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let address = origin.address().expect("bound");
    thread::spawn(move || origin.serve());
    address
}

/// A server that answers each request of one connection with `answers`, one a request, then closes.
fn scripted(answers: Vec<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        for answer in answers {
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).expect("a request") > 0);
            stream.write_all(&answer).expect("the generator reads");
        }
    });
    address
}

fn first_error(answers: Vec<Vec<u8>>) -> String {
    let plan = Plan { connections: 1, ..plan(scripted(answers)) };
    let outcome = Load::open(plan).and_then(|mut load| {
        load.run(Duration::from_millis(200))?;
        load.reset()
    });
    outcome.expect_err("a wrong response fails the run").to_string()
}

#[test]
fn closed_loop_counts_what_the_origin_answered() {
    for (target, body_bytes) in [("/small", wire::SMALL_BYTES), ("/100k", wire::LARGE_BYTES)] {
        let mut load = Load::open(Plan { target, body_bytes, ..plan(origin()) }).expect("four connections");
        load.reset().expect("no error");
        load.run(Duration::from_millis(100)).expect("a run");
        let measured = load.measured();
        assert_eq!((measured.errors, measured.first_error.as_deref()), (0, None));
        assert!(measured.responses > 0 && measured.latency_us.p50 > 0.0);
    }
}

#[test]
fn a_websocket_gets_its_messages_back() {
    let plan = Plan { target: "/echo", websocket: true, ..plan(origin()) };
    let mut load = Load::open(plan).expect("four connections");
    load.reset().expect("no error");
    load.run(Duration::from_millis(100)).expect("a run");
    let measured = load.measured();
    assert_eq!((measured.errors, measured.first_error.as_deref()), (0, None));
    assert!(measured.responses > 4, "{}", measured.responses);
}

#[test]
fn an_echo_that_differs_fails_the_run() {
    for (target, answers) in [
        ("status 101", vec![wire::response("200 OK", b"", false)]),
        ("differs", vec![wire::websocket_response(), wire::websocket_message(&[b'x'; 100]).1]),
    ] {
        let plan = Plan { connections: 1, websocket: true, ..plan(scripted(answers)) };
        let error = Load::open(plan).err().expect("a wrong echo").to_string();
        assert!(error.contains(target), "{error}");
    }
}

#[test]
fn open_loop_keeps_its_rate_and_owes_nothing() {
    let mut load = Load::open(Plan { pace: Pace::Open(500.0), ..plan(origin()) }).expect("four connections");
    load.reset().expect("no error");
    let started = Instant::now();
    load.run(Duration::from_millis(400)).expect("a run");
    load.settle().expect("all answered");
    let (measured, due) = (load.measured(), started.elapsed().as_secs_f64() * 500.0);
    let answered = measured.responses as f64;
    assert!(answered >= 150.0 && answered <= due + 1.0, "{answered} responses of {due}");
    assert_eq!((measured.errors, measured.unanswered), (0, 0));
}

#[test]
fn open_loop_counts_latency_from_when_a_request_was_due() {
    let answer = wire::response("200 OK", &wire::body(wire::SMALL_BYTES), false);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; 1024];
        for round in 0.. {
            if stream.read(&mut request).unwrap_or(0) == 0 {
                return;
            }
            if round == 1 {
                thread::sleep(Duration::from_millis(200));
            }
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    });
    let plan = Plan { connections: 1, pace: Pace::Open(200.0), ..plan(address) };
    let mut load = Load::open(plan).expect("a connection");
    load.reset().expect("no error");
    load.run(Duration::from_millis(300)).expect("a run");
    load.settle().expect("all answered");
    // One stall of 200 ms delays about 40 of the 60 requests, which were due meanwhile, and not one.
    let measured = load.measured();
    assert!(measured.latency_us.p90 > 100_000.0, "p90 {} µs", measured.latency_us.p90);
}

#[test]
fn churn_opens_a_connection_a_request() {
    let answer = wire::response("200 OK", &wire::body(wire::SMALL_BYTES), true);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 1024];
            if stream.read(&mut request).unwrap_or(0) > 0 {
                stream.write_all(&answer).expect("the generator reads");
            }
        }
    });
    let mut load = Load::open(Plan { reuse: Reuse::Churn, ..plan(address) }).expect("nothing opened yet");
    load.run(Duration::from_millis(100)).expect("a run");
    let measured = load.measured();
    assert_eq!((measured.errors, measured.first_error), (0, None));
    assert!(measured.responses > 0);
}

#[test]
fn a_response_in_pieces_is_one_response() {
    let answer = wire::response("200 OK", &wire::body(wire::SMALL_BYTES), false);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_nodelay(true).expect("a TCP socket");
        let mut request = [0; 1024];
        assert!(stream.read(&mut request).expect("a request") > 0);
        for octet in answer {
            stream.write_all(&[octet]).expect("the generator reads");
        }
        assert_eq!(stream.read(&mut request).expect("the generator's end"), 0);
    });
    Load::open(Plan { connections: 1, ..plan(address) }).expect("one response");
}

#[test]
fn wrong_responses_fail_the_run() {
    let body = wire::body(wire::SMALL_BYTES);
    let good = wire::response("200 OK", &body, false);
    let mut altered = good.clone();
    *altered.last_mut().expect("a body") ^= 1;
    let extra = [good.as_slice(), b"x"].concat();
    for (answers, why) in [
        (vec![wire::response("502 Bad Gateway", &body, false)], "status 502"),
        (vec![wire::response("200 OK", &body[1..], false)], "Content-Length 99, not 100"),
        (vec![altered], "body differs"),
        (vec![extra], "behind the end of the body"),
        (vec![good[..good.len() - 1].to_vec()], "connection closed while Body(1)"),
        // A request that nobody has read would make the close a reset.
        (vec![good, Vec::new()], "closed while Head, after 1 responses"),
    ] {
        let error = first_error(answers);
        assert!(error.contains(why), "{error}: wanted {why}");
    }
}
