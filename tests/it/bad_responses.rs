//! What endpoints may get wrong (D of the catalogue), from a scripted origin: the client never takes a broken message
//! for a whole one, and a connection that broke the rules once is not used again.

use std::time::{Duration, Instant};

use crate::harness::bytes::{random, write_pattern};
use crate::harness::gateway::Gateway;
use crate::harness::message::End;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    a_broken_response_head_is_answered_502,
    both_framings_are_read_as_chunked_and_not_reused,
    bytes_behind_a_response_never_answer_the_next_request,
    a_body_where_none_may_be_is_not_forwarded,
    a_cut_response_is_seen_as_cut,
    a_reset_within_a_response_is_seen_within_a_second,
    a_broken_chunk_within_a_response_is_seen_as_cut,
    an_endless_run_of_interim_responses_is_bounded,
    a_dribbled_head_ends_at_the_deadline,
);

/// A gateway on an origin that answers every request with these bytes and then keeps the connection open.
fn answering(engine: Engine, bytes: &[u8]) -> (Origin, Gateway) {
    let origin = Origin::raw(bytes);
    let mut gateway = Setup::to(engine, &origin).start();
    // A cluster of one is never ejected; what is wrong with it is told in warnings that name it.
    gateway.expect_log("site");
    (origin, gateway)
}

fn response(head: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").into_bytes()
}

