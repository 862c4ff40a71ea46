//! TLS passed on undecrypted: the endpoint gets the ClientHello as it was sent, chosen by the names in it; what cannot
//! be passed on is refused so that the client learns why.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::bytes::random;
use crate::harness::client::{Client, reset};
use crate::harness::gateway::{Gateway, free_port};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::tls::{Leaf, Pki, mirror};
use crate::harness::{Engine, SOON, eventually, on_both_engines};

on_both_engines!(
    a_hello_arrives_as_it_was_sent_with_what_follows_it,
    a_hello_in_single_bytes_arrives_as_it_was_sent,
    a_hello_in_records_of_any_size_arrives_as_it_was_sent,
    a_hello_of_many_packets_arrives_as_it_was_sent,
    the_name_and_the_protocols_choose_the_cluster,
    a_name_that_no_route_has_is_refused_as_unrecognized,
    a_client_that_goes_on_speaking_reads_the_alert_too,
    a_name_served_in_other_protocols_is_refused_for_them,
    a_hello_that_breaks_the_protocol_is_refused_with_its_alert,
    what_is_not_tls_is_reset,
    a_hello_that_does_not_come_in_time_is_cut,
    an_endpoint_that_refuses_ends_in_an_internal_error,
    a_half_close_is_passed_on_and_the_other_direction_goes_on,
    a_reset_by_either_side_is_passed_on_as_a_reset,
    tls_is_spoken_with_the_endpoint_whose_certificate_is_asked_for,
    a_connection_without_a_hello_ends_with_a_drain,
    routed_bytes_and_refusals_are_counted,
);

const DECODE_ERROR: u8 = 50;
const UNRECOGNIZED_NAME: u8 = 112;

fn vector16(data: &[u8]) -> Vec<u8> {
    [&(data.len() as u16).to_be_bytes()[..], data].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(data)].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &vector16(&[&[0][..], &vector16(name)].concat()))
}

fn alpn(protocols: &[&str]) -> Vec<u8> {
    let list: Vec<u8> =
        protocols.iter().flat_map(|one| [&[one.len() as u8][..], one.as_bytes()].concat()).collect();
    extension(16, &vector16(&list))
}

/// The message of a hello with these extensions.
fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &vector16(&extensions.concat())];
    let body = body.concat();
    [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat()
}

fn records(message: &[u8], len: usize) -> Vec<u8> {
    message.chunks(len).flat_map(|part| [&[22, 3, 1][..], &vector16(part)].concat()).collect()
}

fn hello(name: &str) -> Vec<u8> {
    records(&message(&[server_name(name.as_bytes()), alpn(&["h2", "http/1.1"])]), 1 << 14)
}

/// A listener `pass`, and its routes.
fn passing(engine: Engine, routes: &[&str]) -> Setup {
    let mut text =
        "[[listener]]\nname = \"pass\"\nlisten = \"127.0.0.1:{port:pass}\"\nprotocol = \"tls-passthrough\"\n"
            .to_owned();
    for route in routes {
        text.push_str(&format!("[[route]]\nlistener = \"pass\"\n{route}\n"));
    }
    Setup::answering(engine).sections(&text)
}

/// Everything for `a.test` goes to the origin.
fn to(engine: Engine, origin: &Origin) -> Setup {
    passing(engine, &["hosts = [\"a.test\"]\ncluster = \"site\""]).cluster("site", &[origin.address()])
}

fn connect(gateway: &Gateway) -> Client {
    Client::connect(gateway.port("pass"))
}

/// Sends back what comes.
fn echo() -> Origin {
    Origin::start(|peer| {
        let mut writer = peer.stream().try_clone().unwrap();
        let _ = std::io::copy(peer.stream(), &mut writer);
    })
}

/// Greets with a name, so that a client sees whom it reached.
fn named(name: &'static str) -> Origin {
    Origin::start(move |peer| {
        let _ = peer.send(name.as_bytes());
        let _ = peer.stream().shutdown(Shutdown::Write);
        peer.wait_for_end();
    })
}

