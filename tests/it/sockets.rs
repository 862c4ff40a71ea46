//! Options of single sockets that the configuration asks for, seen from outside.

use crate::harness::client::Client;
use crate::harness::gateway::fresh_listener;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    connections_to_endpoints_come_from_the_source_ports,
    without_a_source_port_left_the_answer_is_503_at_once,
    a_congestion_control_that_is_not_there_is_told_and_serves_all_the_same,
    a_congestion_control_that_is_there_serves,
);

/// Linux 6.3 has the option.
fn source_ports_are_known() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(3))
}

/// So many ports at the end of the machine's range.
fn last_ports(count: u16) -> (u16, u16) {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let last: u16 = text.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    (last - count + 1, last)
}

fn connections_to_endpoints_come_from_the_source_ports(engine: Engine) {
    if !source_ports_are_known() {
        return;
    }
    let endpoint = fresh_listener();
    let (first, last) = last_ports(64);
    let gateway = Setup::to_all(engine, &[endpoint.local_addr().unwrap().to_string()])
        .cluster_keys(&format!("source_ports = \"{first}-{last}\""))
        .relay("")
        .start();
    let clients: Vec<_> =
        (0..8).map(|_| std::net::TcpStream::connect(("127.0.0.1", gateway.port("relay"))).unwrap()).collect();
    for _ in &clients {
        let (_, peer) = endpoint.accept().unwrap();
        assert!((first..=last).contains(&peer.port()), "{peer} of {first}-{last}");
    }
}

fn without_a_source_port_left_the_answer_is_503_at_once(engine: Engine) {
    if !source_ports_are_known() {
        return;
    }
    // Accepts in the kernel alone, and never answers.
    let endpoint = fresh_listener();
    let (first, last) = last_ports(2);
    let gateway = Setup::to_all(engine, &[endpoint.local_addr().unwrap().to_string()])
        .cluster_keys(&format!(
            "source_ports = \"{first}-{last}\"\nejection = {{ consecutive_failures = 0 }}"
        ))
        .request_timeout_ms(1_000)
        .start();
    let port = gateway.web();
    let clients: Vec<_> =
        (0..3).map(|_| std::thread::spawn(move || Client::connect(port).get("/").status)).collect();
    let mut answers: Vec<u16> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    answers.sort_unstable();
    assert_eq!(answers[0], 503, "{answers:?}");
    assert!(answers.iter().all(|status| matches!(status, 503 | 504)), "{answers:?}");
}

fn a_congestion_control_that_is_not_there_is_told_and_serves_all_the_same(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).cluster_keys("congestion_control = \"nosuchthing\"").start();
    gateway.expect_log("nosuchthing");
    gateway.wait_for_log("modprobe tcp_nosuchthing");
    assert_eq!(gateway.get("/").status, 200);
}

fn a_congestion_control_that_is_there_serves(engine: Engine) {
    let origin = Origin::serving();
    let keys = "congestion_control = \"reno\"\nnotsent_lowat_bytes = 16384\nuser_timeout_ms = 30000";
    let gateway = Setup::to(engine, &origin).cluster_keys(keys).start();
    eventually("it is served", || gateway.get("/").status == 200);
}
