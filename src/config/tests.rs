//! Whole texts in, configuration or problems out.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::proxy::snapshot::{EndpointAddress, ForwardedPolicy, Protocol};
use crate::route::{Action, Request};

const HTTP: &str = include_str!("../../tests/data/config/http.toml");
const TCP: &str = include_str!("../../tests/data/config/tcp.toml");

fn config(text: &str) -> Config {
    match parse("t.toml", text) {
        Ok((config, warnings)) => {
            assert_eq!(warnings, [], "warnings");
            config
        }
        Err(problems) => panic!("{}", LoadError::Problems(problems)),
    }
}

fn told(text: &str) -> Vec<String> {
    let problems = match parse("t.toml", text) {
        Ok((_, warnings)) => warnings,
        Err(problems) => problems,
    };
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn the_reference_file_is_the_printed_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/ringfort.toml");
    if std::env::var_os("RINGFORT_WRITE_REFERENCE").is_some() {
        std::fs::write(path, reference()).expect("written");
    }
    let file = std::fs::read_to_string(path).expect("readable");
    assert!(file == reference(), "run this test with RINGFORT_WRITE_REFERENCE=1 to write the file anew");
}

#[test]
fn the_embedded_default_answers_on_8080_with_admin_on_9901() {
    let config = embedded_default();
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9901");
    assert_eq!(config.snapshot.listeners[0].address.to_string(), "127.0.0.1:8080");
    let request = Request { listener: 0, method: "GET", host: "localhost", path: "/" };
    let (_, route) = config.snapshot.routes.find(&request, &|_| None).expect("a route");
    let Action::Respond(respond) = &route.action else { panic!("{:?}", route.action) };
    assert_eq!((respond.status, &*respond.body), (200, b"ok\n".as_slice()));
    assert_eq!(told(EMBEDDED), [""; 0]);
}

#[test]
fn the_http_sample_is_read_in_full() {
    let config = config(HTTP);
    assert_eq!(config.workers.cpus, Cpus::List(vec![0]));
    assert_eq!(config.workers.engine, Engine::Auto);
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9901");
    let snapshot = &config.snapshot;
    assert_eq!((&*snapshot.listeners[0].name, snapshot.listeners[0].protocol), ("web", Protocol::Http));
    let names: Vec<&str> = snapshot.clusters.iter().map(|cluster| &*cluster.name).collect();
    assert_eq!(names, ["api", "site"]);
    assert_eq!(snapshot.clusters[0].endpoints.len(), 2);
    let to = |host, path| {
        let request = Request { listener: 0, method: "GET", host, path };
        snapshot.routes.find(&request, &|_| None).map(|(index, _)| index)
    };
    assert_eq!(to("x.api.test", "/v1/x"), Some(0));
    assert_eq!(to("x.api.test", "/target"), Some(1));
    assert_eq!(to("api.test", "/v2"), Some(2));
}

#[test]
fn the_tcp_sample_is_read_in_full() {
    let snapshot = config(TCP).snapshot;
    assert_eq!(snapshot.listeners[0].protocol, Protocol::Tcp { cluster: 0 });
    let endpoint = EndpointAddress::Socket("127.0.0.1:9000".parse().expect("an address"));
    assert_eq!(snapshot.clusters[0].endpoints, [endpoint]);
}
