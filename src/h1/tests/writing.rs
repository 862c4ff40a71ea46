//! What goes out: to the upstream, and back to the client.

use super::*;

fn none() -> FieldEdits {
    FieldEdits::default()
}

#[test]
fn a_request_goes_upstream_with_its_fields_in_order_and_our_own_behind() {
    let input = "GET /a?b HTTP/1.1\r\nUser-Agent: x\r\nHost: a:1\r\nAccept: */*\r\nCookie:  y \r\n\r\n";
    assert_eq!(
        upstream(input, ForwardedPolicy::Replace, &none()),
        "GET /a?b HTTP/1.1\r\nHost: a:1\r\nUser-Agent: x\r\nAccept: */*\r\nCookie:  y \r\n\
         X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a:1\r\n\r\n"
    );
}

#[test]
fn b12_listed_fields_stay_behind_but_ours_host_and_framing_do_not() {
    let input = post_with(
        "Connection: x-secret, close, X-Forwarded-For, host, content-length, content-type\r\nX-Secret: 1\r\n\
         X-Forwarded-For: 6.6.6.6\r\nContent-Length: 5\r\nContent-Type: t\r\nKeep: 1",
    );
    for policy in [ForwardedPolicy::Replace, ForwardedPolicy::Append] {
        assert_eq!(
            upstream(&input, policy, &none()),
            "POST /a HTTP/1.1\r\nHost: a\r\nKeep: 1\r\nContent-Length: 5\r\nX-Forwarded-For: 192.0.2.1\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n\r\n"
        );
    }
}

#[test]
fn b13_hop_by_hop_fields_are_not_forwarded() {
    let input = get_with(
        "Connection: keep-alive\r\nProxy-Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nTE: gzip, trailers\r\n\
         Upgrade: websocket\r\nTrailer: x\r\nA: b",
    );
    assert_eq!(upstream(&input, ForwardedPolicy::Off, &none()), "GET /a HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n");
    accepts(input, |head| assert!(head.te_trailers));
}

