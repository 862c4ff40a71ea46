//! The TCP relay: every byte, both directions at once, ends passed on as they are.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::bytes::{read_digest, write_pattern};
use crate::harness::client::{Client, reset};
use crate::harness::gateway::{Gateway, free_port, fresh_listener};
use crate::harness::origin::{Origin, Peer, fill_backlog};
use crate::harness::setup::Setup;
use crate::harness::{Engine, SOON, eventually, on_both_engines, process};
use crate::slow::STALLED_BYTES_MAX;

on_both_engines!(
    bytes_arrive_intact_both_ways_at_once,
    many_relays_at_once_arrive_intact,
    a_half_close_is_passed_on_and_the_other_direction_goes_on,
    a_reset_by_the_client_is_passed_on_as_a_reset,
    a_reset_by_the_origin_is_passed_on_as_a_reset,
    an_end_of_both_sides_frees_the_descriptors,
    a_silent_relay_ends_at_its_idle_deadline,
    bytes_in_one_direction_keep_a_relay_alive,
    a_refused_endpoint_ends_the_connection_at_once,
    an_endpoint_that_does_not_answer_ends_at_the_connect_deadline,
    a_stalled_reader_costs_bounded_memory,
    an_origin_that_speaks_first_is_heard,
    an_answer_is_delivered_before_the_reset_behind_it,
    bytes_are_counted_while_the_relay_lives,
);

fn relay(engine: Engine, origin: &Origin) -> Setup {
    Setup::to(engine, origin).relay("")
}

fn connect(gateway: &Gateway) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", gateway.port("relay"))).unwrap();
    stream.set_read_timeout(Some(SOON * 3)).unwrap();
    stream.set_write_timeout(Some(SOON * 3)).unwrap();
    stream
}

/// The origin's side of an exchange: the first 16 bytes tell how much it sends back (seed and length), it sends that
/// while it receives, then the digest of what it received as the last line.
fn exchange(peer: &mut Peer) {
    let mut order = [0; 16];
    if peer.stream().read_exact(&mut order).is_err() {
        return;
    }
    let seed = u64::from_le_bytes(order[..8].try_into().unwrap());
    let len = u64::from_le_bytes(order[8..].try_into().unwrap()) as usize;
    let mut writer = peer.stream().try_clone().unwrap();
    let sender = std::thread::spawn(move || write_pattern(&mut writer, seed, len, 100_000));
    let received = read_digest(peer.stream()).unwrap_or_else(|error| error.to_string());
    if sender.join().unwrap().is_ok() {
        let _ = peer.stream().write_all(received.as_bytes());
    }
}

/// Sends `up` bytes and receives `down` bytes at the same time; both digests must match at their ends.
fn both_ways(gateway: &Gateway, seed: u64, up: usize, down: usize) {
    let mut stream = connect(gateway);
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let order = [(seed + 1).to_le_bytes(), (down as u64).to_le_bytes()].concat();
        writer.write_all(&order)?;
        let sent = write_pattern(&mut writer, seed, up, 50_000)?;
        writer.shutdown(Shutdown::Write)?;
        std::io::Result::Ok(sent)
    });
    let mut received = Vec::with_capacity(down + 64);
    stream.read_to_end(&mut received).unwrap_or_else(|error| panic!("{up} up, {down} down: {error}"));
    let sent = sender.join().unwrap().unwrap();
    assert!(received.len() > down, "{up} up, {down} down: only {} came", received.len());
    let mut wanted = std::io::sink();
    let wanted = write_pattern(&mut wanted, seed + 1, down, 1 << 16).unwrap();
    let got = crate::harness::bytes::Digest::of(&received[..down]).text();
    assert_eq!(got, wanted, "{down} bytes down");
    assert_eq!(String::from_utf8_lossy(&received[down..]), sent, "{up} bytes up");
}

fn bytes_arrive_intact_both_ways_at_once(engine: Engine) {
    let origin = Origin::start(exchange);
    let gateway = relay(engine, &origin).start();
    for len in [1, 2, 1000, 4096, 16_384, 16_385, 65_536, 1 << 20, 64 << 20] {
        both_ways(&gateway, len as u64, len, len);
    }
    both_ways(&gateway, 1, 1, 5 << 20);
    both_ways(&gateway, 2, 5 << 20, 1);
}

fn many_relays_at_once_arrive_intact(engine: Engine) {
    let origin = Origin::start(exchange);
    let gateway = relay(engine, &origin).start();
    std::thread::scope(|scope| {
        for n in 0..24 {
            let gateway = &gateway;
            scope.spawn(move || both_ways(gateway, n, 10_000 << (n % 6), 10_000 << ((n + 3) % 6)));
        }
    });
}

