//! Chunked bodies, good and hostile, at every split.

use super::*;
use crate::h1::chunked::decode_in_pieces;
use crate::limits;

#[track_caller]
fn decodes(body: impl AsRef<[u8]>, payload: &[u8], trailers: &[u8]) {
    let body = body.as_ref();
    for piece_len in (1..=body.len().min(64)).chain([body.len(), body.len() + 50]) {
        let input = [body, SECOND.as_bytes()].concat();
        let (got, got_trailers, consumed) =
            decode_in_pieces(&input, piece_len).unwrap().expect("a whole body");
        assert_eq!((&got[..], &got_trailers[..], consumed), (payload, trailers, body.len()));
    }
}

#[track_caller]
fn refuses(body: impl AsRef<[u8]>, reject: Reject) {
    let body = body.as_ref();
    for piece_len in [1, 2, 3, 7, body.len()] {
        assert_eq!(decode_in_pieces(body, piece_len), Err(reject), "{}", body.escape_ascii());
    }
}

#[test]
fn chunks_are_joined() {
    decodes("0\r\n\r\n", b"", b"");
    decodes("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world", b"");
    decodes("A\r\nhelloworld\r\n000\r\n\r\n", b"helloworld", b"");
    decodes("0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello", b"");
}

#[test]
fn the_payload_of_one_chunk_is_not_moved() {
    let mut buf = *b"5\r\nhello\r\n";
    let decoded = Decoder::new().decode(&mut buf).unwrap();
    assert_eq!(decoded, Decoded { consumed: 10, payload: 3..8, done: false });
    assert_eq!(&buf, b"5\r\nhello\r\n");
}

#[test]
fn c13_chunk_sizes_that_are_no_hex_number_are_400() {
    for size in [
        "0x5",
        "+5",
        "-1",
        " 5",
        "5_0",
        "",
        "\t5",
        "g",
        "5.",
        "5,",
        "5\0",
        "10000000000000000",
        "FFFFFFFFFFFFFFFF0",
        // Above 2^63 - 1: negative to some next hop.
        "8000000000000000",
        "FFFFFFFFFFFFFFFF",
    ] {
        refuses(format!("{size}\r\nhello\r\n0\r\n\r\n"), Reject::BAD_CHUNK_SIZE);
    }
}

#[test]
fn the_largest_size_does_not_overflow() {
    let mut decoder = Decoder::new();
    let mut buf = b"7FFFFFFFFFFFFFFF\r\nhello".to_vec();
    let decoded = decoder.decode(&mut buf).unwrap();
    assert_eq!((&buf[decoded.payload], decoded.done), (&b"hello"[..], false));
}

#[test]
fn c14_malformed_extensions_are_400() {
    for extension in [
        ";",
        "; ",
        ";;",
        ";a;",
        ";=",
        ";a=",
        ";a= ",
        ";a=;b",
        " ",
        "\t",
        " a",
        ";\0ext",
        ";a\x01",
        ";a\nb",
        ";\n",
        ";a\x7f",
        ";a=\"\x01\"",
        ";a=\"b",
        ";a=\"b\"c",
        ";a b",
        ";a ",
        ";a=b c",
        ";é",
        ";a=b ",
    ] {
        let body = format!("5{extension}\r\nhello\r\n0\r\n\r\n");
        refuses(body, Reject::BAD_CHUNK_EXTENSION);
    }
    refuses("5;a\rX\r\nhello\r\n0\r\n\r\n", Reject::BAD_CHUNK_SIZE);
    refuses("5\rX\r\nhello\r\n0\r\n\r\n", Reject::BAD_CHUNK_SIZE);
    refuses("0;\r\n\r\n", Reject::BAD_CHUNK_EXTENSION);
}

#[test]
fn c15_valid_extensions_are_taken_and_dropped() {
    for extension in
        [";a", ";a=b", ";a;b=c", " ; a = b", ";a=\"b ;\u{e9}\\\"\"", ";a=\"b\";c", ";a\t;b", "\t;a=b ;c"]
    {
        decodes(format!("5{extension}\r\nhello\r\n0{extension}\r\n\r\n"), b"hello", b"");
    }
}

