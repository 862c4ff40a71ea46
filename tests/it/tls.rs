//! TLS from clients: versions, names, mutual TLS, resumption, and how connections end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{AlertDescription, HandshakeKind, ProtocolVersion};

use crate::harness::bytes::{Digest, random};
use crate::harness::client::Client;
use crate::harness::gateway::Gateway;
use crate::harness::message::{End, NoMessage};
use crate::harness::origin::Origin;
use crate::harness::tls::{Leaf, Pki, TLS12, TLS13};
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    requests_are_served_over_tls_1_3_and_1_2,
    long_bodies_pass_both_ways,
    the_certificate_is_chosen_by_name_and_by_key,
    strict_takes_clients_with_a_certificate_only,
    permissive_takes_plaintext_tls_and_mutual_tls_on_one_port,
    a_client_certificate_that_is_not_to_be_trusted_fails_the_handshake,
    a_hello_in_one_byte_writes_is_read,
    a_handshake_that_stalls_is_cut_off_at_its_deadline,
    a_ticket_resumes_on_every_worker,
    a_ticket_opens_no_other_listener_and_no_other_name,
    without_tickets_nothing_is_resumed,
    both_sides_say_that_the_stream_is_whole,
    a_request_cut_off_without_close_notify_is_not_taken_for_whole,
    a_plain_relay_may_be_reached_over_tls,
    no_client_protocol_in_common_is_told,
);

const STRICT: &str = "mtls = \"strict\"\nclient_ca = \"ca.pem\"";

/// A gateway whose listeners are `(name, keys of [listener.tls])`, all with the certificate `a` for `a.test`.
fn gateway(engine: Engine, pki: &Pki, listeners: &[(&str, &str)], rest: &str) -> Gateway {
    Gateway::start(&config(engine, pki, listeners, rest))
}

fn config(engine: Engine, pki: &Pki, listeners: &[(&str, &str)], rest: &str) -> String {
    let mut text = format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n",
        engine.key()
    );
    for (name, keys) in listeners {
        let pair = |name: &str| {
            format!(
                "{{ cert = {:?}, key = {:?} }}",
                pki.path(&format!("{name}.pem")),
                pki.path(&format!("{name}.key"))
            )
        };
        let keys = keys.replace("\"ca.pem\"", &format!("{:?}", pki.path("ca.pem")));
        let certificates = if keys.contains("certificates") {
            String::new()
        } else {
            format!("certificates = [{}]\n", pair("a"))
        };
        let keys =
            keys.replace("PAIR(a)", &pair("a")).replace("PAIR(b)", &pair("b")).replace("PAIR(r)", &pair("r"));
        text.push_str(&format!(
            "[[listener]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{{port:{name}}}\"\n[listener.tls]\n{certificates}{keys}\n"
        ));
    }
    text + rest
}

const ANSWER: &str = "[[route]]\nrespond = { status = 200, body = \"ok\\n\" }\n";

fn pki() -> Pki {
    let pki = Pki::new();
    pki.issue("a", &Leaf::server(&["a.test"]));
    pki
}

fn requests_are_served_over_tls_1_3_and_1_2(engine: Engine) {
    let pki = pki();
    let gateway = gateway(engine, &pki, &[("web", "")], ANSWER);
    for (versions, expected) in [(&TLS13, ProtocolVersion::TLSv1_3), (&TLS12, ProtocolVersion::TLSv1_2)] {
        let mut client = pki.client().versions(versions).alpn(&["http/1.1"]).connect(gateway.web(), "a.test");
        for _ in 0..3 {
            assert_eq!(client.get("/").text(), "ok\n");
        }
        let agreed = &client.stream().conn;
        assert_eq!(agreed.protocol_version(), Some(expected));
        assert_eq!(agreed.alpn_protocol(), Some(&b"http/1.1"[..]));
        let suite = agreed.negotiated_cipher_suite().unwrap().suite().as_str().unwrap().to_owned();
        assert!(suite.contains("AES_128_GCM_SHA256"), "the gateway's order wins: {suite}");
    }
    gateway.wait_for_metric("ringfort_tls_handshakes_total", "web", |count| count == 2.0);
    assert_eq!(gateway.metric("ringfort_worker_tls_handshakes_active", ""), 0.0);
}

