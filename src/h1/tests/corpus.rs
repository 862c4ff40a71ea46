//! Whole requests as they stand on the wire: our own corpus, and the cases of Http11Probe.

use super::*;
use crate::h1::chunked::decode_in_pieces;
use crate::http::BodyFraming;

const CORPUS: &str = include_str!("../../../tests/data/http11/requests.txt");
const PROBE: &str = include_str!("../../../tests/data/http11probe-cases.json");

/// What a client on this connection would come to see.
#[derive(Debug, Eq, PartialEq)]
enum Outcome {
    Accepted,
    Partial,
    Rejected(Reject),
}

/// Head and body together, received in one piece.
fn receive(bytes: &[u8]) -> Outcome {
    let mut slots = FieldSlots::new();
    let head = match parse_request(bytes, &mut slots, &HeadLimits::default()) {
        Err(reject) => return Outcome::Rejected(reject),
        Ok(Parsed::Partial) => return Outcome::Partial,
        Ok(Parsed::Complete(head)) => head,
    };
    let body = &bytes[head.head_len..];
    let whole = match head.framing {
        BodyFraming::None => Ok(true),
        BodyFraming::Length(len) => Ok(body.len() as u64 >= len),
        BodyFraming::Chunked => decode_in_pieces(body, body.len().max(1)).map(|done| done.is_some()),
        BodyFraming::UntilClose => panic!("a request is never read to its close"),
    };
    match whole {
        Ok(true) => Outcome::Accepted,
        Ok(false) => Outcome::Partial,
        Err(reject) => Outcome::Rejected(reject),
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'\\' => match rest.next().expect("an escape has a letter") {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'\\' => b'\\',
                b'x' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => panic!("no escape: \\{}", char::from(other)),
            },
            plain => plain,
        };
        bytes.push(byte);
    }
    bytes
}

#[test]
fn every_request_of_the_corpus_gets_its_verdict() {
    let mut cases = 0;
    for line in CORPUS.lines().filter(|line| !line.starts_with('#')) {
        let (want, text) = line.split_once(" | ").expect("verdict | bytes");
        let got = match receive(&unescape(text)) {
            Outcome::Accepted => "accept".to_owned(),
            Outcome::Partial => "partial".to_owned(),
            Outcome::Rejected(reject) => format!("{} {}", reject.status, reject.reason),
        };
        assert_eq!(got, want, "{text}");
        cases += 1;
    }
    assert!(cases > 80);
}

/// Cases whose text lost the bytes that matter, or whose length was cut.
fn is_undecidable(case: &serde_json::Value) -> bool {
    case["rawRequest"].is_null()
        || case["rawRequestTruncated"] == true
        || matches!(case["id"].as_str(), Some("MAL-NON-ASCII-URL" | "MAL-URL-OVERLONG-UTF8"))
}

#[test]
fn http11probe_cases_get_an_outcome_they_allow() {
    let cases: serde_json::Value = serde_json::from_str(PROBE).unwrap();
    let mut decided = 0;
    for case in cases["cases"].as_array().unwrap().iter().filter(|case| !is_undecidable(case)) {
        let (id, expected) = (case["id"].as_str().unwrap(), case["expected"].as_str().unwrap());
        let outcome = receive(case["rawRequest"].as_str().unwrap().as_bytes());
        let allowed = match &outcome {
            // CONNECT is answered 405 by the session, and whether 101 follows is the upstream's word.
            Outcome::Accepted => {
                ["2xx", "200", "!101"].iter().any(|good| expected.contains(good))
                    || id == "COMP-METHOD-CONNECT"
            }
            Outcome::Partial => expected.contains("close") || expected.contains("timeout"),
            Outcome::Rejected(reject) => {
                expected.contains(&reject.status.to_string())
                    || (expected.contains("400") && reject.status < 500)
                    || expected.contains("close")
            }
        };
        assert!(allowed, "{id}: {outcome:?}, expected {expected}");
        decided += 1;
    }
    assert!(decided > 120, "only {decided} cases were decided");
}
