//! HTTP/2 that is wrong, row by row (framing, then meaning): what is wrong with a stream ends the stream, what is wrong
//! with the connection ends the connection, and nothing of either reaches an endpoint.

use crate::harness::h2::raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM,
    RawClient, SETTINGS, WINDOW_UPDATE, block, frame, get,
};
use crate::harness::h2::{connect, fetch, get as get_request, run};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    framing_errors_end_the_connection,
    errors_of_a_stream_end_the_stream,
    what_must_be_ignored_is_ignored,
    malformed_requests_reach_no_endpoint,
    heads_beyond_a_limit_get_their_status,
    a_length_that_data_does_not_add_up_to_is_no_request,
    a_wrong_body_never_looks_whole_to_an_http1_endpoint,
    trailers_that_are_wrong_end_the_stream,
    what_the_crate_hides_from_us_does_no_harm,
    more_streams_than_allowed_are_refused,
    a_field_block_that_never_ends_is_given_up,
    settings_that_are_never_acknowledged_end_the_connection,
    a_window_that_shrinks_below_zero_is_waited_for,
);

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const SETTINGS_TIMEOUT: u32 = 4;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

const ENDS: u8 = END_HEADERS | END_STREAM;

fn headers(stream: u32, flags: u8, fields: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, fields)
}

fn request(stream: u32) -> Vec<u8> {
    headers(stream, ENDS, &get(&[]))
}

