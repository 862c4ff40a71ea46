//! Requests: the request line, the fields, the framing. Names of rows (A1 …) are those of the table of bad inputs.

use super::*;
use crate::http::BodyFraming;

#[test]
fn an_ordinary_request_is_taken_apart() {
    let input =
        "POST /a/b?c=d HTTP/1.1\r\nHost: Example.com:8080\r\nContent-Length: 5\r\nAccept: */*\r\n\r\n";
    accepts(input, |head| {
        assert_eq!((head.method, head.version), ("POST", Version::Http11));
        assert_eq!(head.target, Target::Origin { path: "/a/b", query: Some("c=d") });
        assert_eq!((head.authority, head.host), ("Example.com:8080", "Example.com"));
        assert_eq!(head.framing, BodyFraming::Length(5));
        assert!(head.keep_alive && !head.expect_continue && head.upgrade.is_none() && !head.idempotent);
        assert_eq!(head.field("ACCEPT"), Some(&b"*/*"[..]));
        assert_eq!(head.fields().len(), 3);
    });
}

#[test]
fn a1_http11_without_host_is_400_and_http10_without_host_is_not() {
    rejects("GET / HTTP/1.1\r\n\r\n", 400, "missing_host");
    rejects("GET http://a/ HTTP/1.1\r\n\r\n", 400, "missing_host");
    accepts("GET / HTTP/1.0\r\n\r\n", |head| assert_eq!((head.authority, head.host), ("", "")));
}

#[test]
fn a2_a3_two_hosts_are_400_even_when_identical() {
    rejects("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "duplicate_host");
    rejects("GET / HTTP/1.1\r\nHost: a\r\nhOST: a\r\n\r\n", 400, "duplicate_host");
    rejects("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400, "duplicate_host");
}

#[test]
fn a4_a_host_that_is_no_host_is_400() {
    for host in ["a, b", "a/b", "u@a", "", " ", "a b", "a:b", "a\\b", "a?b", "a#b", "[::1", "é"] {
        rejects(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), 400, "bad_host");
    }
}

#[test]
fn a5_the_target_wins_over_host_and_host_is_rewritten() {
    let input = "GET http://b:81/x HTTP/1.1\r\nHost: a\r\n\r\n";
    accepts(input, |head| assert_eq!((head.authority, head.host), ("b:81", "b")));
    let text = upstream(input, ForwardedPolicy::Off, &FieldEdits::default());
    assert_eq!(text, "GET /x HTTP/1.1\r\nHost: b:81\r\n\r\n");
    rejects("GET http://b/ HTTP/1.1\r\nHost: a, c\r\n\r\n", 400, "bad_host");
    rejects("GET http://u@b/ HTTP/1.1\r\nHost: b\r\n\r\n", 400, "bad_target");
    rejects("GET ftp://b/ HTTP/1.1\r\nHost: b\r\n\r\n", 400, "bad_target");
}

#[test]
fn a6_targets_of_the_wrong_form_are_400() {
    for target in ["*", "host:80", "admin", "http://", "http:/a", "?a"] {
        rejects(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), 400, "bad_target");
    }
}

#[test]
fn a7_options_asterisk_is_taken_and_forwarded_as_it_is() {
    let input = "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n";
    accepts(input, |head| assert_eq!(head.target, Target::Asterisk));
    assert!(
        upstream(input, ForwardedPolicy::Off, &FieldEdits::default()).starts_with("OPTIONS * HTTP/1.1\r\n")
    );
}

#[test]
fn a8_connect_needs_host_and_port() {
    accepts("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", |head| {
        assert!(matches!(head.target, Target::Authority(authority) if authority.port == Some(443)));
    });
    rejects("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target");
    rejects("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target");
    rejects("CONNECT http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target");
}

#[test]
fn a9_other_versions_are_505() {
    for version in ["HTTP/2.0", "HTTP/9.9", "HTTP/1.2", "HTTP/0.9", "HTTP/3.0"] {
        rejects(format!("GET / {version}\r\nHost: a\r\n\r\n"), 505, "version_not_supported");
    }
}

