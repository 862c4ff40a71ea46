//! Responses of upstreams that may be broken or hostile.

use super::*;
use crate::http::BodyFraming;

fn response_with(lines: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n")
}

#[test]
fn an_ordinary_response_is_taken_apart() {
    accepts_response(response_with("Content-Length: 5\r\nDate: x\r\nServer: y"), false, |head| {
        assert_eq!((head.status, head.version, head.reason), (200, Version::Http11, "OK"));
        assert_eq!((head.framing, head.content_length), (BodyFraming::Length(5), Some(5)));
        assert!(head.keep_alive && head.has_date && !head.interim && !head.upgrade);
        assert_eq!(head.field("server"), Some(&b"y"[..]));
        assert_eq!(head.fields().len(), 3);
    });
}

#[test]
fn d1_invalid_or_contradicting_lengths_are_502() {
    for value in ["x", "-1", "", "+5", "5 5", "99999999999999999999", "5, 6"] {
        rejects_response(response_with(&format!("Content-Length: {value}")), "bad_content_length");
    }
    rejects_response(response_with("Content-Length: 5\r\nContent-Length: 6"), "duplicate_content_length");
    accepts_response(response_with("Content-Length: 5\r\nContent-Length: 5"), false, |head| {
        assert_eq!(head.framing, BodyFraming::Length(5));
    });
}

#[test]
fn d2_with_both_lengths_the_transfer_coding_wins_and_the_connection_ends() {
    let input = response_with("Content-Length: 5\r\nTransfer-Encoding: chunked");
    accepts_response(&input, false, |head| {
        assert_eq!((head.framing, head.content_length), (BodyFraming::Chunked, None));
        assert!(!head.keep_alive);
    });
    let text = downstream(&input, Version::Http11, true, &FieldEdits::default());
    assert_eq!(text, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nDate: D\r\n\r\n");
}

#[test]
fn d3_transfer_codings_that_are_not_chunked_once_are_502() {
    for value in ["chunked, chunked", "xchunked", "identity", "", "chunked;a=b"] {
        rejects_response(response_with(&format!("Transfer-Encoding: {value}")), "bad_transfer_encoding");
    }
    rejects_response(response_with("Transfer-Encoding: gzip, chunked"), "unknown_transfer_coding");
    rejects_response("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer_encoding_in_http10");
}

#[test]
fn d4_malformed_fields_are_502() {
    for line in ["Name : v", " folded", ": v", "nocolon", "Na[me: v", "a: b\r\n folded"] {
        rejects_response(response_with(line), "bad_field_name");
    }
    for line in ["a: b\0c", "a: b\rc", "a: b\x07"] {
        rejects_response(response_with(line), "bad_field_value");
    }
    for input in ["HTTP/1.1 200 OK\na: b\r\n\r\n", "HTTP/1.1 200 OK\r\na: b\n\r\n", "HTTP/1.1 200\r\n\n"] {
        rejects_response(input, "bad_line_end");
    }
    rejects_response(response_with("Content_Length: 5"), "underscored_framing");
}

#[test]
fn d5_statuses_and_sizes_out_of_range_are_502() {
    for status in ["99", "1000", "abc", "099", "600", "999", "000", "+20", "20", "", "2 0"] {
        rejects_response(format!("HTTP/1.1 {status} X\r\n\r\n"), "bad_status_line");
    }
    for line in ["HTTP/2.0 200 OK", "http/1.1 200 OK", "HTTP/1.1  200 OK", "HTTP/1.1\t200 OK", "ICY 200 OK"] {
        rejects_response(format!("{line}\r\n\r\n"), "bad_status_line");
    }
    rejects_response("\r\nHTTP/1.1 200 OK\r\n\r\n", "bad_status_line");
    rejects_response("HTTP/1.1 200 O\x01K\r\n\r\n", "bad_status_line");
    rejects_response(response_with(&vec!["a: b"; 129].join("\r\n")), "too_many_fields");
    rejects_response(response_with(&vec!["a: b"; 1_000_000].join("\r\n")), "too_many_fields");
    rejects_response(response_with(&format!("a: {}", "b".repeat(20_000))), "head_too_large");
}

#[test]
fn d9_head_204_and_304_have_no_body_and_only_a_length_that_may_be_told() {
    let lines = "Content-Length: 5";
    accepts_response(response_with(lines), true, |head| {
        assert_eq!((head.framing, head.content_length), (BodyFraming::None, Some(5)));
    });
    for (status, told) in [(204, None), (304, Some(5)), (103, None)] {
        accepts_response(format!("HTTP/1.1 {status} X\r\n{lines}\r\n\r\n"), false, |head| {
            assert_eq!((head.framing, head.content_length), (BodyFraming::None, told), "{status}");
        });
        let chunked = format!("HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n");
        accepts_response(chunked, false, |head| assert_eq!(head.framing, BodyFraming::None));
    }
}

#[test]
fn d10_interim_responses_and_101_are_told_apart() {
    for status in [100, 102, 103] {
        accepts_response(format!("HTTP/1.1 {status} X\r\nLink: y\r\n\r\n"), false, |head| {
            assert!(head.interim && !head.upgrade && head.keep_alive);
        });
    }
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    accepts_response(switching, false, |head| {
        assert!(!head.interim && head.upgrade && !head.keep_alive);
        assert_eq!(head.framing, BodyFraming::None);
    });
    let text = downstream(switching, Version::Http11, true, &FieldEdits::default());
    assert_eq!(text, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
}

#[test]
fn a_response_without_a_length_ends_with_its_connection() {
    accepts_response(response_with("a: b"), false, |head| {
        assert_eq!(head.framing, BodyFraming::UntilClose);
        assert!(!head.keep_alive);
        assert_eq!(framing_to_client(head, Version::Http11), BodyFraming::Chunked);
        assert_eq!(framing_to_client(head, Version::Http10), BodyFraming::UntilClose);
    });
}

#[test]
fn the_upstream_connection_stays_where_both_its_version_and_its_options_say_so() {
    for (version, line, stays) in [
        ("1.1", "a: b", true),
        ("1.1", "Connection: close", false),
        ("1.0", "a: b", false),
        ("1.0", "Connection: Keep-Alive", true),
    ] {
        let input = format!("HTTP/{version} 200 OK\r\nContent-Length: 0\r\n{line}\r\n\r\n");
        accepts_response(&input, false, |head| assert_eq!(head.keep_alive, stays, "{input}"));
    }
}

#[test]
fn the_reason_phrase_is_optional_and_passed_on_when_valid() {
    for (line, reason) in [
        ("HTTP/1.1 200", ""),
        ("HTTP/1.1 200 ", ""),
        ("HTTP/1.1 200 Very Well", "Very Well"),
        ("HTTP/1.1 200 é", ""),
    ] {
        accepts_response(format!("{line}\r\nContent-Length: 0\r\n\r\n"), false, |head| {
            assert_eq!(head.reason, reason);
        });
    }
}
