//! Ending without breaking anything: SIGTERM while requests run, while connections idle, while new ones arrive.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::client::Client;
use crate::harness::message::{End, NoMessage};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, holds_within, on_both_engines, process};

on_both_engines!(
    responses_in_flight_finish_and_new_connections_are_refused,
    an_idle_connection_is_told_to_close_with_its_next_response,
    an_idle_connection_is_closed_after_the_grace,
    what_was_accepted_before_the_drain_is_served,
    the_deadline_ends_what_does_not_finish,
    a_gateway_without_connections_ends_at_once,
    a_relay_is_kept_until_it_ends,
    nothing_is_left_open_after_traffic,
    what_the_deadline_cuts_off_ends_with_a_reset,
);

/// R5: one hundred responses in flight, each two seconds long, all finish; exit 0 within the deadline.
fn responses_in_flight_finish_and_new_connections_are_refused(engine: Engine) {
    const COUNT: usize = 100;
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).drain(200, 10_000).start();
    let port = gateway.web();
    let clients: Vec<_> = (0..COUNT)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = Client::connect(port);
                let response = client.get("/late/2000");
                client.expect_end();
                response
            })
        })
        .collect();
    eventually("every request is at the origin", || origin.requests().len() == COUNT);
    gateway.terminate();
    eventually("new connections are refused", || TcpStream::connect(("127.0.0.1", port)).is_err());
    for client in clients {
        let response = client.join().unwrap();
        assert_eq!((response.status, response.end, response.closes()), (200, End::Complete, true));
    }
    let status = gateway.wait_exit(Duration::from_secs(10));
    assert_eq!(status.and_then(|s| s.code()), Some(0), "{}", gateway.log_text());
}

fn an_idle_connection_is_told_to_close_with_its_next_response(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).drain(5_000, 10_000).start();
    let mut client = gateway.client();
    let first = client.get("/1");
    assert!(!first.closes());
    gateway.terminate();
    eventually("new connections are refused", || TcpStream::connect(("127.0.0.1", gateway.web())).is_err());
    let last = client.get("/2");
    assert_eq!((last.status, last.closes()), (200, true));
    client.expect_end();
    let status = gateway.wait_exit(Duration::from_secs(3));
    assert_eq!(status.and_then(|s| s.code()), Some(0), "it ends with its last connection, not at the grace");
}

fn an_idle_connection_is_closed_after_the_grace(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).drain(400, 10_000).start();
    let mut client = gateway.client();
    client.get("/1");
    let start = Instant::now();
    gateway.terminate();
    client.expect_end();
    let took = start.elapsed();
    assert!((Duration::from_millis(350)..Duration::from_secs(3)).contains(&took), "{took:?}");
    let status = gateway.wait_exit(Duration::from_secs(5));
    assert_eq!(status.and_then(|s| s.code()), Some(0));
}

/// Connections that stand in the accept queue when the drain begins were promised service by the kernel.
fn what_was_accepted_before_the_drain_is_served(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).drain(1_000, 10_000).start();
    let data = gateway.data_process();
    assert_eq!(gateway.get("/").status, 200);
    // Stopped, it cannot accept: the kernel queues these connections and their requests.
    process::stop(data);
    let mut clients: Vec<_> = (0..30).map(|_| gateway.client()).collect();
    for client in &mut clients {
        client.send("GET /queued HTTP/1.1\r\nHost: a.test\r\n\r\n");
    }
    gateway.terminate();
    process::signal(data, libc::SIGCONT);
    for (n, client) in clients.iter_mut().enumerate() {
        let response =
            client.try_read_response("GET").unwrap_or_else(|none| panic!("connection {n}: {none:?}"));
        assert_eq!(response.status, 200, "connection {n}");
    }
    let status = gateway.wait_exit(Duration::from_secs(10));
    assert_eq!(status.and_then(|s| s.code()), Some(0));
}

fn the_deadline_ends_what_does_not_finish(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).drain(100, 800).start();
    gateway.expect_log("drain");
    let mut client = gateway.client();
    client.send("GET /late/20000 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("the request is at the origin", || origin.requests().len() == 1);
    let start = Instant::now();
    gateway.terminate();
    let status = gateway.wait_exit(Duration::from_secs(5));
    let took = start.elapsed();
    assert!((Duration::from_millis(700)..Duration::from_secs(4)).contains(&took), "{took:?}");
    assert_eq!(status.and_then(|s| s.code()), Some(0));
    match client.try_read_response("GET") {
        Ok(response) => assert!(response.status >= 500, "{}", response.status),
        Err(none) => assert!(matches!(none, NoMessage::Closed | NoMessage::Reset), "{none:?}"),
    }
}