#[test]
fn a10_what_is_no_version_is_400() {
    for version in ["HTTP/1", "http/1.1", "HTTP/01.1", "HTTP/1 .1", "HTTP/ 1.1", "HTTP/1.", "HTCPCP/1.0", "X"]
    {
        rejects(format!("GET / {version}\r\nHost: a\r\n\r\n"), 400, "bad_version");
    }
    rejects("GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400, "bad_line_end");
}

#[test]
fn a11_http09_is_400() {
    rejects("GET /\r\n", 400, "bad_target");
    rejects("GET /\n", 400, "bad_target");
    rejects("GET\r\n", 400, "bad_request_line");
}

#[test]
fn a12_wrong_white_space_in_the_request_line_is_400() {
    rejects("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target");
    rejects("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line");
    rejects("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_version");
    rejects("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "bad_line_end");
    rejects("GET / HTTP/1.1\rHost: a\r\n\r\n", 400, "bad_line_end");
    rejects("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_version");
    rejects("GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target");
    rejects(" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line");
}

#[test]
fn a13_control_and_non_ascii_bytes_in_the_target_are_400() {
    let bad: [&[u8]; 7] = [b"\0", b"\x01", b"\x7f", b"\xc3\xa9", b"\xc0\xaf", b"\xff", b"\\"];
    for bytes in bad {
        let input = [b"GET /a", bytes, b"b HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        rejects(input, 400, "bad_target");
    }
}

#[test]
fn a14_a_fragment_in_the_target_is_400() {
    rejects("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target");
    rejects("GET /a?b#c HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target");
}

#[test]
fn a15_a_target_above_the_limit_is_414_and_8000_bytes_are_taken() {
    let request = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(len - 1));
    rejects(request(8_193), 414, "target_too_long");
    rejects(request(100_000), 414, "target_too_long");
    rejects("GET /".to_owned() + &"x".repeat(20_000), 414, "target_too_long");
    rejects("GET /".to_owned() + &"x".repeat(9_000) + "\0 HTTP/1.1\r\n\r\n", 414, "target_too_long");
    accepts(request(8_000), |head| assert_eq!(head.target.path().len(), 8_000));
}

#[test]
fn a15_where_the_head_may_not_be_longer_than_a_target_the_target_is_still_to_blame() {
    let limits = HeadLimits { head_bytes_max: 100, target_bytes_max: 8_000, fields_max: 10 };
    let verdict =
        parse_request(&[b"GET /", &[b'x'; 200][..]].concat(), &mut FieldSlots::new(), &limits).map(|_| ());
    assert_eq!(verdict, Err(Reject::TARGET_TOO_LONG));
}

#[test]
fn a16_methods_are_bounded_and_never_normalised() {
    rejects("A".repeat(100_000), 400, "bad_method");
    rejects("A".repeat(65) + " / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_method");
    accepts("get / HTTP/1.1\r\nHost: a\r\n\r\n", |head| {
        assert_eq!(head.method, "get");
        assert!(!head.idempotent && !head.is_head);
    });
    accepts("A".repeat(64) + " / HTTP/1.1\r\nHost: a\r\n\r\n", |_| {});
}

#[test]
fn a17_an_encoded_nul_in_the_path_is_400() {
    rejects("GET /a%00.html HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_target");
}

#[test]
fn a18_max_forwards_counts_for_options_and_trace_only() {
    for method in ["OPTIONS", "TRACE"] {
        let with = |value: &str| format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {value}\r\n\r\n");
        accepts(with("0"), |head| assert_eq!(head.max_forwards, Some(0)));
        accepts(with("99999999999999"), |head| assert_eq!(head.max_forwards, Some(u32::MAX)));
        assert!(
            upstream(with("7"), ForwardedPolicy::Off, &FieldEdits::default())
                .ends_with("Max-Forwards: 6\r\n\r\n")
        );
        rejects(with("-1"), 400, "bad_max_forwards");
        rejects(with(""), 400, "bad_max_forwards");
    }
    accepts(get_with("Max-Forwards: 0"), |head| assert_eq!(head.max_forwards, None));
    rejects("TRACE / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", 400, "trace_with_body");
}

#[test]
fn a19_other_protocols_on_a_plain_port_are_refused_at_once() {
    rejects(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request_line");
    rejects("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version_not_supported");
    rejects(b"\0\0\0\0", 400, "bad_request_line");
    rejects(b"\xff\xfe", 400, "bad_request_line");
}

#[test]
fn a20_one_leading_empty_line_is_taken_and_no_other_white_space() {
    accepts("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", |head| assert_eq!(head.method, "GET"));
    rejects("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line");
    rejects("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line");
    rejects("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line");
    rejects("\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request_line");
    rejects("   \r\n\r\n", 400, "bad_request_line");
}

#[test]
fn b1_to_b6_bad_field_names_are_400() {
    for line in [
        "Name : v",
        "Name\t: v",
        " folded",
        "\tfolded",
        ": v",
        ":",
        "no colon",
        "nocolon",
        "Na[me]: v",
        "Na me: v",
        "Na\x01me: v",
        "Naïve: v",
        "Na(me: v",
        "\0: v",
    ] {
        rejects(get_with(line), 400, "bad_field_name");
        rejects(format!("GET / HTTP/1.1\r\n{line}\r\nHost: a\r\n\r\n"), 400, "bad_field_name");
    }
    rejects(get_with("X-Test: value\r\n continued"), 400, "bad_field_name");
}

#[test]
fn b7_b8_control_bytes_in_a_value_are_400() {
    for value in ["a\0b", "a\rb", "a\x07b", "a\x08", "\x0ba", "a\x7fb", "a\x1b[0m", "\0"] {
        rejects(get_with(&format!("X-Test: {value}")), 400, "bad_field_value");
    }
    accepts(get_with("X-Test: a\tb \u{e9}"), |head| assert!(head.field("x-test").is_some()));
}

#[test]
fn b9_bare_lf_anywhere_in_a_head_is_400() {
    for input in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \nY: b\r\n\r\n",
        "GET / HTTP/1.1\r\nX: \n\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\n\n",
        "GET / HTTP/1.0\n\r\n",
        "GET / HTTP/1.0\r\n\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a \nX: b\r\n\r\n",
    ] {
        rejects(input, 400, "bad_line_end");
    }
}

#[test]
fn b10_heads_above_the_limits_are_431() {
    let many = |count: usize| get_with(&vec!["X: y"; count - 1].join("\r\n"));
    rejects(many(129), 431, "too_many_fields");
    rejects(many(5_000), 431, "too_many_fields");
    accepts(many(128), |head| assert_eq!(head.fields().len(), 128));
    rejects(get_with(&format!("X: {}", "y".repeat(16_400))), 431, "head_too_large");
    rejects(get_with(&format!("{}: y", "X".repeat(16_400))), 431, "head_too_large");
    rejects(get_with(&format!("X: {}", "y".repeat(1_000_000))), 431, "head_too_large");
}

#[test]
fn b11_underscored_framing_fields_are_400_and_other_underscores_pass() {
    rejects(post_with("Content_Length: 5"), 400, "underscored_framing");
    rejects(post_with("transfer_Encoding: chunked"), 400, "underscored_framing");
    accepts(get_with("my_field: x"), |head| assert!(head.field("my_field").is_some()));
}

#[test]
fn b16_only_100_continue_is_expected() {
    for value in ["nonsense", "200-ok", "", "100-continue, 100-continue"] {
        rejects(post_with(&format!("Content-Length: 5\r\nExpect: {value}")), 417, "expectation");
    }
    rejects(post_with("Content-Length: 5\r\nExpect: 100-continue\r\nExpect: x"), 417, "expectation");
    accepts(post_with("Content-Length: 5\r\nExpect: 100-Continue"), |head| assert!(head.expect_continue));
}

#[test]
fn b15_an_expectation_without_a_body_or_in_http10_is_no_expectation() {
    accepts(get_with("Expect: 100-continue"), |head| assert!(!head.expect_continue));
    let input = "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    accepts(input, |head| assert!(!head.expect_continue));
}

#[test]
fn c1_content_length_with_transfer_encoding_is_400() {
    for lines in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Transfer-Encoding: chunked\r\nContent-Length: x",
        "Transfer-Encoding: identity\r\nContent-Length: 5",
    ] {
        rejects(post_with(lines), 400, "ambiguous_length");
    }
}

#[test]
fn c2_c3_more_than_one_content_length_is_400() {
    for second in ["5", "6"] {
        let lines = format!("Content-Length: 5\r\nContent-Length: {second}");
        rejects(post_with(&lines), 400, "duplicate_content_length");
        rejects(post_with(&format!("Content-Length: 5, {second}")), 400, "bad_content_length");
    }
}

#[test]
fn c4_c5_a_content_length_that_is_no_number_or_too_large_is_400() {
    let forty_digits = "9".repeat(40);
    for value in [
        "+5",
        "-1",
        "-0",
        "0x5",
        "0o5",
        "5_0",
        "5 0",
        "1e1",
        "",
        "５",
        "abc",
        "5;",
        "5.0",
        "9223372036854775808",
        "18446744073709551616",
        "99999999999999999999",
        &forty_digits,
    ] {
        rejects(post_with(&format!("Content-Length: {value}")), 400, "bad_content_length");
    }
}

#[test]
fn c6_leading_zeros_are_decimal_and_not_forwarded() {
    accepts(post_with("Content-Length: 010"), |head| assert_eq!(head.framing, BodyFraming::Length(10)));
    accepts(post_with("Content-Length:\t5 "), |head| assert_eq!(head.framing, BodyFraming::Length(5)));
    let text = upstream(post_with("Content-Length: 010"), ForwardedPolicy::Off, &FieldEdits::default());
    assert!(text.contains("Content-Length: 10\r\n"));
}

#[test]
fn c7_c8_a_transfer_encoding_other_than_chunked_is_refused() {
    for value in [
        "xchunked",
        "identity",
        "chunked, gzip",
        "chunked, chunked",
        "",
        ", chunked",
        "\"chunked\"",
        "chunked;a=b",
        "chunked,",
        "chunk",
        "chunked chunked",
        "c hunked",
    ] {
        rejects(post_with(&format!("Transfer-Encoding: {value}")), 400, "bad_transfer_encoding");
    }
    for value in ["gzip", "gzip, chunked", "deflate, gzip, chunked"] {
        rejects(post_with(&format!("Transfer-Encoding: {value}")), 501, "unknown_transfer_coding");
    }
}

#[test]
fn c9_tricks_with_bytes_around_transfer_encoding_are_400() {
    for value in ["\x0bchunked", "\x0cchunked", "chunked\0", "chunked\x0b"] {
        rejects(post_with(&format!("Transfer-Encoding: {value}")), 400, "bad_field_value");
    }
    let nbsp = [b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ", &b"\xa0chunked\r\n\r\n"[..]].concat();
    rejects(nbsp, 400, "bad_transfer_encoding");
    for lines in [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    ] {
        rejects(post_with(lines), 400, "bad_transfer_encoding");
    }
    for line in
        ["Transfer-Encoding : chunked", "Transfer-Encoding\t: chunked", "Transfer-Encoding:\r\n chunked"]
    {
        rejects(post_with(line), 400, "bad_field_name");
    }
    accepts(post_with("Transfer-Encoding:\tChunked \t"), |head| {
        assert_eq!(head.framing, BodyFraming::Chunked);
    });
}

#[test]
fn c10_transfer_encoding_in_http10_is_400() {
    for lines in ["Transfer-Encoding: chunked", "Content-Length: 5\r\nTransfer-Encoding: chunked"] {
        let input = format!("POST / HTTP/1.0\r\nHost: a\r\n{lines}\r\n\r\n");
        rejects(input, 400, "transfer_encoding_in_http10");
    }
}

#[test]
fn c11_a_request_without_a_length_has_no_body() {
    for version in ["1.0", "1.1"] {
        let input = format!("POST / HTTP/{version}\r\nHost: a\r\n\r\n");
        accepts(input, |head| assert_eq!(head.framing, BodyFraming::None));
    }
}

#[test]
fn c12_any_method_may_have_a_body_and_is_forwarded_with_its_framing() {
    for method in ["GET", "HEAD", "OPTIONS", "DELETE"] {
        let input = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
        accepts(&input, |head| assert_eq!(head.framing, BodyFraming::Length(5)));
        let text = upstream(&input, ForwardedPolicy::Off, &FieldEdits::default());
        assert!(text.contains("Content-Length: 5\r\n"));
    }
}

const WEBSOCKET: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13";

#[test]
fn a_websocket_opening_is_forwarded_as_such() {
    accepts(get_with(WEBSOCKET), |head| assert_eq!(head.upgrade, Some("websocket")));
    let text = upstream(get_with(WEBSOCKET), ForwardedPolicy::Off, &FieldEdits::default());
    assert!(text.ends_with("Sec-WebSocket-Version: 13\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
}

#[test]
fn another_protocol_is_told_for_a_route_to_decide() {
    for method in ["GET", "POST"] {
        let input =
            format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo/1.0\r\n\r\n");
        accepts(&input, |head| assert_eq!(head.upgrade, Some("foo/1.0")));
        let text = upstream(&input, ForwardedPolicy::Off, &FieldEdits::default());
        assert!(text.contains("Connection: Upgrade\r\nUpgrade: foo/1.0\r\n"), "{text}");
    }
}

#[test]
fn b13_c24_c25_c26_every_other_upgrade_is_stripped() {
    for input in [
        get_with("Upgrade: websocket"),
        get_with("Connection: Upgrade"),
        get_with("Connection: Upgrade\r\nUpgrade: foo bar"),
        get_with("Connection: Upgrade\r\nUpgrade: H2C"),
        get_with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"),
        get_with("Connection: Upgrade\r\nUpgrade: websocket, h2c"),
        get_with("Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c"),
        get_with("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5"),
        get_with("Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked"),
        post_with("Connection: Upgrade\r\nUpgrade: websocket"),
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned(),
    ] {
        accepts(&input, |head| assert_eq!(head.upgrade, None, "{input}"));
        let text = upstream(&input, ForwardedPolicy::Off, &FieldEdits::default()).to_ascii_lowercase();
        assert!(!text.contains("upgrade") && !text.contains("h2c") && !text.contains("http2"), "{text}");
    }
}

#[test]
fn the_connection_stays_by_default_in_http11_and_on_request_in_http10() {
    for (version, lines, stays) in [
        ("1.1", "X: y", true),
        ("1.1", "Connection: keep-alive", true),
        ("1.1", "Connection: CLOSE", false),
        ("1.1", "Connection: keep-alive, close", false),
        ("1.1", "Connection: x\r\nConnection: ,,close", false),
        ("1.0", "X: y", false),
        ("1.0", "Connection: Keep-Alive", true),
        ("1.0", "Connection: keep-alive, close", false),
    ] {
        let input = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n\r\n");
        accepts(&input, |head| assert_eq!(head.keep_alive, stays, "{input}"));
    }
}

#[test]
fn a_connection_field_that_lists_without_end_is_400() {
    rejects(get_with(&format!("Connection: {}", "a,".repeat(4_000))), 400, "connection_options");
    accepts(get_with(&format!("Connection: {}", "close,".repeat(1_000))), |head| assert!(!head.keep_alive));
}
