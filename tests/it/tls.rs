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
use crate::harness::tls::{Leaf, Pki, TLS12, TLS13, TlsClient};
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
    a_ticket_ends_with_the_policy_it_was_made_under,
    a_drain_ends_every_connection_whole,
    without_tickets_nothing_is_resumed,
    both_sides_say_that_the_stream_is_whole,
    a_request_cut_off_without_close_notify_is_not_taken_for_whole,
    a_plain_relay_may_be_reached_over_tls,
    no_client_protocol_in_common_is_told,
    a_ticket_is_good_for_no_longer_than_the_clients_certificate,
    after_a_retry_each_client_is_judged_by_its_own_name,
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
    passing(port, |_| {})
}

/// Passes bytes between a TLS client and the gateway, one byte a write on the way up, `before` each of which it is told
/// how many went.
fn passing(port: u16, mut before: impl FnMut(usize) + Send + 'static) -> TcpStream {
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
        let (mut byte, mut passed) = ([0], 0);
        while near.read_exact(&mut byte).is_ok() {
            before(passed);
            if far.write_all(&byte).is_err() {
                break;
            }
            passed += 1;
        }
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
    // One certificate for both names, another listener with the same, and one that asks for a client's.
    pki.issue("a", &Leaf::server(&["a.test", "b.test"]));
    let strict = format!("certificates = [PAIR(a)]\n{STRICT}");
    let gateway = gateway(engine, &pki, &[("web", ""), ("other", ""), ("strict", &*strict)], ANSWER);
    for versions in [&TLS13, &TLS12] {
        let (client, store) = pki.client().versions(versions).resuming_anywhere();
        let resumes = |port: &str, name: &str| {
            let offered = store.offered();
            let (status, resumed) = get(&client, gateway.port(port), name);
            assert_eq!(
                (status, store.offered()),
                (200, offered + 1),
                "a ticket is offered at {port} to {name}"
            );
            resumed
        };
        get(&client, gateway.web(), "a.test");
        assert!(resumes("web", "a.test"));
        assert!(!resumes("web", "b.test"), "another name");
        assert!(resumes("web", "b.test"));
        assert!(!resumes("other", "b.test"), "another listener");
        assert!(resumes("other", "b.test"));
        let error = client.try_get(gateway.port("strict"), "b.test").unwrap_err();
        assert!(alert(&error).is_some(), "a ticket without a certificate opens the strict listener: {error}");
        // One with a certificate does there, and keeps its identity.
        let known = client.clone().presenting(&shop).resuming();
        assert!(!get(&known, gateway.port("strict"), "a.test").1);
        assert!(get(&known, gateway.port("strict"), "a.test").1);
    }
}

