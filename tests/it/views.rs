//! What an operator sees of a running gateway: connections, clusters with their endpoints, and the list of metrics;
//! and an endpoint that is taken out of use by hand.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};

use serde_json::Value;

use crate::harness::client::Client;
use crate::harness::gateway::{Gateway, ringfort};
use crate::harness::h2;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    open_connections_are_listed_with_what_they_are_at,
    endpoints_are_listed_with_health_and_pools,
    a_drained_endpoint_gets_no_more_requests_until_it_is_undrained,
    a_drained_endpoint_finishes_what_it_is_at,
    a_drained_endpoint_stays_so_over_a_reload,
);

#[track_caller]
fn json(gateway: &Gateway, path: &str) -> Value {
    let response = gateway.admin(path).unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    serde_json::from_str(&response.text()).unwrap()
}

fn open_connections_are_listed_with_what_they_are_at(engine: Engine) {
    let origin = Origin::start(|peer| peer.wait_for_end());
    let setup = Setup::new(engine).cluster("site", &[origin.address()]).relay("");
    let gateway = setup.route("respond = { body = \"ok\" }").start();
    let mut first = gateway.client();
    assert_eq!((first.get("/").status, first.get("/").status), (200, 200));
    let relayed = Client::connect(gateway.port("relay"));
    let silent = gateway.client();
    h2::run(async {
        let mut send = h2::connect(gateway.web()).await;
        assert_eq!(h2::fetch(&mut send, h2::get("/")).await.unwrap().status, 200);
        let mut view = Value::Null;
        eventually("all are listed", || {
            view = json(&gateway, "/connections");
            view["total"] == 4
        });
        let connections = view["connections"].as_array().unwrap();
        let told: BTreeSet<_> = connections
            .iter()
            .map(|it| format!("{} {} {}", it["listener"], it["doing"], it["exchanges"]).replace('"', ""))
            .collect();
        let wanted = ["relay relay 1", "web http1 2", "web http2 1", "web opening 0"];
        assert_eq!(told, wanted.map(str::to_owned).into());
        assert!(connections.iter().all(|it| it["client"] == "127.0.0.1" && it["worker"] == 0), "{view}");
        let ages: Vec<_> = connections.iter().map(|it| it["age_ms"].as_u64().unwrap()).collect();
        assert!(ages.is_sorted_by(|older, newer| older >= newer), "{ages:?}");
        assert_eq!(view["silent_workers"], Value::Array(vec![]));
        let one = json(&gateway, "/connections?max=1");
        assert_eq!((&one["total"], &one["connections"][0]["exchanges"]), (&4.into(), &2.into()));
    });
    assert_eq!(gateway.admin("/connections?max=0").unwrap().status, 400);
    drop((first, relayed, silent));
    eventually("none is left", || json(&gateway, "/connections")["total"] == 0);
}

fn endpoints_are_listed_with_health_and_pools(engine: Engine) {
    let (good, dead) = (Origin::serving(), crate::harness::gateway::free_port());
    let dead = format!("127.0.0.1:{dead}");
    let mut gateway = Setup::to_all(engine, &[good.address(), dead.clone()]).ejection(1, 20_000).start();
    gateway.expect_log("ejected");
    let mut client = gateway.client();
    let mut view = Value::Null;
    eventually("the dead one is ejected", || {
        assert_eq!(client.get("/").status, 200);
        view = json(&gateway, "/clusters");
        view["clusters"][0]["endpoints"].as_array().unwrap().iter().any(|it| it["state"] == "ejected")
    });
    assert_eq!(view["clusters"][0]["name"], "site");
    let of = |address: &str| {
        let endpoints = view["clusters"][0]["endpoints"].as_array().unwrap();
        endpoints.iter().find(|it| it["endpoint"] == address).cloned().unwrap()
    };
    let (up, down) = (of(&good.address()), of(&dead));
    assert_eq!(
        (&up["state"], &up["connections_idle"], &up["in_flight"]),
        (&"serving".into(), &1.into(), &0.into())
    );
    assert_eq!(down["ejecting_workers"], Value::from(vec![0]));
    assert!(down["ejected_for_ms"].as_u64().is_some_and(|ms| (1..=20_000).contains(&ms)), "{down}");
}

