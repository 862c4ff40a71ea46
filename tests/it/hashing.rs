//! Consistent hashing and weights: requests of one key go to one endpoint, whatever worker or gateway has them; an endpoint
//! that fails loses its own keys alone; shares follow the weights.

use std::collections::BTreeMap;

use crate::harness::client::Client;
use crate::harness::gateway::{Gateway, free_port};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, on_both_engines};

on_both_engines!(
    a_key_of_a_header_has_its_endpoint_on_every_gateway,
    a_path_and_a_cookie_are_keys_too,
    a_named_client_is_the_key_of_requests_and_of_relays,
    an_endpoint_that_refuses_loses_its_own_keys_alone,
    a_request_without_the_key_goes_anywhere,
    shares_follow_the_weights,
);

struct Origins(Vec<Origin>);

impl Origins {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| Origin::serving()).collect())
    }

    fn addresses(&self) -> Vec<String> {
        self.0.iter().map(Origin::address).collect()
    }
}

fn hashing(engine: Engine, endpoints: &[String], by: &str) -> Setup {
    Setup::to_all(engine, endpoints).cluster_keys(&format!("hash = {{ {by} }}"))
}

/// The endpoint that answered.
fn asked(client: &mut Client, path: &str, fields: &str) -> String {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: site.test\r\n{fields}\r\n"));
    let response = client.read_response();
    assert_eq!(response.status, 200, "{}", response.text());
    response.fields.get("x-origin").unwrap().to_owned()
}

/// By tenant, the endpoint of each.
fn homes(gateway: &Gateway) -> Vec<String> {
    let mut client = gateway.client();
    (0..60).map(|n| asked(&mut client, "/x", &format!("X-Tenant: t{n}\r\n"))).collect()
}

fn counts(homes: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    homes.iter().for_each(|home| *counts.entry(home.as_str()).or_default() += 1);
    counts
}

fn a_key_of_a_header_has_its_endpoint_on_every_gateway(engine: Engine) {
    let origins = Origins::new(4);
    let by = "by = \"header\", name = \"X-Tenant\"";
    let gateway = hashing(engine, &origins.addresses(), by).start();
    let first = homes(&gateway);
    assert_eq!(homes(&gateway), first);
    assert!(counts(&first).len() == 4 && counts(&first).values().all(|count| *count >= 2), "{first:?}");
    let mut turned = origins.addresses();
    turned.reverse();
    assert_eq!(homes(&hashing(engine, &turned, by).start()), first);
}

fn a_path_and_a_cookie_are_keys_too(engine: Engine) {
    let origins = Origins::new(4);
    let gateway = hashing(engine, &origins.addresses(), "by = \"path\"").start();
    let mut client = gateway.client();
    let paths: Vec<String> = (0..30).map(|n| asked(&mut client, &format!("/item/{n}"), "")).collect();
    let again: Vec<String> = (0..30).map(|n| asked(&mut client, &format!("/item/./{n}?q={n}"), "")).collect();
    assert_eq!(paths, again);
    assert!(counts(&paths).len() >= 3, "{paths:?}");
    let gateway = hashing(engine, &origins.addresses(), "by = \"cookie\", name = \"sid\"").start();
    let mut client = gateway.client();
    let mut of = |n: usize, more: &str| asked(&mut client, "/x", &format!("Cookie: {more}sid=s{n}; z=1\r\n"));
    let plain: Vec<String> = (0..30).map(|n| of(n, "")).collect();
    let others: Vec<String> = (0..30).map(|n| of(n, "a=b; sidx=9; ")).collect();
    assert_eq!(plain, others);
    assert!(counts(&plain).len() >= 3, "{plain:?}");
}

fn a_named_client_is_the_key_of_requests_and_of_relays(engine: Engine) {
    let origins = Origins::new(4);
    let trusted = "[listener.proxy_protocol]\ntrusted = [\"127.0.0.1\"]";
    let setup = hashing(engine, &origins.addresses(), "by = \"client_address\"").sections(trusted);
    let gateway = setup.relay(trusted).start();
    let of = |port: u16, n: usize, from: u16| {
        let mut client = Client::connect(port);
        client.send(format!("PROXY TCP4 198.51.100.{n} 192.0.2.1 {from} 443\r\n"));
        asked(&mut client, "/x", "")
    };
    let homes: Vec<String> = (0..30).map(|n| of(gateway.web(), n, 1_000)).collect();
    assert!(counts(&homes).len() >= 3, "{homes:?}");
    assert_eq!((0..30).map(|n| of(gateway.web(), n, 2_000)).collect::<Vec<_>>(), homes);
    assert_eq!((0..30).map(|n| of(gateway.port("relay"), n, 3_000)).collect::<Vec<_>>(), homes);
}

fn an_endpoint_that_refuses_loses_its_own_keys_alone(engine: Engine) {
    let origins = Origins::new(4);
    // The fifth endpoint is not there.
    let dead = format!("127.0.0.1:{}", free_port());
    let endpoints = [origins.addresses(), vec![dead]].concat();
    let by = "by = \"header\", name = \"x-tenant\"";
    let mut gateway = hashing(engine, &endpoints, by).ejection(1, 30_000).start();
    gateway.expect_log("endpoint ejected after consecutive failures");
    let first = homes(&gateway);
    assert_eq!(gateway.metric("ringfort_upstream_ejections_total", ""), 1.0);
    // Those that had an endpoint keep it; those of the dead one have each found one of their own, and keep it.
    assert_eq!(homes(&gateway), first);
    let four = counts(&first);
    assert!(four.len() == 4 && four.values().all(|count| *count >= 2), "{four:?}");
    assert_eq!(gateway.metric("ringfort_upstream_retries_total", ""), 1.0);
}

fn a_request_without_the_key_goes_anywhere(engine: Engine) {
    let origins = Origins::new(3);
    let gateway = hashing(engine, &origins.addresses(), "by = \"header\", name = \"x-tenant\"").start();
    let mut client = gateway.client();
    let homes: Vec<String> = (0..60).map(|_| asked(&mut client, "/x", "")).collect();
    assert_eq!(counts(&homes).len(), 3, "{homes:?}");
}

fn shares_follow_the_weights(engine: Engine) {
    let origins = Origins::new(3);
    let mut endpoints = origins.addresses();
    endpoints[1].push_str(" weight=3");
    endpoints[2].push_str(" weight=6");
    for keys in ["", "hash = { by = \"path\" }"] {
        let gateway = Setup::to_all(engine, &endpoints).cluster_keys(keys).start();
        let mut client = gateway.client();
        let homes: Vec<String> = (0..1_000).map(|n| asked(&mut client, &format!("/{n}"), "")).collect();
        let counts = counts(&homes);
        for (origin, due) in origins.0.iter().zip([100_usize, 300, 600]) {
            let count = counts[&*origin.port().to_string()];
            assert!(count.abs_diff(due) <= 30 + due / 10, "{keys}: {counts:?}");
        }
    }
}
