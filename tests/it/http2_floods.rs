//! Floods over HTTP/2: each ends in GOAWAY(ENHANCE_YOUR_CALM) or the crate's own word for it, in bounded memory, while
//! another client is served as before.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::harness::bytes::random;
use crate::harness::h2::H2Origin;
use crate::harness::h2::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, RawClient,
    SETTINGS, WINDOW_UPDATE, block, frame, get,
};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, SOON, eventually, on_both_engines, process};

on_both_engines!(
    every_flood_ends_in_bounded_memory_beside_a_good_client,
    rapid_resets_never_exceed_the_streams_at_the_endpoint,
    responses_behind_a_closed_window_are_bounded,
    small_frames_that_an_endpoint_does_not_take_yet_end_no_connection,
    small_frames_that_clients_do_not_take_yet_end_no_connection_of_others,
    uploads_that_nobody_takes_are_bounded,
    clients_that_read_nothing_do_not_hold_up_the_others_of_their_endpoint,
    streams_are_refused_once_the_worker_has_spent_its_memory,
    a_usual_client_is_no_flood,
    a_flood_is_told_why_it_ended_even_if_it_reads_late,
);

const MIB: f64 = 1_048_576.0;
const ENDS: u8 = END_HEADERS | END_STREAM;

/// Sends until the gateway ends the connection; the codes of its GOAWAY frames.
fn flood(port: u16, mut piece: impl FnMut(u32) -> Vec<u8>) -> Vec<u32> {
    let mut client = RawClient::connect(port);
    let mut reader = RawClient::over(client.stream.try_clone().unwrap());
    let reading = std::thread::spawn(move || {
        let mut codes = Vec::new();
        while let Some(frame) = reader.next() {
            if frame.kind == GOAWAY {
                codes.extend(frame.code());
            }
        }
        codes
    });
    let started = Instant::now();
    let mut round = 0;
    loop {
        let batch: Vec<u8> = (0..32).flat_map(|i| piece(round * 32 + i)).collect();
        round += 1;
        if client.stream.write_all(&batch).is_err() {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "the flood goes on after {round} batches");
    }
    reading.join().unwrap()
}

fn stream_of(number: u32) -> u32 {
    2 * number + 1
}