#[track_caller]
fn expect_echo(client: &mut Client, bytes: &[u8]) {
    let mut back = vec![0; bytes.len()];
    client.stream().read_exact(&mut back).unwrap();
    assert!(back == bytes, "{} bytes came back changed", bytes.len());
}

/// What a refused client reads: the alert, and a clean end.
#[track_caller]
fn expect_alert(client: &mut Client, alert: u8) {
    let mut all = Vec::new();
    let end = client.stream().read_to_end(&mut all).map_err(|error| error.kind());
    assert_eq!((end, &all[..]), (Ok(7), &[21, 3, 3, 0, 2, 2, alert][..]));
}

fn a_hello_arrives_as_it_was_sent_with_what_follows_it(engine: Engine) {
    let origin = echo();
    let gateway = to(engine, &origin).start();
    let mut client = connect(&gateway);
    let first = [hello("a.test"), random(1, 5_000)].concat();
    client.send(&first);
    expect_echo(&mut client, &first);
    let later = random(2, 300_000);
    let mut writer = client.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&later).unwrap());
        expect_echo(&mut client, &later);
    });
}

fn a_hello_in_single_bytes_arrives_as_it_was_sent(engine: Engine) {
    let origin = echo();
    let gateway = to(engine, &origin).start();
    for bytes in [hello("a.test"), records(&message(&[server_name(b"A.Test")]), 1)] {
        let mut client = connect(&gateway);
        for byte in &bytes {
            client.send([*byte]);
        }
        expect_echo(&mut client, &bytes);
    }
}

fn a_hello_in_records_of_any_size_arrives_as_it_was_sent(engine: Engine) {
    let origin = echo();
    let gateway = to(engine, &origin).start();
    let message = message(&[alpn(&["h2"]), server_name(b"a.test")]);
    for len in [1, 2, 3, 4, 5, 6, 30, 50] {
        let bytes = records(&message, len);
        let mut client = connect(&gateway);
        client.send(&bytes);
        expect_echo(&mut client, &bytes);
    }
    // Empty ones between them are the endpoint's to judge.
    let empty = [22, 3, 1, 0, 0];
    let bytes: Vec<u8> =
        message.iter().flat_map(|byte| [&empty[..], &empty, &[22, 3, 1, 0, 1, *byte]].concat()).collect();
    let mut client = connect(&gateway);
    client.send(&bytes);
    expect_echo(&mut client, &bytes);
}

fn a_hello_of_many_packets_arrives_as_it_was_sent(engine: Engine) {
    let origin = echo();
    let gateway = to(engine, &origin).start();
    for padding in [2_000, 16_000, 40_000, 65_000] {
        let message = message(&[extension(21, &vec![0; padding]), server_name(b"a.test")]);
        for len in [1 << 14, 9_000, 97] {
            let bytes = records(&message, len);
            let mut client = connect(&gateway);
            let mut writer = client.stream().try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| bytes.chunks(1_400).for_each(|piece| writer.write_all(piece).unwrap()));
                expect_echo(&mut client, &bytes);
            });
        }
    }
}

fn the_name_and_the_protocols_choose_the_cluster(engine: Engine) {
    let origins = ["exact", "h2", "wildcard", "any", "nameless"].map(|name| (name, named(name)));
    let mut setup = passing(
        engine,
        &[
            "hosts = [\"a.test\"]\ncluster = \"exact\"",
            "hosts = [\"a.test\"]\nalpn = [\"h2\"]\ncluster = \"h2\"",
            "hosts = [\"*.a.test\"]\nclusters = [{ name = \"wildcard\" }]",
            "alpn = [\"imap\"]\ncluster = \"nameless\"",
            "hosts = [\"*.test\"]\ncluster = \"any\"",
        ],
    );
    for (name, origin) in &origins {
        setup = setup.cluster(name, &[origin.address()]);
    }
    let gateway = setup.start();
    let reached = |extensions: &[Vec<u8>]| {
        let mut client = connect(&gateway);
        client.send(records(&message(extensions), 1 << 14));
        let mut name = String::new();
        client.stream().read_to_string(&mut name).unwrap();
        name
    };
    assert_eq!(reached(&[server_name(b"a.test")]), "exact");
    assert_eq!(reached(&[server_name(b"A.TEST."), alpn(&["http/1.1"])]), "exact");
    assert_eq!(reached(&[server_name(b"a.test"), alpn(&["http/1.1", "h2"])]), "h2");
    assert_eq!(reached(&[alpn(&["h2"]), server_name(b"x.y.A.test")]), "wildcard");
    assert_eq!(reached(&[server_name(b"b.test")]), "any");
    assert_eq!(reached(&[alpn(&["imap"])]), "nameless");
    assert_eq!(reached(&[server_name(b"127.0.0.1"), alpn(&["imap"])]), "nameless");
}

