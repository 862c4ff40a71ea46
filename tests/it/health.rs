//! Active checks: what passes and what fails, who gets requests meanwhile, and what is not held against an endpoint.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::client::Client;
use crate::harness::gateway::{Gateway, free_port};
use crate::harness::h2::H2Origin;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::tls::{Leaf, Pki, mirror};
use crate::harness::{Engine, SOON, eventually, holds_within, on_both_engines, process};

on_both_engines!(
    an_endpoint_that_fails_its_check_gets_no_requests_until_it_passes_again,
    an_endpoint_that_is_gone_is_taken_out_before_a_request_finds_it,
    where_no_endpoint_is_healthy_checks_are_doubted_or_believed,
    a_check_speaks_tls_and_trusts_whom_the_cluster_trusts,
    a_check_speaks_http2_to_those_who_do,
    a_check_begins_as_the_clusters_connections_do_and_names_nobody,
    endpoints_found_by_name_are_checked,
    a_process_that_stood_still_does_not_blame_the_endpoint,
    relays_go_to_healthy_endpoints_only,
    probes_follow_a_reload_and_what_they_found_outlives_it,
    an_endpoint_of_a_cluster_that_is_changed_is_not_new,
);

const QUICK: &str = "interval_ms = 50, timeout_ms = 2000";

/// Answers `/health` with a status that the test sets, and serves everything else.
fn origin_with_health(status: &Arc<AtomicU32>) -> Origin {
    let status = status.clone();
    Origin::start(move |peer| {
        while let Some(request) = peer.read_request() {
            let served = if request.target == "/health?deep=1" {
                let status = status.load(Ordering::SeqCst);
                peer.send(format!("HTTP/1.1 {status} Word\r\nContent-Length: 0\r\n\r\n").as_bytes())
            } else {
                peer.serve(&request)
            };
            if served.is_err() {
                return;
            }
        }
    })
}

fn served(origin: &Origin) -> usize {
    origin.targets().iter().filter(|target| !target.starts_with("/health")).count()
}

fn healthy(gateway: &Gateway, wanted: f64) {
    gateway.wait_for_metric("ringfort_health_endpoints_healthy", "site", |healthy| healthy == wanted);
}

fn an_endpoint_that_fails_its_check_gets_no_requests_until_it_passes_again(engine: Engine) {
    let status = Arc::new(AtomicU32::new(200));
    let (checked, steady) = (origin_with_health(&status), origin_with_health(&Arc::new(AtomicU32::new(204))));
    let check = format!(
        "health_check = {{ type = \"http\", path = \"/health?deep=1\", host = \"probe.test\", expected_status = [\"200-299\"], {QUICK} }}"
    );
    let mut gateway =
        Setup::to_all(engine, &[checked.address(), steady.address()]).cluster_keys(&check).start();
    gateway.expect_log("endpoint unhealthy");
    eventually("the endpoint is probed", || !checked.targets().is_empty());
    let probe = &checked.requests()[0];
    assert_eq!((probe.method.as_str(), probe.fields.get("host")), ("GET", Some("probe.test")));
    assert!(probe.fields.get("user-agent").is_some_and(|agent| agent.starts_with("ringfort-health/")));
    let mut client = gateway.client();
    (0..40).for_each(|_| assert_eq!(client.get("/").status, 200));
    assert!(served(&checked) > 0, "a new endpoint serves");

    status.store(503, Ordering::SeqCst);
    healthy(&gateway, 1.0);
    gateway.wait_for_log("it answered 503");
    // The workers hear of it a moment later.
    let mut before = served(&checked);
    eventually("requests go elsewhere", || {
        (0..20).for_each(|_| assert_eq!(client.get("/").status, 200));
        std::mem::replace(&mut before, served(&checked)) == served(&checked)
    });
    (0..50).for_each(|_| assert_eq!(client.get("/").status, 200));
    assert_eq!(served(&checked), before);

    status.store(200, Ordering::SeqCst);
    healthy(&gateway, 2.0);
    eventually("it serves again", || {
        client.get("/");
        served(&checked) > before
    });
    assert!(gateway.metric("ringfort_health_probes_total", "result=\"failed\"") >= 3.0);
    assert_eq!(gateway.metric("ringfort_health_endpoints", "site"), 2.0);
}

