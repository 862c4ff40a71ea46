//! Rate limits: who has used his share up is told so and when to come again; the limit is that of all workers together.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::client::{Client, Response};
use crate::harness::gateway::Gateway;
use crate::harness::h2::{connect, fetch, get, run};
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, on_both_engines};

on_both_engines!(
    who_has_used_the_share_up_gets_429_and_may_come_again,
    streams_of_http2_get_429_too,
    a_value_of_a_header_has_a_budget_and_without_it_the_address_has,
    a_named_client_has_a_budget_and_a_network_of_ipv6_is_one_client,
    several_routes_may_share_a_limit_and_one_may_have_several,
    a_tunnel_is_refused_like_any_request,
    a_body_that_is_not_worth_reading_ends_the_connection,
    the_limit_holds_for_all_workers_together,
    what_is_used_up_stays_so_over_a_reload,
);

/// As slow that no test waits for a token by mistake.
fn limit(name: &str, keys: &str) -> String {
    format!("[[rate_limit]]\nname = \"{name}\"\nperiod_ms = 3600000\n{keys}\n")
}

/// Everything answered here, at most as `keys` say.
fn limited(engine: Engine, keys: &str) -> Setup {
    let route = "respond = { status = 200, body = \"ok\\n\" }\nrate_limits = [\"one\"]";
    Setup::new(engine).route(route).sections(&limit("one", keys))
}

fn refused(gateway: &Gateway) -> f64 {
    gateway.metric("ringfort_rate_limited_requests_total", "listener=\"web\",budget=\"own\"")
}

fn ask(client: &mut Client, fields: &str) -> Response {
    client.send(format!("GET / HTTP/1.1\r\nHost: site.test\r\n{fields}\r\n"));
    client.read_response()
}