#[test]
fn c16_extensions_are_bounded_for_each_chunk_and_over_the_body() {
    let extension = |len: usize| format!(";{}", "a".repeat(len - 1));
    let chunk = |len| format!("1{}\r\nx\r\n", extension(len));
    refuses(chunk(257), Reject::CHUNK_EXTENSION_TOO_LARGE);
    refuses(format!("5;a=\"{}", "b".repeat(64 * 1024)), Reject::CHUNK_EXTENSION_TOO_LARGE);
    decodes(chunk(256) + "0\r\n\r\n", b"x", b"");
    refuses(chunk(256).repeat(65), Reject::CHUNK_EXTENSION_TOO_LARGE);
    decodes(chunk(256).repeat(64) + "0\r\n\r\n", &[b'x'; 64], b"");
}

#[test]
fn c17_chunks_that_do_not_end_where_they_say_are_400() {
    refuses("5\nhello\r\n0\r\n\r\n", Reject::BAD_CHUNK_SIZE);
    refuses("5\rhello\r\n0\r\n\r\n", Reject::BAD_CHUNK_SIZE);
    refuses("5\r\nhello0\r\n\r\n", Reject::BAD_CHUNK_END);
    refuses("5\r\nhello\n0\r\n\r\n", Reject::BAD_CHUNK_END);
    refuses("5\r\nhello!!\r\n0\r\n\r\n", Reject::BAD_CHUNK_END);
    refuses("5\r\nhello\rX0\r\n\r\n", Reject::BAD_CHUNK_END);
    refuses("5\r\nhello\r\n0\r\n\n", Reject::BAD_TRAILER);
    refuses("0\r\n\rX", Reject::BAD_TRAILER);
}

#[test]
fn c18_a_body_without_its_last_chunk_is_never_done() {
    for body in ["", "5", "5\r\nhel", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "0\r\na: b\r\n", "0\r\n\r"] {
        assert_eq!(decode_in_pieces(body.as_bytes(), 3), Ok(None), "{body}");
    }
}

#[test]
fn c20_trailers_are_checked_and_given_to_the_caller() {
    decodes("5\r\nhello\r\n0\r\nX-Checksum: abc\r\nB:\r\n\r\n", b"hello", b"X-Checksum: abc\r\nB:\r\n");
    for trailers in
        [": a", " a: b", "a", "a b: c", "a: b\0", "a: b\nc: d", "a: b\rc", "\x01: b", "a: b\r\n c"]
    {
        refuses(format!("0\r\n{trailers}\r\n\r\n"), Reject::BAD_TRAILER);
    }
}

#[test]
fn c21_trailer_sections_are_bounded_in_bytes_and_fields() {
    refuses(format!("0\r\na: {}\r\n\r\n", "b".repeat(limits::TRAILER_BYTES_MAX)), Reject::TRAILER_TOO_LARGE);
    refuses(format!("0\r\n{}\r\n", "a: b\r\n".repeat(10_000)), Reject::TRAILER_TOO_LARGE);
    let lines = "a: b\r\n".repeat(limits::TRAILER_FIELDS_MAX);
    decodes(format!("0\r\n{lines}\r\n"), b"", lines.as_bytes());
}

#[test]
fn a_broken_body_stays_broken_and_a_finished_one_takes_no_more() {
    let mut decoder = Decoder::new();
    assert_eq!(decoder.decode(&mut [b'x']), Err(Reject::BAD_CHUNK_SIZE));
    assert_eq!(decoder.decode(&mut b"0\r\n\r\n".to_owned()), Err(Reject::BAD_CHUNK_SIZE));
    let mut decoder = Decoder::new();
    assert!(decoder.decode(&mut b"0\r\n\r\n".to_owned()).unwrap().done);
    let more = decoder.decode(&mut b"GET".to_owned()).unwrap();
    assert_eq!(more, Decoded { consumed: 0, payload: 0..0, done: true });
}

#[test]
fn chunk_headers_are_hexadecimal() {
    for len in [1, 15, 16, 255, 256, 0x1234_5678_9abc, u64::MAX] {
        let mut room = [0; CHUNK_HEADER_BYTES_MAX];
        assert_eq!(write_chunk_header(&mut room, len), format!("{len:x}\r\n").as_bytes());
    }
}