fn long_bodies_pass_both_ways(engine: Engine) {
    const LEN: usize = 3 << 20;
    let (pki, origin) = (pki(), Origin::serving());
    let gateway = gateway(engine, &pki, &[("web", "")], &to(&origin));
    let body: Vec<u8> = (0..LEN as u32).map(|at| (at % 251) as u8).collect();
    let (mut sent, mut wanted) = (Digest::default(), Digest::default());
    sent.add(&body);
    wanted.add(&random(LEN as u64, LEN));
    for versions in [&TLS13, &TLS12] {
        let mut client = pki.client().versions(versions).connect(gateway.web(), "a.test");
        for _ in 0..2 {
            let response = client.post("/upload", &body);
            assert_eq!((response.status, response.end), (200, End::Complete));
            assert!(response.text().contains(&sent.text()), "{}", response.text());
            for path in ["bytes", "chunked"] {
                let response = client.get(&format!("/{path}/{LEN}"));
                assert_eq!((response.status, response.end), (200, End::Complete));
                assert_eq!(response.digest, wanted.text());
            }
        }
    }
}

/// Everything to one origin.
fn to(origin: &Origin) -> String {
    let address = origin.address();
    format!("[[route]]\ncluster = \"site\"\n[[cluster]]\nname = \"site\"\nendpoints = [\"{address}\"]\n")
}

fn the_certificate_is_chosen_by_name_and_by_key(engine: Engine) {
    let pki = pki();
    pki.issue("b", &Leaf::server(&["b.test", "*.wild.test"]));
    pki.issue("r", &Leaf { rsa: true, ..Leaf::server(&["a.test"]) });
    let keys = "certificates = [PAIR(a), PAIR(b), PAIR(r)]";
    let gateway = gateway(engine, &pki, &[("web", keys)], ANSWER);
    let served = |name: &str| {
        let mut client = pki.client().connect(gateway.web(), name);
        client.stream().conn.peer_certificates().unwrap()[0].clone()
    };
    let leaf = |name: &str| crate::harness::tls::chain(&pki.path(&format!("{name}.pem"))).remove(0);
    assert_eq!(served("a.test"), leaf("a"), "ECDSA before RSA");
    assert_eq!(served("b.test"), leaf("b"));
    assert_eq!(served("x.wild.test"), leaf("b"));
    // A name of no certificate gets the default, which the client then refuses.
    let error = pki.client().try_connect(gateway.web(), "c.test").err().expect("a refusal");
    assert!(
        error.to_string().contains("NotValidForName") || error.to_string().contains("not valid for name"),
        "{error}"
    );
    gateway.wait_for_metric("ringfort_tls_handshake_failures_total", "closed", |count| count == 1.0);
}

fn strict_takes_clients_with_a_certificate_only(engine: Engine) {
    let pki = pki();
    let client = pki.issue("shop", &Leaf::workload("spiffe://cluster.local/ns/production/sa/shop"));
    let gateway = gateway(engine, &pki, &[("strict", STRICT)], ANSWER);
    let port = gateway.port("strict");
    assert_eq!(pki.client().presenting(&client).try_get(port, "a.test").unwrap().status, 200);
    let tls12 = pki.client().presenting(&client).versions(&TLS12);
    assert_eq!(tls12.try_get(port, "a.test").unwrap().status, 200);
    // Plaintext is reset without an HTTP answer.
    let mut plain = Client::connect(port);
    plain.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert_eq!(plain.try_read_response("GET").unwrap_err(), NoMessage::Reset);
    gateway.wait_for_metric("ringfort_tls_handshake_failures_total", "plaintext", |count| count == 1.0);
    let error = pki.client().try_get(port, "a.test").unwrap_err();
    assert!(alert(&error) == Some(AlertDescription::CertificateRequired), "{error}");
    let error = pki.client().versions(&TLS12).try_get(port, "a.test").unwrap_err();
    assert!(alert(&error).is_some(), "{error}");
    gateway.wait_for_metric("ringfort_tls_handshake_failures_total", "no_certificate", |count| count == 2.0);
    assert_eq!(gateway.metric("ringfort_requests_total", "strict"), 2.0);
}

