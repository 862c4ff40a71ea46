//! TLS towards endpoints: whom the gateway trusts, what it keeps, and how it tells a whole response from a cut one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::harness::gateway::Gateway;
use crate::harness::message::End;
use crate::harness::tls::{Leaf, Pki, mirror};
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    an_endpoint_is_judged_by_the_name_that_is_configured,
    a_connection_is_kept_for_the_next_request,
    a_response_cut_off_without_close_notify_is_not_taken_for_whole,
    an_endpoint_that_never_answers_the_hello_is_given_up_by_the_connect_deadline,
    a_relay_may_go_on_in_tls,
    connections_made_under_old_certificates_are_not_used_again,
    long_bodies_pass_both_ways_to_an_endpoint_in_tls,
    an_endpoint_that_refuses_our_certificate_is_told_of,
    an_endpoint_learns_that_a_stream_is_whole,
);

/// One HTTP listener towards `endpoint` in TLS, with these keys beside `ca`.
fn gateway(engine: Engine, pki: &Pki, endpoint: SocketAddr, keys: &str, cluster_keys: &str) -> Gateway {
    Gateway::start(&format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n\
         [[listener]]\nname = \"relay\"\nlisten = \"127.0.0.1:{{port:relay}}\"\nprotocol = \"tcp\"\ncluster = \"site\"\n\
         [[route]]\ncluster = \"site\"\n\
         [[cluster]]\nname = \"site\"\nendpoints = [\"{endpoint}\"]\n{cluster_keys}\n[cluster.tls]\nca = {:?}\n{keys}\n",
        engine.key(),
        pki.path("ca.pem"),
    ))
}

fn an_endpoint_is_judged_by_the_name_that_is_configured(engine: Engine) {
    let pki = Pki::new();
    let origin = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), false, mirror);
    let named = gateway(engine, &pki, origin, "server_name = \"site.test\"", "");
    assert_eq!(named.get("/").status, 200);
    let mut wrong = gateway(engine, &pki, origin, "server_name = \"other.test\"", "");
    wrong.expect_log("the TLS handshake with an endpoint failed");
    assert_eq!(wrong.get("/").status, 502);
    wrong.wait_for_log("other.test");
    // Without a name the endpoint's address must stand in its certificate.
    let mut address = gateway(engine, &pki, origin, "", "");
    address.expect_log("the TLS handshake with an endpoint failed");
    assert_eq!(address.get("/").status, 502);
    let leaf = Leaf { ip: vec![Ipv4Addr::LOCALHOST.into()], ..Leaf::default() };
    let by_address = pki.origin(&pki.issue("address", &leaf), false, mirror);
    assert_eq!(gateway(engine, &pki, by_address, "", "").get("/").status, 200);
    assert_eq!(named.metric("ringfort_upstream_tls_handshakes_total", "site"), 1.0);
    assert!(wrong.metric("ringfort_upstream_tls_failures_total", "site") >= 1.0);
}

fn a_connection_is_kept_for_the_next_request(engine: Engine) {
    let pki = Pki::new();
    let origin = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), false, mirror);
    let gateway = gateway(engine, &pki, origin, "server_name = \"site.test\"", "");
    let mut client = gateway.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(gateway.metric("ringfort_upstream_tls_handshakes_total", "site"), 1.0);
    assert_eq!(gateway.metric("ringfort_upstream_connections_reused_total", "site"), 4.0);
}

fn a_response_cut_off_without_close_notify_is_not_taken_for_whole(engine: Engine) {
    let pki = Pki::new();
    let origin = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), false, |stream| {
        let mut request = [0; 4_096];
        let read = stream.read(&mut request).unwrap_or(0);
        // No length: only the end of the stream tells that the response is whole.
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it?");
        if request[..read].starts_with(b"GET /whole") {
            stream.conn.send_close_notify();
        }
        let _ = stream.flush();
    });
    let gateway = gateway(engine, &pki, origin, "server_name = \"site.test\"", "");
    let whole = gateway.get("/whole");
    assert_eq!((whole.end, whole.text()), (End::Complete, "all of it?".into()));
    let mut client = gateway.client();
    client.send("GET /cut HTTP/1.1\r\nHost: a.test\r\n\r\n");
    match client.try_read_response("GET") {
        Ok(response) => assert_eq!(response.end, End::Truncated, "{response:?}"),
        Err(none) => panic!("the head was sent: {none:?}"),
    }
    gateway.wait_for_metric("ringfort_sessions_ended_total", "upstream_failed", |count| count == 1.0);
}