fn a_name_that_no_route_has_is_refused_as_unrecognized(engine: Engine) {
    let origin = echo();
    let gateway = to(engine, &origin).start();
    for name in [&b"b.test"[..], b"x.a.test", b"a.test.evil", b"a.test\0", b"127.0.0.1", b"::1", b"\xff"] {
        let mut client = connect(&gateway);
        client.send(records(&message(&[server_name(name)]), 1 << 14));
        expect_alert(&mut client, UNRECOGNIZED_NAME);
    }
    let mut client = connect(&gateway);
    client.send(records(&message(&[]), 1 << 14));
    expect_alert(&mut client, UNRECOGNIZED_NAME);
    assert_eq!(origin.accepted(), 0);
}

/// What is unread when a socket is closed makes the kernel reset the connection, and the client loses the alert.
fn a_client_that_goes_on_speaking_reads_the_alert_too(engine: Engine) {
    let origin = echo();
    let gateway = to(engine, &origin).start();
    let mut client = connect(&gateway);
    client.send([hello("b.test"), random(1, 100_000)].concat());
    for _ in 0..10 {
        client.send(random(2, 10_000));
    }
    client.shutdown_write();
    expect_alert(&mut client, UNRECOGNIZED_NAME);
}

fn a_name_served_in_other_protocols_is_refused_for_them(engine: Engine) {
    const NO_APPLICATION_PROTOCOL: u8 = 120;
    let origin = echo();
    let route = "hosts = [\"a.test\"]\nalpn = [\"h3\", \"imap\"]\ncluster = \"site\"";
    let gateway = passing(engine, &[route]).cluster("site", &[origin.address()]).start();
    let mut client = connect(&gateway);
    client.send(hello("a.test"));
    expect_alert(&mut client, NO_APPLICATION_PROTOCOL);
    let mut client = connect(&gateway);
    client.send(hello("b.test"));
    expect_alert(&mut client, UNRECOGNIZED_NAME);
}

fn a_hello_that_breaks_the_protocol_is_refused_with_its_alert(engine: Engine) {
    const UNEXPECTED_MESSAGE: u8 = 10;
    const RECORD_OVERFLOW: u8 = 22;
    const ILLEGAL_PARAMETER: u8 = 47;
    let origin = echo();
    let gateway = to(engine, &origin).start();
    let name = server_name(b"a.test");
    let oversized = [&[22, 3, 1, 0x40, 0, 1, 1, 0, 0][..], &[0; 16_384]].concat();
    let cases = [
        (DECODE_ERROR, records(&message(&[name[..name.len() - 1].to_vec()]), 99)),
        (DECODE_ERROR, oversized),
        (DECODE_ERROR, [&[22, 3, 1, 0, 1, 1][..], b"garbage"].concat()),
        (DECODE_ERROR, [22, 3, 1, 0, 0].repeat(8_193)),
        (RECORD_OVERFLOW, vec![22, 3, 1, 0x41, 1]),
        (UNEXPECTED_MESSAGE, records(&[2, 0, 0, 1, 0], 99)),
        (UNEXPECTED_MESSAGE, [&records(&message(&[])[..20], 20)[..], &[23, 3, 3, 0, 1, 0]].concat()),
        (ILLEGAL_PARAMETER, records(&message(&[name.clone(), name]), 999)),
    ];
    for (alert, bytes) in cases {
        let mut client = connect(&gateway);
        // The alert may come before all is sent.
        let _ = client.try_send(&bytes);
        expect_alert(&mut client, alert);
    }
    assert_eq!(origin.accepted(), 0);
}

