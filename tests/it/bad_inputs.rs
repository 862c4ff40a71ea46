//! Inputs that an edge gateway must refuse, one row each, by the numbers of the catalogue (A: request line and host,
//! B: fields, C: framing). Every row is sent alone and with a second request behind it, and judged at the origin too:
//! a status alone does not show that nothing was smuggled. What endpoints may get wrong (D) is in `bad_responses.rs`.

use std::time::Duration;

use crate::harness::client::Client;
use crate::harness::gateway::Gateway;
use crate::harness::message::{NoMessage, find, latin1, show};
use crate::harness::origin::{Origin, Request};
use crate::harness::setup::Setup;
use crate::harness::{Engine, holds_within, on_both_engines};

on_both_engines!(
    request_lines_get_their_outcome,
    hosts_and_targets_get_their_outcome,
    fields_get_their_outcome,
    framing_gets_its_outcome,
    broken_bodies_abort_their_request,
    expectations_upgrades_and_hops_get_their_outcome,
    a_head_over_a_limit_is_refused_within_it,
    a_body_cut_short_never_completes_upstream,
    a_gateway_that_is_its_own_upstream_does_not_loop_for_ever,
    a_clients_request_id_is_not_forwarded,
);

/// What must happen to one input.
enum Outcome {
    /// One response with one of these statuses and `Connection: close`, then the end; not a byte reaches the origin.
    Refused(&'static [u16]),
    /// The end of the connection, before it at most one response with one of these; not a byte reaches the origin.
    RefusedOrClosed(&'static [u16]),
    /// The head was good and the body is not: the request never completes at the origin, the client gets one of these
    /// statuses or the end, and what follows is not read as a request.
    Aborted(&'static [u16]),
    /// Answered with one of these without the origin; the connection may go on.
    Answered(&'static [u16]),
    /// Served by the origin as exactly one request that passes the check; a second request is served as its own.
    Served(fn(&Request)),
    /// Either of: refused with 400 or 501, or served as above.
    ServedOr(&'static [u16], fn(&Request)),
}

use Outcome::{Aborted, Answered, Refused, RefusedOrClosed, Served, ServedOr};

struct Row {
    id: &'static str,
    bytes: Vec<u8>,
    outcome: Outcome,
}

fn row(id: &'static str, bytes: impl AsRef<[u8]>, outcome: Outcome) -> Row {
    Row { id, bytes: bytes.as_ref().to_vec(), outcome }
}

const BAD: &[u16] = &[400];
const SECOND: &str = "GET /second HTTP/1.1\r\nHost: a.test\r\n\r\n";

fn any(_: &Request) {}

/// Runs every row alone and followed by a second request; collects all failures before it fails.
fn run(engine: Engine, rows: &[Row]) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).header_timeout_ms(1000).start();
    let mut failures = Vec::new();
    for row in rows {
        for (variant, second) in [("alone", ""), ("followed", SECOND)] {
            origin.forget();
            let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                judge(&gateway, &origin, row, second);
            }));
            if let Err(cause) = judged {
                let cause =
                    cause.downcast_ref::<String>().cloned().unwrap_or_else(|| "a check of the row".into());
                failures.push(format!("{} {variant}: {}: {cause}", row.id, show(&row.bytes)));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

fn judge(gateway: &Gateway, origin: &Origin, row: &Row, second: &str) {
    let mut client = gateway.client();
    client.read_timeout(Duration::from_secs(5));
    // The gateway may answer and close before it took everything: what counts is what it did.
    let _ = client.try_send([&row.bytes, second.as_bytes()].concat());
    let first = client.try_read_response(method(&row.bytes));
    match &row.outcome {
        Refused(statuses) => {
            let response = first.unwrap_or_else(|none| panic!("no response but {none:?}"));
            assert!(statuses.contains(&response.status), "status {}", response.status);
            assert!(response.closes(), "no Connection: close in {:?}", response.fields);
            client.expect_end();
            assert_nothing_reached(origin);
        }
        RefusedOrClosed(statuses) => {
            match first {
                Ok(response) => {
                    assert!(statuses.contains(&response.status), "status {}", response.status);
                    client.expect_end();
                }
                Err(none) => assert!(matches!(none, NoMessage::Closed | NoMessage::Reset), "{none:?}"),
            }
            assert_nothing_reached(origin);
        }
        Aborted(statuses) => {
            match first {
                Ok(response) => {
                    assert!(statuses.contains(&response.status), "status {}", response.status);
                    client.expect_end();
                }
                Err(none) => assert!(matches!(none, NoMessage::Closed | NoMessage::Reset), "{none:?}"),
            }
            let gone = holds_within(Duration::from_secs(3), || origin.open() == 0);
            assert!(gone, "the upstream connection is still open");
            assert!(origin.requests().is_empty(), "completed at the origin: {:?}", origin.targets());
            assert!(find(&origin.raw_bytes(), b"/second").is_none(), "the second request reached the origin");
        }
        Answered(statuses) => {
            let response = first.unwrap_or_else(|none| panic!("no response but {none:?}"));
            assert!(statuses.contains(&response.status), "status {}", response.status);
            let closes = response.closes();
            finish(&mut client, second, closes);
            let wanted: &[&str] = if second.is_empty() || closes { &[] } else { &["/second"] };
            assert_eq!(origin.targets(), wanted, "at the origin");
        }
        Served(check) => served(&mut client, origin, first, second, *check),
        ServedOr(statuses, check) => match first {
            Ok(response) if statuses.contains(&response.status) => {
                let closes = response.closes();
                finish(&mut client, second, closes);
                let wanted: &[&str] = if second.is_empty() || closes { &[] } else { &["/second"] };
                assert_eq!(origin.targets(), wanted, "at the origin");
            }
            first => served(&mut client, origin, first, second, *check),
        },
    }
}

fn served(
    client: &mut Client,
    origin: &Origin,
    first: Result<crate::harness::client::Response, NoMessage>,
    second: &str,
    check: fn(&Request),
) {
    let response = first.unwrap_or_else(|none| panic!("no response but {none:?}"));
    assert_eq!(response.status, 200, "{}", response.text());
    let closes = response.closes();
    finish(client, second, closes);
    let requests = origin.requests();
    let wanted = if second.is_empty() || closes { 1 } else { 2 };
    assert_eq!(requests.len(), wanted, "requests at the origin: {:?}", origin.targets());
    check(&requests[0]);
    assert!(wanted == 1 || requests[1].target == "/second", "{:?}", origin.targets());
}

/// The second request, where one was sent, is served on the same connection unless the first response closed it.
fn finish(client: &mut Client, second: &str, closes: bool) {
    if closes {
        client.expect_end();
    } else if !second.is_empty() {
        let response = client.read_response();
        assert!(response.status == 200 && response.text().starts_with("GET /second "), "{}", response.text());
    }
}

fn assert_nothing_reached(origin: &Origin) {
    // Nothing is expected; what is on its way would come within this time.
    let reached = holds_within(Duration::from_millis(2), || !origin.raw_bytes().is_empty());
    assert!(!reached, "reached the origin: {}", show(&origin.raw_bytes()));
}

/// HEAD changes how a response is read; nothing else does.
fn method(bytes: &[u8]) -> &'static str {
    if bytes.starts_with(b"HEAD ") { "HEAD" } else { "GET" }
}

fn get(line: &str) -> String {
    format!("{line}\r\nHost: a.test\r\n\r\n")
}

/// A GET with this field line (or these) behind Host.
fn with(field: &str) -> String {
    format!("GET /row HTTP/1.1\r\nHost: a.test\r\n{field}\r\n\r\n")
}

/// A GET with this field line in raw bytes.
fn with_bytes(field: &[u8]) -> Vec<u8> {
    [b"GET /row HTTP/1.1\r\nHost: a.test\r\n", field, b"\r\n\r\n"].concat()
}

/// A POST with these framing fields and this body.
fn post(fields: &str, body: &str) -> String {
    format!("POST /row HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n\r\n{body}")
}

/// A POST with a chunked body of exactly these bytes.
fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked", body)
}

fn request_lines_get_their_outcome(engine: Engine) {
    let long = |len: usize| get(&format!("GET /{} HTTP/1.1", "a".repeat(len)));
    let mut rows = vec![
        row("A9 HTTP/2.0", get("GET / HTTP/2.0"), Refused(&[400, 505])),
        row("A9 HTTP/9.9", get("GET / HTTP/9.9"), Refused(&[400, 505])),
        row("A9 HTTP/1.2", get("GET / HTTP/1.2"), ServedOr(&[400, 505], any)),
        row("A10 HTTP/1", get("GET / HTTP/1"), Refused(BAD)),
        row("A10 http/1.1", get("GET / http/1.1"), Refused(BAD)),
        row("A10 HTTP/01.1", get("GET / HTTP/01.1"), Refused(BAD)),
        row("A10 HTTP/1 .1", get("GET / HTTP/1 .1"), Refused(BAD)),
        row("A10 HTTP/1.1.1", get("GET / HTTP/1.1.1"), Refused(&[400, 505])),
        row("A11 HTTP/0.9", "GET /\r\n", Refused(&[400, 408])),
        row("A11 HTTP/0.9 with Host", get("GET /"), Refused(BAD)),
        row("A12 two spaces", get("GET  / HTTP/1.1"), Refused(BAD)),
        row("A12 two spaces before the version", get("GET /  HTTP/1.1"), Refused(BAD)),
        row("A12 tab", get("GET\t/ HTTP/1.1"), Refused(BAD)),
        row("A12 trailing space", get("GET / HTTP/1.1 "), Refused(BAD)),
        row("A12 leading space", get(" GET / HTTP/1.1"), Refused(BAD)),
        row("A12 space in target", get("GET /a b HTTP/1.1"), Refused(BAD)),
        row("A12 CR in target", get("GET /a\rb HTTP/1.1"), Refused(BAD)),
        row("A12 CR in method", get("G\rET / HTTP/1.1"), Refused(BAD)),
        row("A15 a target over the limit", long(9_000), Refused(&[414])),
        row("A15 a target of 8,000", long(7_999), Served(|r| assert_eq!(r.target.len(), 8_000))),
        row(
            "A16 a method of 100 kB",
            get(&format!("{} / HTTP/1.1", "A".repeat(100_000))),
            Refused(&[400, 501]),
        ),
        row("A16 lower case", get("get /row HTTP/1.1"), ServedOr(&[501], |r| assert_eq!(r.method, "get"))),
        row(
            "A16 a method of its own",
            get("BREW /row HTTP/1.1"),
            ServedOr(&[501], |r| assert_eq!(r.method, "BREW")),
        ),
        row("A16 no token", get("G@T / HTTP/1.1"), Refused(BAD)),
        row("A19 a ClientHello", client_hello(), RefusedOrClosed(&[400, 505])),
        row("A20 a leading CRLF", format!("\r\n{}", get("GET /row HTTP/1.1")), Served(any)),
        row("A20 a leading line of white space", format!(" \r\n{}", get("GET / HTTP/1.1")), Refused(BAD)),
        row("A20 an endless run of CRLF", "\r\n".repeat(20_000), RefusedOrClosed(&[400, 408, 431])),
    ];
    for (n, junk) in
        [&b"\x16\xffjunk\r\n\r\n"[..], b"\x00\x00\x00\x00\r\n\r\n", b"}}}{{{\r\n\r\n"].iter().enumerate()
    {
        rows.push(row(["A19 junk 1", "A19 junk 2", "A19 junk 3"][n], junk, RefusedOrClosed(&[400, 505])));
    }
    run(engine, &rows);
}

fn hosts_and_targets_get_their_outcome(engine: Engine) {
    let host = |fields: &str| format!("GET /row HTTP/1.1\r\n{fields}\r\n");
    let target = |target: &[u8]| [b"GET ", target, b" HTTP/1.1\r\nHost: a.test\r\n\r\n"].concat();
    let b = |text: &str| text.as_bytes().to_vec();
    let rows = [
        row("A1 no Host", host(""), Refused(BAD)),
        row("A2 two hosts", host("Host: a.test\r\nHost: b.test\r\n"), Refused(BAD)),
        row("A3 one host twice", host("Host: a.test\r\nHost: a.test\r\n"), Refused(BAD)),
        row("A4 a list", host("Host: a.test, b.test\r\n"), Refused(BAD)),
        row("A4 a path", host("Host: a.test/b\r\n"), Refused(BAD)),
        row("A4 user information", host("Host: u@a.test\r\n"), Refused(BAD)),
        row("A4 empty", host("Host:\r\n"), Refused(BAD)),
        row("A4 white space", host("Host: a.test b\r\n"), Refused(BAD)),
        row("A4 a port that is none", host("Host: a.test:x\r\n"), Refused(BAD)),
        row(
            "A5 another authority",
            target(b"http://b.test/row"),
            ServedOr(BAD, |r| {
                assert_eq!((r.fields.all("host"), r.target.as_str()), (vec!["b.test"], "/row"));
            }),
        ),
        row("A5 user information", target(b"http://u@a.test/row"), Refused(BAD)),
        row("A6 asterisk", target(b"*"), Refused(BAD)),
        row("A6 authority", target(b"a.test:80"), Refused(BAD)),
        row("A6 a word", target(b"admin"), Refused(BAD)),
        row("A7 OPTIONS *", get("OPTIONS * HTTP/1.1"), Served(|r| assert_eq!(r.target, "*"))),
        row("A8 CONNECT", get("CONNECT a.test:443 HTTP/1.1"), Refused(&[405, 501])),
        row("A8 CONNECT without port", get("CONNECT a.test HTTP/1.1"), Refused(BAD)),
        row("A8 CONNECT of a path", get("CONNECT /row HTTP/1.1"), Refused(BAD)),
        row("A13 NUL", target(b"/\0x"), Refused(BAD)),
        row("A13 a control", target(b"/\x01x"), Refused(BAD)),
        row("A13 DEL", target(b"/\x7fx"), Refused(BAD)),
        row("A13 raw UTF-8", target("/caf\u{e9}".as_bytes()), Refused(BAD)),
        row("A13 overlong UTF-8", target(b"/\xc0\xaf"), Refused(BAD)),
        row("A14 a fragment", b("GET /row#x HTTP/1.1\r\nHost: a.test\r\n\r\n"), Refused(BAD)),
        row(
            "A17 ..",
            target(b"/a/../../etc"),
            ServedOr(BAD, |r| assert!(!r.target.contains(".."), "{}", r.target)),
        ),
        row("A17 %2e%2e", target(b"/a/%2e%2e/%2E./etc"), ServedOr(BAD, |r| assert_eq!(r.target, "/etc"))),
        row("A17 //", target(b"//a//b"), ServedOr(BAD, |r| assert_eq!(r.target, "//a//b"))),
        row("A17 %2f", target(b"/a%2fb"), ServedOr(BAD, |r| assert_eq!(r.target, "/a%2fb"))),
        row("A17 %00", target(b"/a%00b"), Refused(BAD)),
    ];
    run(engine, &rows);
}

fn fields_get_their_outcome(engine: Engine) {
    let rows = [
        row("B1 space before the colon", with("Name : v"), Refused(BAD)),
        row("B1 tab before the colon", with("Name\t: v"), Refused(BAD)),
        row("B2 a folded line", with("Name: v\r\n w"), Refused(BAD)),
        row("B2 a line folded by tab", with("Name: v\r\n\tw"), Refused(BAD)),
        row("B3 space before the first field", "GET / HTTP/1.1\r\n Host: a.test\r\n\r\n", Refused(BAD)),
        row("B3 a line of space first", "GET / HTTP/1.1\r\n \r\nHost: a.test\r\n\r\n", Refused(BAD)),
        row("B4 an empty name", with(": v"), Refused(BAD)),
        row("B4 only a colon", with(":"), Refused(BAD)),
        row("B5 no colon", with("Name"), Refused(BAD)),
        row("B6 brackets", with("Na[me]: v"), Refused(BAD)),
        row("B6 space", with("Na me: v"), Refused(BAD)),
        row("B6 a control", with_bytes(b"Na\x01me: v"), Refused(BAD)),
        row("B6 NUL", with_bytes(b"Na\0me: v"), Refused(BAD)),
        row("B6 non-ASCII", with_bytes(b"Na\xc3\xa9me: v"), Refused(BAD)),
        row("B7 NUL", with_bytes(b"Name: a\0b"), Refused(BAD)),
        row("B7 a bare CR", with("Name: a\rb"), Refused(BAD)),
        row("B7 a bare LF", with("Name: a\nb: c"), Refused(BAD)),
        row("B8 a control", with_bytes(b"Name: a\x08b"), Refused(BAD)),
        row("B8 DEL", with_bytes(b"Name: a\x7fb"), Refused(BAD)),
        row("B9 bare LF ends", "GET /row HTTP/1.1\nHost: a.test\n\n", Refused(BAD)),
        row("B9 a bare LF behind the request line", "GET /row HTTP/1.1\nHost: a.test\r\n\r\n", Refused(BAD)),
        row("B9 a bare LF behind a field", "GET /row HTTP/1.1\r\nHost: a.test\nA: b\r\n\r\n", Refused(BAD)),
        row("B11 Content_Length", with("Content_Length: 5"), ServedOr(BAD, no_underscores)),
        row("B11 Transfer_Encoding", with("Transfer_Encoding: chunked"), ServedOr(BAD, no_underscores)),
        row(
            "B12 a listed field",
            with("Connection: x-secret, keep-alive\r\nX-Secret: 1"),
            Served(|r| {
                assert!(!r.fields.has("x-secret"), "{:?}", r.fields);
            }),
        ),
        row(
            "B12 a security field listed",
            with("Connection: X-Forwarded-For\r\nX-Forwarded-For: 6.6.6.6"),
            Served(|r| {
                assert_eq!(r.fields.all("x-forwarded-for"), ["127.0.0.1"]);
            }),
        ),
        row(
            "B12 Host listed",
            with("Connection: Host, Content-Length"),
            ServedOr(BAD, |r| {
                assert_eq!(r.fields.all("host"), ["a.test"]);
            }),
        ),
        row(
            "B13 hop-by-hop fields",
            with("Proxy-Connection: x\r\nKeep-Alive: 5\r\nTE: gzip\r\nUpgrade: foo"),
            Served(|r| {
                for name in ["proxy-connection", "keep-alive", "te", "upgrade"] {
                    assert!(!r.fields.has(name), "{name}: {:?}", r.fields);
                }
            }),
        ),
        row(
            "B14 spoofed forwarded fields",
            with(
                "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\n\
             Forwarded: for=6.6.6.6\r\nX-Forwarded-Client-Cert: By=evil",
            ),
            Served(|r| {
                assert_eq!(r.fields.all("x-forwarded-for"), ["127.0.0.1"]);
                assert_eq!(r.fields.all("x-forwarded-proto"), ["http"]);
                assert_eq!(r.fields.all("x-forwarded-host"), ["a.test"]);
                assert!(
                    !r.fields.has("forwarded") && !r.fields.has("x-forwarded-client-cert"),
                    "{:?}",
                    r.fields
                );
            }),
        ),
        row(
            "B good values",
            with_bytes(b"Name: \t caf\xc3\xa9 \"x\", y;z=1 \t"),
            Served(|r| {
                assert_eq!(r.fields.get("name"), Some(latin1("caf\u{e9} \"x\", y;z=1".as_bytes()).as_str()));
            }),
        ),
    ];
    run(engine, &rows);
}

fn framing_gets_its_outcome(engine: Engine) {
    let te = |value: &str| post(&format!("Transfer-Encoding: {value}"), "0\r\n\r\n");
    let te_bytes = |value: &[u8]| {
        [b"POST /row HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: ", value, b"\r\n\r\n0\r\n\r\n"].concat()
    };
    let mut rows = vec![
        row("C1 CL.TE", post("Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\nG"), Refused(BAD)),
        row(
            "C1 TE.CL",
            post("Transfer-Encoding: chunked\r\nContent-Length: 3", "8\r\nSMUGGLED\r\n0\r\n\r\n"),
            Refused(BAD),
        ),
        row("C2 two lengths", post("Content-Length: 5\r\nContent-Length: 6", "hello"), Refused(BAD)),
        row("C2 a list of two", post("Content-Length: 5, 6", "hello"), Refused(BAD)),
        row(
            "C3 one length twice",
            post("Content-Length: 5\r\nContent-Length: 5", "hello"),
            ServedOr(BAD, five_bytes),
        ),
        row("C3 a list of one twice", post("Content-Length: 5, 5", "hello"), ServedOr(BAD, five_bytes)),
        row(
            "C6 a leading zero",
            post("Content-Length: 010", "helloworld"),
            Served(|r| {
                assert_eq!((r.fields.all("content-length"), r.body_len), (vec!["10"], 10));
            }),
        ),
        row("C8 gzip, chunked", te("gzip, chunked"), Refused(&[400, 422, 501])),
        row("C9 VT", te_bytes(b"\x0bchunked"), Refused(BAD)),
        row("C9 FF", te_bytes(b"\x0cchunked"), Refused(BAD)),
        row("C9 NUL", te_bytes(b"chunked\0"), Refused(BAD)),
        row("C9 0xA0", te_bytes(b"\xa0chunked"), Refused(&[400, 501])),
        row("C9 space inside", te("chun ked"), Refused(&[400, 501])),
        row("C9 space before the colon", post("Transfer-Encoding : chunked", "0\r\n\r\n"), Refused(BAD)),
        row("C9 a folded value", post("Transfer-Encoding:\r\n chunked", "0\r\n\r\n"), Refused(BAD)),
        row(
            "C9 a second line",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n"),
            Refused(&[400, 501]),
        ),
        row(
            "C9 the same line twice",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            Refused(&[400, 501]),
        ),
        row("C9 tab before the value", te("\tchunked"), ServedOr(BAD, any)),
        row("C9 another case", te("ChUnKeD"), ServedOr(BAD, any)),
        row(
            "C10 HTTP/1.0",
            post("Transfer-Encoding: chunked", "0\r\n\r\n").replace("1.1", "1.0"),
            Refused(BAD),
        ),
        row(
            "C10 HTTP/1.0 with both",
            post("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n").replace("1.1", "1.0"),
            Refused(BAD),
        ),
        row(
            "C11 HTTP/1.0 POST without length",
            "POST /row HTTP/1.0\r\nHost: a.test\r\n\r\n",
            Served(no_body),
        ),
        row(
            "C11 HTTP/1.1 POST without length",
            "POST /row HTTP/1.1\r\nHost: a.test\r\n\r\n",
            Served(no_body),
        ),
    ];
    for value in [
        "+5", "-1", "-0", "0x5", "0o5", "5_0", "5 0", "1e1", "", "\u{ff15}", "5;", "5.0", "\"5\"", ",5", "5,",
    ] {
        rows.push(row(
            "C4 a length that is none",
            post(&format!("Content-Length: {value}"), "hello"),
            Refused(BAD),
        ));
    }
    for value in ["9223372036854775808", "18446744073709551616", "99999999999999999999", &"9".repeat(40)] {
        rows.push(row(
            "C5 a huge length",
            post(&format!("Content-Length: {value}"), "hello"),
            Refused(&[400, 413]),
        ));
    }
    for value in [
        "xchunked",
        "identity",
        "gzip",
        "chunked, gzip",
        "chunked, chunked",
        "",
        ", chunked",
        "chunked,",
        "\"chunked\"",
        "chunked;a=b",
        "chunked chunked",
        "chunked\t,gzip",
    ] {
        rows.push(row("C7 a coding that is none", te(value), Refused(&[400, 501])));
        let both = post(&format!("Transfer-Encoding: {value}\r\nContent-Length: 5"), "hello");
        rows.push(row("C7 with a length", both, Refused(&[400, 501])));
    }
    for method in ["GET", "HEAD", "OPTIONS", "DELETE"] {
        let length = post("Content-Length: 5", "hello").replace("POST", method);
        rows.push(row("C12 a body with a length", length, ServedOr(BAD, five_bytes)));
        let chunks = chunked("5\r\nhello\r\n0\r\n\r\n").replace("POST", method);
        rows.push(row("C12 a chunked body", chunks, ServedOr(BAD, five_bytes)));
    }
    run(engine, &rows);
}

fn broken_bodies_abort_their_request(engine: Engine) {
    let mut rows = vec![
        row("C14 an extension with NUL", chunked("5;\0x\r\nhello\r\n0\r\n\r\n"), Aborted(BAD)),
        row("C14 an extension with LF", chunked("5;x\nhello\r\n0\r\n\r\n"), Aborted(BAD)),
        row("C14 an extension with a bare CR", chunked("5;a\rX\r\nhello\r\n0\r\n\r\n"), Aborted(BAD)),
        row(
            "C16 an extension of 64 kB",
            chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(65_536))),
            Aborted(&[400, 413]),
        ),
        row(
            "C16 one-byte chunks with long extensions",
            chunked(&format!("1;{}\r\nx\r\n", "a".repeat(200)).repeat(400)),
            Aborted(&[400, 413]),
        ),
        row("C17 LF behind the size", chunked("5\nhello\r\n0\r\n\r\n"), Aborted(BAD)),
        row("C17 CR behind the size", chunked("5\rhello\r\n0\r\n\r\n"), Aborted(BAD)),
        row("C17 LF behind the data", chunked("5\r\nhello\n0\r\n\r\n"), Aborted(BAD)),
        row("C17 nothing behind the data", chunked("5\r\nhello0\r\n\r\n"), Aborted(BAD)),
        row("C17 data longer than its size", chunked("5\r\nhello!!\r\n0\r\n\r\n"), Aborted(BAD)),
        row("C17 LF at the end", chunked("5\r\nhello\r\n0\r\n\n"), Aborted(&[400, 408])),
        row("C17 LF behind the last size", chunked("5\r\nhello\r\n0\n\r\n"), Aborted(BAD)),
        row("C20 a trailer with a bad name", chunked("0\r\nbad name: x\r\n\r\n"), Aborted(BAD)),
        row("C20 a folded trailer", chunked("0\r\na: x\r\n y\r\n\r\n"), Aborted(BAD)),
        row(
            "C21 a long trailer section",
            chunked(&format!("0\r\na: {}\r\n\r\n", "x".repeat(20_000))),
            Aborted(&[400, 431]),
        ),
        row(
            "C21 many trailers",
            chunked(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(10_000))),
            Aborted(&[400, 431]),
        ),
        row(
            "C15 a valid extension",
            chunked("5;a=b;c=\"d;e\"\r\nhello\r\n0;z\r\n\r\n"),
            ServedOr(BAD, five_bytes),
        ),
        row(
            "C20 trailers that are no trailers",
            chunked(
                "5\r\nhello\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\nHost: evil.test\r\nAuthorization: x\r\n\r\n",
            ),
            ServedOr(BAD, |r| {
                five_bytes(r);
                for name in ["content-length", "transfer-encoding", "host", "authorization"] {
                    assert!(!r.trailers.has(name), "{:?}", r.trailers);
                }
                assert!(!r.fields.has("authorization"), "{:?}", r.fields);
                assert_eq!(r.fields.all("host"), ["a.test"]);
            }),
        ),
    ];
    for size in
        ["0x5", "+5", "-1", " 5", "5_0", "", "00000000000000005", "FFFFFFFFFFFFFFFF0", "g", "5 ", "5\t"]
    {
        rows.push(row(
            "C13 a size that is none",
            chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n")),
            Aborted(BAD),
        ));
    }
    for bare in ["5;", "5; ", "5;;a", "5;=b", "5;a="] {
        rows.push(row(
            "C14 a bare semicolon",
            chunked(&format!("{bare}\r\nhello\r\n0\r\n\r\n")),
            Aborted(BAD),
        ));
    }
    run(engine, &rows);
}