fn an_endpoint_that_is_gone_is_taken_out_before_a_request_finds_it(engine: Engine) {
    let steady = Origin::serving();
    let dead = format!("127.0.0.1:{}", free_port());
    let check = format!("health_check = {{ {QUICK} }}");
    let mut gateway = Setup::to_all(engine, &[dead, steady.address()]).cluster_keys(&check).start();
    gateway.expect_log("endpoint unhealthy");
    gateway.wait_for_log("cannot connect");
    healthy(&gateway, 1.0);
    let failures = || gateway.metric("ringfort_upstream_connect_failures_total", "site");
    let mut client = gateway.client();
    // The verdict is on its way to the worker.
    assert!(holds_within(SOON, || {
        let before = failures();
        (0..20).for_each(|_| assert_eq!(client.get("/").status, 200));
        failures() == before
    }));
    let before = failures();
    (0..100).for_each(|_| assert_eq!(gateway.get("/").status, 200));
    assert_eq!(failures(), before);
}

fn where_no_endpoint_is_healthy_checks_are_doubted_or_believed(engine: Engine) {
    let sick = Arc::new(AtomicU32::new(500));
    let origin = origin_with_health(&sick);
    let check =
        |panic| format!("health_check = {{ type = \"http\", path = \"/health?deep=1\", {QUICK}{panic} }}");
    let mut doubting = Setup::to(engine, &origin).cluster_keys(&check("")).start();
    doubting.expect_log("endpoint unhealthy");
    healthy(&doubting, 0.0);
    (0..20).for_each(|_| assert_eq!(doubting.get("/").status, 200));
    drop(doubting);

    let mut believing = Setup::to(engine, &origin).cluster_keys(&check(", panic_percent = 0")).start();
    believing.expect_log("endpoint unhealthy");
    eventually("requests are refused", || believing.get("/").status == 503);
    let response = believing.get("/");
    assert!(response.text().contains("healthy"), "{}", response.text());
    sick.store(200, Ordering::SeqCst);
    eventually("requests are served", || believing.get("/").status == 200);
}

fn tls_gateway(engine: Engine, pki: &Pki, endpoint: &str, kind: &str, name: &str) -> Gateway {
    Gateway::start(&format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n[[route]]\ncluster = \"site\"\n\
         [[cluster]]\nname = \"site\"\nendpoints = [\"{endpoint}\"]\n\
         health_check = {{ type = \"{kind}\", expected_status = [\"200\"], {QUICK} }}\n\
         [cluster.tls]\nca = {:?}\nserver_name = \"{name}\"\n",
        engine.key(),
        pki.path("ca.pem"),
    ).replace(if kind == "tls" { "expected_status = [\"200\"], " } else { "\u{0}" }, ""))
}

fn a_check_speaks_tls_and_trusts_whom_the_cluster_trusts(engine: Engine) {
    let pki = Pki::new();
    let origin = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), false, mirror).to_string();
    for kind in ["tls", "http"] {
        let good = tls_gateway(engine, &pki, &origin, kind, "site.test");
        good.wait_for_metric("ringfort_health_probes_total", "passed", |passed| passed >= 3.0);
        assert_eq!(good.metric("ringfort_health_probes_total", "failed"), 0.0, "{kind}");
        let mut bad = tls_gateway(engine, &pki, &origin, kind, "other.test");
        bad.expect_log("endpoint unhealthy");
        healthy(&bad, 0.0);
        bad.wait_for_log("other.test");
    }
}

fn a_check_speaks_http2_to_those_who_do(engine: Engine) {
    let origin = H2Origin::start();
    let check = format!("protocol = \"h2\"\nhealth_check = {{ type = \"http\", {QUICK} }}");
    let gateway = Setup::to_all(engine, &[origin.address()]).cluster_keys(&check).start();
    gateway.wait_for_metric("ringfort_health_probes_total", "passed", |passed| passed >= 3.0);
    assert_eq!(gateway.metric("ringfort_health_probes_total", "failed"), 0.0);
    drop(gateway);
    let speaks_http1 = Origin::serving();
    let mut gateway = Setup::to_all(engine, &[speaks_http1.address()]).cluster_keys(&check).start();
    gateway.expect_log("endpoint unhealthy");
    healthy(&gateway, 0.0);
}