#[test]
fn a_trailer_announcement_stays_with_a_chunked_body() {
    let input = post_with("Transfer-Encoding: CHUNKED\r\nTrailer: x");
    assert_eq!(
        upstream(input, ForwardedPolicy::Off, &none()),
        "POST /a HTTP/1.1\r\nHost: a\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
}

const SPOOFED: &str = "X-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\nX_Forwarded_For: 6.6.6.6\r\n\
    X-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\nX-Forwarded-Port: 1\r\nForwarded: for=1.1.1.1\r\n\
    X-Real-IP: 1.1.1.1\r\nX-Forwarded-Client-Cert: By=x\r\nX-Request-Id: 7";

#[test]
fn b14_replace_drops_what_the_client_said_about_itself() {
    assert_eq!(
        upstream(get_with(SPOOFED), ForwardedPolicy::Replace, &none()),
        "GET /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n\r\n"
    );
}

#[test]
fn b14_append_adds_the_peer_and_keeps_what_a_trusted_proxy_said() {
    assert_eq!(
        upstream(get_with(SPOOFED), ForwardedPolicy::Append, &none()),
        "GET /a HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\nX-Forwarded-Port: 1\r\n\
         Forwarded: for=1.1.1.1\r\nX-Real-IP: 1.1.1.1\r\nX-Request-Id: 7\r\n\
         X-Forwarded-For: 1.1.1.1, 2.2.2.2, 192.0.2.1\r\nX-Forwarded-Client-Cert: By=x\r\n\r\n"
    );
    assert!(
        upstream(get_with("A: b"), ForwardedPolicy::Append, &none())
            .contains("X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\n")
    );
}

#[test]
fn b14_off_touches_nothing_but_the_client_certificate() {
    let text = upstream(get_with(SPOOFED), ForwardedPolicy::Off, &none());
    for (line, kept) in SPOOFED.split("\r\n").map(|line| (line, !line.contains("Client-Cert"))) {
        assert_eq!(text.contains(line), kept, "{line}");
    }
    assert!(!text.contains("192.0.2.1"));
}

fn with_client_cert(
    lines: &str,
    policy: ForwardedPolicy,
    own: Option<&str>,
    edits: &FieldEdits,
) -> Vec<String> {
    let input = get_with(lines);
    let mut slots = FieldSlots::new();
    let Ok(Parsed::Complete(head)) = parse_request(input.as_bytes(), &mut slots, &HeadLimits::default())
    else {
        panic!("a whole head")
    };
    let forwarded =
        Forwarded { policy, client_ip: [0; 4].into(), proto: "https", client_cert: own, traceparent: None };
    let mut out = Vec::new();
    write_request(&mut out, &head, ("/", None), "a", &forwarded, edits);
    let text = String::from_utf8(out).unwrap();
    let is_client_cert = |line: &&str| line.to_ascii_lowercase().replace('_', "-").contains("-client-cert");
    text.split("\r\n").filter(is_client_cert).map(str::to_owned).collect()
}

const FORGED: &str = "X-Forwarded-Client-Cert: URI=a\r\nx-forwarded-client-CERT: URI=b;By=\"c\"\r\n\
    X-Forwarded-Client-Cert:\r\nX_Forwarded_Client_Cert: URI=d\r\nX-Forwarded-Client_Cert: URI=e";

#[test]
fn h9_an_untrusted_peer_cannot_assert_an_identity() {
    for policy in [ForwardedPolicy::Replace, ForwardedPolicy::Off] {
        assert_eq!(with_client_cert(FORGED, policy, None, &none()), [""; 0], "{policy:?}");
    }
    assert_eq!(
        with_client_cert(FORGED, ForwardedPolicy::Replace, Some("Hash=1"), &none()),
        ["X-Forwarded-Client-Cert: Hash=1"]
    );
    assert_eq!(with_client_cert(FORGED, ForwardedPolicy::Off, Some("Hash=1"), &none()), [""; 0]);
}

#[test]
fn what_a_trusted_proxy_says_of_its_client_comes_before_what_is_known_of_the_proxy() {
    let append = |lines: &str, own| with_client_cert(lines, ForwardedPolicy::Append, own, &none());
    assert_eq!(append(FORGED, None), ["X-Forwarded-Client-Cert: URI=a,URI=b;By=\"c\""]);
    assert_eq!(append(FORGED, Some("Hash=1")), ["X-Forwarded-Client-Cert: URI=a,URI=b;By=\"c\",Hash=1"]);
    assert_eq!(append("A: b", Some("Hash=1")), ["X-Forwarded-Client-Cert: Hash=1"]);
    for nothing in ["A: b", "X-Forwarded-Client-Cert: "] {
        assert_eq!(append(nothing, None), [""; 0]);
    }
    let listed = format!("Connection: x-forwarded-client-cert\r\n{FORGED}");
    assert_eq!(append(&listed, Some("Hash=1")), ["X-Forwarded-Client-Cert: Hash=1"]);
}

#[test]
fn an_edit_wins_over_the_client_certificate_field() {
    for policy in [ForwardedPolicy::Replace, ForwardedPolicy::Append] {
        let removed = edits(&["x-forwarded-client-cert"], &[], &[]);
        assert_eq!(with_client_cert(FORGED, policy, Some("Hash=1"), &removed), [""; 0]);
    }
}

#[test]
fn the_expectation_is_forwarded_unless_answered_here() {
    let input = post_with("Expect: 100-Continue\r\nContent-Length: 5");
    assert!(upstream(&input, ForwardedPolicy::Off, &none()).contains("\r\nExpect: 100-continue\r\n"));
    let mut slots = FieldSlots::new();
    let Ok(Parsed::Complete(mut head)) = parse_request(input.as_bytes(), &mut slots, &HeadLimits::default())
    else {
        panic!("a whole head")
    };
    head.expect_continue = false;
    let forwarded = Forwarded {
        policy: ForwardedPolicy::Off,
        client_ip: [0; 4].into(),
        proto: "http",
        client_cert: None,
        traceparent: None,
    };
    let mut out = Vec::new();
    write_request(&mut out, &head, ("/", None), "a", &forwarded, &none());
    assert_eq!(out, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
}

#[test]
fn edits_remove_then_set_then_add() {
    let edits = edits(&["cookie"], &[("x-a", "1")], &[("accept", "t")]);
    let input = get_with("Cookie: c\r\nX-A: 0\r\nX-a: 00\r\nAccept: s");
    assert_eq!(
        upstream(input, ForwardedPolicy::Off, &edits),
        "GET /a HTTP/1.1\r\nHost: a\r\nAccept: s\r\nx-a: 1\r\naccept: t\r\n\r\n"
    );
}

#[test]
fn edits_win_over_our_own_fields_but_never_touch_framing() {
    let edits = edits(
        &["x-forwarded-proto", "content-length", "host"],
        &[("x-forwarded-for", "z"), ("transfer-encoding", "chunked"), ("connection", "close")],
        &[("content-length", "7"), ("host", "b")],
    );
    assert_eq!(
        upstream(post_with("Content-Length: 5"), ForwardedPolicy::Replace, &edits),
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX-Forwarded-Host: a\r\nx-forwarded-for: z\r\n\r\n"
    );
}

#[test]
fn a_response_goes_down_with_its_length_made_anew() {
    let input = "HTTP/1.1 200 Fine\r\nServer: s\r\nContent-Length: 007\r\nConnection: close, x-a\r\nX-A: 1\r\n\
        Keep-Alive: timeout=5\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n";
    assert_eq!(
        downstream(input, Version::Http11, true, &none()),
        "HTTP/1.1 200 Fine\r\nServer: s\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 7\r\nDate: D\r\n\r\n"
    );
}

#[test]
fn http10_clients_get_no_chunks_and_are_told_what_happens_to_the_connection() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\nDate: E\r\n\r\n";
    assert_eq!(
        downstream(chunked, Version::Http10, true, &none()),
        "HTTP/1.1 200 OK\r\nDate: E\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(
        downstream(chunked, Version::Http11, true, &none()),
        "HTTP/1.1 200 OK\r\nTrailer: x\r\nDate: E\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let sized = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nDate: E\r\n\r\n";
    for (version, stays, line) in [
        (Version::Http10, true, "Connection: keep-alive\r\n"),
        (Version::Http10, false, "Connection: close\r\n"),
        (Version::Http11, true, ""),
        (Version::Http11, false, "Connection: close\r\n"),
    ] {
        let want = format!("HTTP/1.1 200 OK\r\nDate: E\r\nContent-Length: 1\r\n{line}\r\n");
        assert_eq!(downstream(sized, version, stays, &none()), want);
    }
}

#[test]
fn an_upgrade_that_is_required_is_named() {
    let input =
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: x\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        downstream(input, Version::Http11, false, &edits(&[], &[("date", "E")], &[])),
        "HTTP/1.1 426 Upgrade Required\r\nUpgrade: x\r\nContent-Length: 0\r\nConnection: close, Upgrade\r\n\
         date: E\r\n\r\n"
    );
}

#[test]
fn interim_responses_pass_without_framing_or_edits() {
    let input = "HTTP/1.1 103 Early Hints\r\nLink: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\n";
    assert_eq!(
        downstream(input, Version::Http11, true, &edits(&["link"], &[], &[("a", "b")])),
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    );
}

#[test]
fn c20_trailers_that_frame_route_or_authenticate_stay_behind() {
    let trailers = b"X-Checksum: 1\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\nHost: evil\r\n\
        Authorization: Bearer evil\r\nGrpc-Status: 0\r\n";
    let mut out = Vec::new();
    write_last_chunk(&mut out, trailers);
    assert_eq!(out, b"0\r\nX-Checksum: 1\r\nGrpc-Status: 0\r\n\r\n");
    out.clear();
    write_last_chunk(&mut out, b"");
    assert_eq!(out, LAST_CHUNK);
}

#[test]
fn writing_into_a_warm_buffer_does_not_grow_it() {
    let input = get_with(SPOOFED);
    let mut slots = FieldSlots::new();
    let Ok(Parsed::Complete(head)) = parse_request(input.as_bytes(), &mut slots, &HeadLimits::default())
    else {
        panic!("a whole head")
    };
    let forwarded = Forwarded {
        policy: ForwardedPolicy::Append,
        client_ip: [255; 4].into(),
        proto: "https",
        client_cert: None,
        traceparent: None,
    };
    let mut out = Vec::new();
    write_request(&mut out, &head, ("/", None), "a", &forwarded, &none());
    let (capacity, written) = (out.capacity(), out.clone());
    for _ in 0..10 {
        out.clear();
        write_request(&mut out, &head, ("/", None), "a", &forwarded, &none());
    }
    assert_eq!((out.capacity(), &out), (capacity, &written));
}