fn every_flood_ends_in_bounded_memory_beside_a_good_client(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let post = block(&[(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")]);
    type Piece = Box<dyn FnMut(u32) -> Vec<u8>>;
    let first_then = |first: Vec<u8>, then: Vec<u8>| -> Piece {
        Box::new(move |number| if number == 0 { [&first[..], &then].concat() } else { then.clone() })
    };
    let open = frame(HEADERS, END_HEADERS, 1, &post);
    let per_stream = |make: fn(u32) -> Vec<u8>| -> Piece {
        let fields = get(&[]);
        Box::new(move |number| {
            let head = frame(HEADERS, END_HEADERS, stream_of(number), &fields);
            [head, make(stream_of(number))].concat()
        })
    };
    let rows: Vec<(&str, Piece)> = vec![
        ("rapid reset", per_stream(|stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]))),
        ("made you reset: window of 0", per_stream(|stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4]))),
        (
            "made you reset: window overflow",
            per_stream(|stream| frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])),
        ),
        (
            "CONTINUATION",
            first_then(frame(HEADERS, 0, 1, &post), frame(CONTINUATION, 0, 1, &block(&[("x", "y")]))),
        ),
        ("empty CONTINUATION", first_then(frame(HEADERS, 0, 1, &post), frame(CONTINUATION, 0, 1, &[]))),
        ("empty DATA", first_then(open.clone(), frame(DATA, 0, 1, &[]))),
        ("padded empty DATA", first_then(open.clone(), frame(DATA, 8, 1, &[3, 0, 0, 0]))),
        ("PING", first_then(Vec::new(), frame(PING, 0, 0, &[0; 8]))),
        ("SETTINGS", first_then(Vec::new(), frame(SETTINGS, 0, 0, &[]))),
        ("PRIORITY", first_then(Vec::new(), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]))),
        ("WINDOW_UPDATE", first_then(Vec::new(), frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
        ("unknown frames", first_then(Vec::new(), frame(0x77, 0, 0, &[0; 3]))),
        ("trailers without an end", first_then(open, frame(HEADERS, END_HEADERS, 1, &block(&[("x", "y")])))),
        (
            "malformed requests",
            Box::new(|number| frame(HEADERS, ENDS, stream_of(number), &get(&[("connection", "x")]))),
        ),
    ];
    let mut good = gateway.client();
    let held = || process::anonymous_bytes(gateway.data_process()) as f64;
    assert_eq!(good.get("/").status, 200);
    let before = held();
    let count = rows.len() as f64;
    for (row, piece) in rows {
        let codes = flood(gateway.web(), piece);
        assert!(codes.iter().all(|code| matches!(code, 1 | 3 | 11)), "{row}: {codes:?}");
        let asked = Instant::now();
        assert_eq!(good.get("/").status, 200, "{row}");
        assert!(asked.elapsed() < Duration::from_secs(1), "{row}: {:?}", asked.elapsed());
        let grown = (held() - before) / MIB;
        assert!(grown < 8.0, "{row}: {grown} MiB");
    }
    eventually("all have ended for a reason", || {
        let ended =
            |reason: &str| gateway.metric("ringfort_sessions_ended_total", &format!("reason=\"{reason}\""));
        ended("flooded") + ended("protocol_error") + ended("client_aborted") >= count
            && ended("flooded") > 8.0
    });
    assert!(gateway.metric("ringfort_http2_glitches_total", "") > 5_000.0);
}

/// Row G1.
fn rapid_resets_never_exceed_the_streams_at_the_endpoint(engine: Engine) {
    let origin = Origin::start(|peer| {
        let _ = peer.read_request();
        peer.wait_for_end();
    });
    let gateway = Setup::to(engine, &origin).start();
    let fields = get(&[]);
    let most = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    flood(gateway.web(), |number| {
        most.fetch_max(origin.open(), std::sync::atomic::Ordering::SeqCst);
        if number % 32 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let stream = stream_of(number);
        [frame(HEADERS, ENDS, stream, &fields), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    });
    assert!(most.load(std::sync::atomic::Ordering::SeqCst) <= 128 + 8);
    eventually("the endpoint is left alone", || origin.open() == 0);
}

/// Row G10: as many streams as allowed, each with a long response and no window.
fn responses_behind_a_closed_window_are_bounded(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let held = || process::anonymous_bytes(gateway.data_process()) as f64;
    assert_eq!(gateway.get("/").status, 200);
    let (before, held_before) = (held(), gateway.metric("ringfort_worker_memory_bytes", ""));
    let mut client = RawClient::connect(gateway.web());
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for number in 0..128 {
        let fields =
            [(":method", "GET"), (":scheme", "http"), (":path", "/bytes/300000"), (":authority", "a.test")];
        client.send(&frame(HEADERS, ENDS, stream_of(number), &block(&fields)));
    }
    eventually("all are answered", || origin.requests().len() == 129);
    std::thread::sleep(Duration::from_millis(300));
    let grown = (held() - before) / MIB;
    assert!(grown < 4.0, "{grown} MiB");
    let charged = (gateway.metric("ringfort_worker_memory_bytes", "") - held_before) / MIB;
    assert!(charged > 1.0 && charged < 4.0, "charged {charged} MiB");
    drop(client);
    eventually("the memory is back", || {
        gateway.metric("ringfort_worker_memory_bytes", "") < held_before + MIB
    });
}

/// Row G12.
fn streams_are_refused_once_the_worker_has_spent_its_memory(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).limits("memory_bytes_max = 1048576").start();
    let mut client = RawClient::connect(gateway.web());
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    let fields =
        [(":method", "GET"), (":scheme", "http"), (":path", "/bytes/300000"), (":authority", "a.test")];
    let (mut begun, mut refused) = (0, 0);
    for number in 0..100 {
        client.send(&frame(HEADERS, ENDS, stream_of(number), &block(&fields)));
        match client.verdict(stream_of(number)) {
            None => begun += 1,
            Some(code) => {
                assert_eq!(code, 7);
                refused += 1;
            }
        }
    }
    assert!(begun > 20 && refused > 20, "{begun} {refused}");
    // The client is not to blame, however often it asks.
    for number in 100..1_300 {
        client.send(&frame(HEADERS, ENDS, stream_of(number), &block(&fields)));
        assert_eq!(client.verdict(stream_of(number)), Some(7), "{number}");
    }
    // Once they are gone there is room again.
    for number in 0..100 {
        client.send(&frame(RST_STREAM, 0, stream_of(number), &[0, 0, 0, 8]));
    }
    gateway.wait_for_metric("ringfort_http2_streams_active", "", |active| active == 0.0);
    client.send(&frame(HEADERS, ENDS, stream_of(1_300), &get(&[])));
    assert_eq!(client.verdict(stream_of(1_300)), None);
}

