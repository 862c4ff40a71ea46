//! Faults of the machine and of endpoints, caused here and survived: the rows of the fault catalogue that need no
//! tool beside the test itself. What needs strace or cgroups is in `tests/conformance`.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::bytes::{Digest, random};
use crate::harness::client::Client;
use crate::harness::message::{End, NoMessage};
use crate::harness::origin::{ChildOrigin, Origin};
use crate::harness::setup::Setup;
use crate::harness::{Engine, SOON, eventually, holds_within, on_both_engines, process};

on_both_engines!(
    a_killed_origin_leaves_visible_truncation_only,
    a_stopped_origin_gives_504_and_recovers,
    too_few_descriptors_cause_no_spin_and_recover,
    two_receive_buffers_serve_many_connections,
    a_ring_of_eight_loses_nothing,
    a_storm_of_connects_is_served,
    idle_connections_cost_little,
    an_idle_gateway_uses_no_cpu,
    a_connection_limit_refuses_early,
    a_lack_of_descriptors_is_no_endpoints_fault,
);

/// R8: one of three origins is killed while it streams.
fn a_killed_origin_leaves_visible_truncation_only(engine: Engine) {
    const LEN: usize = 8 << 20;
    let origins = [ChildOrigin::start(), ChildOrigin::start(), ChildOrigin::start()];
    let mut gateway =
        Setup::to_all(engine, &origins.each_ref().map(ChildOrigin::address)).ejection(3, 2_000).start();
    for text in ["eject", "site"] {
        gateway.expect_log(text);
    }
    let port = gateway.web();
    let wanted = Digest::of(&random(LEN as u64, LEN)).text();
    let mut downloads: Vec<_> = (0..18)
        .map(|_| {
            let mut client = Client::connect_narrow(port);
            client.send(format!("GET /bytes/{LEN} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
            client
        })
        .collect();
    for client in &mut downloads {
        assert!(client.reader.fill().is_ok_and(|n| n > 0), "every response has begun");
    }
    origins[0].signal(libc::SIGKILL);
    let (mut whole, mut cut) = (0, 0);
    for mut client in downloads {
        match client.try_read_response("GET") {
            Ok(response) if response.status == 200 && response.end == End::Complete => {
                assert_eq!(response.digest, wanted, "a truncation that looks whole");
                whole += 1;
            }
            Ok(response) => {
                assert!(response.end == End::Truncated || response.status >= 500, "{}", response.status);
                cut += 1;
            }
            Err(none) => panic!("{none:?}"),
        }
    }
    assert!(whole > 0 && cut > 0, "{whole} whole, {cut} cut");
    // What follows within a second of ejection is served by the others.
    let mut client = gateway.client();
    assert!(holds_within(Duration::from_secs(1), || (0..10).all(|_| client.get("/").status == 200)));
    assert!((0..200).all(|_| client.get("/").status == 200), "no failures after ejection");
}

/// R9: an origin that is stopped, as a black hole.
fn a_stopped_origin_gives_504_and_recovers(engine: Engine) {
    let origin = ChildOrigin::start();
    let mut gateway = Setup::to_all(engine, &[origin.address()]).request_timeout_ms(400).start();
    gateway.expect_log("site");
    let mut client = gateway.client();
    assert_eq!(client.get("/").status, 200);
    origin.stop();
    let start = Instant::now();
    let response = client.get("/");
    origin.signal(libc::SIGCONT);
    assert_eq!(response.status, 504);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    eventually("it serves again", || client.get("/").status == 200);
}

/// R15: more connections than descriptors.
fn too_few_descriptors_cause_no_spin_and_recover(engine: Engine) {
    let mut gateway = Setup::answering(engine).open_files(256).start();
    for text in ["descriptor", "accept", "nofile"] {
        gateway.expect_log(text);
    }
    let data = gateway.data_process();
    let mut first = gateway.client();
    assert_eq!(first.get("/").status, 200);
    let crowd: Vec<_> = (0..400).map(|_| Client::try_connect(gateway.web())).collect();
    assert_eq!(first.get("/").status, 200, "connections that are open are served");
    std::thread::sleep(Duration::from_millis(300));
    let before = process::cpu_ticks(data);
    std::thread::sleep(Duration::from_secs(1));
    let ticks = process::cpu_ticks(data) - before;
    assert!(ticks <= 10, "{ticks} ticks of CPU in a second without work");
    assert_eq!(first.get("/").status, 200);
    assert!(gateway.admin("/healthz").is_ok_and(|response| response.status == 200), "the admin port answers");
    drop(crowd);
    let start = Instant::now();
    assert_eq!(gateway.get("/").status, 200);
    assert!(start.elapsed() < Duration::from_secs(2), "recovers within {:?}", start.elapsed());
}

/// What this machine lacks is answered 503, and no endpoint is taken out for it.
fn a_lack_of_descriptors_is_no_endpoints_fault(engine: Engine) {
    let hold = || {
        Origin::start(|peer| {
            while let Some(request) = peer.read_request() {
                if request.target == "/hold" {
                    return peer.wait_for_end();
                }
                if peer.serve(&request).is_err() {
                    return;
                }
            }
        })
    };
    let origins = [hold(), hold()];
    let endpoints = origins.each_ref().map(Origin::address);
    const CLIENTS: usize = 60;
    let gateway = Setup::to_all(engine, &endpoints).ejection(1, 20_000).start();
    let mut waiting: Vec<_> = (0..CLIENTS).map(|_| gateway.client()).collect();
    gateway.wait_for_metric("ringfort_connections_active", "", |active| active == CLIENTS as f64);
    // Every client has its descriptor; fewer are left for connections to endpoints.
    let data = gateway.data_process();
    process::limit_open_files(data, (process::open_files(data) + CLIENTS / 2) as u64);
    for client in &mut waiting {
        client.send("GET /hold HTTP/1.1\r\nHost: a.test\r\n\r\n");
        client.read_timeout(Duration::from_millis(1));
    }
    let mut refused = Vec::new();
    eventually("each request is held or refused", || {
        waiting.retain_mut(|client| match client.try_read_response("GET") {
            Err(none) => {
                assert_eq!(none, NoMessage::TimedOut);
                true
            }
            Ok(response) => {
                refused.push(response);
                false
            }
        });
        origins.iter().map(Origin::open).sum::<usize>() == waiting.len()
    });
    assert!(!refused.is_empty() && !waiting.is_empty(), "{} of {CLIENTS} are refused", refused.len());
    for response in refused {
        assert_eq!(response.status, 503, "{}", response.text());
        assert!(response.text().contains("gateway"), "{}", response.text());
    }
    drop(waiting);
    eventually("it serves again", || {
        Client::try_connect(gateway.web()).is_some_and(|mut client| {
            let sent = client.try_send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
            sent.is_ok() && client.try_read_response("GET").is_ok_and(|response| response.status == 200)
        })
    });
    assert_eq!(gateway.metric("ringfort_upstream_ejections_total", ""), 0.0);
}

/// R16: far fewer receive buffers than active connections.
fn two_receive_buffers_serve_many_connections(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).relay("").ring("recv_buffers = 2").start();
    let port = gateway.web();
    std::thread::scope(|scope| {
        for n in 0..60 {
            scope.spawn(move || {
                let mut client = Client::connect(port);
                for round in 0..3 {
                    let len = 1000 * n + 40_000 * round;
                    let body = random(len as u64, len);
                    let digest = Digest::of(&body).text();
                    assert!(client.post("/up", &body).text().contains(&digest), "{len} bytes up");
                    assert_eq!(client.get(&format!("/bytes/{len}")).digest, digest, "{len} bytes down");
                }
            });
        }
    });
}

/// R17: a ring so small that its queues overflow.
fn a_ring_of_eight_loses_nothing(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::to(engine, &origin).ring("entries = 8\nrecv_buffers = 8").start();
    let port = gateway.web();
    std::thread::scope(|scope| {
        for n in 0..100 {
            scope.spawn(move || {
                let mut client = Client::connect(port);
                for round in 0..4 {
                    let len = 100 * n + 30_000 * round;
                    let digest = Digest::of(&random(len as u64, len)).text();
                    assert_eq!(client.get(&format!("/bytes/{len}")).digest, digest);
                    assert_eq!(client.get(&format!("/chunked/{len}")).digest, digest);
                }
            });
        }
    });
    assert_eq!(origin.requests().len(), 800);
}

/// R28, in a size that suits a debug build: all connect at once, all are served within two seconds.
fn a_storm_of_connects_is_served(engine: Engine) {
    const COUNT: usize = 2_000;
    let gateway = Setup::answering(engine).start();
    let start = Instant::now();
    let mut clients: Vec<TcpStream> = Vec::with_capacity(COUNT);
    for n in 0..COUNT {
        clients.push(
            TcpStream::connect(("127.0.0.1", gateway.web())).unwrap_or_else(|e| panic!("connect {n}: {e}")),
        );
    }
    for stream in clients {
        let mut client = Client::over(stream);
        assert_eq!(client.get("/").status, 200);
    }
    let took = start.elapsed();
    // A debug build beside other tests: the release figure is the conformance suite's.
    assert!(took < Duration::from_secs(6), "{took:?}");
}

/// An idle kept connection holds no receive buffer: far less than one would cost.
fn idle_connections_cost_little(engine: Engine) {
    const COUNT: usize = 1_000;
    let gateway = Setup::answering(engine).start();
    let data = gateway.data_process();
    let hold = |count: usize| -> Vec<Client> {
        (0..count)
            .map(|_| {
                let mut client = gateway.client();
                assert_eq!(client.get("/").status, 200);
                client
            })
            .collect()
    };
    let warm = hold(200);
    let before = process::anonymous_bytes(data);
    let idle = hold(COUNT);
    let each = process::anonymous_bytes(data).saturating_sub(before) / COUNT as u64;
    // The promise is 600 bytes over 4,000 connections in a release build; a debug build's frames are larger.
    assert!(each < 2_000, "{each} bytes an idle connection");
    drop((warm, idle));
}

fn an_idle_gateway_uses_no_cpu(engine: Engine) {
    let gateway = Setup::answering(engine).start();
    let data = gateway.data_process();
    let mut client = gateway.client();
    assert_eq!(client.get("/").status, 200);
    let before = process::cpu_ticks(data) + process::cpu_ticks(gateway.supervisor());
    std::thread::sleep(Duration::from_secs(2));
    let ticks = process::cpu_ticks(data) + process::cpu_ticks(gateway.supervisor()) - before;
    assert!(ticks <= 4, "{ticks} ticks of CPU in two idle seconds");
}

/// I5: beyond the limit a connection is refused or closed at once; the admin port still answers.
fn a_connection_limit_refuses_early(engine: Engine) {
    let mut gateway = Setup::answering(engine).limits("connections_max = 20").start();
    gateway.expect_log("connections");
    let mut kept: Vec<_> = (0..20).map(|_| gateway.client()).collect();
    for client in &mut kept {
        assert_eq!(client.get("/").status, 200);
    }
    if let Some(mut beyond) = Client::try_connect(gateway.web()) {
        let _ = beyond.try_send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
        match beyond.try_read_response("GET") {
            Ok(response) => assert_eq!(response.status, 503),
            Err(none) => assert!(matches!(none, NoMessage::Closed | NoMessage::Reset), "{none:?}"),
        }
    }
    assert!(gateway.admin("/healthz").is_ok_and(|response| response.status == 200));
    gateway.wait_for_metric("ringfort_shed_total", "connections", |value| value >= 1.0);
    drop(kept);
    assert!(holds_within(SOON, || {
        let Some(mut client) = Client::try_connect(gateway.web()) else { return false };
        client.try_send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").is_ok()
            && client.try_read_response("GET").is_ok_and(|response| response.status == 200)
    }));
}