fn what_is_not_tls_is_reset(engine: Engine) {
    let origin = echo();
    let gateway = to(engine, &origin).start();
    let sslv2: &[u8] = &[0x80, 0x2e, 1, 0, 2, 0, 21, 0, 0, 0, 16];
    for bytes in [b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", sslv2, &[22, 2], &[21, 3, 3, 0, 2, 1, 0]] {
        let mut client = connect(&gateway);
        client.send(bytes);
        let end = client.stream().read(&mut [0; 10]).map_err(|error| error.kind());
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "{bytes:?}");
    }
    assert_eq!(origin.accepted(), 0);
}

fn a_hello_that_does_not_come_in_time_is_cut(engine: Engine) {
    let origin = echo();
    let gateway = to(engine, &origin).timeout("handshake_timeout_ms", 400).start();
    let expected = Duration::from_millis(380)..Duration::from_secs(3);
    let took = connect(&gateway).time_to_end();
    assert!(expected.contains(&took), "{took:?}");
    let mut client = connect(&gateway);
    let start = Instant::now();
    // A byte now and then does not put the deadline off.
    let mut bytes = hello("a.test").into_iter();
    while client.stays_open_and_silent(Duration::from_millis(60)) {
        let _ = client.try_send(bytes.next().as_slice());
    }
    assert!(expected.contains(&start.elapsed()), "{:?}", start.elapsed());
    gateway.wait_for_metric("ringfort_sessions_ended_total", "handshake_timeout", |value| value == 1.0);
    assert_eq!(gateway.metric("ringfort_sessions_ended_total", "first_byte_timeout"), 1.0);
    assert_eq!(origin.accepted(), 0);
}

fn an_endpoint_that_refuses_ends_in_an_internal_error(engine: Engine) {
    const INTERNAL_ERROR: u8 = 80;
    let dead = format!("127.0.0.1:{}", free_port());
    let route = "hosts = [\"a.test\"]\ncluster = \"site\"";
    let mut gateway = passing(engine, &[route]).cluster("site", std::slice::from_ref(&dead)).start();
    gateway.expect_log("site");
    let mut client = connect(&gateway);
    client.send(hello("a.test"));
    expect_alert(&mut client, INTERNAL_ERROR);

    // One that answers beside it is tried next.
    let origin = echo();
    let setup = passing(engine, &[route]).cluster("site", &[dead, origin.address()]);
    let mut gateway = setup.start();
    gateway.expect_log("site");
    for _ in 0..8 {
        let mut client = connect(&gateway);
        client.send(hello("a.test"));
        expect_echo(&mut client, &hello("a.test"));
    }
}

fn a_half_close_is_passed_on_and_the_other_direction_goes_on(engine: Engine) {
    let hello = hello("a.test");
    let origin = Origin::start(|peer| {
        let mut all = Vec::new();
        let _ = peer.stream().read_to_end(&mut all);
        let _ = peer.send(format!("{} bytes", all.len()).as_bytes());
    });
    let gateway = to(engine, &origin).start();
    let mut client = connect(&gateway);
    client.send(&hello);
    client.shutdown_write();
    let mut answer = String::new();
    client.stream().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("{} bytes", hello.len()));

    // The origin ends first; the client still speaks and is heard.
    let origin = named("bye");
    let gateway = to(engine, &origin).start();
    let mut client = connect(&gateway);
    client.send(&hello);
    let mut answer = String::new();
    client.stream().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "bye");
    client.send(b"still here");
    drop(client);
    eventually("what the client said last arrives", || {
        origin.raw_bytes() == [&hello[..], b"still here"].concat()
    });
    eventually("the relay ends", || origin.open() == 0);
}

