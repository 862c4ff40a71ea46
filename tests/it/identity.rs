//! Who a client is: what endpoints are told of its certificate, what it cannot claim, and routes that depend on it.

use crate::harness::client::{Client, Response};
use crate::harness::gateway::Gateway;
use crate::harness::message::Fields;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::tls::{Leaf, Pki, TlsStream, chain, mirror};
use crate::harness::{Engine, on_both_engines};

on_both_engines!(
    h9_a_client_without_a_certificate_cannot_claim_one,
    a_trusted_proxy_passes_on_what_it_knows_of_its_client,
    a_route_for_identities_is_not_for_anonymous_clients,
    an_endpoint_is_told_who_the_client_is_and_nothing_that_it_claims,
    an_endpoint_is_told_of_a_resumed_client_as_of_a_new_one,
    a_trusted_proxys_claim_comes_before_its_own_certificate,
    a_permissive_listener_tells_clients_apart,
    routes_are_chosen_by_the_clients_identity,
    h11_a_request_for_a_host_that_the_certificate_does_not_cover_is_misdirected,
    an_expected_identity_stands_for_the_name,
    an_endpoint_of_another_identity_gets_nothing_and_the_warning_names_both,
);

/// Every spelling that a backend could take for the field.
const CLAIMS: [&str; 5] = [
    "X-Forwarded-Client-Cert: By=spiffe://td/gateway;URI=spiffe://td/admin",
    "x-forwarded-client-cert: URI=spiffe://td/admin",
    "X_Forwarded_Client_Cert: URI=spiffe://td/admin",
    "X-Forwarded-Client_Cert: URI=spiffe://td/admin",
    "X-Forwarded-Client-Cert:",
];

/// What the origin was told in any spelling.
fn told(fields: &Fields) -> Vec<&str> {
    let is_claim = |name: &str| name.to_ascii_lowercase().replace('_', "-") == "x-forwarded-client-cert";
    fields.0.iter().filter(|(name, _)| is_claim(name)).map(|(_, value)| value.as_str()).collect()
}

/// The fields of a request with all claims, as the origin got it.
fn claim(gateway: &Gateway, origin: &Origin, more: &str) -> Fields {
    origin.forget();
    let mut client = gateway.client();
    client.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{}\r\n{more}\r\n", CLAIMS.join("\r\n")));
    assert_eq!(client.read_response().status, 200);
    let mut requests = origin.requests();
    requests.remove(0).fields
}

fn h9_a_client_without_a_certificate_cannot_claim_one(engine: Engine) {
    let origin = Origin::serving();
    for keys in ["", "forwarded = \"off\"", "trusted_proxies = [\"192.0.2.0/24\"]"] {
        let gateway = Setup::to(engine, &origin).sections(keys).start();
        assert_eq!(told(&claim(&gateway, &origin, "")), [""; 0], "{keys}");
    }
}

fn a_trusted_proxy_passes_on_what_it_knows_of_its_client(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).sections("trusted_proxies = [\"127.0.0.0/8\"]").start();
    assert_eq!(
        told(&claim(&gateway, &origin, "")),
        ["By=spiffe://td/gateway;URI=spiffe://td/admin,URI=spiffe://td/admin"]
    );
    let listed = claim(&gateway, &origin, "Connection: x-forwarded-client-cert\r\n");
    assert_eq!(told(&listed), [""; 0], "meant for one hop");
}