/// Has whoever connects say a PROXY header first, and this one; then passes the rest on to a server behind.
fn behind_header(header: &'static [u8], behind: SocketAddr) -> Origin {
    Origin::start(move |peer| {
        let mut said = vec![0; header.len()];
        if peer.stream().read_exact(&mut said).is_err() || said != header {
            return;
        }
        let mut behind = TcpStream::connect(behind).unwrap();
        let (mut up, mut down) = (behind.try_clone().unwrap(), peer.stream().try_clone().unwrap());
        let upward = std::thread::spawn(move || std::io::copy(&mut down, &mut up));
        let _ = std::io::copy(&mut behind, peer.stream());
        let _ = peer.stream().shutdown(std::net::Shutdown::Both);
        let _ = upward.join();
    })
}

fn a_check_begins_as_the_clusters_connections_do_and_names_nobody(engine: Engine) {
    const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let (pki, plain) = (Pki::new(), Origin::serving());
    let secure = pki.origin(&pki.issue("site", &Leaf::server(&["site.test"])), false, mirror);
    let tls = format!("[cluster.tls]\nca = {:?}\nserver_name = \"site.test\"", pki.path("ca.pem"));
    for (version, header) in [("v1", &b"PROXY UNKNOWN\r\n"[..]), ("v2", LOCAL)] {
        for (behind, tls) in [(plain.address().parse().unwrap(), ""), (secure, &*tls)] {
            let endpoint = behind_header(header, behind);
            let keys = format!(
                "proxy_protocol = \"{version}\"\nhealth_check = {{ type = \"http\", {QUICK} }}\n{tls}"
            );
            let gateway = Setup::to(engine, &endpoint).cluster_keys(&keys).start();
            gateway.wait_for_metric("ringfort_health_probes_total", "passed", |passed| passed >= 2.0);
            assert_eq!(gateway.metric("ringfort_health_probes_total", "failed"), 0.0, "{version} {tls}");
        }
    }
}

fn endpoints_found_by_name_are_checked(engine: Engine) {
    let origin = Origin::serving();
    let check = format!("health_check = {{ type = \"http\", {QUICK} }}");
    let gateway =
        Setup::to_all(engine, &[format!("localhost:{}", origin.port())]).cluster_keys(&check).start();
    eventually("it is probed", || !origin.targets().is_empty());
    gateway.wait_for_metric("ringfort_health_probes_total", "passed", |passed| passed >= 1.0);
}

/// R24: the data process is stopped for longer than a probe may take.
fn a_process_that_stood_still_does_not_blame_the_endpoint(engine: Engine) {
    let late = Origin::start(|peer| {
        while let Some(request) = peer.read_request() {
            std::thread::sleep(Duration::from_millis(if request.target == "/health" { 250 } else { 0 }));
            if peer.serve(&request).is_err() {
                return;
            }
        }
    });
    let check = "health_check = { type = \"http\", path = \"/health\", interval_ms = 20, timeout_ms = 1000, fall = 1 }";
    let gateway = Setup::to(engine, &late).cluster_keys(check).start();
    gateway.wait_for_metric("ringfort_health_probes_total", "passed", |passed| passed >= 1.0);
    let data = gateway.data_process();
    for _ in 0..3 {
        process::stop(data);
        let stopped = Instant::now();
        eventually("the time of a probe is over", || stopped.elapsed() > Duration::from_millis(1_500));
        process::signal(data, libc::SIGCONT);
        let passed = gateway.metric("ringfort_health_probes_total", "passed");
        gateway.wait_for_metric("ringfort_health_probes_total", "passed", |now| now > passed + 1.0);
    }
    assert_eq!(gateway.metric("ringfort_health_probes_total", "failed"), 0.0);
}

fn relays_go_to_healthy_endpoints_only(engine: Engine) {
    let sick = Arc::new(AtomicU32::new(500));
    let (origin, steady) = (origin_with_health(&sick), origin_with_health(&Arc::new(AtomicU32::new(200))));
    let check = format!("health_check = {{ type = \"http\", path = \"/health?deep=1\", {QUICK} }}");
    let setup = Setup::to_all(engine, &[origin.address(), steady.address()]).cluster_keys(&check).relay("");
    let mut gateway = setup.start();
    gateway.expect_log("endpoint unhealthy");
    healthy(&gateway, 1.0);
    let relayed = || Client::connect(gateway.port("relay")).get("/").status;
    let mut before = served(&origin);
    eventually("the worker knows", || {
        (0..10).for_each(|_| assert_eq!(relayed(), 200));
        std::mem::replace(&mut before, served(&origin)) == served(&origin)
    });
    (0..20).for_each(|_| assert_eq!(relayed(), 200));
    assert_eq!(served(&origin), before);
}