fn joined(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

/// Waits for the end of the connection; the code of the last GOAWAY.
fn end_of(client: &mut RawClient) -> Option<u32> {
    let mut code = None;
    while let Some(frame) = client.next() {
        if frame.kind == GOAWAY {
            code = frame.code();
        }
    }
    code
}

/// Rows E1 to E20: those that end the connection.
fn framing_errors_end_the_connection(engine: Engine) {
    let mut gateway = Setup::answering(engine).start();
    let open = headers(1, END_HEADERS, &get(&[]));
    let rows: Vec<(&str, Vec<u8>, &[u32])> = vec![
        ("frame larger than allowed", frame(HEADERS, ENDS, 1, &[0; 16_385]), &[FRAME_SIZE_ERROR]),
        ("SETTINGS larger than allowed", frame(SETTINGS, 0, 0, &[0; 16_386]), &[FRAME_SIZE_ERROR]),
        // Where two codes stand, the second one is the crate's word for it; the connection ends either way.
        ("index 0", headers(1, ENDS, &[0x80]), &[COMPRESSION_ERROR, PROTOCOL_ERROR]),
        ("index out of range", headers(1, ENDS, &[0xff, 0x50]), &[COMPRESSION_ERROR, PROTOCOL_ERROR]),
        (
            "table larger than allowed",
            headers(1, ENDS, &[0x3f, 0xff, 0xff, 3]),
            &[COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        (
            "Huffman padding of ones and zeros",
            headers(1, ENDS, &[0, 0x81, 0, 0x81, 0]),
            &[COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        ("integer without end", headers(1, ENDS, &[0xff; 20]), &[COMPRESSION_ERROR, PROTOCOL_ERROR]),
        ("DATA on an idle stream", frame(DATA, 0, 1, b"x"), &[PROTOCOL_ERROR]),
        ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), &[PROTOCOL_ERROR]),
        ("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), &[PROTOCOL_ERROR]),
        ("CONTINUATION out of nowhere", frame(CONTINUATION, END_HEADERS, 1, &[]), &[PROTOCOL_ERROR]),
        ("even stream", request(2), &[PROTOCOL_ERROR]),
        ("stream going down", joined(&[request(5), request(3)]), &[PROTOCOL_ERROR]),
        (
            "PING inside a field block",
            joined(&[headers(1, 0, &get(&[])), frame(PING, 0, 0, &[0; 8])]),
            &[PROTOCOL_ERROR],
        ),
        (
            "CONTINUATION of another stream",
            joined(&[headers(1, 0, &get(&[])), frame(CONTINUATION, END_HEADERS, 3, &[])]),
            &[PROTOCOL_ERROR],
        ),
        ("DATA on stream 0", frame(DATA, 0, 0, b"x"), &[PROTOCOL_ERROR]),
        ("HEADERS on stream 0", request(0), &[PROTOCOL_ERROR]),
        ("RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0; 4]), &[PROTOCOL_ERROR]),
        ("PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0; 5]), &[PROTOCOL_ERROR]),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), &[PROTOCOL_ERROR]),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8]), &[PROTOCOL_ERROR]),
        ("GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), &[PROTOCOL_ERROR]),
        ("padding as long as the payload", joined(&[open, frame(DATA, 8, 1, &[5, 0, 0])]), &[PROTOCOL_ERROR]),
        (
            "RST_STREAM of three bytes",
            joined(&[request(1), frame(RST_STREAM, 0, 1, &[0; 3])]),
            &[FRAME_SIZE_ERROR],
        ),
        ("PING of seven bytes", frame(PING, 0, 0, &[0; 7]), &[FRAME_SIZE_ERROR]),
        ("SETTINGS of five bytes", frame(SETTINGS, 0, 0, &[0; 5]), &[FRAME_SIZE_ERROR]),
        ("WINDOW_UPDATE of three bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), &[FRAME_SIZE_ERROR]),
        ("ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), &[PROTOCOL_ERROR]),
        ("INITIAL_WINDOW_SIZE of 2^31", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), &[FLOW_CONTROL_ERROR]),
        ("MAX_FRAME_SIZE of 1", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), &[PROTOCOL_ERROR]),
        ("SETTINGS ACK with a payload", frame(SETTINGS, 1, 0, &[0; 6]), &[FRAME_SIZE_ERROR]),
        ("WINDOW_UPDATE of 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), &[PROTOCOL_ERROR]),
        ("window beyond 2^31", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), &[FLOW_CONTROL_ERROR]),
        ("PUSH_PROMISE of a client", frame(5, END_HEADERS, 1, &[0, 0, 0, 2]), &[PROTOCOL_ERROR]),
    ];
    for (row, bytes, codes) in rows {
        let mut client = RawClient::connect(gateway.web());
        client.send(&bytes);
        let code = end_of(&mut client);
        assert!(code.is_some_and(|code| codes.contains(&code)), "{row}: {code:?}");
    }
    // E1, E2.
    let mut client = RawClient::silent(gateway.web());
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX");
    while client.next().is_some() {}
    let mut client = RawClient::silent(gateway.web());
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.send(&frame(PING, 0, 0, &[0; 8]));
    assert_eq!(end_of(&mut client), Some(PROTOCOL_ERROR));
    gateway
        .wait_for_metric("ringfort_sessions_ended_total", "reason=\"protocol_error\"", |ended| ended > 30.0);
    gateway.expect_log("never");
}

fn errors_of_a_stream_end_the_stream(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let open = headers(1, END_HEADERS, &get(&[]));
    let rows: Vec<(&str, Vec<u8>, &[u32])> = vec![
        (
            "PRIORITY of four bytes",
            joined(&[request(1), frame(PRIORITY, 0, 1, &[0; 4])]),
            &[FRAME_SIZE_ERROR],
        ),
        (
            "WINDOW_UPDATE of 0",
            joined(&[open.clone(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])]),
            &[PROTOCOL_ERROR],
        ),
        (
            "window beyond 2^31",
            joined(&[open, frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])]),
            &[FLOW_CONTROL_ERROR],
        ),
        ("DATA behind the end", joined(&[request(1), frame(DATA, 0, 1, b"x")]), &[STREAM_CLOSED]),
        ("HEADERS behind the end", joined(&[request(1), request(1)]), &[STREAM_CLOSED]),
        (
            "DATA behind a reset",
            joined(&[
                headers(1, END_HEADERS, &get(&[])),
                frame(RST_STREAM, 0, 1, &[0; 4]),
                frame(DATA, 0, 1, b"x"),
            ]),
            &[STREAM_CLOSED],
        ),
    ];
    for (row, bytes, codes) in rows {
        let mut client = RawClient::connect(gateway.web());
        client.send(&bytes);
        let is_end = |frame: &Frame| matches!(frame.kind, RST_STREAM | GOAWAY);
        let code = client.until(is_end).and_then(|frame| frame.code());
        assert!(code.is_some_and(|code| codes.contains(&code)), "{row}: {code:?}");
    }
}

fn what_must_be_ignored_is_ignored(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let mut client = RawClient::connect(gateway.web());
    // Unknown type, unknown flags, the reserved bit of a stream's id, an unknown setting, PRIORITY of an idle stream.
    client.send(&frame(0x77, 0xff, 9, b"what"));
    client.send(&frame(PING, 0xfe, 0, &[7; 8]));
    client.send(&frame(SETTINGS, 0, 0x8000_0000, &[0x77, 0x77, 0, 0, 0, 1]));
    client.send(&frame(PRIORITY, 0, 7, &[0, 0, 0, 0, 1]));
    client.send(&headers(0x8000_0009, ENDS | 0x40, &get(&[])));
    assert_eq!(client.verdict(9), None);
}

/// Rows F1 to F7: the stream is reset, or answered 400, and the endpoint gets not one byte.
fn malformed_requests_reach_no_endpoint(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let whole = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];
    let with = |name, value| whole.iter().copied().chain([(name, value)]).collect::<Vec<_>>();
    let without = |name| whole.iter().copied().filter(|(other, _)| *other != name).collect::<Vec<_>>();
    let changed = |name: &str, value| {
        whole.iter().map(|&(other, old)| (other, if other == name { value } else { old })).collect::<Vec<_>>()
    };
    let rows = vec![
        ("upper-case name", with("X-Upper", "a")),
        ("space in a name", with("x y", "a")),
        ("colon in a name", with("x:y", "a")),
        ("control in a name", with("x\u{1}", "a")),
        ("empty name", with("", "a")),
        ("CR LF in a value", with("x", "a\r\nb: c")),
        ("LF in a value", with("x", "a\nb")),
        ("NUL in a value", with("x", "a\0b")),
        ("space before a value", with("x", " a")),
        ("space behind a value", with("x", "a ")),
        ("connection", with("connection", "close")),
        ("keep-alive", with("keep-alive", "5")),
        ("proxy-connection", with("proxy-connection", "x")),
        ("transfer-encoding", with("transfer-encoding", "chunked")),
        ("upgrade", with("upgrade", "h2c")),
        ("te", with("te", "gzip")),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("unknown pseudo-field", with(":what", "a")),
        ("method twice", with(":method", "GET")),
        ("path twice", with(":path", "/b")),
        ("status in a request", with(":status", "200")),
        ("pseudo-field behind others", [("x", "y")].into_iter().chain(whole).collect()),
        ("empty path", changed(":path", "")),
        ("path without a slash", changed(":path", "a")),
        ("path with a space", changed(":path", "/a b")),
        ("path with CR LF", changed(":path", "/ HTTP/1.1\r\nx: y")),
        ("asterisk with GET", changed(":path", "*")),
        ("method with a space", changed(":method", "GET / HTTP/1.1\r\nx")),
        ("empty method", changed(":method", "")),
        ("scheme with a target", changed(":scheme", "http://x/?")),
        ("authority with CR LF", changed(":authority", "a.test\r\nx: y")),
        ("authority with user information", changed(":authority", "u@a.test")),
        ("authority with a path", changed(":authority", "a.test/x")),
        ("empty authority", changed(":authority", "")),
        ("no authority at all", without(":authority")),
        ("another host", with("host", "b.test")),
        ("host twice", with("host", "a.test").into_iter().chain([("host", "a.test")]).collect()),
        ("extended CONNECT with a length", {
            let mut fields = changed(":method", "CONNECT");
            fields.extend([(":protocol", "websocket"), ("content-length", "3")]);
            fields
        }),
        ("a protocol and another method", with(":protocol", "websocket")),
        ("CONNECT with a path", changed(":method", "CONNECT")),
        ("CONNECT without authority", vec![(":method", "CONNECT")]),
        ("CONNECT", vec![(":method", "CONNECT"), (":authority", "a.test:80")]),
        ("underscored length", with("content_length", "3")),
        ("two lengths", with("content-length", "0").into_iter().chain([("content-length", "3")]).collect()),
        ("length of words", with("content-length", "+0")),
        ("percent NUL", changed(":path", "/%00")),
    ];
    for (row, fields) in rows {
        let mut client = RawClient::connect(gateway.web());
        client.send(&headers(1, ENDS, &block(&fields)));
        let answer = client.until(|frame| {
            (frame.stream == 1 && matches!(frame.kind, RST_STREAM | HEADERS)) || frame.kind == GOAWAY
        });
        let answer = answer.unwrap_or_else(|| panic!("{row}: no answer"));
        match answer.code() {
            // A status of the static table: 400; else a literal of it (405).
            None => assert!(matches!(answer.payload[0], 0x8c | 0x08 | 0x48), "{row}: {:x?}", answer.payload),
            Some(code) => assert_eq!(code, PROTOCOL_ERROR, "{row}"),
        }
        // A stream's error leaves the connection to others.
        if answer.kind != GOAWAY {
            client.send(&request(3));
            assert_eq!(client.verdict(3), None, "{row}");
            assert_eq!(origin.targets(), ["/"], "{row}");
        }
        origin.forget();
    }
}

/// Rows F8 to F11.
fn heads_beyond_a_limit_get_their_status(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin)
        .limits("fields_max = 64\nhead_bytes_max = 8192\ntarget_bytes_max = 4096")
        .start();
    run(async {
        let mut send = connect(gateway.web()).await;
        let mut crumbs = get_request("/");
        (0..65).for_each(|i| {
            crumbs.headers_mut().append("cookie", format!("a={i}").parse().unwrap());
        });
        assert_eq!(fetch(&mut send, crumbs).await.unwrap().status, 431);
        let mut large = get_request("/");
        large.headers_mut().append("x", "y".repeat(9_000).parse().unwrap());
        assert_eq!(fetch(&mut send, large).await.unwrap().status, 431);
        assert_eq!(fetch(&mut send, get_request("/fits")).await.unwrap().status, 200);
    });
    // References to one entry of the table, nothing but an index each.
    for (row, entry, count, codes) in [
        ("5,000 references to one name", ("x", "y"), 5_000, &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR][..]),
        ("100 references to one host", ("host", "site.test"), 100, &[PROTOCOL_ERROR][..]),
    ] {
        let mut client = RawClient::connect(gateway.web());
        let mut fields = get(&[]);
        let mut literal = block(&[entry]);
        literal[0] = 0x40;
        fields.extend(literal);
        fields.extend(std::iter::repeat_n(0xbe, count));
        client.send(&headers(1, ENDS, &fields));
        let answer = client.until(|frame| matches!(frame.kind, RST_STREAM | HEADERS | GOAWAY)).unwrap();
        assert!(answer.code().is_none_or(|code| codes.contains(&code)), "{row}: {answer:?}");
    }
    assert_eq!(origin.targets(), ["/fits"]);
}

/// Row F6, before anything goes up.
fn a_length_that_data_does_not_add_up_to_is_no_request(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let post = |length| {
        let mut fields = get(&[("content-length", length)]);
        // The method, `GET` as a literal, made PUT.
        let at = fields.windows(3).position(|three| three == b"GET").unwrap();
        fields[at..at + 3].copy_from_slice(b"PUT");
        fields
    };
    let mut client = RawClient::connect(gateway.web());
    client.send(&headers(1, ENDS, &post("5")));
    assert_eq!(client.verdict(1), Some(PROTOCOL_ERROR));
}

fn a_wrong_body_never_looks_whole_to_an_http1_endpoint(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let post = |length| {
        block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/up"),
            (":authority", "site.test"),
            ("content-length", length),
        ])
    };
    for (row, body) in [
        ("too short", frame(DATA, END_STREAM, 1, b"abc")),
        ("too long", frame(DATA, END_STREAM, 1, b"abcdefgh")),
        (
            "short with trailers",
            joined(&[frame(DATA, 0, 1, b"abc"), headers(1, ENDS, &block(&[("x", "y")]))]),
        ),
    ] {
        let mut client = RawClient::connect(gateway.web());
        client.send(&headers(1, END_HEADERS, &post("5")));
        client.send(&body);
        assert_eq!(client.verdict(1), Some(PROTOCOL_ERROR), "{row}");
        eventually("the endpoint's connection is closed, not pooled", || origin.open() == 0);
        assert!(origin.requests().is_empty(), "{row}");
    }
    assert_eq!(gateway.metric("ringfort_upstream_connections_idle", ""), 0.0);
}