/// What a client sends ahead is bounded by the windows.
fn uploads_that_nobody_takes_are_bounded(engine: Engine) {
    let origin = Origin::start(|peer| {
        let _ = peer.read_request_head();
        std::thread::sleep(Duration::from_secs(2));
    });
    let gateway = Setup::to(engine, &origin).start();
    let held = || process::anonymous_bytes(gateway.data_process()) as f64;
    let before = held();
    let mut client = RawClient::connect(gateway.web());
    let post = block(&[(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")]);
    let mut window = 1 << 20;
    for number in 0..100 {
        client.send(&frame(HEADERS, END_HEADERS, stream_of(number), &post));
    }
    for number in 0..100 {
        for _ in 0..3 {
            if window >= 16_384 {
                client.send(&frame(DATA, 0, stream_of(number), &[7; 16_384]));
                window -= 16_384;
            }
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let grown = (held() - before) / MIB;
    assert!(grown < 6.0, "{grown} MiB");
}

/// Messages of a stream are often small. The crate ends a connection in which many small frames wait.
fn small_frames_that_an_endpoint_does_not_take_yet_end_no_connection(engine: Engine) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1_000);
    let origin = H2Origin::with(builder);
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys("protocol = \"h2\"").start();
    let mut client = RawClient::connect(gateway.web());
    let post =
        block(&[(":method", "POST"), (":scheme", "http"), (":path", "/wait"), (":authority", "a.test")]);
    client.send(&frame(HEADERS, END_HEADERS, 1, &post));
    // As much as the window takes. An empty message of gRPC has five bytes.
    for _ in 0..65_535 / 5 {
        client.send(&frame(DATA, 0, 1, &[0; 5]));
    }
    client.send(&frame(HEADERS, ENDS, 3, &get(&[])));
    assert_eq!(client.verdict(3), None);
    client.send(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]));
    eventually("the endpoint hears of the end", || origin.log().resets.lock().unwrap().contains(&8));
    assert_eq!(gateway.metric("ringfort_http2_streams_active", ""), 0.0);
}

fn small_frames_that_clients_do_not_take_yet_end_no_connection_of_others(engine: Engine) {
    const STALLED: u32 = 8;
    let origin = H2Origin::start();
    let keys = "protocol = \"h2\"\nhttp2_connections_max = 1";
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys(keys).start();
    let mut client = RawClient::connect(gateway.web());
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for number in 0..STALLED {
        let fields =
            [(":method", "GET"), (":scheme", "http"), (":path", "/drops/60000"), (":authority", "a.test")];
        client.send(&frame(HEADERS, ENDS, stream_of(number), &block(&fields)));
    }
    let all = f64::from(STALLED) * 65_536.0;
    gateway.wait_for_metric("ringfort_worker_memory_bytes", "", |held| held >= all);
    assert_eq!(gateway.get("/bytes/200000").body.len(), 200_000);
    assert_eq!(origin.accepted(), 1);
    // What waited is whole, and in order.
    client.send(&frame(WINDOW_UPDATE, 0, 0, &[0, 16, 0, 0]));
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]));
    let mut bodies = vec![Vec::new(); STALLED as usize];
    let mut ended = 0;
    while ended < STALLED {
        let frame = client.next().expect("the responses");
        let at = (frame.stream / 2) as usize;
        match frame.kind {
            DATA => bodies[at].extend_from_slice(&frame.payload),
            HEADERS if frame.flags & 1 != 0 => ended += 1,
            _ => {}
        }
    }
    assert!(bodies.iter().all(|body| *body == random(60_000, 60_000)));
}

