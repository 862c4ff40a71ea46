//! Properties over generated inputs: no panic, no dependence on splits, what is written reads back the same.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::h1::chunked::{decode_in_pieces, fuzz_chunked_body};
use crate::h1::request::fuzz_request_head;
use crate::h1::response::fuzz_response_head;
use crate::http::BodyFraming;

const REQUESTS: [&str; 6] = [
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /a?b HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\nConnection: close, x\r\nX: y\r\n\r\n",
    "POST http://b/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\nTrailer: x\r\nExpect: 100-continue\r\n\r\n",
    "OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\nMax-Forwards: 3\r\n\r\n",
    "CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n",
    "GET /c HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Forwarded-For: 1\r\nTE: x\r\n\r\n",
];
const RESPONSES: [&str; 4] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
    "HTTP/1.0 404 Not Found\r\nServer: x\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\nTrailer: x\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
];
/// What mutations put in: bytes and words that parsers disagree about.
const SPICE: [&str; 20] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    ",",
    ";",
    "#",
    "?",
    "/",
    "\x0b",
    "\u{e9}",
    "\r\n ",
    "Content-Length: 1\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Host: b\r\n",
    "Connection: host\r\n",
    "HTTP/1.1",
];

fn mutated(heads: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let cuts = vec((any::<prop::sample::Index>(), 0..4_usize, 0..SPICE.len()), 0..4);
    (prop::sample::select(heads), cuts).prop_map(|(head, cuts)| {
        let mut bytes = head.as_bytes().to_vec();
        for (at, removed, spice) in cuts {
            let at = at.index(bytes.len() + 1);
            let end = (at + removed).min(bytes.len());
            bytes.splice(at..end, SPICE[spice].bytes());
        }
        bytes
    })
}

fn verdict(bytes: &[u8]) -> String {
    let mut slots = FieldSlots::new();
    match parse_request(bytes, &mut slots, &HeadLimits::default()) {
        Ok(Parsed::Complete(head)) => format!("{:?} {:?} {}", head.target, head.framing, head.head_len),
        Ok(Parsed::Partial) => "partial".to_owned(),
        Err(reject) => reject.reason.to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn random_bytes_get_a_verdict(bytes in vec(any::<u8>(), 0..200)) {
        fuzz_request_head(&bytes);
        fuzz_response_head(&bytes);
        fuzz_response_head(&[b"HTTP/1.1 ", &bytes[..]].concat());
        fuzz_chunked_body(&bytes);
    }

    #[test]
    fn mutated_requests_are_refused_or_survive_being_written(bytes in mutated(&REQUESTS)) {
        fuzz_request_head(&bytes);
    }

    #[test]
    fn mutated_responses_are_refused_or_survive_being_written(bytes in mutated(&RESPONSES)) {
        fuzz_response_head(&bytes);
    }

    #[test]
    fn the_first_verdict_on_growing_input_is_the_verdict_on_all_of_it(bytes in mutated(&REQUESTS)) {
        let whole = verdict(&bytes);
        let first = (0..=bytes.len()).map(|len| verdict(&bytes[..len])).find(|verdict| verdict != "partial");
        prop_assert_eq!(first.unwrap_or_else(|| "partial".to_owned()), whole);
    }

    #[test]
    fn no_input_with_two_framings_is_accepted(bytes in mutated(&REQUESTS)) {
        let mut slots = FieldSlots::new();
        if let Ok(Parsed::Complete(head)) = parse_request(&bytes, &mut slots, &HeadLimits::default()) {
            let framings = ["content-length", "transfer-encoding"].map(|name| {
                head.fields().iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count()
            });
            prop_assert!(framings[0] + framings[1] <= 1);
            prop_assert_eq!(head.framing == BodyFraming::None, framings == [0, 0]);
        }
    }

    #[test]
    fn a_head_is_complete_exactly_where_its_end_is_found(bytes in mutated(&REQUESTS)) {
        let mut slots = FieldSlots::new();
        if let Ok(Parsed::Complete(head)) = parse_request(&bytes, &mut slots, &HeadLimits::default()) {
            prop_assert_eq!(find_head_end(&bytes, 0), Some(head.head_len));
        }
    }

    #[test]
    fn generated_requests_survive_being_written(
        method in "[A-Z]{1,12}",
        path in "/[a-z0-9./%+~-]{0,30}",
        query in proptest::option::of("[a-z=&?/]{0,20}"),
        host in "[a-z][a-z0-9.-]{0,20}(:[0-9]{1,4})?",
        fields in vec(("[A-Za-z][A-Za-z0-9-]{0,15}", "[ -~]{0,30}"), 0..10),
        length in proptest::option::of(any::<u32>()),
    ) {
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        let mut text = format!("{method} {path}{query} HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in &fields {
            text += &format!("{name}: {value}\r\n");
        }
        if let Some(length) = length {
            text += &format!("content-length: {length}\r\n");
        }
        fuzz_request_head((text + "\r\n").as_bytes());
    }

    #[test]
    fn encoded_chunks_decode_to_their_payload_at_any_split(
        chunks in vec(vec(any::<u8>(), 1..40), 0..8),
        extension in prop::sample::select(vec!["", ";a", ";a=b", " ;\ta=\"b;\\\"\""]),
        trailers in prop::sample::select(vec!["", "A: b\r\n", "A: b\r\nC:\r\n"]),
        piece_len in 1..64_usize,
    ) {
        let mut body = Vec::new();
        for chunk in &chunks {
            let mut room = [0; CHUNK_HEADER_BYTES_MAX];
            let header = write_chunk_header(&mut room, chunk.len() as u64);
            body.extend_from_slice(header.strip_suffix(CHUNK_END).unwrap());
            body.extend_from_slice(extension.as_bytes());
            body.extend_from_slice(CHUNK_END);
            body.extend_from_slice(chunk);
            body.extend_from_slice(CHUNK_END);
        }
        write_last_chunk(&mut body, trailers.as_bytes());
        let len = body.len();
        body.extend_from_slice(b"GET");
        let want = Ok(Some((chunks.concat(), trailers.as_bytes().to_vec(), len)));
        prop_assert_eq!(decode_in_pieces(&body, piece_len), want);
    }
}