fn trailers_that_are_wrong_end_the_stream(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    for (row, trailers) in [
        ("te", block(&[("te", "x")])),
        ("connection", block(&[("connection", "x")])),
        ("upper case", block(&[("X", "y")])),
        ("CR LF", block(&[("x", "a\r\nb")])),
        ("space", block(&[("x", " a")])),
    ] {
        let mut client = RawClient::connect(gateway.web());
        let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/up"), (":authority", "a.test")];
        client.send(&headers(1, END_HEADERS, &block(&fields)));
        client.send(&frame(DATA, 0, 1, b"abc"));
        client.send(&headers(1, ENDS, &trailers));
        assert_eq!(client.verdict(1), Some(PROTOCOL_ERROR), "{row}");
        eventually("the endpoint's connection is closed", || origin.open() == 0);
        assert!(origin.requests().is_empty(), "{row}");
    }
}

/// Row E10.
fn more_streams_than_allowed_are_refused(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).limits("http2_streams_max = 3").start();
    let mut client = RawClient::connect(gateway.web());
    let late =
        block(&[(":method", "GET"), (":scheme", "http"), (":path", "/late/500"), (":authority", "a.test")]);
    for stream in [1, 3, 5, 7] {
        client.send(&headers(stream, ENDS, &late));
    }
    assert_eq!(client.verdict(7), Some(REFUSED_STREAM));
    assert_eq!(client.verdict(5), None);
    assert_eq!(origin.requests().len(), 3);
}

