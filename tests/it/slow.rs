//! Clients that are slow on purpose (I of the catalogue): total deadlines cut them, others do not notice.

use std::time::{Duration, Instant};

use crate::harness::bytes::random;
use crate::harness::client::Client;
use crate::harness::message::End;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines, process};

on_both_engines!(
    a_dripped_head_is_cut_at_the_total_deadline,
    a_head_dripped_on_a_kept_connection_is_cut_too,
    a_connection_that_says_nothing_is_closed,
    an_idle_kept_connection_is_closed_silently,
    a_body_that_stops_is_answered_408,
    a_body_that_dribbles_is_cut_by_its_rate,
    a_reader_that_stops_is_cut,
    a_slow_reader_that_goes_on_is_served,
    slow_clients_do_not_hold_up_others,
    silence_counts_towards_the_deadline_of_the_first_head,
    a_body_nobody_reads_has_one_deadline_however_it_drips,
);

/// What a reader that takes nothing may cost: four bulk buffers of 128 KiB received, one on its way out, its session.
pub const STALLED_BYTES_MAX: u64 = 680 << 10;

/// Drips a byte every 40 ms until the connection ends; returns what was answered and after how long.
fn drip(client: &mut Client, bytes: &[u8]) -> (Option<u16>, Duration) {
    let start = Instant::now();
    for byte in bytes.iter().cycle() {
        if client.try_send([*byte]).is_err() || !client.stays_open_and_silent(Duration::from_millis(40)) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(8), "still open");
    }
    let took = start.elapsed();
    let status = client.try_read_response("GET").ok().map(|response| response.status);
    (status, took)
}

fn a_dripped_head_is_cut_at_the_total_deadline(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).header_timeout_ms(500).start();
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nX-Long: ");
    let (status, took) = drip(&mut client, b"abcdefgh");
    assert!(matches!(status, None | Some(408)), "{status:?}");
    assert!((Duration::from_millis(300)..Duration::from_secs(2)).contains(&took), "{took:?}");
    assert!(origin.raw_bytes().is_empty());
}

fn silence_counts_towards_the_deadline_of_the_first_head(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).header_timeout_ms(1000).start();
    let mut client = gateway.client();
    let start = Instant::now();
    assert!(client.stays_open_and_silent(Duration::from_millis(700)));
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nX-Long: ");
    let (status, _) = drip(&mut client, b"abcdefgh");
    let took = start.elapsed();
    assert!(matches!(status, None | Some(408)), "{status:?}");
    assert!((Duration::from_millis(900)..Duration::from_millis(1500)).contains(&took), "{took:?}");
    assert!(origin.raw_bytes().is_empty());
}

fn a_body_nobody_reads_has_one_deadline_however_it_drips(engine: Engine) {
    let gateway = Setup::answering(engine).body_idle_timeout_ms(600).start();
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 50000\r\n\r\n");
    let answer = client.read_response();
    assert_eq!((answer.status, answer.closes()), (200, false));
    let (status, took) = drip(&mut client, b"x");
    assert_eq!(status, None, "nothing behind the answer");
    assert!((Duration::from_millis(500)..Duration::from_secs(2)).contains(&took), "{took:?}");
}

fn a_head_dripped_on_a_kept_connection_is_cut_too(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).header_timeout_ms(500).start();
    let mut client = gateway.client();
    assert_eq!(client.get("/").status, 200);
    client.send("GET /second HTTP/1.1\r\nX-Long: ");
    let (status, took) = drip(&mut client, b"abcdefgh");
    assert!(matches!(status, None | Some(408)), "{status:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(origin.requests().len(), 1);
}