fn expectations_upgrades_and_hops_get_their_outcome(engine: Engine) {
    const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let refusals: &[u16] = &[400, 426, 501];
    let rows = [
        row("A18 TRACE", with("Max-Forwards: 0").replace("GET", "TRACE"), Answered(&[200, 405, 501])),
        row("A18 OPTIONS", with("Max-Forwards: 0").replace("GET", "OPTIONS"), Answered(&[200, 204, 405])),
        row(
            "A18 one hop more",
            with("Max-Forwards: 1").replace("GET", "OPTIONS"),
            Served(|r| {
                assert_eq!(r.fields.get("max-forwards"), Some("0"));
            }),
        ),
        row("B16 an unknown expectation", with("Expect: nonsense"), Answered(&[417])),
        row(
            "C24 an unknown protocol",
            with("Connection: Upgrade\r\nUpgrade: foo/1"),
            ServedOr(refusals, not_upgraded),
        ),
        row(
            "C24 h2c",
            with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__"),
            ServedOr(refusals, |r| {
                not_upgraded(r);
                assert!(!r.fields.has("http2-settings"), "{:?}", r.fields);
            }),
        ),
        row(
            "C25 an upgrade with a length",
            post(&format!("{WEBSOCKET}\r\nContent-Length: 5"), "hello"),
            ServedOr(refusals, |r| {
                not_upgraded(r);
                five_bytes(r);
            }),
        ),
        row(
            "C25 an upgrade with chunks",
            post(&format!("{WEBSOCKET}\r\nTransfer-Encoding: chunked"), "5\r\nhello\r\n0\r\n\r\n"),
            ServedOr(refusals, |r| {
                not_upgraded(r);
                five_bytes(r);
            }),
        ),
        row("C26 HTTP/1.0", with(WEBSOCKET).replace("HTTP/1.1", "HTTP/1.0"), Served(not_upgraded)),
        row(
            "C27 CONNECT with data",
            "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\nearly data",
            Refused(&[405, 501]),
        ),
    ];
    run(engine, &rows);

    // C23: bytes behind an upgrade that is not granted never reach an origin as part of anything.
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send(format!("{}\x01\x02EARLY FRAMES\r\n\r\n", with(WEBSOCKET)));
    assert_ne!(client.read_response().status, 101);
    let _ = client.read_to_end();
    assert!(find(&origin.raw_bytes(), b"EARLY").is_none(), "{}", show(&origin.raw_bytes()));
}

