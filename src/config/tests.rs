//! Whole texts in, configuration or problems out.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::base::identity::IdentityPattern;
use crate::health::SlowStart;
use crate::health::check::{HttpProbe, Probe};
use crate::limit::circuit::Pool;
use crate::limit::retry::RetryOn;
use crate::proxy::snapshot::{EndpointAddress, ForwardedPolicy, Protocol};
use crate::route::{Action, Request};
use crate::sys::socket_options::SocketOptions;
use crate::tls::{CertificateFiles, ClientSpec, MtlsMode, ServerNameSource, ServerSpec, VersionMin};

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
    let request = Request { listener: 0, method: "GET", host: "localhost", path: "/", identity: None };
    let (_, route) = config.snapshot.routes.find(&request, &|_| None).expect("a route");
    let Action::Respond(respond) = &route.action else { panic!("{:?}", route.action) };
    assert_eq!((respond.status, &*respond.body), (200, b"ok\n".as_slice()));
    assert_eq!(told(EMBEDDED), [""; 0]);
}

#[test]
fn the_http_sample_is_read_in_full() {
    let config = config(HTTP);
    assert_eq!(config.workers.cpus, Cpus::List(vec![0]));
    assert_eq!(config.workers.engine, EngineChoice::Auto);
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9901");
    let snapshot = &config.snapshot;
    assert_eq!((&*snapshot.listeners[0].name, snapshot.listeners[0].protocol), ("web", Protocol::Http));
    let names: Vec<&str> = snapshot.clusters.iter().map(|cluster| &*cluster.name).collect();
    assert_eq!(names, ["api", "site"]);
    assert_eq!(snapshot.clusters[0].endpoints.len(), 2);
    let to = |host, path| {
        let request = Request { listener: 0, method: "GET", host, path, identity: None };
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

#[test]
fn routes_of_a_passthrough_listener_carry_names_and_protocols() {
    const TEXT: &str = r#"
[[listener]]
name = "web"
listen = "127.0.0.1:0"
[[listener]]
name = "pass"
listen = "127.0.0.1:0"
protocol = "tls-passthrough"
[[route]]
cluster = "site"
[[route]]
listener = "pass"
hosts = ["a.test"]
alpn = ["h2", "h3"]
cluster = "site"
[[route]]
listener = "pass"
hosts = ["*.a.test"]
clusters = [{ name = "site" }, { name = "other" }]
[[cluster]]
name = "site"
endpoints = ["127.0.0.1:1"]
[[cluster]]
name = "other"
endpoints = ["127.0.0.1:2"]
"#;
    let (config, warnings) = parse("t.toml", TEXT).map_err(LoadError::Problems).expect("good");
    assert_eq!(warnings, []);
    let snapshot = config.snapshot;
    assert_eq!(snapshot.listeners[1].protocol, Protocol::TlsPassthrough);
    let to = |listener, name, offered: &[u8]| {
        let found = snapshot.routes.find_passthrough(listener, name, |protocol| protocol == offered);
        found.map(|(index, _)| index)
    };
    assert_eq!(
        [to(1, "a.test", b"h2"), to(1, "a.test", b"h3"), to(1, "a.test", b"h1")],
        [Some(1), Some(1), None]
    );
    assert_eq!([to(1, "x.a.test", b""), to(1, "", b"h2"), to(1, "b.test", b"h2")], [Some(2), None, None]);
}

/// One text of `problems.txt` with what is told of it, and the lines as they should stand in that file.
fn golden_case(case: &str) -> String {
    let (title, body) = case.split_once('\n').expect("a title");
    let lines = || body.split_inclusive('\n');
    // Blank lines set the cases apart.
    let text: String = lines().filter(|line| !line.starts_with("#>")).collect();
    let text = format!("{}\n", text.trim_end_matches('\n'));
    let text = if text == "\n" { "" } else { &text };
    let told = told(text).into_iter().map(|problem| problem.replacen("t.toml:", "#> ", 1) + "\n");
    format!("{title}\n{text}{}", told.collect::<String>())
}

#[test]
fn each_kind_of_problem_is_told_with_place_and_cure() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/config/problems.txt");
    let file = std::fs::read_to_string(path).expect("readable");
    let (heading, cases) = file.split_once("\n## ").expect("cases");
    let cases: Vec<&str> = cases.split("\n## ").collect();
    assert!(cases.len() > 60);
    let now: Vec<String> = cases.iter().map(|case| golden_case(case)).collect();
    if std::env::var_os("RINGFORT_WRITE_PROBLEMS").is_some() {
        let text: String = now.iter().map(|case| format!("\n## {case}")).collect();
        std::fs::write(path, format!("{heading}{text}")).expect("written");
    }
    for (was, now) in cases.iter().zip(&now) {
        assert_eq!(was.trim_end(), now.trim_end());
        let told: Vec<&str> = now.lines().filter(|line| line.starts_with("#> ")).collect();
        assert!(
            !told.is_empty() && told.iter().all(|problem| problem.contains("; ")),
            "no problem or no cure: {now}"
        );
    }
}

#[test]
fn every_key_of_the_reference_file_is_known_and_its_value_good() {
    let is_key = |line: &str| {
        (line.starts_with('[') && line.ends_with(']'))
            || line
                .split_once(" = ")
                .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    };
    let uncomment = |line| match str::strip_prefix(line, "# ") {
        Some(rest) if is_key(rest) => rest,
        _ => line,
    };
    let text: String = reference().lines().map(|line| uncomment(line).to_owned() + "\n").collect();
    // Keys that exclude each other cannot all be good at once.
    let expected = |problem: &String| {
        [
            " beside ",
            "is for listeners of",
            "a condition on a field has",
            "has no effect",
            "becomes",
            "asks no client for a certificate",
        ]
        .iter()
        .any(|part| problem.contains(part))
    };
    let unexpected: Vec<String> = told(&text).into_iter().filter(|problem| !expected(problem)).collect();
    assert_eq!(unexpected, [""; 0]);
}

const ALL_KEYS: &str = r#"
[workers]
cpus = "0-2, 7,5"
engine = "epoll"
ring = { entries = 8, recv_buffers = 2 }
[admin]
listen = "[::1]:0"
socket = "run/admin.sock"
[host]
procfs = "proc"
cgroupfs = "/cg"
[limits]
head_bytes_max = 2_048
target_bytes_max = 0x400
fields_max = 16
requests_per_connection_max = 5
connections_max = 6
memory_bytes_max = 1048576
[timeouts]
header_timeout_ms = 1
request_timeout_ms = 2
connect_timeout_ms = 3
body_rate_min_bytes_per_s = 0
[drain]
idle_grace_ms = 0
deadline_ms = 10
[[listener]]
name = "web"
listen = "[::]:8080"
backlog = 16
connections_max = 100
trusted_proxies = ["10.0.0.0/8", "::1"]
congestion_control = "bbr"
notsent_lowat_bytes = 0
user_timeout_ms = 8
[listener.timeouts]
idle_timeout_ms = 9
[[listener]]
name = "relay"
listen = "127.0.0.1:0"
protocol = "tcp"
cluster = "b"
timeouts = { tcp_idle_timeout_ms = 77 }
[[listener]]
name = "other"
listen = "127.0.0.1:0"
forwarded = "off"
[[route]]
name = "split"
listener = ["web"]
path_prefix = "/s/"
rewrite_prefix = "/t/"
clusters = [{ name = "a", weight = 9 }, { name = "b" }]
request_headers = { set = { "X-Edge" = "1" }, add = { "x-b" = "2", "x-a" = "3" }, remove = ["X-Debug"] }
response_headers.remove = ["server"]
[[route]]
hosts = ["A.test", "*.B.test", "[::1]"]
methods = ["GET"]
headers = [{ name = "X-A", prefix = "1" }, { name = "x-b", present = false }]
redirect = { scheme = "https" }
[[cluster]]
name = "a"
endpoints = ["Origin.test:80", "[::1]:81"]
request_timeout_ms = 4
pool_idle_timeout_ms = 5
pool_idle_per_worker_max = 0
connections_max = 7
retries_max = 0
resolve_interval_ms = 100
pending_max = 0
requests_max = 8
slow_start_ms = 11
slow_start_floor_percent = 12
ejection = { consecutive_failures = 1, base_ms = 2, max_ms = 3, max_ejected_percent = 100, success_rate = true, success_rate_requests_min = 13 }
retry = { on = ["reset", "gateway-error", "429"], non_idempotent = true, budget_percent = 14, budget_min_per_s = 15 }
health_check = { type = "http", path = "/up?x", host = "up.test", expected_status = ["204"], rise = 4, fall = 5, jitter_percent = 0, panic_percent = 50 }
source_ports = "40000-40099"
notsent_lowat_bytes = 9
[[cluster]]
name = "b"
endpoints = ["10.0.0.1:1"]
"#;

#[test]
fn every_value_arrives_where_it_is_used() {
    let (config, warnings) = parse("dir/t.toml", ALL_KEYS).map_err(LoadError::Problems).expect("good");
    assert_eq!(warnings, []);
    assert_eq!(config.workers.cpus, Cpus::List(vec![0, 1, 2, 5, 7]));
    assert_eq!(config.workers.engine, EngineChoice::Epoll);
    assert_eq!(config.workers.ring, RingSpec { entries: 8, recv_buffers: 2 });
    assert_eq!(config.admin.socket.as_deref(), Some(Path::new("dir/run/admin.sock")));
    assert_eq!(config.host.procfs, Path::new("dir/proc"));
    assert_eq!((config.host.sysfs, config.host.cgroupfs), ("/sys".into(), "/cg".into()));
    let Snapshot { listeners, clusters, http, limits, drain, .. } = config.snapshot;
    assert_eq!((http.head_bytes_max, http.target_bytes_max, http.fields_max), (2_048, 1_024, 16));
    assert_eq!((http.requests_per_connection_max, limits.connections_max), (5, 6));
    assert_eq!(limits.memory_bytes_max, 1 << 20);
    assert_eq!((drain.idle_grace, drain.deadline), (Duration::ZERO, Duration::from_millis(10)));

    let [web, relay, other] = &listeners[..] else { panic!("{listeners:?}") };
    assert_eq!((web.backlog, web.connections_max), (16, Some(100)));
    let options = SocketOptions {
        congestion_control: Some("bbr".into()),
        user_timeout: Some(Duration::from_millis(8)),
        ..SocketOptions::default()
    };
    assert_eq!(web.socket, options);
    assert_eq!(relay.socket.notsent_lowat_bytes, Some(131_072), "the default");
    assert_eq!(
        (web.timeouts.header, web.timeouts.idle),
        (Duration::from_millis(1), Duration::from_millis(9))
    );
    assert_eq!(web.timeouts.body_rate_min_bytes_per_s, 0);
    assert_eq!(
        (relay.protocol, relay.timeouts.tcp_idle),
        (Protocol::Tcp { cluster: 1 }, Duration::from_millis(77))
    );
    assert_eq!(relay.connections_max, None);
    let policy = |listener: &crate::proxy::snapshot::Listener, peer: &str| {
        listener.forwarded_for(peer.parse().expect("an address"))
    };
    assert_eq!(policy(web, "::ffff:10.1.1.1"), ForwardedPolicy::Append);
    assert_eq!(policy(web, "11.1.1.1"), ForwardedPolicy::Replace);
    assert_eq!(policy(other, "10.1.1.1"), ForwardedPolicy::Off);

    let [a, b] = &clusters[..] else { panic!("{clusters:?}") };
    assert_eq!((a.socket.source_ports, a.socket.notsent_lowat_bytes), (Some((40_000, 40_099)), Some(9)));
    assert_eq!(b.socket, SocketOptions::default());
    assert_eq!(a.endpoints[0], EndpointAddress::Name { host: "origin.test".into(), port: 80 });
    let millis = |duration: Duration| duration.as_millis();
    assert_eq!([a.connect_timeout, a.request_timeout, a.idle_timeout].map(millis), [3, 4, 5]);
    assert_eq!([b.connect_timeout, b.request_timeout, b.idle_timeout].map(millis), [3, 2, 30_000]);
    assert_eq!((a.idle_per_worker_max, a.connections_max, a.retries_max), (0, 7, 0));
    assert_eq!(millis(a.resolve_interval), 100);
    assert_eq!((a.ejection.consecutive_failures, a.ejection.max_ejected_percent), (1, 100));
    assert_eq!(
        [a.ejection.base, a.ejection.max, b.ejection.base, b.ejection.max].map(millis),
        [2, 3, 1_000, 30_000]
    );
}

#[test]
fn what_a_cluster_says_of_its_endpoints_arrives() {
    let clusters = parse("t.toml", ALL_KEYS).expect("good").0.snapshot.clusters;
    let [a, b] = &clusters[..] else { panic!("{clusters:?}") };
    assert_eq!((a.pending_max, &*a.requests), (0, &Pool::new(8)));
    assert_eq!((b.pending_max, &*b.requests), (1_024, &Pool::new(65_536)));
    let slow_start = SlowStart { window: Duration::from_millis(11), floor_percent: 12 };
    assert_eq!((a.slow_start, b.slow_start), (Some(slow_start), None));
    let rates = a.ejection.success_rate.expect("asked for");
    assert_eq!((rates.requests_min, rates.endpoints_min, rates.stdev_factor_thousandths), (13, 5, 1_900));
    assert_eq!(b.ejection.success_rate, None);
    let on = RetryOn { reset: true, statuses: vec![(502, 504), (429, 429)], ..RetryOn::default() };
    assert_eq!(a.retry.on, on);
    assert_eq!((a.retry.non_idempotent, a.retry.budget_percent, a.retry.budget_min_per_s), (true, 14, 15));
    let usual = RetryOn {
        connect_failure: true,
        refused_stream: true,
        reset_before_request: true,
        ..RetryOn::default()
    };
    assert_eq!((&b.retry.on, b.retry.non_idempotent, b.retry.per_try_timeout), (&usual, false, None));
    let check = a.health_check.as_ref().expect("asked for");
    let http = HttpProbe { path: "/up?x".into(), host: Some("up.test".into()), expected: vec![(204, 204)] };
    assert_eq!(check.probe, Probe::Http(http));
    assert_eq!((check.rise, check.fall, check.jitter_percent, check.panic_percent), (4, 5, 0, 50));
    assert_eq!((check.interval, check.timeout), (Duration::from_secs(5), Duration::from_secs(2)));
    assert_eq!(b.health_check, None);
}

#[test]
fn routes_carry_their_changes_and_choices() {
    let table = parse("t.toml", ALL_KEYS).expect("good").0.snapshot.routes;
    let request = Request { listener: 0, method: "GET", host: "", path: "/s/x", identity: None };
    let (_, split) = table.find(&request, &|_| None).expect("a route");
    assert_eq!(split.rewrite_path("/s/x", &mut String::new()), "/t/x");
    assert_eq!([0, u32::MAX].map(|random| split.action.cluster(random)), [Some(0), Some(1)]);
    assert_eq!((&*split.request_edits.remove[0], &*split.request_edits.set[0].0), ("x-debug", "x-edge"));
    let added: Vec<&str> = split.request_edits.add.iter().map(|(name, _)| &**name).collect();
    assert_eq!(added, ["x-b", "x-a"], "in the order of the file");
    assert_eq!(&*split.response_edits.remove[0], "server");
    assert!(table.find(&Request { listener: 2, ..request }, &|_| None).is_none());

    let request = Request { listener: 2, method: "GET", host: "x.b.TEST", path: "/", identity: None };
    let with = |name: &'static str| move |asked: &str| (asked == name).then_some(b"12".as_slice());
    assert!(matches!(table.find(&request, &with("x-a")), Some((1, _))));
    assert!(table.find(&request, &with("x-b")).is_none());
}

const TLS: &str = r#"
[[listener]]
name = "secure"
listen = "127.0.0.1:8443"
[listener.tls]
certificates = [
  { cert = "a.pem", key = "/keys/a.key" },
  { cert = "b.pem", key = "b.key" },
]
mtls = "permissive"
client_ca = "ca.pem"
client_crl = "crl.pem"
session_tickets = false
version_min = "1.3"
[[listener]]
name = "relay"
listen = "127.0.0.1:8444"
protocol = "tcp"
cluster = "addresses"
tls = { certificates = [{ cert = "a.pem", key = "a.key" }] }
[[route]]
cluster = "mesh"
[[route]]
path = "/n"
client_identities = ["td/*"]
cluster = "names"
[[cluster]]
name = "mesh"
endpoints = ["10.0.0.1:443", "a.test:443"]
[cluster.tls]
ca = "mesh.pem"
cert = "gateway.pem"
key = "gateway.key"
expect_identity = ["spiffe://td/ns/a", "td/*"]
[[cluster]]
name = "names"
endpoints = ["A.test:443", "a.test:444"]
tls = {}
[[cluster]]
name = "addresses"
endpoints = ["10.0.0.1:443"]
tls = { server_name = "B.test", version_min = "1.2" }
"#;

#[test]
fn tls_arrives_as_specs_with_paths_from_the_folder_of_the_file() {
    let (config, warnings) = parse("dir/t.toml", TLS).map_err(LoadError::Problems).expect("good");
    assert_eq!(warnings, []);
    let Snapshot { listeners, clusters, .. } = &config.snapshot;
    let pair = |cert: &str, key: &str| CertificateFiles { cert: cert.into(), key: key.into() };
    let secure = ServerSpec {
        certificates: vec![pair("dir/a.pem", "/keys/a.key"), pair("dir/b.pem", "dir/b.key")],
        mtls: MtlsMode::Permissive,
        client_ca: Some("dir/ca.pem".into()),
        client_crl: Some("dir/crl.pem".into()),
        session_tickets: false,
        version_min: VersionMin::Tls13,
    };
    assert_eq!(listeners[0].tls, Some(secure));
    let relay = listeners[1].tls.as_ref().expect("TLS in front of a relay");
    assert!(
        relay.session_tickets && relay.mtls == MtlsMode::Disable && relay.version_min == VersionMin::Tls12
    );
    let mesh = ClientSpec {
        ca: Some("dir/mesh.pem".into()),
        certificate: Some(pair("dir/gateway.pem", "dir/gateway.key")),
        server_name: ServerNameSource::Address,
        expect_identity: vec![
            IdentityPattern::Exact("spiffe://td/ns/a".into()),
            IdentityPattern::TrustDomain("spiffe://td/".into()),
        ],
        version_min: VersionMin::Tls12,
    };
    assert_eq!(clusters[0].tls, Some(mesh));
    let name = |cluster: usize| clusters[cluster].tls.as_ref().map(|tls| tls.server_name.clone());
    let fixed = |name: &str| Some(ServerNameSource::Fixed(name.to_owned().try_into().expect("a name")));
    assert_eq!((name(1), name(2)), (fixed("a.test"), fixed("b.test")));
    let place = |path: &str| config.files.iter().find(|file| file.path == Path::new(path)).expect(path);
    assert_eq!((place("/keys/a.key").line, place("/keys/a.key").column), (7, 27));
    assert_eq!(place("dir/gateway.pem").line, 32);
    assert_eq!(config.files.len(), 11);
}

#[test]
fn the_effective_configuration_has_the_defaults_of_tls_only_where_tls_is_spoken() {
    let effective = config(TLS).effective;
    assert_eq!(effective["listener"][1]["tls"]["session_tickets"], true);
    assert_eq!(effective["listener"][1]["tls"]["mtls"], "disable");
    assert_eq!(effective["cluster"][1]["tls"]["version_min"], "1.2");
    assert!(config(HTTP).effective["listener"][0].get("tls").is_none());
}

#[test]
fn the_effective_configuration_has_every_default() {
    let effective = config(HTTP).effective;
    assert_eq!(effective["workers"]["cpus"], "0");
    assert_eq!(effective["workers"]["ring"]["entries"], 256);
    assert_eq!(effective["timeouts"]["header_timeout_ms"], 10_000);
    assert_eq!(effective["route"][1]["respond"]["body"], "ok\n");
    assert_eq!(effective["route"][0].get("redirect"), None);
    assert_eq!(effective["cluster"][0]["ejection"]["consecutive_failures"], 5);
    assert_eq!(effective["listener"][0]["timeouts"]["idle_timeout_ms"], 60_000);
    assert_eq!(effective["cluster"][0]["connect_timeout_ms"], 5_000);
}

#[test]
fn the_effective_configuration_has_what_listeners_and_clusters_inherit() {
    let text = format!(
        "[timeouts]\nidle_timeout_ms = 7\nconnect_timeout_ms = 8\n{HTTP}\nrequest_timeout_ms = 9\n\
         [[listener]]\nname = \"x\"\nlisten = \"127.0.0.1:1\"\ntimeouts = {{ idle_timeout_ms = 10 }}\n\
         [[route]]\nlistener = \"x\"\nrespond = {{}}\n"
    );
    let effective = config(&text).effective;
    let idle = |at: usize| effective["listener"][at]["timeouts"]["idle_timeout_ms"].as_u64();
    assert_eq!((idle(0), idle(1)), (Some(7), Some(10)));
    let cluster = |at: usize, key: &str| effective["cluster"][at][key].as_u64();
    assert_eq!((cluster(1, "connect_timeout_ms"), cluster(1, "request_timeout_ms")), (Some(8), Some(9)));
    assert_eq!((cluster(0, "connect_timeout_ms"), cluster(0, "request_timeout_ms")), (Some(8), Some(60_000)));
}

/// As the command, without the files that the configuration names.
fn check(
    path: Option<&Path>,
    explain: Option<&str>,
    fields: &[String],
    identity: Option<&str>,
    as_json: bool,
) -> (String, u8) {
    let (require_encryption, inspect) = (false, &|_: &str, _: &Config| Vec::new());
    super::check(&Asking { path, explain, fields, identity, require_encryption, as_json, inspect })
}

/// What of a text carries plaintext, and the exit code.
fn unencrypted(text: &str) -> (String, u8) {
    let name = format!("ringfort-plaintext-{}-{:?}.toml", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).expect("written");
    let (require_encryption, inspect) = (true, &|_: &str, _: &Config| Vec::new());
    let asking = Asking {
        path: Some(&path),
        explain: None,
        fields: &[],
        identity: None,
        require_encryption,
        as_json: false,
        inspect,
    };
    let (text, code) = super::check(&asking);
    std::fs::remove_file(path).expect("removed");
    let lines = text.lines().filter(|line| line.contains("plaintext") && !line.contains(": good: "));
    (lines.map(|line| line.to_owned() + "\n").collect(), code)
}

#[test]
fn what_carries_plaintext_is_listed_listener_by_listener_and_cluster_by_cluster() {
    let (text, code) = unencrypted(TLS);
    assert_eq!(
        (&*text, code),
        (
            "listener \"secure\" carries plaintext: it takes plaintext beside TLS; set mtls = \"strict\" or \"disable\"\n",
            1
        )
    );
    let strict = TLS.replace("permissive", "strict");
    assert_eq!(unencrypted(&strict), ("nothing carries plaintext\n".into(), 0));
    let (text, code) = unencrypted(&strict.replace("tls = {}", ""));
    assert_eq!(
        (&*text, code),
        (
            "cluster \"names\" carries plaintext: it has no [cluster.tls]; add it; endpoints must speak TLS\n",
            1
        )
    );
    let (text, code) = unencrypted(HTTP);
    assert!(text.starts_with("listener \"web\" carries plaintext") && code == 1, "{text}");
    assert_eq!(text.matches("cluster \"").count(), 2, "{text}");
    let (text, code) = unencrypted(TCP);
    assert_eq!((text.lines().count(), code), (2, 1), "{text}");
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/config").join(name)
}

#[test]
fn check_tells_good_from_bad_from_unreadable_by_its_exit_code() {
    let (text, code) = check(Some(&data("http.toml")), None, &[], None, false);
    assert!(text.ends_with("http.toml: good: 1 listener, 3 routes, 2 clusters\n"), "{text}");
    assert_eq!(code, 0);
    let (text, code) = check(Some(&data("latin-1.toml")), None, &[], None, false);
    assert!(text.contains("latin-1.toml:2:4: error: the file is not text in UTF-8 from here on"), "{text}");
    assert!(text.ends_with("latin-1.toml: 1 error\n"), "{text}");
    assert_eq!(code, 1);
    let (text, code) = check(Some(&data("none.toml")), None, &[], None, false);
    assert!(text.contains("none.toml: No such file") && text.contains("--config"), "{text}");
    assert_eq!(code, 2);
    assert_eq!(check(Some(&data("")), None, &[], None, false).1, 2);
    assert_eq!(
        check(None, None, &[], None, false),
        ("embedded default: good: 1 listener, 1 route, 0 clusters\n".into(), 0)
    );
}

#[test]
fn check_explains_which_route_a_request_gets() {
    let (text, code) = check(Some(&data("http.toml")), Some("GET http://api.test/v1/x"), &[], None, false);
    assert!(
        text.ends_with(
            "listener \"web\":\n\
             route \"route-1\" is chosen: host api.test or *.api.test, path prefix /v1/\n\
             \x20 \"route-3\" matches too, but any host is less specific than host api.test or *.api.test\n\
             \x20 \"route-2\" does not match: path is not /target\n\
             -> cluster \"api\" (127.0.0.1:9001, 127.0.0.1:9002), path /v1/x\n"
        ),
        "{text}"
    );
    assert_eq!(code, 0);
    let (text, _) = check(Some(&data("http.toml")), Some("/target?x"), &[], None, false);
    assert!(text.ends_with("-> answered here with 200 and a body of 3 bytes\n"), "{text}");
    let (text, code) = check(Some(&data("http.toml")), Some("/target"), &[], Some("spiffe://td"), false);
    assert_eq!(text, "--identity \"spiffe://td\" is no SPIFFE identity: no path follows its trust domain\n");
    assert_eq!(code, 2);
    let (text, code) = check(Some(&data("tcp.toml")), Some("/"), &[], None, false);
    assert!(text.ends_with("1 cluster\nno listener takes HTTP requests\n") && code == 0, "{text}");
    for bad in ["", "GET", "GET ftp://a.test/", "GET a.test", "GET /a b"] {
        assert_eq!(check(None, Some(bad), &[], None, false).1, 2, "{bad:?}");
    }
    assert_eq!(check(None, Some("/"), &["no colon".to_owned()], None, false).1, 2);
}

#[test]
fn check_explains_by_fields_and_port_and_shows_where_a_redirect_leads() {
    let path = std::env::temp_dir().join(format!("ringfort-explain-{}.toml", std::process::id()));
    std::fs::write(&path, ALL_KEYS).expect("written");
    let asked = |text: &str, fields: &[String]| {
        let (text, code) = check(Some(&path), Some(text), fields, None, false);
        assert_eq!(code, 0, "{text}");
        text
    };
    let text = asked("GET https://x.b.test:8080/p?q=1", &["X-A: 1".to_owned()]);
    assert!(text.contains("\nlistener \"web\":\n") && !text.contains("listener \"other\""), "{text}");
    assert!(text.ends_with("-> redirected with 308 to https://x.b.test/p?q=1\n"), "{text}");
    let text = asked("GET http://b.test/s/x", &[]);
    assert!(text.contains("-> 9 of 10 to cluster \"a\" (origin.test:80, [::1]:81), 1 of 10 to"), "{text}");
    assert!(text.contains("path /t/x\n") && text.contains("listener \"other\":\nno route matches"), "{text}");
    std::fs::remove_file(path).expect("removed");
}

#[test]
fn check_explains_by_the_identity_of_the_client() {
    let path = std::env::temp_dir().join(format!("ringfort-identity-{}.toml", std::process::id()));
    let text = HTTP.to_owned()
        + "[[route]]\nname = \"mesh\"\npath_prefix = \"/\"\nclient_identities = [\"td/*\"]\nrespond = {}\n";
    std::fs::write(&path, text).expect("written");
    let asked = |identity| check(Some(&path), Some("/x"), &[], identity, false).0;
    let text = asked(Some("spiffe://td/a"));
    assert!(
        text.contains("route \"mesh\" is chosen: any host, path prefix /, client identity td/*\n"),
        "{text}"
    );
    assert!(
        asked(Some("spiffe://other/a")).contains("\"mesh\" does not match: client identity is not td/*\n")
    );
    assert!(asked(None).contains("\"mesh\" does not match: client identity is not td/*\n"));
    std::fs::remove_file(path).expect("removed");
}

#[test]
fn check_explains_the_path_that_is_routed_and_forwarded() {
    let asked = |request| check(Some(&data("http.toml")), Some(request), &[], None, false);
    let (text, code) = asked("GET http://api.test/v1/%2E%2e/a//b%2f");
    assert!(text.contains("route \"route-3\" is chosen") && code == 0, "{text}");
    assert!(text.ends_with(", path /a//b%2f\n"), "{text}");
    let (text, code) = asked("GET http://api.test/v1/%00");
    assert!(text.contains("400") && code == 2, "{text}");
}

#[test]
fn check_speaks_json() {
    let json =
        |(text, code): (String, u8)| (serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), code);
    let (good, code) = json(check(Some(&data("http.toml")), Some("/target"), &[], None, true));
    assert_eq!((&good["ok"], code), (&true.into(), 0));
    assert_eq!(good["explain"][0]["route"], "route-2");
    let (bad, code) = json(check(Some(&data("latin-1.toml")), None, &[], None, true));
    assert_eq!((&bad["ok"], code), (&false.into(), 1));
    assert_eq!((&bad["problems"][0]["line"], &bad["problems"][0]["severity"]), (&2.into(), &"error".into()));
    assert_eq!(json(check(Some(&data("none.toml")), None, &[], None, true)).1, 2);
}