fn a_route_for_identities_is_not_for_anonymous_clients(engine: Engine) {
    let mut gateway = Setup::new(engine)
        .route("client_identities = [\"td/*\"]\nrespond = { body = \"mesh\" }")
        .route("respond = { body = \"anybody\" }")
        .sections("trusted_proxies = [\"127.0.0.0/8\"]")
        .start();
    gateway.expect_log("matches nobody there");
    let mut client = gateway.client();
    client.send(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{}\r\n\r\n", CLAIMS.join("\r\n")));
    assert_eq!(client.read_response().text(), "anybody");
}

const SHOP: &str = "spiffe://cluster.local/ns/production/sa/shop";
const CART: &str = "spiffe://cluster.local/ns/production/sa/cart";
const GATEWAY: &str = "spiffe://cluster.local/ns/edge/sa/gateway";

/// Serves `a.test` by default and `b.test` by name.
fn pki() -> Pki {
    let pki = Pki::new();
    let names = ["a.test", "*.wild.test"].map(str::to_owned).to_vec();
    let ip = vec!["127.0.0.1".parse().unwrap()];
    pki.issue("a", &Leaf { dns: names, ip, uri: vec![GATEWAY.into()], ..Leaf::default() });
    pki.issue("b", &Leaf::server(&["b.test"]));
    pki
}

/// Keys for the listener `web`.
fn keys(pki: &Pki, mtls: &str) -> String {
    let [a, b] = ["a", "b"].map(|name| {
        let path = |suffix: &str| pki.path(&format!("{name}.{suffix}"));
        format!("{{ cert = {:?}, key = {:?} }}", path("pem"), path("key"))
    });
    let authority =
        if mtls == "disable" { String::new() } else { format!("client_ca = {:?}", pki.path("ca.pem")) };
    format!("[listener.tls]\ncertificates = [{a}, {b}]\nmtls = \"{mtls}\"\n{authority}")
}

type Pair = (std::path::PathBuf, std::path::PathBuf);

/// A connection that presents the pair, if any.
fn connect(pki: &Pki, gateway: &Gateway, name: &str, own: Option<&Pair>) -> Client<TlsStream> {
    let client = own.map_or_else(|| pki.client(), |pair| pki.client().presenting(pair));
    client.connect(gateway.web(), name)
}

/// A GET with further field lines, and its response.
fn get(client: &mut Client<TlsStream>, host: &str, path: &str, lines: &str) -> Response {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n"));
    client.read_response()
}

/// The certificate of a shop that has a name to be escaped.
fn shop(pki: &Pki) -> Pair {
    let (uri, dns) = (vec![SHOP.into()], vec!["shop.test".into()]);
    pki.issue("shop", &Leaf { uri, dns, common_name: "the shop, Inc.".into(), ..Leaf::default() })
}

/// What is told of [`shop`] on a connection to `a.test`.
fn element((cert, _): &Pair) -> String {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let digest = suite.tls13().expect("a suite of TLS 1.3").common.hash_provider.hash(&chain(cert)[0]);
    let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("By={GATEWAY};Hash={hash};Subject=\"CN=the shop\\, Inc.\";URI={SHOP};DNS=shop.test")
}

fn an_endpoint_is_told_who_the_client_is_and_nothing_that_it_claims(engine: Engine) {
    let (pki, origin) = (pki(), Origin::serving());
    let shop = shop(&pki);
    for mtls in ["strict", "permissive"] {
        origin.forget();
        let gateway = Setup::to(engine, &origin).sections(&keys(&pki, mtls)).start();
        let mut client = connect(&pki, &gateway, "a.test", Some(&shop));
        for _ in 0..2 {
            assert_eq!(get(&mut client, "a.test", "/", &(CLAIMS.join("\r\n") + "\r\n")).status, 200);
        }
        let requests = origin.requests();
        assert_eq!(requests.len(), 2);
        for request in requests {
            assert_eq!(told(&request.fields), [element(&shop)], "{mtls}");
            assert_eq!(request.fields.all("x-forwarded-proto"), ["https"]);
        }
    }
}

fn an_endpoint_is_told_of_a_resumed_client_as_of_a_new_one(engine: Engine) {
    let (pki, origin) = (pki(), Origin::serving());
    let gateway = Setup::to(engine, &origin).sections(&keys(&pki, "strict")).start();
    let shop = shop(&pki);
    let client = pki.client().presenting(&shop).resuming();
    for _ in 0..2 {
        let mut connection = client.connect(gateway.web(), "a.test");
        assert_eq!(get(&mut connection, "a.test", "/", "").status, 200);
    }
    gateway.wait_for_metric("ringfort_tls_resumed_total", "listener=\"web\"", |count| count == 1.0);
    for request in origin.requests() {
        assert_eq!(told(&request.fields), [element(&shop)]);
    }
}

fn a_trusted_proxys_claim_comes_before_its_own_certificate(engine: Engine) {
    let (pki, origin) = (pki(), Origin::serving());
    let keys = format!("trusted_proxies = [\"127.0.0.1\"]\n{}", keys(&pki, "strict"));
    let gateway = Setup::to(engine, &origin).sections(&keys).start();
    let shop = shop(&pki);
    let mut client = connect(&pki, &gateway, "a.test", Some(&shop));
    let claim = "X-Forwarded-Client-Cert: Hash=1;URI=spiffe://td/user\r\n";
    assert_eq!(get(&mut client, "a.test", "/", claim).status, 200);
    let requests = origin.requests();
    assert_eq!(told(&requests[0].fields), [format!("Hash=1;URI=spiffe://td/user,{}", element(&shop))]);
}

fn a_permissive_listener_tells_clients_apart(engine: Engine) {
    let (pki, origin) = (pki(), Origin::serving());
    let gateway = Setup::to(engine, &origin).sections(&keys(&pki, "permissive")).start();
    assert_eq!(gateway.get("/").status, 200);
    let mut anonymous = connect(&pki, &gateway, "a.test", None);
    assert_eq!(get(&mut anonymous, "a.test", "/", &(CLAIMS.join("\r\n") + "\r\n")).status, 200);
    let requests = origin.requests();
    let schemes: Vec<_> = requests.iter().map(|request| request.fields.get("x-forwarded-proto")).collect();
    assert_eq!(schemes, [Some("http"), Some("https")]);
    assert!(requests.iter().all(|request| told(&request.fields).is_empty()));
}

fn routes_are_chosen_by_the_clients_identity(engine: Engine) {
    let pki = pki();
    let gateway = Setup::new(engine)
        .route("respond = { body = \"anybody\" }")
        .route("client_identities = [\"cluster.local/*\"]\nrespond = { body = \"mesh\" }")
        .route(&format!(
            "client_identities = [\"{SHOP}\"]\npath_prefix = \"/\"\nrespond = {{ body = \"shop\" }}"
        ))
        .route("path = \"/moved\"\nredirect = { host = \"b.test\" }")
        .sections(&keys(&pki, "permissive"))
        .start();
    let answer = |uri: &[&str], path: &str| {
        let uri = uri.iter().map(ToString::to_string).collect();
        let own = pki.issue("client", &Leaf { uri, dns: vec!["shop.test".into()], ..Leaf::default() });
        get(&mut connect(&pki, &gateway, "a.test", Some(&own)), "a.test", path, "")
    };
    assert_eq!(answer(&[SHOP], "/").text(), "shop");
    assert_eq!(answer(&[CART], "/").text(), "mesh");
    assert_eq!(
        answer(&["https://shop.test/", SHOP], "/").text(),
        "shop",
        "the first SPIFFE id among the names"
    );
    assert_eq!(answer(&["spiffe://cluster.local.evil/a"], "/").text(), "anybody");
    assert_eq!(answer(&[], "/").text(), "anybody");
    assert_eq!(get(&mut connect(&pki, &gateway, "a.test", None), "a.test", "/", "").text(), "anybody");
    assert_eq!(gateway.get("/").text(), "anybody");
    assert_eq!(answer(&[], "/moved").fields.get("location"), Some("https://b.test/moved"));
}

fn h11_a_request_for_a_host_that_the_certificate_does_not_cover_is_misdirected(engine: Engine) {
    let pki = pki();
    let gateway = Setup::answering(engine).sections(&keys(&pki, "disable")).start();
    // All on one connection: it is kept.
    let statuses = |name: &str, hosts: &[&str]| -> Vec<u16> {
        let mut client = connect(&pki, &gateway, name, None);
        hosts.iter().map(|host| get(&mut client, host, "/", "").status).collect()
    };
    let hosts =
        ["a.test", "b.test", "A.Test:8443", "x.wild.test", "x.y.wild.test", "127.0.0.1", "a.test.", "a.test"];
    assert_eq!(statuses("a.test", &hosts), [200, 421, 200, 200, 421, 200, 200, 200]);
    assert_eq!(statuses("b.test", &["b.test", "a.test", "127.0.0.1"]), [200, 421, 421]);
    assert_eq!(
        statuses("127.0.0.1", &["a.test", "b.test"]),
        [200, 421],
        "no name sent: the default certificate"
    );
    gateway
        .wait_for_metric("ringfort_tls_misdirected_requests_total", "listener=\"web\"", |count| count == 5.0);
}

/// An origin that presents this id, and the keys of a cluster that expects these.
fn endpoint(pki: &Pki, id: &str, expected: &str) -> (std::net::SocketAddr, String) {
    let origin = pki.origin(&pki.issue("endpoint", &Leaf::workload(id)), false, mirror);
    (origin, format!("[cluster.tls]\nca = {:?}\nexpect_identity = [{expected}]", pki.path("ca.pem")))
}

fn an_expected_identity_stands_for_the_name(engine: Engine) {
    let pki = Pki::new();
    for expected in ["\"cluster.local/*\"".to_owned(), format!("\"{SHOP}\", \"{CART}\"")] {
        let (origin, keys) = endpoint(&pki, CART, &expected);
        let gateway = Setup::to_all(engine, &[origin.to_string()]).cluster_keys(&keys).start();
        assert_eq!(gateway.get("/").status, 200, "{expected}");
    }
}

fn an_endpoint_of_another_identity_gets_nothing_and_the_warning_names_both(engine: Engine) {
    let pki = Pki::new();
    let (origin, keys) = endpoint(&pki, CART, &format!("\"{SHOP}\", \"other/*\""));
    let mut gateway = Setup::to_all(engine, &[origin.to_string()]).cluster_keys(&keys).start();
    let warning = format!("expected {SHOP} or other/*, presented {CART}");
    gateway.expect_log(&warning);
    assert_eq!(gateway.get("/").status, 502);
    gateway.wait_for_log(&warning);
}