#[track_caller]
fn drain(gateway: &Gateway, endpoint: &str, verb: &str) {
    let answer = gateway.socket_request("POST", &format!("/clusters/site/endpoints/{endpoint}/{verb}"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

fn a_drained_endpoint_gets_no_more_requests_until_it_is_undrained(engine: Engine) {
    let origins = [Origin::serving(), Origin::serving()];
    let endpoints = origins.each_ref().map(Origin::address);
    let gateway = Setup::to_all(engine, &endpoints).start();
    let mut client = gateway.client();
    let counts = || origins.each_ref().map(|origin| origin.requests().len());
    eventually("both are used", || client.get("/").status == 200 && counts().iter().all(|count| *count > 0));
    drain(&gateway, &endpoints[0], "drain");
    eventually("its idle connections are closed", || origins[0].open() == 0);
    let before = counts();
    assert!((0..50).all(|_| client.get("/").status == 200));
    assert_eq!(counts(), [before[0], before[1] + 50]);
    let view = json(&gateway, "/clusters");
    let states: Vec<_> = view["clusters"][0]["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["endpoint"] == *endpoints[0], it["state"] == "draining"))
        .collect();
    assert!(states.iter().all(|(is_first, draining)| is_first == draining), "{view}");
    drain(&gateway, &endpoints[1], "drain");
    assert_eq!(client.get("/").status, 503, "none is left");
    drain(&gateway, &endpoints[0], "undrain");
    assert!((0..10).all(|_| client.get("/").status == 200));
    assert_eq!(counts()[0], before[0] + 10);
    for (method, path, status) in [
        ("POST", "/clusters/site/endpoints/127.0.0.1:1/drain", "404"),
        ("POST", &*format!("/clusters/none/endpoints/{}/drain", endpoints[0]), "404"),
        ("POST", "/clusters/site/endpoints/here/drain", "400"),
        ("GET", "/clusters/site/endpoints/here/drain", "405"),
    ] {
        let answer = gateway.socket_request(method, path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{method} {path}: {answer}");
    }
    let path = format!("/clusters/site/endpoints/{}/drain", endpoints[0]);
    assert_eq!(gateway.admin_request("POST", &path).unwrap().status, 403, "over TCP it only reads");
}

fn a_drained_endpoint_finishes_what_it_is_at(engine: Engine) {
    let drained = Arc::new(Barrier::new(2));
    let goes_on = drained.clone();
    let origin = Origin::start(move |peer| {
        if peer.read_request().is_some() {
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nfir").unwrap();
            goes_on.wait();
            peer.send(b"st.").unwrap();
            assert!(peer.read_request().is_none(), "it was closed");
        }
    });
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("it is at the request", || origin.requests().len() == 1);
    drain(&gateway, &origin.address(), "drain");
    drained.wait();
    let response = client.read_response();
    assert_eq!((response.status, &*response.text()), (200, "first."));
    eventually("its connection is not kept", || origin.open() == 0);
}

fn a_drained_endpoint_stays_so_over_a_reload(engine: Engine) {
    let origins = [Origin::serving(), Origin::serving()];
    let endpoints = origins.each_ref().map(Origin::address);
    let with = |idle: u32| {
        let keys = format!("pool_idle_timeout_ms = {idle}");
        Setup::to_all(engine, &endpoints).cluster_keys(&keys)
    };
    let mut gateway = with(20_000).start();
    drain(&gateway, &endpoints[0], "drain");
    let other = "path_prefix = \"/other\"\nrespond = {}";
    let mut client = gateway.client();
    // The cluster as it was, then another one of its name.
    for setup in [with(20_000).route(other), with(21_000)] {
        gateway.reload_to(&setup.text());
        assert!((0..20).all(|_| client.get("/").status == 200));
        assert_eq!(origins[0].requests().len(), 0);
        let connections = json(&gateway, "/connections");
        assert_eq!(connections["connections"][0]["listener"], "web", "{connections}");
    }
    drain(&gateway, &endpoints[0], "undrain");
    eventually("it serves again", || client.get("/").status == 200 && origins[0].requests().len() == 1);
}

/// What an exposition has: names, and the label names of each.
fn exposed(gateway: &Gateway) -> (usize, BTreeSet<(String, Vec<String>)>) {
    let text = gateway.admin("/metrics").unwrap().text();
    let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let shape = |line: &&str| {
        let (head, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = head.split_once('{').unwrap_or((head, ""));
        let labels =
            labels.split("\",").filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.to_owned());
        let name = ["_bucket", "_sum", "_count"].iter().fold(name, |name, end| {
            name.strip_suffix(end).filter(|name| name.ends_with("_seconds")).unwrap_or(name)
        });
        (name.to_owned(), labels.filter(|label| label != "le").collect())
    };
    (series.len(), series.iter().map(shape).collect())
}

#[test]
fn every_series_is_one_that_the_list_of_metrics_tells_and_traffic_makes_no_new_one() {
    let origin = Origin::serving();
    let gateway = Setup::to(Engine::Epoll, &origin).start();
    let mut client = gateway.client();
    let mut n = 0;
    // Those of lost time appear with its first samples.
    eventually("requests that differ in all make no new series", || {
        let (before, _) = exposed(&gateway);
        for _ in 0..20 {
            n += 1;
            client.send(format!("M{n} /{n} HTTP/1.1\r\nHost: {n}.test\r\nUser-Agent: {n}\r\n\r\n"));
            client.read_response();
        }
        exposed(&gateway).0 == before
    });
    let (_, shapes) = exposed(&gateway);
    let output = ringfort().args(["metrics", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = list["metrics"].as_array().unwrap();
    for (name, labels) in shapes {
        let told = list
            .iter()
            .find(|metric| metric["name"] == *name)
            .unwrap_or_else(|| panic!("{name} is not listed"));
        let known = told["labels"].as_array().unwrap();
        for label in labels {
            assert!(
                known.iter().any(|known| known["name"] == *label),
                "{name} has a label {label} that is not listed"
            );
        }
    }
    assert!(list.iter().all(|metric| metric["help"].as_str().is_some_and(|help| help.ends_with('.'))));
}