fn a_head_over_a_limit_is_refused_within_it(engine: Engine) {
    let many = |count: usize| (0..count).map(|n| format!("X-{n}: v")).collect::<Vec<_>>().join("\r\n");
    let too_large: &[u16] = &[431];
    let rows = [
        row("B10 a long field", with(&format!("Name: {}", "v".repeat(20_000))), Refused(too_large)),
        row("B10 a long name", with(&format!("{}: v", "N".repeat(20_000))), Refused(too_large)),
        row(
            "B10 long together",
            with(&format!("A: {0}\r\nB: {0}\r\nC: {0}", "v".repeat(6_000))),
            Refused(too_large),
        ),
        row("B10 many fields", with(&many(200)), Refused(too_large)),
        row("B10 very many fields", with(&many(5_000)), Refused(too_large)),
        row("B10 a megabyte", with(&format!("Name: {}", "v".repeat(1 << 20))), Refused(too_large)),
        row(
            "B10 within the limits",
            with(&many(100)),
            Served(|r| assert_eq!(r.fields.get("x-99"), Some("v"))),
        ),
        row("B10 long within the limit", with(&format!("Name: {}", "v".repeat(15_000))), Served(any)),
    ];
    run(engine, &rows);

    // The limits are the operator's.
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin)
        .limits("head_bytes_max = 2048\ntarget_bytes_max = 512\nfields_max = 16")
        .start();
    for (request, status) in [
        (with(&format!("Name: {}", "v".repeat(2048))), 431),
        (with(&many(20)), 431),
        (get(&format!("GET /{} HTTP/1.1", "a".repeat(600))), 414),
        (with(&many(8)), 200),
    ] {
        let mut client = gateway.client();
        client.send(&request);
        assert_eq!(client.read_response().status, status, "{}", show(request.as_bytes()));
    }
}