/// The alert that ended a handshake.
fn alert(error: &std::io::Error) -> Option<AlertDescription> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(error) = source {
        if let Some(rustls::Error::AlertReceived(alert)) = error.downcast_ref() {
            return Some(*alert);
        }
        source = error.source();
    }
    let text = error.to_string();
    let names = [
        ("CertificateRequired", AlertDescription::CertificateRequired),
        ("CertificateExpired", AlertDescription::CertificateExpired),
        ("CertificateRevoked", AlertDescription::CertificateRevoked),
        ("UnknownCA", AlertDescription::UnknownCA),
        ("HandshakeFailure", AlertDescription::HandshakeFailure),
        ("NoApplicationProtocol", AlertDescription::NoApplicationProtocol),
        ("UnsupportedCertificate", AlertDescription::UnsupportedCertificate),
        ("BadCertificate", AlertDescription::BadCertificate),
    ];
    names.into_iter().find(|(name, _)| text.contains(name)).map(|(_, alert)| alert)
}

fn permissive_takes_plaintext_tls_and_mutual_tls_on_one_port(engine: Engine) {
    let pki = pki();
    let client = pki.issue("shop", &Leaf::workload("spiffe://cluster.local/ns/production/sa/shop"));
    let keys = "mtls = \"permissive\"\nclient_ca = \"ca.pem\"";
    let gateway = gateway(engine, &pki, &[("web", keys)], ANSWER);
    let mut plain = Client::connect(gateway.web());
    assert_eq!((plain.get("/").text(), plain.get("/").text()), ("ok\n".into(), "ok\n".into()));
    assert_eq!(pki.client().try_get(gateway.web(), "a.test").unwrap().status, 200);
    assert_eq!(pki.client().presenting(&client).try_get(gateway.web(), "a.test").unwrap().status, 200);
    assert_eq!(gateway.metric("ringfort_tls_plaintext_connections_total", "web"), 1.0);
    assert_eq!(gateway.metric("ringfort_tls_handshakes_total", "web"), 2.0);
}

fn a_client_certificate_that_is_not_to_be_trusted_fails_the_handshake(engine: Engine) {
    let (pki, stranger) = (pki(), Pki::of("another authority"));
    let workload = Leaf::workload("spiffe://cluster.local/ns/production/sa/shop");
    let expired = pki.issue("expired", &Leaf { years: Some((2020, 2022)), ..workload.clone() });
    let usage = Some(ExtendedKeyUsagePurpose::ServerAuth);
    let server = pki.issue("server", &Leaf { usage, ..workload.clone() });
    let revoked = pki.issue("revoked", &Leaf { serial: Some(77), ..workload.clone() });
    let foreign = stranger.issue("foreign", &workload);
    let list = pki.revoke("revoked.crl", &[77]);
    let keys = format!("{STRICT}\nclient_crl = {list:?}");
    let gateway = gateway(engine, &pki, &[("strict", &keys)], ANSWER);
    for (who, pair, wanted) in [
        ("expired", &expired, AlertDescription::CertificateExpired),
        ("revoked", &revoked, AlertDescription::CertificateRevoked),
        ("foreign", &foreign, AlertDescription::UnknownCA),
        ("server", &server, AlertDescription::UnsupportedCertificate),
    ] {
        for versions in [&TLS13, &TLS12] {
            let client = pki.client().presenting(pair).versions(versions);
            let error = client.try_get(gateway.port("strict"), "a.test").unwrap_err();
            assert_eq!(alert(&error), Some(wanted), "{who}: {error}");
        }
    }
    gateway.wait_for_metric("ringfort_tls_handshake_failures_total", "bad_certificate", |count| count == 8.0);
    assert_eq!(gateway.metric("ringfort_requests_total", "strict"), 0.0);
}

/// Passes bytes between a TLS client and the gateway, one byte a write on the way up.
fn dripping(port: u16) -> TcpStream {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut far = TcpStream::connect(("127.0.0.1", port)).unwrap();
        far.set_nodelay(true).unwrap();
        let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut back_from, &mut back_to);
            let _ = back_to.shutdown(Shutdown::Write);
        });
        let mut byte = [0];
        while near.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
        let _ = far.shutdown(Shutdown::Write);
    });
    TcpStream::connect(address).unwrap()
}

fn a_hello_in_one_byte_writes_is_read(engine: Engine) {
    let pki = pki();
    let gateway = gateway(engine, &pki, &[("web", "")], ANSWER);
    for versions in [&TLS13, &TLS12] {
        let mut client = pki.client().versions(versions).try_over(dripping(gateway.web()), "a.test").unwrap();
        assert_eq!(client.get("/").text(), "ok\n");
    }
}