/// Status of a GET, and whether the session was resumed.
fn get(client: &TlsClient, port: u16, name: &str) -> (u16, bool) {
    let mut connection = client.connect(port, name);
    connection.send(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n"));
    let status = connection.read_response().status;
    (status, connection.stream().conn.handshake_kind() == Some(HandshakeKind::Resumed))
}

/// What is known of a client's certificate is judged anew under another policy (CVE-2025-23419).
fn a_ticket_ends_with_the_policy_it_was_made_under(engine: Engine) {
    let (pki, others) = (pki(), Pki::of("another authority"));
    let workload = Leaf::workload("spiffe://cluster.local/ns/production/sa/shop");
    let shop = pki.issue("shop", &workload);
    let revoked = pki.issue("revoked", &Leaf { serial: Some(77), ..workload.clone() });
    let foreign = others.issue("foreign", &workload);
    let authorities = others.path("both.pem");
    let [ours, theirs] = [&pki, &others].map(|pki| std::fs::read_to_string(pki.path("ca.pem")).unwrap());
    for versions in [&TLS13, &TLS12] {
        std::fs::write(&authorities, &ours).unwrap();
        let list = pki.revoke("crl.pem", &[]);
        let keys = format!("mtls = \"strict\"\nclient_ca = {authorities:?}\nclient_crl = {list:?}");
        let gateway = gateway(engine, &pki, &[("strict", &keys)], ANSWER);
        let port = gateway.port("strict");
        let may_enter = |pair| pki.client().presenting(pair).try_get(port, "a.test").is_ok();
        let (client, store) = pki.client().presenting(&shop).versions(versions).resuming_anywhere();
        let resumes = || {
            let (status, resumed) = get(&client, port, "a.test");
            assert_eq!(status, 200);
            resumed
        };
        assert!(!resumes() && resumes(), "nothing has changed yet");
        // Neither change says anything of this client; that it is in force shows with another one.
        pki.revoke("crl.pem", &[77]);
        eventually("the list is in force", || !may_enter(&revoked));
        assert!(!resumes(), "a ticket outlives the revocation lists that it was made under");
        assert!(resumes());
        std::fs::write(&authorities, format!("{ours}{theirs}")).unwrap();
        eventually("the authorities are in force", || may_enter(&foreign));
        assert!(!resumes(), "a ticket outlives the authorities that it was made under");
        assert_eq!(store.offered(), 4, "a ticket is offered every time but the first");
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

/// SIGTERM while one connection is idle, one waits for the grace, one is half through its handshake, and one has a
/// response under way that its client is slow to read.
fn a_drain_ends_every_connection_whole(engine: Engine) {
    const LEN: usize = 24 << 20;
    let (pki, origin) = (pki(), Origin::serving());
    let rest = format!("[drain]\nidle_grace_ms = 1500\ndeadline_ms = 20000\n{}", to(&origin));
    let mut gateway = gateway(engine, &pki, &[("web", "")], &rest);
    let port = gateway.web();
    let connect = || pki.client().connect(port, "a.test");
    let (mut long, mut idle, mut kept) = (connect(), connect(), connect());
    assert_eq!((idle.get("/").status, kept.get("/").status), (200, 200));
    let (open, gate) = std::sync::mpsc::channel();
    let (half, is_half) = std::sync::mpsc::channel();
    let stream = passing(port, move |passed| {
        if passed == 100 {
            let _ = half.send(());
            let _ = gate.recv();
        }
    });
    let client = pki.client();
    let late = std::thread::spawn(move || {
        client.try_over(stream, "a.test").map(|mut client| (client.get("/"), client))
    });
    is_half.recv().unwrap();
    eventually("a handshake is under way", || {
        gateway.metric("ringfort_worker_tls_handshakes_active", "") == 1.0
    });
    long.send(format!("GET /bytes/{LEN} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    eventually("the long response begins", || origin.targets().contains(&format!("/bytes/{LEN}")));
    gateway.terminate();
    eventually("new connections are refused", || TcpStream::connect(("127.0.0.1", port)).is_err());
    open.send(()).unwrap();
    let (last, mut late) = late.join().unwrap().expect("the handshake goes on");
    let again = kept.get("/");
    assert_eq!((last.status, last.closes(), again.status, again.closes()), (200, true, 200, true));
    let response = long.read_response();
    assert_eq!((response.status, response.end), (200, End::Complete));
    let mut wanted = Digest::default();
    wanted.add(&random(LEN as u64, LEN));
    assert_eq!(response.digest, wanted.text());
    for (who, client) in [("late", &mut late), ("kept", &mut kept), ("idle", &mut idle), ("long", &mut long)]
    {
        // `Ok(0)` is an end with close_notify, an error one without.
        assert_eq!(
            client.stream().read(&mut [0; 16]).ok(),
            Some(0),
            "{who} is told that its stream is whole"
        );
    }
    let status = gateway.wait_exit(Duration::from_secs(10));
    assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", gateway.log_text());
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

fn a_ticket_is_good_for_no_longer_than_the_clients_certificate(engine: Engine) {
    let pki = pki();
    let workload = Leaf::workload("spiffe://cluster.local/ns/production/sa/shop");
    let brief = pki.issue("brief", &Leaf { ends_in_s: Some(3), ..workload });
    let gateway = gateway(engine, &pki, &[("strict", STRICT)], ANSWER);
    let port = gateway.port("strict");
    for versions in [&TLS13, &TLS12] {
        let client = pki.client().presenting(&brief).versions(versions).resuming();
        let mut last = client.try_get(port, "a.test").map(|_| ());
        if versions.len() == TLS13.len() && gateway.metric("ringfort_tls_handshakes_total", "strict") == 1.0 {
            assert!(last.is_ok(), "{last:?}");
            assert_eq!(client.try_get(port, "a.test").unwrap().status, 200);
            assert_eq!(gateway.metric("ringfort_tls_resumed_total", "strict"), 1.0);
        }
        eventually("the certificate has ended", || {
            last = client.try_get(port, "a.test").map(|_| ());
            last.is_err()
        });
        // Not cut off: a full handshake, in which the client could have presented another one.
        assert_eq!(alert(last.as_ref().unwrap_err()), Some(AlertDescription::CertificateExpired), "{last:?}");
    }
}

fn after_a_retry_each_client_is_judged_by_its_own_name(engine: Engine) {
    let pki = pki();
    pki.issue("b", &Leaf::server(&["b.test"]));
    let gateway = gateway(engine, &pki, &[("web", "certificates = [PAIR(a), PAIR(b)]")], ANSWER);
    for _ in 0..3 {
        // This one offers a key of no group that the gateway takes, and is asked for another.
        let mut retried = pki.client().with_unusable_first_group().connect(gateway.web(), "a.test");
        assert_eq!(retried.get("/").status, 200);
        assert_eq!(retried.stream().conn.handshake_kind(), Some(HandshakeKind::FullWithHelloRetryRequest));
        // This one's hello comes in two pieces, as those with post-quantum keys do.
        let mut split = pki.client().try_over(dripping(gateway.web()), "b.test").unwrap();
        split.send("GET / HTTP/1.1\r\nHost: b.test\r\n\r\n");
        assert_eq!(split.read_response().status, 200);
    }
    assert_eq!(gateway.metric("ringfort_tls_misdirected_requests_total", "web"), 0.0);
}