fn a_body_cut_short_never_completes_upstream(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    for (id, request) in [
        ("C18 no last chunk", chunked("5\r\nhello\r\n")),
        ("C18 inside a chunk", chunked("5\r\nhel")),
        ("C18 inside the trailers", chunked("5\r\nhello\r\n0\r\nA: b\r\n")),
        ("C19 a length not reached", post("Content-Length: 10", "hello")),
    ] {
        for by_reset in [false, true] {
            origin.forget();
            let mut client = gateway.client();
            client.send(&request);
            let arrived = holds_within(Duration::from_secs(5), || !origin.raw_bytes().is_empty());
            assert!(arrived, "{id}: the head is forwarded while the body arrives");
            if by_reset {
                client.reset();
            } else {
                client.shutdown_write();
                match client.try_read_response("GET") {
                    Ok(response) => assert_eq!(response.status, 400, "{id}"),
                    Err(none) => {
                        assert!(matches!(none, NoMessage::Closed | NoMessage::Reset), "{id}: {none:?}")
                    }
                }
            }
            let gone = holds_within(Duration::from_secs(5), || origin.open() == 0);
            assert!(gone, "{id}: the upstream connection is closed, not pooled");
            assert!(origin.requests().is_empty(), "{id}: it completed at the origin");
        }
    }
    assert_eq!(gateway.get("/after").status, 200);
}

