//! The access log: one line for each request, tunnel and relay, and for each connection that carried none, with what
//! happened to it; and that nobody ever waits for a line.

use std::io::Read;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::bytes::random;
use crate::harness::client::Client;
use crate::harness::gateway::{Gateway, TempDir, ringfort, with_ports};
use crate::harness::h2;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::tls::{Leaf, Pki};
use crate::harness::{Engine, eventually, on_both_engines, process};

on_both_engines!(
    each_request_of_a_connection_has_a_line,
    each_stream_of_a_connection_has_a_line,
    a_relay_has_one_line_with_both_directions,
    a_tunnel_has_one_line_when_it_ends,
    what_is_refused_has_a_line_that_says_why,
    a_client_that_leaves_is_told_with_what_it_got,
    a_request_that_is_cut_off_by_a_drain_has_its_line,
    tls_and_the_clients_identity_are_told,
    rules_choose_what_is_written,
    text_reads_as_the_combined_format,
    nobody_forges_a_line,
    a_full_disk_costs_lines_and_no_request,
    a_reader_that_is_gone_costs_lines_and_no_request,
    a_reload_begins_moves_and_ends_the_log,
);

/// A gateway whose log is beside its configuration.
fn logging(setup: Setup, keys: &str) -> Setup {
    setup.sections(&format!("[access_log]\npath = \"access.log\"\n{keys}"))
}

fn path(gateway: &Gateway) -> PathBuf {
    gateway.config().with_file_name("access.log")
}

fn text(gateway: &Gateway) -> String {
    std::fs::read_to_string(path(gateway)).unwrap_or_default()
}

fn parse(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// The log once it has `count` lines.
#[track_caller]
fn lines(gateway: &Gateway, count: usize) -> Vec<Value> {
    eventually("the lines are written", || text(gateway).lines().count() >= count);
    let text = text(gateway);
    assert_eq!(text.lines().count(), count, "{text}");
    parse(&text)
}

/// The values of these keys, as JSON has them.
fn pick(line: &Value, keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| line[key].to_string().replace('"', "")).collect()
}