/// Lines that are TOML or nearly so, with keys and values that belong elsewhere.
fn any_line() -> impl Strategy<Value = String> {
    let known: Vec<String> = ALL_KEYS.lines().chain(HTTP.lines()).map(str::to_owned).collect();
    let keys: Vec<String> =
        known.iter().filter_map(|line| Some(line.split_once(" = ")?.0.to_owned())).collect();
    let values: Vec<String> =
        known.iter().filter_map(|line| Some(line.split_once(" = ")?.1.to_owned())).collect();
    prop_oneof![
        8 => prop::sample::select(known),
        4 => (prop::sample::select(keys.clone()), prop::sample::select(values))
            .prop_map(|(key, value)| format!("{key} = {value}")),
        1 => (prop::sample::select(keys), "[-+.0-9a-z\"\\[\\]{}=:/*]{0,12}").prop_map(|(key, value)| format!("{key} = {value}")),
        1 => ".{0,20}",
    ]
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_with_a_reason(lines in prop::collection::vec(any_line(), 0..40), noise in ".{0,80}") {
        fuzz_parse(&lines.join("\n"));
        fuzz_parse(&noise);
    }

    #[test]
    fn values_of_any_text_never_panic(text in ".{0,40}|[-0-9,]{0,20}|[0-9a-f.:\\[\\]*]{0,20}") {
        let _ = (values::cpus(&text), values::listen(&text), values::endpoint(&text), values::host(&text));
        let _ = (values::authority(&text), values::path(&text), values::field_name(&text), values::name(&text));
        let _ = text.parse::<crate::proxy::snapshot::Cidr>();
    }
}