fn a_handshake_that_stalls_is_cut_off_at_its_deadline(engine: Engine) {
    let pki = pki();
    let rest = format!("[timeouts]\nhandshake_timeout_ms = 300\n{ANSWER}");
    let gateway = gateway(engine, &pki, &[("web", "")], &rest);
    let started = Instant::now();
    let mut silent = Client::connect(gateway.web());
    let mut half = Client::connect(gateway.web());
    half.send([22, 3, 1, 0, 200, 1, 0]);
    for (who, client) in [("silent", &mut silent), ("half", &mut half)] {
        client.time_to_end();
        let time = started.elapsed();
        assert!((Duration::from_millis(250)..Duration::from_secs(3)).contains(&time), "{who}: {time:?}");
    }
    gateway.wait_for_metric("ringfort_tls_handshake_failures_total", "timed_out", |count| count == 2.0);
    eventually("no handshake is under way", || {
        gateway.metric("ringfort_worker_tls_handshakes_active", "") == 0.0
    });
}

fn a_ticket_resumes_on_every_worker(engine: Engine) {
    let pki = pki();
    let config = config(engine, &pki, &[("web", "")], ANSWER).replace("cpus = \"0\"", "cpus = \"all\"");
    let gateway = Gateway::start(&config);
    let workers = gateway.workers().len();
    for versions in [&TLS13, &TLS12] {
        let client = pki.client().versions(versions).resuming();
        assert_eq!(client.try_get(gateway.web(), "a.test").unwrap().status, 200);
        // Connections are spread by the kernel: enough of them reach every worker.
        for _ in 0..8 * workers {
            let mut again = client.connect(gateway.web(), "a.test");
            assert_eq!(again.get("/").status, 200);
            assert_eq!(again.stream().conn.handshake_kind(), Some(HandshakeKind::Resumed));
        }
    }
    let served = gateway.workers();
    assert!(served.iter().all(|worker| worker["requests_total"].as_u64() > Some(0)), "{served:?}");
    assert_eq!(gateway.metric("ringfort_tls_resumed_total", "web"), (16 * workers) as f64);
}