fn a_half_close_is_passed_on_and_the_other_direction_goes_on(engine: Engine) {
    let origin = Origin::start(|peer| {
        let mut all = Vec::new();
        let _ = peer.stream().read_to_end(&mut all);
        for n in 0..5 {
            std::thread::sleep(Duration::from_millis(20));
            let _ = peer.stream().write_all(format!("{n}:{} ", all.len()).as_bytes());
        }
    });
    let gateway = relay(engine, &origin).start();
    let mut stream = connect(&gateway);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "0:8 1:8 2:8 3:8 4:8 ");

    // The origin ends first; the client still speaks and is heard.
    let origin = Origin::start(|peer| {
        peer.stream().write_all(b"bye").unwrap();
        peer.stream().shutdown(Shutdown::Write).unwrap();
        peer.wait_for_end();
    });
    let gateway = relay(engine, &origin).start();
    let mut stream = connect(&gateway);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "bye");
    stream.write_all(b"still here").unwrap();
    drop(stream);
    eventually("what the client said last arrives", || origin.raw_bytes() == b"still here");
    eventually("the relay ends", || origin.open() == 0);
}

fn a_reset_by_the_client_is_passed_on_as_a_reset(engine: Engine) {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::start(move |peer| {
        let mut greeting = [0; 5];
        let _ = tell.send(peer.stream().read_exact(&mut greeting).map_err(|error| error.kind()));
        let _ = tell.send(peer.stream().read_exact(&mut greeting).map_err(|error| error.kind()));
    });
    let gateway = relay(engine, &origin).start();
    let mut stream = connect(&gateway);
    stream.write_all(b"hello").unwrap();
    assert_eq!(told.recv_timeout(SOON), Ok(Ok(())), "the relay is up");
    reset(stream);
    assert_eq!(told.recv_timeout(SOON), Ok(Err(std::io::ErrorKind::ConnectionReset)));
}

