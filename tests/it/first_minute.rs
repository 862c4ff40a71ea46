//! What a newcomer meets first: the embedded default, the contract's samples, the lines printed at start.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;

use crate::harness::client::{Client, get};
use crate::harness::gateway::{Gateway, TempDir, free_port, ringfort};
use crate::harness::origin::Origin;
use crate::harness::{Engine, eventually, holds_within, on_both_engines, process};

on_both_engines!(
    the_http_sample_runs_as_it_is,
    the_tcp_sample_runs_as_it_is,
    the_sample_that_acts_on_steal_runs_as_it_is,
);

/// A file of the contract with its ports replaced by free ones and its engine set.
fn sample(name: &str, engine: Engine, ports: &[(&str, String)]) -> String {
    let path = format!("{}/tests/data/contract/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut text = std::fs::read_to_string(path).unwrap();
    for (from, to) in ports {
        assert!(text.contains(from), "{name} has {from}");
        text = text.replace(from, to);
    }
    text = text.replace("engine = \"auto\"", "");
    text = text.replace("[workers]", &format!("[workers]\nengine = \"{}\"", engine.key()));
    text.replace(
        "listen = \"127.0.0.1:{port:admin}\"",
        "listen = \"127.0.0.1:{port:admin}\"\nsocket = \"admin.sock\"",
    )
}

fn the_http_sample_runs_as_it_is(engine: Engine) {
    let (site, one, two) = (Origin::serving(), Origin::serving(), Origin::serving());
    let gateway = Gateway::start(&sample(
        "http.toml",
        engine,
        &[
            ("127.0.0.1:9901", "127.0.0.1:{port:admin}".into()),
            ("127.0.0.1:8080", "127.0.0.1:{port:web}".into()),
            ("127.0.0.1:9000", site.address()),
            ("127.0.0.1:9001", one.address()),
            ("127.0.0.1:9002", two.address()),
        ],
    ));
    let mut client = gateway.client();
    let target = client.get("/target");
    assert_eq!((target.status, target.text().as_str()), (200, "ok\n"));
    assert_eq!(target.fields.get("content-type"), Some("text/plain"));
    for n in 0..20 {
        let host = if n % 2 == 0 { "api.test" } else { "eu.api.test" };
        client.send(format!("GET /v1/{n} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.read_response().status, 200);
    }
    assert_eq!(client.get("/anything").status, 200);
    assert_eq!((one.requests().len() + two.requests().len(), site.requests().len()), (20, 1));
}

fn the_tcp_sample_runs_as_it_is(engine: Engine) {
    let site = Origin::serving();
    let gateway = Gateway::start(&sample(
        "tcp.toml",
        engine,
        &[
            ("127.0.0.1:9901", "127.0.0.1:{port:admin}".into()),
            ("127.0.0.1:8100", "127.0.0.1:{port:relay}".into()),
            ("127.0.0.1:9000", site.address()),
        ],
    ));
    assert_eq!(Client::connect(gateway.port("relay")).get("/through").status, 200);
    assert_eq!(site.targets(), ["/through"]);
}

fn the_sample_that_acts_on_steal_runs_as_it_is(engine: Engine) {
    let site = Origin::serving();
    let gateway = Gateway::start(&sample(
        "steal.toml",
        engine,
        &[
            ("127.0.0.1:9901", "127.0.0.1:{port:admin}".into()),
            ("127.0.0.1:8080", "127.0.0.1:{port:web}".into()),
            ("127.0.0.1:9000", site.address()),
        ],
    ));
    assert_eq!(gateway.get("/").status, 200);
    let shown = || serde_json::from_str(&gateway.admin("/steal").unwrap().text()).unwrap();
    eventually("every worker has a CPU with a level and a weight", || {
        let shown: serde_json::Value = shown();
        let cpus = shown["cpus"].as_array().cloned().unwrap_or_default();
        let whole = |cpu: &&serde_json::Value| {
            cpu["level"].is_u64() && cpu["accept_weight"].is_f64() && cpu["lost_ratio"].is_f64()
        };
        shown["mode"] == "act" && cpus.iter().filter(whole).count() == gateway.workers().len()
    });
}

#[test]
fn the_samples_of_the_contract_are_those_of_the_unit_tests() {
    for name in ["http.toml", "tcp.toml"] {
        let read = |folder| {
            let path = format!("{}/tests/data/{folder}/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(path).unwrap()
        };
        assert_eq!(read("contract"), read("config"), "{name}");
    }
}

/// With no configuration: HTTP on 8080 answered by the built-in target, admin on 9901, and lines that say so.
#[test]
fn without_a_configuration_the_embedded_default_serves() {
    let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    if !(free(8080) && free(9901)) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "port 8080 or 9901 is taken");
        eprintln!("not run: port 8080 or 9901 is taken on this machine");
        return;
    }
    let dir = TempDir::new();
    let mut child = ringfort()
        .arg("run")
        .env("XDG_RUNTIME_DIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = holds_within(crate::harness::SOON, || {
        let Some(mut admin) = Client::try_connect(9901) else { return false };
        admin.send("GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        admin.try_read_response("GET").is_ok_and(|response| response.status == 200)
    });
    let response = ready.then(|| get(8080, "/"));
    process::signal(child.id(), libc::SIGTERM);
    let status = child.wait().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let stderr = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let text: String = stdout.chain(stderr).collect::<Vec<_>>().join("\n");
    let response = response.unwrap_or_else(|| panic!("not ready:\n{text}"));
    assert_eq!((response.status, status.code()), (200, Some(0)), "{text}");
    for word in ["127.0.0.1:8080", "127.0.0.1:9901", "curl", "CPU"] {
        assert!(text.contains(word), "{word:?} is not printed:\n{text}");
    }
    assert!(text.contains("io_uring") || text.contains("epoll"), "the engine is printed:\n{text}");
}

#[test]
fn auto_chooses_an_engine_and_says_which() {
    let config = format!(
        "[workers]\ncpus = \"0\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{}\"\n[[route]]\nrespond = {{ status = 200 }}\n",
        free_port()
    );
    let gateway = Gateway::start(&config);
    let engine = gateway.workers()[0]["engine"].as_str().unwrap_or_default().to_string();
    let wanted = if process::io_uring_is_permitted() { "io_uring" } else { "epoll" };
    assert_eq!(engine, wanted);
    eventually("the choice is logged", || gateway.log_text().contains(&engine));
}

#[test]
fn all_allowed_cpus_get_a_worker_each() {
    let config = "[admin]\nlisten = \"127.0.0.1:{port:admin}\"\nsocket = \"admin.sock\"\n\
                  [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{port:web}\"\n\
                  [[route]]\nrespond = { status = 200, body = \"ok\\n\" }\n";
    let gateway = Gateway::start(config);
    let cpus = std::thread::available_parallelism().unwrap().get();
    let workers = gateway.workers();
    assert_eq!(workers.len(), cpus, "{workers:?}");
    for _ in 0..40 * cpus {
        assert_eq!(gateway.get("/").status, 200);
    }
    let served = |worker: &serde_json::Value| worker["requests_total"].as_u64().unwrap_or(0);
    eventually("every worker accepts its share", || {
        gateway.workers().iter().all(|worker| served(worker) > 0)
    });
}