fn a_field_block_that_never_ends_is_given_up(engine: Engine) {
    let gateway = Setup::answering(engine).header_timeout_ms(300).start();
    let mut client = RawClient::connect(gateway.web());
    client.send(&request(1));
    assert_eq!(client.verdict(1), None);
    client.send(&headers(3, 0, &get(&[])));
    assert_eq!(end_of(&mut client), Some(ENHANCE_YOUR_CALM));
    eventually("it is counted", || {
        gateway.metric("ringfort_sessions_ended_total", "reason=\"header_timeout\"") == 1.0
    });
}

/// Row E16.
fn settings_that_are_never_acknowledged_end_the_connection(engine: Engine) {
    let gateway = Setup::answering(engine).header_timeout_ms(300).start();
    let mut client = RawClient::silent(gateway.web());
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.send(&joined(&[frame(SETTINGS, 0, 0, &[]), request(1)]));
    assert_eq!(client.verdict(1), None);
    assert_eq!(end_of(&mut client), Some(SETTINGS_TIMEOUT));
}

/// Row E19: what is on its way when SETTINGS lower the window makes it negative, and nothing goes until it is positive.
fn a_window_that_shrinks_below_zero_is_waited_for(engine: Engine) {
    const BYTES: usize = 200_000;
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = RawClient::connect(gateway.web());
    let path = format!("/bytes/{BYTES}");
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", &path), (":authority", "a.test")];
    client.send(&headers(1, ENDS, &block(&fields)));
    let mut received = 0;
    while received < 65_535 {
        let data = client.until(|frame| frame.kind == DATA).expect("DATA");
        received += data.payload.len();
    }
    assert_eq!(received, 65_535);
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    client.send(&frame(WINDOW_UPDATE, 0, 0, &0x10_0000_u32.to_be_bytes()));
    // The stream's window is -65,535 now, and 0 with this.
    client.send(&frame(WINDOW_UPDATE, 0, 1, &65_535_u32.to_be_bytes()));
    client.send(&frame(PING, 0, 0, &[9; 8]));
    let next = client.until(|frame| matches!(frame.kind, DATA | PING | RST_STREAM | GOAWAY)).unwrap();
    assert_eq!(next.kind, PING);
    client.send(&frame(WINDOW_UPDATE, 0, 1, &(BYTES as u32).to_be_bytes()));
    while let Some(data) = client.until(|frame| frame.kind == DATA) {
        received += data.payload.len();
        if data.flags & END_STREAM != 0 {
            break;
        }
    }
    assert_eq!(received, BYTES);
}

/// RFC 9113 §8.3.1 and §8.1 call these malformed. The crate takes away what is wrong before anybody sees it, so that
/// nothing of it goes up.
fn what_the_crate_hides_from_us_does_no_harm(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = RawClient::connect(gateway.web());
    let fields = |method, path| {
        block(&[(":method", method), (":scheme", "http"), (":path", path), (":authority", "a.test")])
    };
    client.send(&headers(1, ENDS, &fields("GET", "/a?b#fragment")));
    assert_eq!(client.verdict(1), None);
    client.send(&headers(3, END_HEADERS, &fields("POST", "/up")));
    client.send(&frame(DATA, 0, 3, b"abc"));
    client.send(&headers(3, ENDS, &block(&[(":path", "/other"), ("x-sum", "1")])));
    assert_eq!(client.verdict(3), None);
    assert_eq!(origin.targets(), ["/a?b", "/up"]);
    let sent = origin.raw_bytes();
    let holds = |text: &[u8]| sent.windows(text.len()).any(|bytes| bytes == text);
    assert!(!holds(b"fragment") && !holds(b"/other"), "{}", sent.escape_ascii());
}
