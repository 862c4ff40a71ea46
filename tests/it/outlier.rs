//! Endpoints that are taken out by their rate of success, the share that may be, and how those that come back begin.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::gateway::Gateway;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::{Engine, eventually, on_both_engines};

on_both_engines!(
    who_succeeds_less_often_than_the_others_is_ejected,
    no_more_than_the_share_is_ejected,
    who_comes_back_begins_slowly,
    a_key_has_one_endpoint_while_another_begins_slowly,
);

/// Answers every request, `/health` too, with a status that the test sets.
fn origin(status: &Arc<AtomicU32>) -> Origin {
    let status = status.clone();
    Origin::start(move |peer| {
        while peer.read_request().is_some() {
            let status = status.load(Ordering::SeqCst);
            if peer.send(format!("HTTP/1.1 {status} Word\r\nContent-Length: 0\r\n\r\n").as_bytes()).is_err() {
                return;
            }
        }
    })
}

fn statuses<const N: usize>(of: [u32; N]) -> [Arc<AtomicU32>; N] {
    of.map(|status| Arc::new(AtomicU32::new(status)))
}

fn gateway(engine: Engine, origins: &[Origin], keys: &str) -> Gateway {
    let endpoints: Vec<String> = origins.iter().map(Origin::address).collect();
    Setup::to_all(engine, &endpoints).cluster_keys(keys).start()
}

const RATES: &str = "success_rate = true, success_rate_interval_ms = 300, success_rate_requests_min = 10, \
                     success_rate_endpoints_min = 3, success_rate_stdev_factor_thousandths = 1000, base_ms = 60000, max_ms = 60000";

fn who_succeeds_less_often_than_the_others_is_ejected(engine: Engine) {
    let status = statuses([200, 500, 200, 404]);
    let origins = status.each_ref().map(origin);
    let mut gateway = gateway(engine, &origins, &format!("ejection = {{ {RATES} }}"));
    gateway.expect_log("endpoint ejected");
    let mut client = gateway.client();
    eventually("it is ejected", || {
        (0..100).for_each(|_| drop(client.get("/")));
        gateway.metric("ringfort_upstream_ejections_total", "site") > 0.0
    });
    gateway.wait_for_log("its rate of success");
    gateway.wait_for_log(&origins[1].address());
    for _ in 0..100 {
        assert!(matches!(client.get("/").status, 200 | 404));
    }
    assert_eq!(gateway.metric("ringfort_upstream_ejections_total", "site"), 1.0);
}

fn no_more_than_the_share_is_ejected(engine: Engine) {
    let status = statuses([500, 500, 200, 200, 200, 200]);
    let origins = status.each_ref().map(origin);
    let keys = format!("ejection = {{ {RATES}, max_ejected_percent = 20 }}");
    let mut gateway = gateway(engine, &origins, &keys);
    gateway.expect_log("endpoint ejected");
    let mut client = gateway.client();
    eventually("one is ejected", || {
        (0..100).for_each(|_| drop(client.get("/")));
        gateway.metric("ringfort_upstream_ejections_total", "site") > 0.0
    });
    // Several more intervals.
    let before: usize = origins[..2].iter().map(|origin| origin.requests().len()).sum();
    eventually("the other one still serves", || {
        (0..100).for_each(|_| drop(client.get("/")));
        origins[..2].iter().map(|origin| origin.requests().len()).sum::<usize>() > before + 200
    });
    assert_eq!(gateway.metric("ringfort_upstream_ejections_total", "site"), 1.0);
}

fn who_comes_back_begins_slowly(engine: Engine) {
    let status = statuses([503, 200]);
    let origins = status.each_ref().map(origin);
    let check = "health_check = { type = \"http\", path = \"/health\", interval_ms = 50, rise = 1 }\nslow_start_ms = 600000";
    let mut gateway = gateway(engine, &origins, check);
    gateway.expect_log("endpoint unhealthy");
    let healthy = |wanted: f64| {
        gateway.wait_for_metric("ringfort_health_endpoints_healthy", "site", |healthy| healthy == wanted);
    };
    healthy(1.0);
    status[0].store(200, Ordering::SeqCst);
    healthy(2.0);
    let served = |at: usize| origins[at].targets().iter().filter(|target| *target == "/").count();
    let mut client = gateway.client();
    let before = [served(0), served(1)];
    for _ in 0..400 {
        assert_eq!(client.get("/").status, 200);
    }
    let [slow, usual] = [served(0) - before[0], served(1) - before[1]];
    // It stands for every tenth choice, and is taken in half of those.
    assert!((1..=50).contains(&slow) && usual >= 350, "{slow} {usual}");
}

fn a_key_has_one_endpoint_while_another_begins_slowly(engine: Engine) {
    let status = statuses([503, 200]);
    let origins = status.each_ref().map(origin);
    let keys = "hash = { by = \"path\" }\nslow_start_ms = 86400000\nslow_start_floor_percent = 50\n\
                health_check = { type = \"http\", path = \"/health\", interval_ms = 50, rise = 1 }";
    let mut gateway = gateway(engine, &origins, keys);
    gateway.expect_log("endpoint unhealthy");
    gateway.wait_for_metric("ringfort_health_endpoints_healthy", "site", |healthy| healthy == 1.0);
    let mut client = gateway.client();
    let mut asked_of_both = |path: &str| {
        let served = |origin: &Origin| origin.targets().iter().filter(|target| *target == path).count();
        let before = origins.each_ref().map(served);
        (0..10).for_each(|_| drop(client.get(path)));
        [0, 1].map(|at| served(&origins[at]) - before[at])
    };
    // The worker knows that one is out: all keys are the other's.
    eventually("all are the other's", || (0..40).all(|n| asked_of_both(&format!("/{n}")) == [0, 10]));
    status[0].store(200, Ordering::SeqCst);
    eventually("it is back", || (0..40).any(|n| asked_of_both(&format!("/{n}"))[0] > 0));
    let asked: Vec<[usize; 2]> = (0..40).map(|n| asked_of_both(&format!("/{n}"))).collect();
    assert!(asked.iter().all(|of| [[0, 10], [10, 0]].contains(of)), "{asked:?}");
    // Half of its own are its own already.
    let back = asked.iter().filter(|of| **of == [10, 0]).count();
    assert!((1..=25).contains(&back), "{back} of {asked:?}");
}
