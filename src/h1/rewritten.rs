//! What must hold of a head once we wrote it: the next parser reads what this one decided. For fuzzing and tests.

use crate::base::field_edits::FieldEdits;
use crate::h1::head::{FieldSlots, HeadLimits, Parsed};
use crate::h1::request::{RequestHead, parse_request};
use crate::h1::response::{ResponseHead, framing_to_client, parse_response};
use crate::h1::write::{write_request, write_response};
use crate::http::{BodyFraming, Forwarded, ForwardedPolicy, Version};
use crate::limits;

/// Our own fields come on top of what was received.
const LIMITS: HeadLimits = HeadLimits {
    head_bytes_max: 2 * limits::HEAD_BYTES_CEILING,
    target_bytes_max: limits::HEAD_BYTES_CEILING,
    fields_max: limits::FIELDS_CEILING,
};

/// Panics where an accepted request does not survive being written and parsed again.
pub(super) fn check_request(head: &RequestHead) {
    if head.method == "CONNECT" || head.authority.is_empty() {
        return;
    }
    for policy in [ForwardedPolicy::Replace, ForwardedPolicy::Append, ForwardedPolicy::Off] {
        let forwarded = Forwarded {
            policy,
            client_ip: [192, 0, 2, 1].into(),
            proto: "http",
            client_cert: None,
            traceparent: None,
        };
        let path_and_query = (head.target.path(), head.target.query());
        let mut out = Vec::new();
        write_request(&mut out, head, path_and_query, head.authority, &forwarded, &FieldEdits::default());
        let mut slots = FieldSlots::new();
        let Ok(Parsed::Complete(again)) = parse_request(&out, &mut slots, &LIMITS) else {
            panic!("what we wrote is refused: {}", out.escape_ascii());
        };
        assert_eq!(again.head_len, out.len());
        assert_eq!((again.method, again.authority), (head.method, head.authority));
        assert_eq!((again.target.path(), again.target.query()), path_and_query);
        assert_eq!((again.framing, again.upgrade), (head.framing, head.upgrade));
        assert_eq!(again.expect_continue, head.expect_continue);
        for hop_by_hop in ["keep-alive", "proxy-connection", "te"] {
            assert_eq!(again.field(hop_by_hop), None, "{hop_by_hop}");
        }
        let trusted = policy == ForwardedPolicy::Append;
        assert!(trusted || again.field("x-forwarded-client-cert").is_none());
        let own_address = policy == ForwardedPolicy::Replace;
        assert!(!own_address || again.field("x-forwarded-for") == Some(b"192.0.2.1"));
    }
}

/// Panics where an accepted response does not survive being written and parsed again.
pub(super) fn check_response(head: &ResponseHead, request_was_head: bool) {
    for client_version in [Version::Http10, Version::Http11] {
        let framing = framing_to_client(head, client_version);
        let mut out = Vec::new();
        write_response(&mut out, head, framing, client_version, true, &FieldEdits::default(), None);
        let mut slots = FieldSlots::new();
        let Ok(Parsed::Complete(again)) = parse_response(&out, &mut slots, &LIMITS, request_was_head) else {
            panic!("what we wrote is refused: {}", out.escape_ascii());
        };
        assert_eq!(again.head_len, out.len());
        assert_eq!((again.status, again.reason), (head.status, head.reason));
        assert_eq!((again.framing, again.content_length), (framing, head.content_length));
        assert_eq!((again.interim, again.upgrade), (head.interim, head.upgrade));
        assert!(!again.keep_alive || framing != BodyFraming::UntilClose);
    }
}