fn a_connection_that_says_nothing_is_closed(engine: Engine) {
    let gateway = Setup::answering(engine).header_timeout_ms(400).start();
    let mut clients: Vec<_> = (0..50).map(|_| gateway.client()).collect();
    let start = Instant::now();
    for client in &mut clients {
        client.time_to_end();
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

fn an_idle_kept_connection_is_closed_silently(engine: Engine) {
    let gateway = Setup::answering(engine).idle_timeout_ms(400).start();
    let mut client = gateway.client();
    assert_eq!(client.get("/").status, 200);
    let start = Instant::now();
    client.expect_end();
    let took = start.elapsed();
    assert!((Duration::from_millis(350)..Duration::from_secs(2)).contains(&took), "{took:?}");
}

fn a_body_that_stops_is_answered_408(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).body_idle_timeout_ms(400).start();
    for request in [
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ] {
        let mut client = gateway.client();
        client.send(request);
        let start = Instant::now();
        let status = client.try_read_response("GET").ok().map(|response| response.status);
        assert!(matches!(status, None | Some(408)), "{status:?}");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        client.expect_end();
        eventually("the request is aborted upstream", || origin.open() == 0);
    }
    assert!(origin.requests().is_empty());
}

fn a_body_that_dribbles_is_cut_by_its_rate(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin)
        .body_idle_timeout_ms(400)
        .timeout("body_rate_min_bytes_per_s", 1000)
        .start();
    let mut client = gateway.client();
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n");
    let (status, took) = drip(&mut client, b"x");
    assert!(matches!(status, None | Some(408)), "{status:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(origin.requests().is_empty());
}

fn a_reader_that_stops_is_cut(engine: Engine) {
    const FIRST: usize = 10;
    const MORE: usize = 30;
    let body = std::sync::Arc::new(random(1, 10_000_000));
    let origin = Origin::start(move |peer| {
        while peer.read_request().is_some() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            if peer.send(head.as_bytes()).and_then(|()| peer.send(&body)).is_err() {
                return;
            }
        }
    });
    let gateway = Setup::to(engine, &origin).write_stall_timeout_ms(1500).start();
    let data = gateway.data_process();
    let stall = |count: usize| -> Vec<Client> {
        let mut clients: Vec<_> = (0..count).map(|_| Client::connect_narrow(gateway.web())).collect();
        for client in &mut clients {
            client.send("GET /long HTTP/1.1\r\nHost: a.test\r\n\r\n");
        }
        clients
    };
    // The first ones touch the worker's pool of buffers; each further one costs what it alone holds.
    let mut clients = stall(FIRST);
    eventually("the first requests are at the origin", || origin.requests().len() == FIRST);
    std::thread::sleep(Duration::from_millis(300));
    let before = process::anonymous_bytes(data);
    clients.extend(stall(MORE));
    let mut most = 0;
    eventually("every stalled response is given up, at both ends", || {
        most = most.max(process::anonymous_bytes(data));
        origin.requests().len() == FIRST + MORE && origin.open() == 0
    });
    let each = most.saturating_sub(before) / MORE as u64;
    assert!(each < STALLED_BYTES_MAX, "a stalled reader costs {each} bytes");
    for client in &mut clients {
        let response = client.read_response();
        assert_eq!((response.status, response.end), (200, End::Truncated));
    }
}

fn a_slow_reader_that_goes_on_is_served(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).write_stall_timeout_ms(500).start();
    let mut client = Client::connect_narrow(gateway.web());
    client.send("GET /bytes/1500000 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let head = client.reader.read_head().unwrap();
    assert_eq!(head.fields.get("content-length"), Some("1500000"));
    let mut left = 1_500_000;
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(100));
        let part = 100_000;
        assert_eq!(client.reader.read_length(part, &mut |_| {}), End::Complete);
        left -= part;
    }
    assert_eq!(client.reader.read_length(left, &mut |_| {}), End::Complete);
}

fn slow_clients_do_not_hold_up_others(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).header_timeout_ms(3000).start();
    let mut slow: Vec<_> = (0..200).map(|_| gateway.client()).collect();
    for client in &mut slow {
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\nX-");
    }
    let mut good = gateway.client();
    let mut slowest = Duration::ZERO;
    for n in 0..100 {
        let _ = slow[n * 2].try_send("y");
        let start = Instant::now();
        assert_eq!(good.get("/").status, 200);
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "a good client waited {slowest:?}");
}