/// Where only the end of the connection tells the end of the message, a clean end would be a lie.
fn what_the_deadline_cuts_off_ends_with_a_reset(engine: Engine) {
    use std::io::{ErrorKind, Read, Write};
    let origin = Origin::start(|peer| {
        let _ = peer.reader.fill();
        let _ = peer.send(b"HTTP/1.1 200 OK\r\n\r\npart");
        peer.wait_for_end();
    });
    let mut gateway = Setup::to(engine, &origin).relay("").drain(100, 800).start();
    gateway.expect_log("drain");
    let mut client = gateway.client();
    client.send("GET /half HTTP/1.0\r\nHost: a.test\r\n\r\n");
    let head = client.reader.read_head().unwrap();
    assert!(head.start_line.contains(" 200 ") && !head.fields.has("content-length"), "{head:?}");
    let mut relayed = TcpStream::connect(("127.0.0.1", gateway.port("relay"))).unwrap();
    relayed.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    relayed.write_all(b"hello").unwrap();
    relayed.read_exact(&mut [0; 19 + 4]).unwrap();
    gateway.terminate();
    let mut body = Vec::new();
    let end = client.reader.read_until_close(&mut |piece| body.extend_from_slice(piece));
    assert_eq!((end, body.as_slice()), (End::Truncated, &b"part"[..]));
    let end = relayed.read(&mut [0; 10]).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset), "the relay's client");
    let status = gateway.wait_exit(Duration::from_secs(5));
    assert_eq!(status.and_then(|s| s.code()), Some(0));
}

fn a_gateway_without_connections_ends_at_once(engine: Engine) {
    let mut gateway = Setup::answering(engine).start();
    let start = Instant::now();
    gateway.drain();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(!gateway.socket().exists(), "the admin socket's file is removed");
}

fn a_relay_is_kept_until_it_ends(engine: Engine) {
    use std::io::{Read, Write};
    let origin = Origin::start(|peer| {
        let mut line = [0; 6];
        while peer.stream().read_exact(&mut line).is_ok() {
            let _ = peer.stream().write_all(&line);
        }
    });
    let mut gateway = Setup::to(engine, &origin).relay("").drain(100, 10_000).start();
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port("relay"))).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut answer = [0; 6];
    let mut echo = |stream: &mut TcpStream| {
        stream.write_all(b"hello\n").unwrap();
        stream.read_exact(&mut answer).unwrap();
    };
    echo(&mut stream);
    gateway.terminate();
    assert!(!holds_within(Duration::from_millis(600), || gateway.wait_exit(Duration::ZERO).is_some()));
    echo(&mut stream);
    drop(stream);
    let status = gateway.wait_exit(Duration::from_secs(5));
    assert_eq!(status.and_then(|s| s.code()), Some(0));
}

/// Descriptors and gauges are back where they were once all traffic has ended.
fn nothing_is_left_open_after_traffic(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).pool_idle_timeout_ms(200).start();
    let data = gateway.data_process();
    assert_eq!(gateway.get("/").status, 200);
    eventually("the first connection is gone", || origin.open() == 0);
    let base = process::open_files(data);
    let mut kept: Vec<_> = (0..30).map(|_| gateway.client()).collect();
    for (n, client) in kept.iter_mut().enumerate() {
        match n % 4 {
            0 => assert_eq!(client.get("/bytes/70000").status, 200),
            1 => assert_eq!(client.post("/up", &[1; 20_000]).status, 200),
            2 => client.send("GET / HTTP/1.1\r\n"),
            _ => client.send("junk\r\n\r\n"),
        }
    }
    for (n, client) in kept.into_iter().enumerate() {
        if n % 2 == 0 { client.reset() } else { drop(client) }
    }
    eventually("every connection is gone", || gateway.workers()[0]["connections"] == 0);
    eventually("the pool is empty", || origin.open() == 0);
    eventually("descriptors are back to where they were", || process::open_files(data) <= base);
    gateway.drain();
}