/// Their responses share a connection to the endpoint with those of everybody else.
fn clients_that_read_nothing_do_not_hold_up_the_others_of_their_endpoint(engine: Engine) {
    const STALLED: usize = 60;
    let origin = H2Origin::start();
    let keys = "protocol = \"h2\"\nhttp2_connections_max = 1";
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys(keys).start();
    assert_eq!(gateway.get("/").status, 200);
    let held_before = gateway.metric("ringfort_worker_memory_bytes", "");
    let mut client = RawClient::connect(gateway.web());
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for number in 0..STALLED as u32 {
        let fields =
            [(":method", "GET"), (":scheme", "http"), (":path", "/bytes/300000"), (":authority", "a.test")];
        client.send(&frame(HEADERS, ENDS, stream_of(number), &block(&fields)));
    }
    gateway.wait_for_metric("ringfort_upstream_received_bytes_total", "", |_| origin.seen().len() > STALLED);
    // What the endpoint sent ahead counts.
    gateway.wait_for_metric("ringfort_worker_memory_bytes", "", |held| {
        held - held_before > (STALLED * 65_536) as f64
    });
    for _ in 0..3 {
        let response = gateway.get("/bytes/200000");
        assert_eq!((response.status, response.body.len()), (200, 200_000));
    }
    assert_eq!(origin.accepted(), 1);
    drop(client);
    gateway.wait_for_metric("ringfort_worker_memory_bytes", "", |held| held < held_before + MIB);
}

fn a_usual_client_is_no_flood(engine: Engine) {
    let gateway = Setup::answering(engine).limits("http2_glitches_max = 100").start();
    let mut client = RawClient::connect(gateway.web());
    let fields = get(&[]);
    for number in 0..2_000 {
        let stream = stream_of(number);
        client.send(&frame(HEADERS, ENDS, stream, &fields));
        client.send(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 3]));
        client.send(&frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1]));
        assert_eq!(client.verdict(stream), None, "{number}");
    }
}

/// The gateway's frames overflow the client's receive buffer and wait with the gateway's kernel; what more comes ends in
/// RST, and not before they arrived.
fn a_flood_is_told_why_it_ended_even_if_it_reads_late(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(1).unwrap();
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], gateway.web())).into()).unwrap();
    let mut client = RawClient::over(socket.into());
    client.greet();
    client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    client.stream.set_read_timeout(Some(SOON)).unwrap();
    let fields = get(&[("connection", "x")]);
    let mut streams = (0..).map(stream_of);
    loop {
        let batch: Vec<u8> =
            streams.by_ref().take(1_000).flat_map(|stream| frame(HEADERS, ENDS, stream, &fields)).collect();
        if client.stream.write_all(&batch).is_err() {
            break;
        }
    }
    let mut last = None;
    while let Some(frame) = client.next() {
        last = Some(frame);
    }
    let last = last.expect("frames");
    assert_eq!((last.kind, last.code()), (GOAWAY, Some(11)));
}
