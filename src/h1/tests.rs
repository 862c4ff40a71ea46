//! The engine against good and hostile messages, as scripts: what comes in, what verdict or bytes come out.

mod chunked;
mod corpus;
mod properties;
mod requests;
mod responses;
mod writing;

use super::*;
use crate::base::field_edits::FieldEdits;
use crate::http::{Forwarded, ForwardedPolicy, Reject, Version};

const SECOND: &str = "GET /second HTTP/1.1\r\nHost: a\r\n\r\n";

/// The input is refused, alone and with another request behind it, and at no split of it accepted or refused
/// for another reason.
#[track_caller]
fn rejects(input: impl AsRef<[u8]>, status: u16, reason: &str) {
    let input = input.as_ref();
    for bytes in [input.to_vec(), [input, SECOND.as_bytes()].concat()] {
        let mut slots = FieldSlots::new();
        let verdict = parse_request(&bytes, &mut slots, &HeadLimits::default());
        let Err(reject) = verdict else { panic!("{verdict:?} for {}", bytes.escape_ascii()) };
        assert_eq!((reject.status, reject.reason), (status, reason), "{}", bytes.escape_ascii());
    }
    let stride = (input.len() / 256).max(1);
    for len in (0..input.len()).step_by(stride) {
        match parse_request(&input[..len], &mut FieldSlots::new(), &HeadLimits::default()) {
            Ok(Parsed::Partial) => {}
            Err(reject) => assert_eq!(reject.reason, reason, "after {len} bytes"),
            Ok(Parsed::Complete(_)) => panic!("accepted after {len} bytes"),
        }
    }
}

/// The input is one whole head and no byte more is taken of what follows it.
#[track_caller]
fn accepts(input: impl AsRef<[u8]>, check: impl Fn(&RequestHead)) {
    let input = input.as_ref();
    let bytes = [input, SECOND.as_bytes()].concat();
    for bytes in [input, &bytes] {
        let mut slots = FieldSlots::new();
        match parse_request(bytes, &mut slots, &HeadLimits::default()) {
            Ok(Parsed::Complete(head)) => {
                assert_eq!(head.head_len, input.len());
                check(&head);
                rewritten::check_request(&head);
            }
            verdict => panic!("{verdict:?} for {}", bytes.escape_ascii()),
        }
    }
    for len in 0..input.len() {
        let verdict =
            parse_request(&input[..len], &mut FieldSlots::new(), &HeadLimits::default()).map(|_| ());
        assert!(verdict.is_ok(), "refused after {len} bytes");
    }
}

#[track_caller]
fn rejects_response(input: impl AsRef<[u8]>, reason: &str) {
    let input = input.as_ref();
    let verdict = parse_response(input, &mut FieldSlots::new(), &HeadLimits::default(), false).map(|_| ());
    let reject = verdict.expect_err(&input.escape_ascii().to_string());
    assert_eq!((reject.status, reject.reason), (502, reason), "{}", input.escape_ascii());
}

#[track_caller]
fn accepts_response(input: impl AsRef<[u8]>, request_was_head: bool, check: impl Fn(&ResponseHead)) {
    let input = input.as_ref();
    let mut slots = FieldSlots::new();
    match parse_response(input, &mut slots, &HeadLimits::default(), request_was_head) {
        Ok(Parsed::Complete(head)) => {
            check(&head);
            rewritten::check_response(&head, request_was_head);
        }
        verdict => panic!("{verdict:?} for {}", input.escape_ascii()),
    }
    for len in 0..input.len().min(1_000) {
        let mut slots = FieldSlots::new();
        let partial = parse_response(&input[..len], &mut slots, &HeadLimits::default(), request_was_head);
        assert!(partial.is_ok(), "refused after {len} bytes");
    }
}

/// A request with these field lines beside `Host`.
fn get_with(lines: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n")
}

fn post_with(lines: &str) -> String {
    format!("POST /a HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n")
}

/// The head as it goes upstream.
#[track_caller]
fn upstream(input: impl AsRef<[u8]>, policy: ForwardedPolicy, edits: &FieldEdits) -> String {
    let mut slots = FieldSlots::new();
    let Ok(Parsed::Complete(head)) = parse_request(input.as_ref(), &mut slots, &HeadLimits::default()) else {
        panic!("not a whole head")
    };
    let forwarded = Forwarded {
        policy,
        client_ip: [192, 0, 2, 1].into(),
        proto: "http",
        client_cert: None,
        traceparent: None,
    };
    let mut out = Vec::new();
    let path_and_query = (head.target.path(), head.target.query());
    write_request(&mut out, &head, path_and_query, head.authority, &forwarded, edits);
    String::from_utf8(out).unwrap()
}

/// The response head as it goes to a client.
#[track_caller]
fn downstream(input: &str, client_version: Version, keep_alive: bool, edits: &FieldEdits) -> String {
    let mut slots = FieldSlots::new();
    let verdict = parse_response(input.as_bytes(), &mut slots, &HeadLimits::default(), false);
    let Ok(Parsed::Complete(head)) = verdict else { panic!("not a whole head") };
    let mut out = Vec::new();
    let framing = framing_to_client(&head, client_version);
    write_response(&mut out, &head, framing, client_version, keep_alive, edits, Some("D"));
    String::from_utf8(out).unwrap()
}

fn edits(remove: &[&str], set: &[(&str, &str)], add: &[(&str, &str)]) -> FieldEdits {
    let pairs =
        |list: &[(&str, &str)]| list.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    FieldEdits { remove: remove.iter().map(|&name| name.into()).collect(), set: pairs(set), add: pairs(add) }
}

#[test]
fn every_refusal_of_a_response_is_502_whatever_it_is_for_requests() {
    for reject in Reject::ALL {
        assert_eq!(reject.by_upstream().status, 502);
    }
}
