//! Who a client is: what endpoints are told of its certificate, what it cannot claim, and routes that depend on it.

use crate::harness::gateway::Gateway;
use crate::harness::message::Fields;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, on_both_engines};

on_both_engines!(
    h9_a_client_without_a_certificate_cannot_claim_one,
    a_trusted_proxy_passes_on_what_it_knows_of_its_client,
    a_route_for_identities_is_not_for_anonymous_clients,
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