/// Nobody but the edge names a request: under the default policy what the client says of it is dropped.
fn a_clients_request_id_is_not_forwarded(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    for name in ["X-Request-Id", "x-request-id", "X-REQUEST-ID", "X_Request_Id"] {
        client.send(with(&format!("{name}: forged\r\nX-Request-Kind: kept")));
        assert_eq!(client.read_response().status, 200, "{name}");
        let request = origin.requests().pop().unwrap();
        assert_eq!(request.fields.get("x-request-kind"), Some("kept"), "{name}");
        assert!(request.fields.0.iter().all(|(_, value)| value != "forged"), "{name}: {request:?}");
    }
}

/// B17: whichever bound ends it, a loop costs a bounded number of connections and the client gets an error.
fn a_gateway_that_is_its_own_upstream_does_not_loop_for_ever(engine: Engine) {
    let mut gateway = Setup::to_all(engine, &["127.0.0.1:{port:web}".into()])
        .request_timeout_ms(2000)
        .limits("connections_max = 200")
        .start();
    gateway.expect_log("site");
    gateway.expect_log("eject");
    gateway.expect_log("limit");
    let response = gateway.get("/loop");
    assert!(response.status >= 400, "{}", response.status);
    let healthy = holds_within(Duration::from_secs(10), || {
        gateway.admin("/readyz").is_ok_and(|response| response.status == 200)
    });
    assert!(healthy, "the gateway is ready after the loop ended");
}

fn five_bytes(request: &Request) {
    assert_eq!(request.body_len, 5, "{request:?}");
    let framings =
        (request.fields.all("content-length").len(), request.fields.all("transfer-encoding").len());
    assert!(framings == (1, 0) || framings == (0, 1), "{request:?}");
}

fn no_body(request: &Request) {
    assert_eq!(request.body_len, 0, "{request:?}");
    assert!(!request.fields.has("transfer-encoding"), "{request:?}");
}

fn no_underscores(request: &Request) {
    assert!(request.fields.0.iter().all(|(name, _)| !name.contains('_')), "{request:?}");
    assert_eq!(request.body_len, 0, "{request:?}");
}

fn not_upgraded(request: &Request) {
    assert!(!request.fields.has("upgrade"), "{request:?}");
    assert!(
        request.fields.all("connection").iter().all(|v| !v.to_ascii_lowercase().contains("upgrade")),
        "{request:?}"
    );
}

/// The first bytes of a TLS handshake.
fn client_hello() -> Vec<u8> {
    let mut hello = vec![0x16, 0x03, 0x01, 0x00, 0xc8, 0x01, 0x00, 0x00, 0xc4, 0x03, 0x03];
    hello.extend(crate::harness::bytes::random(11, 194));
    hello
}
