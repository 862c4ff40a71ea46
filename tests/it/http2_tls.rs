//! HTTP/2 over TLS on both sides. A gateway stands before itself: its plaintext listener forwards over TLS to its TLS
//! listener, so that one test sees ALPN chosen as a server and as a client.

use std::io::{Read, Write};

use crate::harness::bytes::random;
use crate::harness::gateway::Gateway;
use crate::harness::h2::raw::{RawClient, SETTINGS, frame};
use crate::harness::h2::{H2Origin, connect, fetch, get, post, request, run, trailers};
use crate::harness::tls::{Leaf, Pki, mirror};
use crate::harness::{Engine, on_both_engines};

on_both_engines!(
    http2_passes_over_tls_on_both_sides,
    an_endpoint_chooses_the_version_where_it_is_asked,
    an_endpoint_that_must_speak_http2_and_does_not_is_a_502,
    a_client_chooses_the_version,
    a_host_that_the_certificate_lacks_is_misdirected,
);

/// Listener `web` in plaintext to cluster `loop`, which is listener `secure` in TLS, to cluster `site`.
fn gateway(engine: Engine, pki: &Pki, origin: &str, protocol: &str) -> Gateway {
    let (cert, key) = pki.issue("site", &Leaf::server(&["site.test"]));
    Gateway::start(&format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n\
         [[listener]]\nname = \"secure\"\nlisten = \"127.0.0.1:{{port:secure}}\"\n\
         [listener.tls]\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]\n\
         [[route]]\nlistener = \"web\"\ncluster = \"loop\"\n\
         [[route]]\nlistener = \"secure\"\ncluster = \"site\"\n\
         [[cluster]]\nname = \"loop\"\nendpoints = [\"127.0.0.1:{{port:secure}}\"]\nprotocol = \"{protocol}\"\n\
         [cluster.tls]\nca = {:?}\nserver_name = \"site.test\"\n\
         [[cluster]]\nname = \"site\"\nendpoints = [\"{origin}\"]\nprotocol = \"h2\"\n",
        engine.key(),
        pki.path("ca.pem"),
    ))
}

fn http2_passes_over_tls_on_both_sides(engine: Engine) {
    const BYTES: usize = 1_000_000;
    let (pki, origin) = (Pki::new(), H2Origin::start());
    for protocol in ["h2", "auto"] {
        let gateway = gateway(engine, &pki, &origin.address(), protocol);
        run(async {
            let mut send = connect(gateway.web()).await;
            let down = fetch(&mut send, get(&format!("/bytes/{BYTES}"))).await.unwrap();
            assert!(down.status == 200 && down.body == random(BYTES as u64, BYTES), "{protocol}");
            let sent = trailers(&[("x-up", "yes")]);
            let up =
                post(&mut send, request("POST", "/stream/9"), &random(1, BYTES), Some(sent)).await.unwrap();
            assert_eq!((up.status, up.trailer("x-sum")), (200, Some("abc")), "{protocol}");
            let late: Vec<_> = (0..20).map(|_| send.send_request(get("/late/50"), true).unwrap().0).collect();
            for response in late {
                assert_eq!(response.await.unwrap().status(), 200);
            }
        });
        let secure = "listener=\"secure\"";
        assert_eq!(gateway.metric("ringfort_http2_connections_total", secure), 1.0, "{protocol}");
        assert_eq!(gateway.metric("ringfort_http2_streams_total", secure), 22.0, "{protocol}");
    }
    let seen = &origin.seen()[0];
    assert_eq!(
        (seen.uri.as_str(), &seen.fields["x-forwarded-proto"]),
        ("http://site.test/bytes/1000000", &"https".parse().unwrap())
    );
}

fn an_endpoint_chooses_the_version_where_it_is_asked(engine: Engine) {
    let (pki, origin) = (Pki::new(), H2Origin::start());
    let (cert, key) = pki.issue("one", &Leaf::server(&["site.test"]));
    // No ALPN at all: HTTP/1.1.
    let one = pki.origin(&(cert, key), false, mirror);
    let gateway = gateway(engine, &pki, &origin.address(), "auto");
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    assert_eq!(gateway.metric("ringfort_http2_streams_total", "secure"), 1.0);
    let plain = Gateway::start(&format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n[[route]]\ncluster = \"site\"\n\
         [[cluster]]\nname = \"site\"\nendpoints = [\"{one}\"]\nprotocol = \"auto\"\n\
         [cluster.tls]\nca = {:?}\nserver_name = \"site.test\"\n",
        engine.key(),
        pki.path("ca.pem"),
    ));
    let mut client = plain.client();
    for _ in 0..3 {
        assert_eq!(client.get("/x").status, 200);
    }
    run(async {
        let mut send = connect(plain.web()).await;
        let response = fetch(&mut send, get("/y")).await.unwrap();
        assert!(response.status == 200 && response.text().starts_with("GET /y HTTP/1.1\n"), "{response:?}");
    });
    assert_eq!(plain.metric("ringfort_upstream_connections_opened_total", ""), 1.0);
    assert_eq!(plain.metric("ringfort_upstream_http2_streams_total", ""), 0.0);
}

fn an_endpoint_that_must_speak_http2_and_does_not_is_a_502(engine: Engine) {
    let pki = Pki::new();
    let one = pki.origin(&pki.issue("one", &Leaf::server(&["site.test"])), false, mirror);
    let mut gateway = Gateway::start(&format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n[[route]]\ncluster = \"site\"\n\
         [[cluster]]\nname = \"site\"\nendpoints = [\"{one}\"]\nprotocol = \"h2\"\n\
         [cluster.tls]\nca = {:?}\nserver_name = \"site.test\"\n",
        engine.key(),
        pki.path("ca.pem"),
    ));
    gateway.expect_log("the TLS handshake with an endpoint failed");
    assert_eq!(gateway.get("/").status, 502);
    gateway.wait_for_log("did not choose HTTP/2 by ALPN");
}

fn a_client_chooses_the_version(engine: Engine) {
    let (pki, origin) = (Pki::new(), H2Origin::start());
    let gateway = gateway(engine, &pki, &origin.address(), "h2");
    for (offered, h2) in
        [(&["h2", "http/1.1"][..], true), (&["h2"][..], true), (&["http/1.1"][..], false), (&[][..], false)]
    {
        let mut client = pki.client().alpn(offered).connect(gateway.port("secure"), "site.test");
        if !h2 {
            client.send("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
            assert_eq!(client.read_response().status, 200, "{offered:?}");
            continue;
        }
        let stream = client.stream();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head[3], SETTINGS, "{offered:?}");
    }
    // In plaintext a TLS port takes neither version.
    let mut raw = RawClient::connect(gateway.port("secure"));
    assert_eq!(raw.next(), None);
}

fn a_host_that_the_certificate_lacks_is_misdirected(engine: Engine) {
    let (pki, origin) = (Pki::new(), H2Origin::start());
    let gateway = gateway(engine, &pki, &origin.address(), "h2");
    run(async {
        let mut send = connect(gateway.web()).await;
        let mut elsewhere = get("/");
        *elsewhere.uri_mut() = "http://other.test/".parse().unwrap();
        assert_eq!(fetch(&mut send, elsewhere).await.unwrap().status, 421);
        assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
    });
}