fn an_endpoint_that_never_answers_the_hello_is_given_up_by_the_connect_deadline(engine: Engine) {
    let pki = Pki::new();
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = silent.local_addr().unwrap();
    let keys = "connect_timeout_ms = 200\nretries_max = 0";
    let gateway = gateway(engine, &pki, address, "server_name = \"site.test\"", keys);
    assert_eq!(gateway.get("/").status, 504);
}

fn a_relay_may_go_on_in_tls(engine: Engine) {
    let pki = Pki::new();
    let origin = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), false, |stream| {
        let mut all = Vec::new();
        if stream.read_to_end(&mut all).is_ok() {
            let _ = stream.write_all(&all);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    let gateway = gateway(engine, &pki, origin, "server_name = \"site.test\"", "");
    let mut client = crate::harness::client::Client::connect(gateway.port("relay"));
    let sent: Vec<u8> = (0..300_000_u32).map(|at| (at % 253) as u8).collect();
    client.send(&sent);
    client.shutdown_write();
    let received = client.read_to_end().expect("an end");
    assert!(received == sent, "{} bytes came back of {}", received.len(), sent.len());
}

fn connections_made_under_old_certificates_are_not_used_again(engine: Engine) {
    let pki = Pki::new();
    let origin = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), true, mirror);
    pki.issue("gateway", &Leaf::workload("spiffe://td/ns/edge/sa/one"));
    let keys = format!(
        "server_name = \"site.test\"\ncert = {:?}\nkey = {:?}",
        pki.path("gateway.pem"),
        pki.path("gateway.key")
    );
    let gateway = gateway(engine, &pki, origin, &keys, "");
    assert_eq!((gateway.get("/").status, gateway.get("/").status), (200, 200));
    assert_eq!(gateway.metric("ringfort_upstream_tls_handshakes_total", "site"), 1.0);
    pki.issue("gateway", &Leaf::workload("spiffe://td/ns/edge/sa/two"));
    eventually("a request goes up on a connection of the new identity", || {
        assert_eq!(gateway.get("/").status, 200);
        gateway.metric("ringfort_upstream_tls_handshakes_total", "site") == 2.0
    });
}

fn long_bodies_pass_both_ways_to_an_endpoint_in_tls(engine: Engine) {
    const LEN: usize = 2 << 20;
    let pki = Pki::new();
    let origin = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), false, |stream| {
        // Answers while it still reads: with as many bytes as it got.
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            head.push(byte[0]);
        }
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n").as_bytes());
        let mut piece = vec![0; 10_000];
        let mut left = LEN;
        while left > 0 {
            let Ok(read @ 1..) = stream.read(&mut piece) else { return };
            let _ = stream.write_all(&piece[..read]);
            left -= read;
        }
        let _ = stream.flush();
    });
    let gateway = gateway(engine, &pki, origin, "server_name = \"site.test\"", "");
    let body: Vec<u8> = (0..LEN as u32).map(|at| (at % 251) as u8).collect();
    let mut client = gateway.client();
    let mut writer = client.stream().try_clone().unwrap();
    let sent = body.clone();
    let writing = std::thread::spawn(move || {
        let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {LEN}\r\n\r\n");
        writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&sent))
    });
    let response = client.read_response();
    writing.join().unwrap().unwrap();
    let mut wanted = crate::harness::bytes::Digest::default();
    wanted.add(&body);
    assert_eq!((response.end, response.digest), (End::Complete, wanted.text()));
}

fn an_endpoint_that_refuses_our_certificate_is_told_of(engine: Engine) {
    let pki = Pki::new();
    let origin = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), true, mirror);
    // TLS 1.3: our handshake is done before the endpoint says that it wanted a certificate.
    let mut gateway = gateway(engine, &pki, origin, "server_name = \"site.test\"", "");
    gateway.expect_log("the TLS handshake with an endpoint failed");
    assert_eq!(gateway.get("/").status, 502);
    gateway.wait_for_metric("ringfort_upstream_tls_failures_total", "site", |count| count >= 1.0);
    gateway.wait_for_log("CertificateRequired");
}

fn an_endpoint_learns_that_a_stream_is_whole(engine: Engine) {
    let pki = Pki::new();
    let (ended, ends) = std::sync::mpsc::channel();
    let ended = std::sync::Mutex::new(ended);
    let origin = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), false, move |stream| {
        let mut request = [0; 4_096];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        // `Ok(0)` is an end with close_notify; one without is an error.
        let _ = ended.lock().unwrap().send(stream.read(&mut request).map_err(|error| error.kind()));
    });
    let gateway = gateway(engine, &pki, origin, "server_name = \"site.test\"", "");
    assert_eq!(gateway.get("/").text(), "ok");
    assert_eq!(ends.recv_timeout(crate::harness::SOON).unwrap(), Ok(0));
}