fn a_reset_by_either_side_is_passed_on_as_a_reset(engine: Engine) {
    let (tell, told) = std::sync::mpsc::channel();
    let hello = hello("a.test");
    let len = hello.len();
    let origin = Origin::start(move |peer| {
        let mut bytes = vec![0; len];
        for _ in 0..2 {
            let _ = tell.send(peer.stream().read_exact(&mut bytes).map_err(|error| error.kind()));
        }
    });
    let gateway = to(engine, &origin).start();
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port("pass"))).unwrap();
    stream.write_all(&hello).unwrap();
    assert_eq!(told.recv_timeout(SOON), Ok(Ok(())), "the relay is up");
    reset(stream);
    assert_eq!(told.recv_timeout(SOON), Ok(Err(std::io::ErrorKind::ConnectionReset)));

    let origin = Origin::start(|peer| {
        let _ = peer.stream().read_exact(&mut [0; 5]);
        peer.reset();
    });
    let gateway = to(engine, &origin).start();
    let mut client = connect(&gateway);
    client.send(&hello);
    let end = client.stream().read(&mut [0; 10]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
}

fn tls_is_spoken_with_the_endpoint_whose_certificate_is_asked_for(engine: Engine) {
    let pki = Pki::new();
    let origins = ["a.test", "b.test"].map(|name| {
        let pair = pki.issue(name, &Leaf::server(&[name]));
        pki.origin(&pair, false, mirror).to_string()
    });
    let gateway =
        passing(engine, &["hosts = [\"a.test\"]\ncluster = \"a\"", "hosts = [\"b.test\"]\ncluster = \"b\""])
            .cluster("a", &origins[..1])
            .cluster("b", &origins[1..])
            .start();
    let client = pki.client();
    for name in ["a.test", "b.test", "a.test"] {
        let answer = client.try_get(gateway.port("pass"), name).unwrap();
        assert!(answer.text().contains(&format!("Host: {name}")), "{}", answer.text());
    }
    let refused = client.try_connect(gateway.port("pass"), "c.test").map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("UnrecognisedName"), "{refused}");
}

fn a_connection_without_a_hello_ends_with_a_drain(engine: Engine) {
    let origin = echo();
    let mut gateway = to(engine, &origin).drain(200, 20_000).start();
    let mut silent = connect(&gateway);
    eventually("it is accepted", || gateway.metric("ringfort_connections_active", "pass") == 1.0);
    gateway.terminate();
    let took = silent.time_to_end();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(gateway.wait_exit(SOON).is_some_and(|status| status.success()));
}

fn routed_bytes_and_refusals_are_counted(engine: Engine) {
    let origin = echo();
    let gateway = to(engine, &origin).start();
    let bytes = hello("a.test");
    let mut client = connect(&gateway);
    client.send(&bytes);
    expect_echo(&mut client, &bytes);
    let len = bytes.len() as f64;
    for (name, labels) in [
        ("ringfort_downstream_received_bytes_total", "pass"),
        ("ringfort_downstream_sent_bytes_total", "pass"),
        ("ringfort_upstream_sent_bytes_total", "site"),
        ("ringfort_upstream_received_bytes_total", "site"),
    ] {
        gateway.wait_for_metric(name, labels, |value| value == len);
    }
    assert_eq!(gateway.metric("ringfort_tls_passed_on_connections_total", "pass"), 1.0);
    for bytes in
        [hello("b.test"), records(&message(&[])[..9], 9), vec![22, 3, 9, 0xff, 0xff], b"GET ".to_vec()]
    {
        let mut client = connect(&gateway);
        client.send(bytes);
        // One of them is reset at once.
        let _ = client.stream().shutdown(Shutdown::Write);
        client.time_to_end();
    }
    for (cause, termination) in [
        ("unknown_name", "name_unknown"),
        ("closed", "client_aborted"),
        ("malformed", "tls_failed"),
        ("plaintext", "plaintext_refused"),
    ] {
        let of_pass = |label: &str, value: &str| format!("listener=\"pass\",{label}=\"{value}\"");
        let failures = "ringfort_tls_handshake_failures_total";
        gateway.wait_for_metric(failures, &of_pass("cause", cause), |value| value == 1.0);
        let ended = "ringfort_sessions_ended_total";
        gateway.wait_for_metric(ended, &of_pass("reason", termination), |value| value == 1.0);
    }
}