fn a_broken_response_head_is_answered_502(engine: Engine) {
    let many = (0..2_000).map(|n| format!("X-{n}: v")).collect::<Vec<_>>().join("\r\n");
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("D1 two lengths", [response("Content-Length: 5\r\nContent-Length: 6"), b"hello!".to_vec()].concat()),
        ("D1 a list of lengths", [response("Content-Length: 5, 6"), b"hello!".to_vec()].concat()),
        ("D1 a signed length", [response("Content-Length: +5"), b"hello".to_vec()].concat()),
        ("D1 a huge length", response("Content-Length: 99999999999999999999")),
        (
            "D3 chunked twice",
            [response("Transfer-Encoding: chunked, chunked"), b"0\r\n\r\n".to_vec()].concat(),
        ),
        ("D3 an unknown coding", [response("Transfer-Encoding: foo"), b"0\r\n\r\n".to_vec()].concat()),
        ("D3 HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
        ("D4 a name with space", response("Bad Name: x\r\nContent-Length: 0")),
        ("D4 space before the colon", response("Name : x\r\nContent-Length: 0")),
        ("D4 NUL", response("Name: a\0b\r\nContent-Length: 0")),
        ("D4 no colon", response("Name\r\nContent-Length: 0")),
        ("D5 many fields", response(&many)),
        ("D5 a long field", response(&format!("Name: {}", "v".repeat(100_000)))),
        ("D5 status 99", b"HTTP/1.1 99 X\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("D5 status 1000", b"HTTP/1.1 1000 X\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("D5 status abc", b"HTTP/1.1 abc X\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("D5 no HTTP at all", b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
        (
            "D10 101 unasked",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n".to_vec(),
        ),
    ];
    for (id, bytes) in rows {
        let (origin, gateway) = answering(engine, &bytes);
        let mut client = gateway.client();
        let answer = client.get("/");
        assert_eq!(answer.status, 502, "{id}");
        eventually(&format!("{id}: the connection is closed"), || origin.open() == 0);
    }
    // D4: a folded line is refused or made one line, never forwarded folded.
    let (_origin, gateway) = answering(engine, &response("Name: a\r\n b\r\nContent-Length: 0"));
    let answer = gateway.get("/");
    assert!(answer.status == 502 || answer.fields.get("name") == Some("a b"), "{answer:?}");
}

fn both_framings_are_read_as_chunked_and_not_reused(engine: Engine) {
    let bytes =
        [response("Content-Length: 3\r\nTransfer-Encoding: chunked"), b"5\r\nhello\r\n0\r\n\r\n".to_vec()];
    let (origin, gateway) = answering(engine, &bytes.concat());
    let answer = gateway.get("/");
    if answer.status != 502 {
        assert_eq!((answer.status, answer.text().as_str(), answer.end), (200, "hello", End::Complete));
        assert!(!(answer.fields.has("content-length") && answer.fields.has("transfer-encoding")));
    }
    eventually("the connection is closed", || origin.open() == 0);
}

fn bytes_behind_a_response_never_answer_the_next_request(engine: Engine) {
    let evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil".to_vec();
    for first in [
        [response("Content-Length: 4"), b"good".to_vec()].concat(),
        [response("Transfer-Encoding: chunked"), b"4\r\ngood\r\n0\r\n\r\n".to_vec()].concat(),
        b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n".to_vec(),
    ] {
        let (origin, gateway) = answering(engine, &[first, evil.clone()].concat());
        let mut client = gateway.client();
        for _ in 0..3 {
            assert_ne!(client.get("/").text(), "evil");
        }
        assert_eq!(origin.accepted(), 3, "each such connection is used once");
        eventually("all are closed", || origin.open() == 0);
    }
}

fn a_body_where_none_may_be_is_not_forwarded(engine: Engine) {
    for (method, bytes) in [
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello".to_vec()),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello".to_vec()),
        ("HEAD", [response("Content-Length: 5"), b"hello".to_vec()].concat()),
    ] {
        let (origin, gateway) = answering(engine, &bytes);
        let mut client = gateway.client();
        for n in 0..3 {
            client.send(format!("{method} /{n} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
            let answer =
                client.try_read_response(method).unwrap_or_else(|none| panic!("{method} /{n}: {none:?}"));
            assert!(matches!(answer.status, 200 | 204 | 304), "{}", answer.status);
            assert!(answer.status != 204 || !answer.fields.has("content-length"), "{:?}", answer.fields);
        }
        assert_eq!(origin.accepted(), 3, "{method}: a connection with bytes left over is not used again");
    }
}

/// An origin that sends `head`, then part of a body, then ends the connection, by reset if told.
fn cutting(head: &'static str, part: &'static [u8], by_reset: bool) -> Origin {
    Origin::start(move |peer| {
        if peer.read_request().is_some() {
            let _ = peer.send(head.as_bytes()).and_then(|()| peer.send(part));
            if by_reset {
                peer.reset();
            }
        }
    })
}

fn a_cut_response_is_seen_as_cut(engine: Engine) {
    for (id, head, part) in [
        ("D7 a length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", &b"only this"[..]),
        ("D7 no last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n"),
        ("D7 inside a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhe"),
        (
            "D7 inside the trailers",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"5\r\nhello\r\n0\r\nA: b\r\n",
        ),
    ] {
        for by_reset in [false, true] {
            // To an HTTP/1.0 client a body without length ends with the connection: a reset must show the cut.
            for version in ["1.1", "1.0"] {
                let origin = cutting(head, part, by_reset);
                let mut gateway = Setup::to(engine, &origin).start();
                gateway.expect_log("site");
                let mut client = gateway.client();
                client.send(format!("GET / HTTP/{version}\r\nHost: a.test\r\n\r\n"));
                match client.try_read_response("GET") {
                    Ok(answer) if answer.status == 502 => assert!(by_reset, "{id}: the head was whole"),
                    Ok(answer) => {
                        assert_eq!(answer.end, End::Truncated, "{id}, HTTP/{version}, reset {by_reset}")
                    }
                    Err(none) => panic!("{id}, HTTP/{version}, reset {by_reset}: {none:?}"),
                }
            }
        }
    }
}

fn a_reset_within_a_response_is_seen_within_a_second(engine: Engine) {
    let origin = Origin::start(|peer| {
        if peer.read_request().is_some() {
            let _ = peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
            let _ = write_pattern(peer.stream(), 1, 100_000, 4096);
            peer.reset();
        }
    });
    let mut gateway = Setup::to(engine, &origin).start();
    gateway.expect_log("site");
    let start = Instant::now();
    let answer = gateway.get("/");
    assert!(answer.status == 502 || answer.end == End::Truncated, "{} {:?}", answer.status, answer.end);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

fn a_broken_chunk_within_a_response_is_seen_as_cut(engine: Engine) {
    for part in [
        &b"5\r\nhello\r\nzz\r\n"[..],
        b"5\r\nhello!!\r\n0\r\n\r\n",
        b"5\r\nhello\r\nFFFFFFFFFFFFFFFF0\r\n",
        b"5\nhello\r\n0\r\n\r\n",
    ] {
        let bytes = [response("Transfer-Encoding: chunked"), part.to_vec()].concat();
        let (origin, gateway) = answering(engine, &bytes);
        let answer = gateway.get("/");
        assert!(answer.status == 502 || answer.end == End::Truncated, "{} {:?}", answer.status, answer.end);
        eventually("the connection is closed", || origin.open() == 0);
    }
}

fn an_endless_run_of_interim_responses_is_bounded(engine: Engine) {
    let origin = Origin::start(|peer| {
        if peer.read_request().is_some() {
            while peer.send(&b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(50)).is_ok() {}
        }
    });
    let mut gateway = Setup::to(engine, &origin).start();
    gateway.expect_log("site");
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let mut interim = 0;
    let last = loop {
        match client.try_read_response("GET") {
            Ok(answer) if answer.status == 103 => interim += 1,
            other => break other,
        }
        assert!(interim <= 1_000, "interim responses without end");
    };
    assert!(last.is_ok_and(|answer| answer.status == 502), "after {interim} interim responses");
    eventually("the connection is closed", || origin.open() == 0);
}

fn a_dribbled_head_ends_at_the_deadline(engine: Engine) {
    let origin = Origin::start(|peer| {
        if peer.read_request().is_some() {
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: ".iter().chain(&random(1, 100)) {
                if peer.send(&[byte & 0x3f | 0x40]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    });
    let mut gateway = Setup::to(engine, &origin).request_timeout_ms(700).start();
    gateway.expect_log("site");
    let start = Instant::now();
    let answer = gateway.get("/");
    // The first bytes are no status line: 502 at once is right too.
    assert!(matches!(answer.status, 502 | 504), "{}", answer.status);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    eventually("the connection is closed", || origin.open() == 0);
}