fn a_ticket_opens_no_other_listener_and_no_other_name(engine: Engine) {
    let pki = pki();
    pki.issue("b", &Leaf::server(&["b.test"]));
    let shop = pki.issue("shop", &Leaf::workload("spiffe://cluster.local/ns/production/sa/shop"));
    let both = "certificates = [PAIR(a), PAIR(b)]";
    let strict = format!("{both}\n{STRICT}");
    let listeners = [("web", both), ("other", both), ("strict", &*strict)];
    let gateway = gateway(engine, &pki, &listeners, ANSWER);
    for versions in [&TLS13, &TLS12] {
        // The store of rustls' client goes by name alone: it offers a ticket to every port.
        let client = pki.client().versions(versions).resuming();
        let kind = |port: &str, name: &str| {
            let mut connection = client.connect(gateway.port(port), name);
            connection.send(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"));
            assert_eq!(connection.read_response().status, 200);
            connection.stream().conn.handshake_kind().unwrap()
        };
        assert_eq!(kind("web", "a.test"), HandshakeKind::Full);
        assert_eq!(kind("web", "a.test"), HandshakeKind::Resumed);
        assert_ne!(kind("other", "a.test"), HandshakeKind::Resumed);
        assert_ne!(kind("web", "b.test"), HandshakeKind::Resumed);
        let error = client.try_get(gateway.port("strict"), "a.test").unwrap_err();
        assert!(alert(&error).is_some(), "a ticket without a certificate opens the strict listener: {error}");
        // One with a certificate does there, and keeps its identity.
        let known = client.clone().presenting(&shop).resuming();
        assert_eq!(known.try_get(gateway.port("strict"), "a.test").unwrap().status, 200);
        let mut again = known.connect(gateway.port("strict"), "a.test");
        assert_eq!(again.get("/").status, 200);
        assert_eq!(again.stream().conn.handshake_kind(), Some(HandshakeKind::Resumed));
    }
}

fn without_tickets_nothing_is_resumed(engine: Engine) {
    let pki = pki();
    let gateway = gateway(engine, &pki, &[("web", "session_tickets = false")], ANSWER);
    for versions in [&TLS13, &TLS12] {
        let client = pki.client().versions(versions).resuming();
        for _ in 0..3 {
            let mut connection = client.connect(gateway.web(), "a.test");
            assert_eq!(connection.get("/").status, 200);
            assert_ne!(connection.stream().conn.handshake_kind(), Some(HandshakeKind::Resumed));
        }
    }
    assert_eq!(gateway.metric("ringfort_tls_resumed_total", "web"), 0.0);
}

fn both_sides_say_that_the_stream_is_whole(engine: Engine) {
    let pki = pki();
    let gateway = gateway(engine, &pki, &[("web", "")], ANSWER);
    let mut client = pki.client().connect(gateway.web(), "a.test");
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    // rustls gives `Ok(0)` for an end with close_notify, an error for one without.
    assert_eq!(client.stream().read(&mut [0; 16]).unwrap(), 0);
    let mut client = pki.client().connect(gateway.web(), "a.test");
    assert_eq!(client.get("/").status, 200);
    client.stream().conn.send_close_notify();
    client.stream().flush().unwrap();
    assert_eq!(client.stream().read(&mut [0; 16]).unwrap(), 0);
    gateway.wait_for_metric("ringfort_sessions_ended_total", "client_closed", |count| count == 1.0);
}

fn a_request_cut_off_without_close_notify_is_not_taken_for_whole(engine: Engine) {
    let pki = pki();
    let origin = Origin::serving();
    let gateway = gateway(engine, &pki, &[("web", "")], &to(&origin));
    let mut client = pki.client().connect(gateway.web(), "a.test");
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\nhalf");
    client.stream().sock.shutdown(Shutdown::Write).unwrap();
    gateway.wait_for_metric("ringfort_sessions_ended_total", "client_aborted", |count| count == 1.0);
    // Between requests nothing can be cut off: browsers leave so.
    let mut client = pki.client().connect(gateway.web(), "a.test");
    assert_eq!(client.get("/").status, 200);
    client.stream().sock.shutdown(Shutdown::Write).unwrap();
    gateway.wait_for_metric("ringfort_sessions_ended_total", "client_closed", |count| count == 1.0);
}

fn a_plain_relay_may_be_reached_over_tls(engine: Engine) {
    let pki = pki();
    let origin = Origin::start(|peer| {
        let mut all = Vec::new();
        let _ = peer.stream().read_to_end(&mut all);
        let _ = peer.stream().write_all(&all);
    });
    let keys = "certificates = [PAIR(a)]";
    let rest = format!("[[cluster]]\nname = \"site\"\nendpoints = [\"{}\"]\n", origin.address());
    let config = config(engine, &pki, &[("web", keys)], &rest)
        .replace("[listener.tls]", "protocol = \"tcp\"\ncluster = \"site\"\n[listener.tls]");
    let gateway = Gateway::start(&config);
    let mut client = pki.client().connect(gateway.web(), "a.test");
    let sent: Vec<u8> = (0..300_000_u32).map(|at| (at % 253) as u8).collect();
    client.send(&sent);
    client.stream().conn.send_close_notify();
    client.stream().flush().unwrap();
    let mut received = Vec::new();
    client.stream().read_to_end(&mut received).unwrap();
    assert!(received == sent, "{} bytes came back of {}", received.len(), sent.len());
}

fn no_client_protocol_in_common_is_told(engine: Engine) {
    let pki = pki();
    let gateway = gateway(engine, &pki, &[("web", "")], ANSWER);
    let error = pki.client().alpn(&["spdy/3"]).try_connect(gateway.web(), "a.test").err().expect("a refusal");
    assert_eq!(alert(&error), Some(AlertDescription::NoApplicationProtocol), "{error}");
    // Garbage in a record gets an alert and an end.
    for garbage in
        [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", b"\x16\x03\x01\x7f\xff!"]
    {
        let mut client = Client::connect(gateway.web());
        client.send(garbage);
        let reply = client.read_to_end().expect("an end");
        assert!(reply.starts_with(&[21, 3]) && reply.len() == 7, "an alert for {garbage:?}: {reply:?}");
    }
    gateway.wait_for_metric("ringfort_tls_handshake_failures_total", "malformed", |count| count == 3.0);
}