fn a_reset_by_the_origin_is_passed_on_as_a_reset(engine: Engine) {
    let origin = Origin::start(|peer| {
        let mut one = [0; 1];
        let _ = peer.stream().read_exact(&mut one);
        peer.reset();
    });
    let gateway = relay(engine, &origin).start();
    let mut stream = connect(&gateway);
    stream.write_all(b"x").unwrap();
    let start = Instant::now();
    let end = stream.read(&mut [0; 10]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

/// The endpoint answers and resets while the client still speaks: both are seen at once by the worker.
fn an_answer_is_delivered_before_the_reset_behind_it(engine: Engine) {
    let (heard, allowed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, order) = (heard.clone(), allowed.clone());
    let origin = Origin::start(move |peer| {
        let _ = peer.stream().read_exact(&mut [0; 5]);
        count.fetch_add(1, Ordering::SeqCst);
        eventually("the test stopped the gateway", || order.load(Ordering::SeqCst) > peer.connection);
        let _ = peer.send(b"answer");
        peer.reset();
    });
    let gateway = relay(engine, &origin).start();
    let data = gateway.data_process();
    for (round, speaks_on) in [false, true].into_iter().enumerate() {
        let mut stream = connect(&gateway);
        stream.write_all(b"hello").unwrap();
        eventually("the question is at the origin", || heard.load(Ordering::SeqCst) > round);
        process::stop(data);
        if speaks_on {
            stream.write_all(b"more").unwrap();
        }
        allowed.fetch_add(1, Ordering::SeqCst);
        eventually("the origin is gone", || origin.open() == 0);
        process::signal(data, libc::SIGCONT);
        let mut answer = [0; 6];
        let got = stream.read_exact(&mut answer).map_err(|error| error.kind());
        assert_eq!((got, &answer), (Ok(()), b"answer"), "speaks on: {speaks_on}");
        let end = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "speaks on: {speaks_on}");
    }
}

fn bytes_are_counted_while_the_relay_lives(engine: Engine) {
    let origin = Origin::start(|peer| {
        let mut all = [0; 1000];
        while peer.stream().read_exact(&mut all).is_ok() && peer.stream().write_all(&all[..300]).is_ok() {}
    });
    let gateway = relay(engine, &origin).start();
    let mut stream = connect(&gateway);
    for round in 1..=3 {
        stream.write_all(&[7; 1000]).unwrap();
        stream.read_exact(&mut [0; 300]).unwrap();
        for (name, labels, bytes) in [
            ("ringfort_downstream_received_bytes_total", "relay", 1000),
            ("ringfort_downstream_sent_bytes_total", "relay", 300),
            ("ringfort_upstream_sent_bytes_total", "site", 1000),
            ("ringfort_upstream_received_bytes_total", "site", 300),
        ] {
            gateway.wait_for_metric(name, labels, |value| value == f64::from(round * bytes));
        }
    }
    assert_eq!(origin.open(), 1, "the relay still lives");
}

fn an_end_of_both_sides_frees_the_descriptors(engine: Engine) {
    let origin = Origin::start(|peer| peer.wait_for_end());
    let gateway = relay(engine, &origin).start();
    drop(connect(&gateway));
    eventually("a first relay came and went", || origin.accepted() == 1 && origin.open() == 0);
    let data = gateway.data_process();
    let base = process::open_files(data);
    for round in 0..40 {
        let mut stream = connect(&gateway);
        stream.write_all(b"x").unwrap();
        match round % 3 {
            0 => drop(stream),
            1 => reset(stream),
            _ => stream.shutdown(Shutdown::Both).unwrap(),
        }
    }
    eventually("every relay ended", || origin.open() == 0);
    eventually("descriptors are back to where they were", || process::open_files(data) <= base);
}

fn a_silent_relay_ends_at_its_idle_deadline(engine: Engine) {
    let origin = Origin::start(|peer| peer.wait_for_end());
    let gateway = relay(engine, &origin).tcp_idle_timeout_ms(300).start();
    let mut client = Client::connect(gateway.port("relay"));
    let took = client.time_to_end();
    assert!((Duration::from_millis(280)..Duration::from_secs(2)).contains(&took), "{took:?}");
    eventually("the origin's side ends too", || origin.open() == 0);
}

fn bytes_in_one_direction_keep_a_relay_alive(engine: Engine) {
    let origin = Origin::start(|peer| peer.wait_for_end());
    let gateway = relay(engine, &origin).tcp_idle_timeout_ms(400).start();
    let mut stream = connect(&gateway);
    for _ in 0..15 {
        stream.write_all(b"x").unwrap();
        std::thread::sleep(Duration::from_millis(80));
    }
    assert_eq!(origin.raw_bytes().len(), 15);
    assert_eq!(origin.open(), 1);
}

fn a_refused_endpoint_ends_the_connection_at_once(engine: Engine) {
    let dead = format!("127.0.0.1:{}", free_port());
    let mut gateway = Setup::to_all(engine, &[dead]).relay("").start();
    gateway.expect_log("site");
    // The end may come before the connect call returns.
    let took =
        Client::try_connect(gateway.port("relay")).map_or(Duration::ZERO, |mut client| client.time_to_end());
    assert!(took < Duration::from_secs(2), "{took:?}");
}

fn an_endpoint_that_does_not_answer_ends_at_the_connect_deadline(engine: Engine) {
    let listener = fresh_listener();
    let address = listener.local_addr().unwrap();
    let fillers = fill_backlog(&listener);
    let mut gateway = Setup::to_all(engine, &[address.to_string()]).relay("").connect_timeout_ms(300).start();
    gateway.expect_log("site");
    let took = Client::connect(gateway.port("relay")).time_to_end();
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop(fillers);
}

fn a_stalled_reader_costs_bounded_memory(engine: Engine) {
    const FIRST: usize = 10;
    const MORE: usize = 30;
    const LEN: usize = 8 << 20;
    let origin = Origin::start(|peer| {
        let _ = write_pattern(peer.stream(), 3, LEN, 1 << 16);
        peer.wait_for_end();
    });
    let gateway = relay(engine, &origin).start();
    let data = gateway.data_process();
    let stall = |count: usize, all: usize| -> (Vec<Client>, u64) {
        let clients = (0..count).map(|_| Client::connect_narrow(gateway.port("relay"))).collect();
        eventually("all relays are up", || origin.open() == all);
        // What the gateway takes it takes soon: the pipes are full when its memory stands still.
        let mut last = 0;
        eventually("the relays stand still", || {
            std::thread::sleep(Duration::from_millis(200));
            let now = process::anonymous_bytes(data);
            std::mem::replace(&mut last, now) == now
        });
        (clients, last)
    };
    // The first ones touch the worker's pool of buffers; each further one costs what it alone holds.
    let (mut clients, before) = stall(FIRST, FIRST);
    let (_more, after) = stall(MORE, FIRST + MORE);
    let each = after.saturating_sub(before) / MORE as u64;
    assert!(each < STALLED_BYTES_MAX, "a stalled relay costs {each} bytes");
    // Nothing was lost meanwhile.
    let mut digest = crate::harness::bytes::Digest::default();
    clients[0].reader.read_length(LEN as u64, &mut |piece| digest.add(piece));
    let wanted = write_pattern(&mut std::io::sink(), 3, LEN, 1 << 16).unwrap();
    assert_eq!(digest.text(), wanted);
}

fn an_origin_that_speaks_first_is_heard(engine: Engine) {
    let origin = Origin::start(|peer| {
        let _ = peer.stream().write_all(b"220 ready\r\n");
        peer.wait_for_end();
    });
    let gateway = relay(engine, &origin).start();
    let mut greeting = [0; 11];
    connect(&gateway).read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
}
