//! The admin endpoint: what an operator reads over TCP, and what only the Unix socket may do.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use crate::harness::client::Client;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    health_and_readiness_are_told,
    workers_tell_their_engine_and_count_requests,
    metrics_count_what_happened,
    the_configuration_is_shown_with_its_defaults,
    a_foreign_host_is_refused,
    tcp_is_read_only,
    the_unix_socket_is_private_and_answers_the_same,
    a_drain_can_be_asked_for_on_the_unix_socket,
    an_unknown_path_is_not_found,
);

fn health_and_readiness_are_told(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(gateway.admin(path).unwrap().status, 200, "{path}");
    }
}

fn workers_tell_their_engine_and_count_requests(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    for _ in 0..7 {
        client.get("/");
    }
    let workers = gateway.workers();
    assert_eq!(workers.len(), 1, "{workers:?}");
    let worker = &workers[0];
    assert_eq!((&worker["worker"], &worker["cpu"]), (&0.into(), &0.into()));
    assert_eq!(worker["engine"], engine.key());
    eventually("requests are counted", || gateway.workers()[0]["requests_total"] == 7);
    assert_eq!(gateway.workers()[0]["connections"], 1, "{:?}", gateway.workers());
    assert!(worker["loop_gap_max_ms"].is_number() && worker["accept_weight"].is_number(), "{worker}");
    drop(client);
    eventually("the connection is gone", || gateway.workers()[0]["connections"] == 0);
}

fn metrics_count_what_happened(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    for status in [200, 200, 404, 500, 302] {
        client.get(&format!("/status/{status}"));
    }
    client.post("/up", &[7; 5000]);
    for (class, count) in [("2xx", 3.0), ("3xx", 1.0), ("4xx", 1.0), ("5xx", 1.0)] {
        gateway.wait_for_metric("ringfort_requests_total", class, |value| value == count);
    }
    let text = gateway.admin("/metrics").unwrap().text();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, value) = line.rsplit_once(' ').expect("NAME VALUE");
        assert!(name.starts_with("ringfort_"), "{line}");
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = family.split(' ').next().unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    assert!(text.contains(engine.key()), "the engine is shown");
}

fn the_configuration_is_shown_with_its_defaults(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let text = gateway.admin("/config").unwrap().text();
    let config: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(config["workers"]["engine"], engine.key());
    assert_eq!(config["limits"]["head_bytes_max"], 16_384);
    assert_eq!(config["drain"]["deadline_ms"], 30_000);
}

fn a_foreign_host_is_refused(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let port = gateway.port("admin");
    for (host, allowed) in [
        (format!("127.0.0.1:{port}"), true),
        (format!("localhost:{port}"), true),
        (format!("[::1]:{port}"), true),
        ("evil.test".into(), false),
        ("localhost.evil.test".into(), false),
        ("127.0.0.1.evil.test".into(), false),
        ("169.254.0.1".into(), false),
    ] {
        let mut client = Client::over(TcpStream::connect(("127.0.0.1", port)).unwrap());
        client.send(format!("GET /config HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        let status = client.read_response().status;
        assert_eq!(status == 200, allowed, "{host}: {status}");
        assert_eq!(status / 100 == 4, !allowed, "{host}: {status}");
    }
}

fn tcp_is_read_only(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    for path in ["/drain", "/reload", "/upgrade", "/", "/config"] {
        for method in ["POST", "PUT", "DELETE"] {
            let status = gateway.admin_request(method, path).unwrap().status;
            assert!(matches!(status, 403..=405), "{method} {path}: {status}");
        }
    }
    assert_eq!(gateway.get("/").status, 200, "nothing was drained");
}

fn the_unix_socket_is_private_and_answers_the_same(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let mode = std::fs::metadata(gateway.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "others may not connect: {mode:o}");
    for path in ["/healthz", "/readyz", "/workers", "/metrics", "/config"] {
        let reply = gateway.socket_request("GET", path);
        assert!(reply.starts_with("HTTP/1.1 200 "), "{path}: {reply}");
    }
}

fn a_drain_can_be_asked_for_on_the_unix_socket(engine: Engine) {
    let mut gateway = Setup::answering(engine).drain(100, 5000).start();
    let reply = gateway.socket_request("POST", "/drain");
    assert!(reply.starts_with("HTTP/1.1 20"), "{reply}");
    let status = gateway.wait_exit(std::time::Duration::from_secs(10));
    assert_eq!(status.and_then(|s| s.code()), Some(0));
}

fn an_unknown_path_is_not_found(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    assert_eq!(gateway.admin("/no/such/page").unwrap().status, 404);
}