fn probes_follow_a_reload_and_what_they_found_outlives_it(engine: Engine) {
    let (sick, well) = (Arc::new(AtomicU32::new(500)), Arc::new(AtomicU32::new(200)));
    let (sick, steady, other) =
        (origin_with_health(&sick), origin_with_health(&well), origin_with_health(&well));
    let cluster = |name: &str, endpoints: &[&Origin], keys: &str| {
        let endpoints: Vec<String> = endpoints.iter().map(|origin| origin.address()).collect();
        format!(
            "[[cluster]]\nname = \"{name}\"\nendpoints = {endpoints:?}\n{keys}\n\
             health_check = {{ type = \"http\", path = \"/health?deep=1\", {QUICK} }}\n"
        )
    };
    let both =
        Setup::new(engine).route("cluster = \"site\"").route("path_prefix = \"/other\"\ncluster = \"other\"");
    let site = |keys: &str| cluster("site", &[&sick, &steady], keys);
    let mut gateway = Setup::new(engine).route("cluster = \"site\"").sections(&site("")).start();
    gateway.expect_log("endpoint unhealthy");
    healthy(&gateway, 1.0);
    let mut client = gateway.client();
    let spared = |client: &mut Client, what: &str| {
        let before = served(&sick);
        (0..40).for_each(|_| assert_eq!(client.get("/").status, 200));
        assert_eq!(served(&sick), before, "{what}");
    };
    // The verdict is on its way to the worker.
    let mut before = served(&sick);
    eventually("requests go elsewhere", || {
        (0..20).for_each(|_| assert_eq!(client.get("/").status, 200));
        std::mem::replace(&mut before, served(&sick)) == served(&sick)
    });

    // The same cluster at another place; and then another one of its name.
    let beside = |keys: &str| both.clone().sections(&(cluster("other", &[&other], "") + &site(keys)));
    gateway.reload_to(&beside("").text());
    spared(&mut client, "what is found stays with a cluster that stays");
    eventually("a new cluster is probed", || !other.targets().is_empty());
    gateway.reload_to(&beside("request_timeout_ms = 7000").text());
    spared(&mut client, "and with one that is changed");
    healthy(&gateway, 1.0);

    // One that is gone is left alone; one whose checks are gone believes nobody.
    let text = Setup::new(engine).route("cluster = \"site\"").sections(&site("")).text();
    gateway.reload_to(&text);
    assert!(holds_within(SOON, || {
        let before = other.targets().len();
        std::thread::sleep(Duration::from_millis(200));
        other.targets().len() == before
    }));
    spared(&mut client, "still");
    let unchecked: String = text
        .lines()
        .filter(|line| !line.starts_with("health_check"))
        .map(|line| format!("{line}\n"))
        .collect();
    gateway.reload_to(&unchecked);
    eventually("without checks everybody serves", || {
        client.get("/");
        served(&sick) > before
    });
}

fn an_endpoint_of_a_cluster_that_is_changed_is_not_new(engine: Engine) {
    let status = Arc::new(AtomicU32::new(200));
    let origin = origin_with_health(&status);
    let check = format!(
        "health_check = {{ type = \"http\", path = \"/health?deep=1\", fall = 1000, {QUICK} }}\nrequest_timeout_ms = "
    );
    let setup = |request_timeout_ms: u32| {
        Setup::to(engine, &origin).cluster_keys(&format!("{check}{request_timeout_ms}"))
    };
    let mut gateway = setup(6_000).start();
    let probes = |gateway: &Gateway, result: &str| gateway.metric("ringfort_health_probes_total", result);
    eventually("it is known to be well", || probes(&gateway, "passed") >= 1.0);
    status.store(500, Ordering::SeqCst);
    eventually("a probe fails", || probes(&gateway, "failed") >= 1.0);
    gateway.reload_to(&setup(7_000).text());
    let failed = probes(&gateway, "failed");
    eventually("as it is, it is probed, too", || probes(&gateway, "failed") >= failed + 3.0);
    healthy(&gateway, 1.0);
}