fn each_request_of_a_connection_has_a_line(engine: Engine) {
    let origin = Origin::serving();
    let gateway = logging(
        Setup::new(engine)
            .cluster("site", &[origin.address()])
            .route("name = \"own\"\npath = \"/own\"\nrespond = { body = \"ok\\n\" }")
            .route("name = \"all\"\ncluster = \"site\""),
        "",
    )
    .start();
    let mut client = gateway.client();
    client.send("GET /bytes/70000?x=1 HTTP/1.1\r\nHost: A.test:80\r\nUser-Agent: it/1\r\nReferer: http://r.test/\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    assert_eq!(client.post("/up", &random(1, 5_000)).status, 200);
    assert_eq!(client.get("/own").text(), "ok\n");
    drop(client);
    let lines = lines(&gateway, 3);
    let keys = ["kind", "method", "path", "status", "termination", "route", "received_bytes", "sent_bytes"];
    assert_eq!(
        pick(&lines[0], &keys),
        ["request", "GET", "/bytes/70000?x=1", "200", "complete", "all", "0", "70000"]
    );
    assert_eq!(pick(&lines[1], &keys[..7]), ["request", "POST", "/up", "200", "complete", "all", "5000"]);
    assert_eq!(pick(&lines[2], &keys), ["request", "GET", "/own", "200", "complete", "own", "0", "3"]);
    let keys = [
        "listener",
        "protocol",
        "client",
        "host",
        "cluster",
        "endpoint",
        "attempts",
        "user_agent",
        "referer",
    ];
    assert_eq!(
        pick(&lines[0], &keys),
        [
            "web",
            "HTTP/1.1",
            "127.0.0.1",
            "A.test:80",
            "site",
            &origin.address(),
            "1",
            "it/1",
            "http://r.test/"
        ]
    );
    assert_eq!(pick(&lines[2], &["cluster", "endpoint", "first_byte_ms", "tls_version"]), ["null"; 4]);
    assert!(lines[0]["duration_ms"].as_f64() >= lines[0]["first_byte_ms"].as_f64(), "{}", lines[0]);
    assert!(lines[0]["ts"].as_str().is_some_and(|ts| ts.len() == 24 && ts.ends_with('Z')), "{}", lines[0]);
    assert_eq!(gateway.metric("ringfort_access_log_lines_total", ""), 3.0);
}

fn each_stream_of_a_connection_has_a_line(engine: Engine) {
    let origin = Origin::serving();
    let setup = Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("path = \"/own\"\nrespond = { body = \"ok\\n\" }")
        .route("cluster = \"site\"");
    let gateway = logging(setup, "").start();
    h2::run(async {
        let mut send = h2::connect(gateway.web()).await;
        assert_eq!(h2::fetch(&mut send, h2::get("/bytes/70000")).await.unwrap().status, 200);
        let up = h2::post(&mut send, h2::request("POST", "/up"), &random(1, 5_000), None).await.unwrap();
        assert_eq!(up.status, 200);
        assert_eq!(h2::fetch(&mut send, h2::get("/own")).await.unwrap().status, 200);
    });
    let lines = lines(&gateway, 3);
    let keys = ["protocol", "method", "host", "path", "status", "termination", "route", "received_bytes"];
    let told = |line| pick(line, &keys);
    let (all, own) = ("route-2", "route-1");
    assert_eq!(told(&lines[0]), ["HTTP/2", "GET", "site.test", "/bytes/70000", "200", "complete", all, "0"]);
    assert_eq!(told(&lines[1]), ["HTTP/2", "POST", "site.test", "/up", "200", "complete", all, "5000"]);
    assert_eq!(told(&lines[2]), ["HTTP/2", "GET", "site.test", "/own", "200", "complete", own, "0"]);
    assert_eq!(pick(&lines[0], &["sent_bytes", "endpoint"]), ["70000", &origin.address()]);
    assert_eq!(pick(&lines[2], &["sent_bytes", "endpoint"]), ["3", "null"]);
}

fn a_relay_has_one_line_with_both_directions(engine: Engine) {
    let origin = Origin::start(|peer| {
        let mut question = [0; 4];
        peer.stream().read_exact(&mut question).unwrap();
        peer.send(b"an answer").unwrap();
    });
    let gateway = logging(Setup::to(engine, &origin).relay(""), "").start();
    let mut client = Client::connect(gateway.port("relay"));
    client.send("ask?");
    assert_eq!(client.read_to_end().unwrap(), b"an answer");
    drop(client);
    let lines = lines(&gateway, 1);
    let keys =
        ["kind", "listener", "protocol", "client", "termination", "received_bytes", "sent_bytes", "cluster"];
    assert_eq!(
        pick(&lines[0], &keys),
        ["session", "relay", "tcp", "127.0.0.1", "client_closed", "4", "9", "site"]
    );
    assert_eq!(pick(&lines[0], &["endpoint", "status"]), [&*origin.address(), "null"]);
}

fn a_tunnel_has_one_line_when_it_ends(engine: Engine) {
    let origin = Origin::start(|peer| {
        if peer.read_request_head().is_none() {
            return;
        }
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
            .unwrap();
        let mut question = [0; 4];
        peer.stream().read_exact(&mut question).unwrap();
        peer.send(b"an answer").unwrap();
    });
    let setup = Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("tunnels = [\"echo\"]\ncluster = \"site\"");
    let gateway = logging(setup, "").start();
    let mut client = gateway.client();
    client.send("GET /t HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.read_response().status, 101);
    assert_eq!(text(&gateway), "", "not before it ends");
    client.send("ask?");
    assert_eq!(client.read_to_end().unwrap(), b"an answer");
    drop(client);
    let lines = lines(&gateway, 1);
    let keys = ["kind", "path", "status", "termination", "received_bytes", "sent_bytes", "endpoint"];
    assert_eq!(pick(&lines[0], &keys), ["tunnel", "/t", "101", "tunnel_closed", "4", "9", &origin.address()]);
    let keys = ["listener", "protocol", "route", "cluster"];
    assert_eq!(pick(&lines[0], &keys), ["web", "HTTP/1.1", "route-1", "site"]);
}

fn what_is_refused_has_a_line_that_says_why(engine: Engine) {
    let pki = Pki::new();
    let (cert, key) = pki.issue("site", &Leaf::server(&["site.test"]));
    let sections = format!(
        "[[listener]]\nname = \"secure\"\nlisten = \"127.0.0.1:{{port:secure}}\"\n\
         [listener.tls]\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]\n\
         [[listener]]\nname = \"pass\"\nlisten = \"127.0.0.1:{{port:pass}}\"\nprotocol = \"tls-passthrough\"\n\
         [[route]]\nlistener = \"pass\"\nhosts = [\"else.test\"]\ncluster = \"site\"\n\
         [[rate_limit]]\nname = \"once\"\nrequests = 1\nperiod_ms = 3600000"
    );
    let closed = crate::harness::gateway::free_port();
    let setup = Setup::new(engine)
        .cluster("site", &[format!("127.0.0.1:{closed}")])
        .route("name = \"api\"\npath = \"/api\"\nrespond = { status = 200 }\nrate_limits = [\"once\"]")
        .route("cluster = \"site\"")
        .header_timeout_ms(200)
        .sections(&sections);
    let mut gateway = logging(setup, "").start();
    gateway.expect_log("no route serves listener");
    let one = |count: usize, keys: &[&str]| {
        let lines = lines(&gateway, count);
        pick(&lines[count - 1], keys)
    };
    let mut client = gateway.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert_eq!(client.read_response().status, 400);
    assert_eq!(
        one(1, &["kind", "status", "termination", "method"]),
        ["request", "400", "bad_request", "null"]
    );
    let mut client = gateway.client();
    client.send("GET / HT");
    assert_eq!(client.read_response().status, 408);
    assert_eq!(one(2, &["kind", "status", "termination"]), ["request", "408", "header_timeout"]);
    gateway.client().expect_end();
    assert_eq!(one(3, &["kind", "status", "termination"]), ["session", "null", "first_byte_timeout"]);
    assert_eq!(gateway.get("/x").status, 502);
    assert_eq!(
        one(4, &["kind", "status", "termination", "cluster", "endpoint"]),
        ["request", "502", "upstream_connect", "site", "null"]
    );
    let mut plain = Client::connect(gateway.port("secure"));
    plain.send("GET / HTTP/1.1\r\n\r\n");
    let _ = plain.read_to_end();
    let keys = ["kind", "listener", "termination", "tls_failure", "client"];
    assert_eq!(one(5, &keys), ["session", "secure", "plaintext_refused", "plaintext", "127.0.0.1"]);
    assert!(pki.client().try_connect(gateway.port("pass"), "site.test").is_err());
    let keys = ["kind", "protocol", "termination", "tls_failure", "server_name"];
    assert_eq!(one(6, &keys), ["session", "tls-passthrough", "name_unknown", "unknown_name", "site.test"]);
    let mut raw = h2::raw::RawClient::connect(gateway.web());
    raw.send(&h2::raw::frame(8, 0, 0, &[0, 0, 0, 0]));
    while raw.next().is_some() {}
    assert_eq!(one(7, &["kind", "termination"]), ["session", "protocol_error"]);
    assert_eq!([gateway.get("/api").status, gateway.get("/api").status], [200, 429]);
    assert_eq!(one(9, &["kind", "status", "route"]), ["request", "429", "api"]);
}

fn a_client_that_leaves_is_told_with_what_it_got(engine: Engine) {
    const LEN: usize = 8 << 20;
    let origin = Origin::serving();
    let gateway = logging(Setup::to(engine, &origin), "").start();
    let mut client = Client::connect_narrow(gateway.web());
    client.send(format!("GET /bytes/{LEN} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    assert!(client.reader.fill().is_ok_and(|n| n > 0), "the response has begun");
    client.reset();
    let lines = lines(&gateway, 1);
    assert_eq!(pick(&lines[0], &["status", "termination"]), ["200", "client_aborted"]);
    let sent = lines[0]["sent_bytes"].as_u64().unwrap();
    assert!(sent > 0 && sent < LEN as u64, "{sent}");
}

fn a_request_that_is_cut_off_by_a_drain_has_its_line(engine: Engine) {
    let origin = Origin::start(|peer| peer.wait_for_end());
    let mut gateway = logging(Setup::to(engine, &origin).relay("").drain(50, 300), "").start();
    gateway.expect_log("drain deadline");
    let mut client = gateway.client();
    client.send("GET /hangs HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let relayed = Client::connect(gateway.port("relay"));
    eventually("both are with the origin", || origin.open() == 2);
    gateway.terminate();
    assert!(gateway.wait_exit(crate::harness::SOON).is_some());
    drop(relayed);
    let mut told: Vec<_> =
        lines(&gateway, 2).iter().map(|line| pick(line, &["kind", "termination", "path"])).collect();
    told.sort();
    assert_eq!(told, [["request", "drained", "/hangs"], ["session", "drained", "null"]]);
}

fn tls_and_the_clients_identity_are_told(engine: Engine) {
    const SHOP: &str = "spiffe://cluster.local/ns/production/sa/shop";
    let pki = Pki::new();
    let (cert, key) = pki.issue("site", &Leaf::server(&["site.test"]));
    let shop = pki.issue("shop", &Leaf::workload(SHOP));
    let keys = format!(
        "[listener.tls]\ncertificates = [{{ cert = {cert:?}, key = {key:?} }}]\nmtls = \"strict\"\nclient_ca = {:?}",
        pki.path("ca.pem")
    );
    let gateway = logging(Setup::answering(engine).sections(&keys), "").start();
    let client = pki.client().presenting(&shop).alpn(&["http/1.1"]);
    let mut connection = client.connect(gateway.web(), "site.test");
    connection.send("GET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
    assert_eq!(connection.read_response().status, 200);
    let told = lines(&gateway, 1);
    let keys = ["tls_version", "tls_resumed", "server_name", "alpn", "identity", "client"];
    assert_eq!(pick(&told[0], &keys), ["TLSv1.3", "false", "site.test", "http/1.1", SHOP, "127.0.0.1"]);
    assert!(
        told[0]["tls_cipher"]
            .as_str()
            .is_some_and(|cipher| cipher.starts_with("TLS13_") || cipher.starts_with("TLS_"))
    );
    let _ = pki.client().try_get(gateway.web(), "site.test");
    let told = lines(&gateway, 2);
    assert_eq!(
        pick(&told[1], &["kind", "termination", "tls_failure"]),
        ["session", "tls_failed", "no_certificate"]
    );
}

fn rules_choose_what_is_written(engine: Engine) {
    let origin = Origin::serving();
    let rules = "[[access_log.rules]]\nfailed = true\n\
                 [[access_log.rules]]\nroutes = [\"quiet\"]\nratio = 0.0\n\
                 [[access_log.rules]]\nstatuses = [\"2xx\", \"none\"]\nratio = 0.25\n";
    let setup = Setup::new(engine)
        .cluster("site", &[origin.address()])
        .route("name = \"quiet\"\npath_prefix = \"/quiet\"\nrespond = { status = 404 }")
        .route("name = \"bad\"\npath = \"/quiet/bad\"\nrespond = { status = 503 }")
        .route("cluster = \"site\"");
    let gateway = logging(setup, rules).start();
    let mut client = gateway.client();
    for _ in 0..400 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(client.get("/quiet").status, 404);
    assert_eq!(client.get("/quiet/bad").status, 503);
    eventually("the last one is written", || text(&gateway).contains("\"status\":503"));
    let lines = parse(&text(&gateway));
    let good: Vec<_> = lines.iter().filter(|line| line["status"] == 200).collect();
    assert!((40..=160).contains(&good.len()), "{} of 400, a quarter of them wanted", good.len());
    assert!(good.iter().all(|line| line["sample_ratio"] == 0.25));
    assert_eq!(lines.len(), good.len() + 1, "none of the quiet ones");
    assert_eq!(lines.last().unwrap()["sample_ratio"], Value::Null);
}

fn text_reads_as_the_combined_format(engine: Engine) {
    let gateway = logging(Setup::answering(engine), "format = \"text\"").start();
    let mut client = gateway.client();
    client.send("GET /a HTTP/1.1\r\nHost: a.test\r\nUser-Agent: it \"1\"\r\n\r\n");
    assert_eq!(client.read_response().status, 200);
    eventually("the line is written", || text(&gateway).ends_with('\n'));
    let text = text(&gateway);
    assert!(text.starts_with("127.0.0.1 - - ["), "{text}");
    let rest = "\"GET /a HTTP/1.1\" 200 3 \"-\" \"it \\x221\\x22\" kind=request listener=web host=a.test duration_ms=";
    assert!(text.contains(rest), "{text}");
}

fn nobody_forges_a_line(engine: Engine) {
    let gateway = logging(Setup::answering(engine), "").start();
    let mut client = gateway.client();
    client.send(
        b"GET /%0a?\"} HTTP/1.1\r\nHost: a.test\r\nUser-Agent: x\",\"status\":500,\"a\":\"\xff\xc2\x9b\t\r\n\r\n".as_slice(),
    );
    let response = client.read_response();
    let told = lines(&gateway, 1);
    assert_eq!(told[0]["status"], response.status);
    if response.status == 200 {
        assert_eq!(told[0]["path"], "/%0a?\"}");
        assert_eq!(told[0]["user_agent"], "x\",\"status\":500,\"a\":\"\u{fffd}\u{9b}");
    }
}

/// R20: the disk is full.
fn a_full_disk_costs_lines_and_no_request(engine: Engine) {
    let setup = Setup::answering(engine).sections("[access_log]\npath = \"/dev/full\"");
    let mut gateway = setup.start();
    gateway.expect_log("the access log cannot be written");
    let mut client = gateway.client();
    for _ in 0..200 {
        assert_eq!(client.get("/").status, 200);
    }
    gateway
        .wait_for_metric("ringfort_access_log_dropped_total", "reason=\"unwritten\"", |lost| lost == 200.0);
    let warnings = gateway.log_text().matches("the access log cannot be written").count();
    assert_eq!(warnings, 1, "one a minute");
}

/// R20: the log's reader takes nothing for a while.
fn a_reader_that_is_gone_costs_lines_and_no_request(engine: Engine) {
    let dir = TempDir::new();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let keys = format!("[access_log]\npath = {pipe:?}\nbuffer_bytes = 65536\n");
    let mut gateway = Setup::answering(engine).sections(&keys).start();
    gateway.expect_log("lines of the access log were dropped");
    let mut client = gateway.client();
    let dropped = || gateway.metric("ringfort_access_log_dropped_total", "reason=\"full\"");
    let mut sent = 0;
    while dropped() < 100.0 {
        for _ in 0..200 {
            assert_eq!(client.get("/").status, 200);
        }
        sent += 200;
        assert!(sent < 20_000, "pipe and buffer hold some hundred lines");
    }
    let lost = dropped();
    // A reader that comes back finds what waited, line by line, and nothing twice.
    let mut reader = std::fs::File::open(&pipe).unwrap();
    let mut read = Vec::new();
    let mut chunk = [0; 4_096];
    while read.iter().filter(|byte| **byte == b'\n').count() < sent - lost as usize {
        let count = reader.read(&mut chunk).unwrap();
        assert!(count > 0, "the gateway holds the pipe open");
        read.extend_from_slice(&chunk[..count]);
    }
    let lines = parse(&String::from_utf8(read).unwrap());
    assert_eq!(lines.len(), sent - lost as usize);
    assert!(lines.iter().all(|line| line["status"] == 200));
}

fn a_reload_begins_moves_and_ends_the_log(engine: Engine) {
    let with = |name: &str| {
        let route = format!("name = \"{name}\"\nrespond = {{ body = \"ok\\n\" }}");
        Setup::new(engine).route(&route)
    };
    let mut gateway = with("silent").start();
    let mut client = gateway.client();
    assert_eq!(client.get("/unseen").status, 200);
    gateway.reload_to(&logging(with("first"), "").text());
    assert_eq!(client.get("/first").status, 200);
    assert_eq!(pick(&lines(&gateway, 1)[0], &["path", "route", "listener"]), ["/first", "first", "web"]);

    let refused = logging(with("none"), "").text().replace("access.log", "none/access.log");
    let told = gateway.refuse(&refused);
    assert!(told.contains("none/access.log cannot be opened"), "{told}");
    assert_eq!(client.get("/still").status, 200);
    assert_eq!(pick(&lines(&gateway, 2)[1], &["path", "route"]), ["/still", "first"]);

    gateway.reload_to(&logging(with("moved"), "").text().replace("access.log", "moved.log"));
    assert_eq!(client.get("/moved").status, 200);
    let moved = path(&gateway).with_file_name("moved.log");
    eventually("the line is in the other file", || {
        std::fs::read_to_string(&moved).is_ok_and(|text| text.contains("/moved"))
    });
    lines(&gateway, 2);
    gateway.reload_to(&with("ended").text());
    assert_eq!(client.get("/ended").status, 200);
    assert_eq!(gateway.metric("ringfort_access_log_lines_total", ""), 3.0);
}

/// R21: rotated as logrotate does.
#[test]
fn a_moved_file_is_left_on_sigusr1() {
    let gateway = logging(Setup::answering(Engine::Epoll), "").start();
    assert_eq!(gateway.get("/first").status, 200);
    lines(&gateway, 1);
    let old = path(&gateway).with_extension("log.1");
    std::fs::rename(path(&gateway), &old).unwrap();
    assert_eq!(gateway.get("/late").status, 200);
    eventually("the moved file is still written", || {
        std::fs::read_to_string(&old).unwrap().contains("/late")
    });
    process::signal(gateway.supervisor(), libc::SIGUSR1);
    gateway.wait_for_log("the access log is open anew");
    assert_eq!(gateway.get("/new").status, 200);
    assert_eq!(lines(&gateway, 1)[0]["path"], "/new");
    assert_eq!(std::fs::read_to_string(&old).unwrap().lines().count(), 2);
}

/// The same while a process before an upgrade still serves: neither of the two may go on with the moved file.
#[test]
fn a_moved_file_is_left_by_a_process_that_drains_too() {
    let origin = Origin::serving();
    let setup = Setup::to(Engine::Epoll, &origin).relay("").drain(1_000, 60_000);
    let mut gateway = logging(setup, "").start();
    let leaving = gateway.data_process();
    let mut relayed = Client::connect(gateway.port("relay"));
    assert_eq!(relayed.get("/before").status, 200);
    gateway.upgrade();
    assert_eq!(gateway.get("/first").status, 200);
    lines(&gateway, 1);
    let old = path(&gateway).with_extension("log.1");
    std::fs::rename(path(&gateway), &old).unwrap();
    process::signal(gateway.supervisor(), libc::SIGUSR1);
    eventually("both have opened it anew", || {
        gateway.log_text().matches("the access log is open anew").count() == 2
    });
    assert_eq!(gateway.get("/new").status, 200);
    assert_eq!(lines(&gateway, 1)[0]["path"], "/new");
    drop(relayed);
    assert_eq!(pick(&lines(&gateway, 2)[1], &["kind", "listener"]), ["session", "relay"]);
    assert_eq!(std::fs::read_to_string(&old).unwrap().lines().count(), 1);
    eventually("it has left", || !process::alive(leaving));
    gateway.drain();
}

#[test]
fn standard_output_is_the_default_and_without_the_table_nothing_is_logged() {
    let gateway = Setup::answering(Engine::Epoll).sections("[access_log]").start();
    assert_eq!(gateway.get("/told").status, 200);
    gateway.wait_for_log("\"path\":\"/told\"");
    let silent = Setup::answering(Engine::Epoll).start();
    assert_eq!(silent.get("/told").status, 200);
    assert_eq!(silent.metric("ringfort_access_log_lines_total", ""), 0.0);
    process::signal(silent.supervisor(), libc::SIGUSR1);
    silent.wait_for_log("there is no access log");
    assert!(!silent.log_text().contains("/told"));
}

#[test]
fn a_log_that_cannot_be_had_is_told_at_once() {
    let dir = TempDir::new();
    let text = logging(Setup::answering(Engine::Epoll), "").text().replace("access.log", "none/access.log");
    let file = dir.file("gateway.toml", &with_ports(&text).0);
    let output = ringfort().args(["run", "--config"]).arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("none/access.log cannot be opened") && text.contains("make its folder"), "{text}");
}