fn who_has_used_the_share_up_gets_429_and_may_come_again(engine: Engine) {
    let gateway = limited(engine, "requests = 3").start();
    let mut client = gateway.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").status, 200);
    }
    for n in 1..=5 {
        // Every connection of the client, and each goes on.
        let refusal = client.get("/");
        assert_eq!(refusal.status, 429);
        let after_s: u64 = refusal.fields.get("retry-after").unwrap().parse().unwrap();
        assert!((1_100..=1_200).contains(&after_s), "{after_s}");
        assert!(!refusal.closes() && refusal.text().starts_with("429 Too Many Requests\n"));
        assert_eq!(gateway.get("/").status, 429);
        assert_eq!(refused(&gateway), f64::from(2 * n));
    }
    let soon = Setup::new(engine)
        .route("respond = { status = 200 }\nrate_limits = [\"one\"]")
        .sections("[[rate_limit]]\nname = \"one\"\nrequests = 2\nburst = 1\nperiod_ms = 1000")
        .start();
    let mut client = soon.client();
    assert_eq!(client.get("/").status, 200);
    let refusal = client.get("/");
    assert_eq!((refusal.status, refusal.fields.get("retry-after")), (429, Some("1")));
    let begun = Instant::now();
    while client.get("/").status == 429 {
        assert!(begun.elapsed() < Duration::from_secs(10), "it never comes again");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn streams_of_http2_get_429_too(engine: Engine) {
    let gateway = limited(engine, "requests = 3").start();
    run(async {
        let mut send = connect(gateway.web()).await;
        for _ in 0..3 {
            assert_eq!(fetch(&mut send, get("/")).await.unwrap().status, 200);
        }
        let refusal = fetch(&mut send, get("/")).await.unwrap();
        assert!(refusal.status == 429 && refusal.text().starts_with("429 Too Many Requests\n"));
        let after_s: u64 = refusal.field("retry-after").unwrap().parse().unwrap();
        assert!((1_100..=1_200).contains(&after_s), "{after_s}");
        let mut call = get("/");
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let refusal = fetch(&mut send, call).await.unwrap();
        assert_eq!((refusal.status, refusal.field("grpc-status")), (200, Some("14")));
    });
    assert_eq!(refused(&gateway), 2.0);
}

fn a_value_of_a_header_has_a_budget_and_without_it_the_address_has(engine: Engine) {
    let gateway = limited(engine, "requests = 2\nby = \"header\"\nheader = \"X-Api-Key\"").start();
    let mut client = gateway.client();
    for fields in ["X-Api-Key: a\r\n", "x-api-key: b\r\nX-Api-Key: a\r\n", "X-Api-Key: A\r\n", ""] {
        let statuses = [0; 3].map(|_| ask(&mut client, fields).status);
        assert_eq!(statuses, [200, 200, 429], "{fields}");
    }
}

fn a_named_client_has_a_budget_and_a_network_of_ipv6_is_one_client(engine: Engine) {
    let keys = "requests = 2";
    let setup = Setup::new(engine)
        .sections("[listener.proxy_protocol]\ntrusted = [\"127.0.0.1\"]")
        .sections(&limit("one", keys))
        .route("respond = { status = 200 }\nrate_limits = [\"one\"]");
    let gateway = setup.start();
    let of = |family: &str, source: &str| {
        let mut client = gateway.client();
        client.send(format!("PROXY {family} {source} {source} 1000 80\r\n"));
        client.get("/").status
    };
    assert_eq!([0; 3].map(|_| of("TCP4", "198.51.100.7")), [200, 200, 429]);
    assert_eq!(of("TCP4", "198.51.100.8"), 200);
    let network = ["2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1:ffff::3"];
    assert_eq!(network.map(|source| of("TCP6", source)), [200, 200, 429]);
    assert_eq!(of("TCP6", "2001:db8:0:2::1"), 200);
    // An address in both families is one.
    assert_eq!(of("TCP6", "::ffff:198.51.100.7"), 429);
}

fn several_routes_may_share_a_limit_and_one_may_have_several(engine: Engine) {
    let gateway = Setup::new(engine)
        .route("path = \"/a\"\nrespond = { status = 200 }\nrate_limits = [\"all\", \"few\"]")
        .route("path = \"/b\"\nrespond = { status = 200 }\nrate_limits = [\"all\"]")
        .route("path = \"/free\"\nrespond = { status = 200 }")
        .sections(&limit("all", "requests = 5\nby = \"everybody\""))
        .sections(&limit("few", "requests = 2"))
        .start();
    let mut client = gateway.client();
    let mut statuses = |path: &str| [0; 3].map(|_| client.get(path).status);
    assert_eq!(statuses("/a"), [200, 200, 429]);
    // What "few" refuses takes nothing of "all", which has three left.
    assert_eq!(statuses("/a"), [429, 429, 429]);
    assert_eq!(statuses("/b"), [200, 200, 200]);
    assert_eq!(statuses("/b"), [429, 429, 429]);
    assert_eq!(statuses("/free"), [200, 200, 200]);
}

fn a_tunnel_is_refused_like_any_request(engine: Engine) {
    let origin = Origin::serving();
    let gateway = Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("cluster = \"site\"\ntunnels = [\"websocket\", \"connect\"]\nrate_limits = [\"one\"]")
        .sections(&limit("one", "requests = 1"))
        .start();
    let mut client = gateway.client();
    assert_eq!(client.get("/x").status, 200);
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(ask(&mut client, upgrade).status, 429);
    client.send("CONNECT site.test:443 HTTP/1.1\r\nHost: site.test:443\r\n\r\n");
    let refusal = client.try_read_response("CONNECT").unwrap();
    assert!(refusal.status == 429 && refusal.closes());
    assert_eq!(origin.requests().len(), 1);
}

fn a_body_that_is_not_worth_reading_ends_the_connection(engine: Engine) {
    let gateway = limited(engine, "requests = 1").start();
    let mut client = gateway.client();
    assert_eq!(client.post("/", b"small").status, 200);
    // One that is small is read, and the connection goes on.
    assert_eq!(client.post("/", b"small").status, 429);
    client.send("POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 10000000\r\n\r\n");
    let refusal = client.read_response();
    assert!(refusal.status == 429 && refusal.closes());
    client.expect_end();
    let ended = "listener=\"web\",reason=\"rate_limited\"";
    gateway.wait_for_metric("ringfort_sessions_ended_total", ended, |ended| ended == 1.0);
}

/// Connections of which the first worker has all but one, as far as the kernel's spread allows.
fn unevenly_spread(gateway: &Gateway, workers: usize) -> Vec<Client> {
    let connections = || -> Vec<u64> {
        gateway.workers().iter().map(|worker| worker["connections"].as_u64().unwrap()).collect()
    };
    let (mut kept, mut of) = (Vec::new(), vec![0; workers]);
    for _ in 0..200 {
        let before = connections();
        let mut client = gateway.client();
        // It is accepted once it is answered.
        assert_ne!(client.get("/free").status, 0);
        let after = connections();
        let Some(worker) = (0..workers).find(|worker| after[*worker] > before[*worker]) else { continue };
        if of[worker] < if worker == 0 { 6 } else { 1 } {
            of[worker] += 1;
            kept.push(client);
        }
        if kept.len() == 6 + workers - 1 {
            break;
        }
    }
    assert!(of.iter().all(|count| *count > 0), "{of:?}");
    kept
}

fn the_limit_holds_for_all_workers_together(engine: Engine) {
    const RATE: u32 = 100;
    let cpus = std::thread::available_parallelism().unwrap().get();
    for workers in [1, 2, 4].into_iter().filter(|workers| *workers <= cpus) {
        let setup = Setup::new(engine)
            .route("path = \"/\"\nrespond = { status = 200 }\nrate_limits = [\"one\"]")
            .route("path = \"/free\"\nrespond = { status = 200 }")
            .sections(&format!("[[rate_limit]]\nname = \"one\"\nrequests = {RATE}"));
        let text = setup.text().replace("cpus = \"0\"", &format!("cpus = \"0-{}\"", workers - 1));
        let gateway = Gateway::launch(&text, setup.launch.clone());
        let clients = unevenly_spread(&gateway, workers);
        let admitted = AtomicU32::new(0);
        let begun = Instant::now();
        let until = begun + Duration::from_secs(4);
        std::thread::scope(|scope| {
            for mut client in clients {
                let admitted = &admitted;
                scope.spawn(move || {
                    while Instant::now() < until {
                        match client.get("/").status {
                            200 => admitted.fetch_add(1, Ordering::Relaxed),
                            status => {
                                assert_eq!(status, 429);
                                0
                            }
                        };
                        std::thread::sleep(Duration::from_millis(4));
                    }
                });
            }
        });
        let took = begun.elapsed();
        // The bucket is full at first, and no pause of this machine is as long as the bucket is deep.
        let due = f64::from(RATE) * (1.0 + took.as_secs_f64());
        let got = f64::from(admitted.into_inner());
        println!("{workers} workers: {got} admitted of {due:.0} in {took:?}");
        assert!(got <= due + 1.0 && got >= due * 0.95, "{workers} workers: {got} of {due}");
    }
}

fn what_is_used_up_stays_so_over_a_reload(engine: Engine) {
    let with = |requests: u32| limited(engine, &format!("requests = {requests}"));
    let mut gateway = with(3).start();
    let mut client = gateway.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").status, 200);
    }
    let route = "path_prefix = \"/other\"\nrespond = { status = 204 }";
    gateway.reload_to(&with(3).route(route).text());
    assert_eq!((client.get("/other").status, client.get("/").status), (204, 429));
    // Another limit has budgets of its own.
    gateway.reload_to(&with(4).text());
    assert_eq!(client.get("/").status, 200);
}
