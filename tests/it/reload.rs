//! Another configuration while the gateway serves: what changes, what stays, what is refused, and that nobody notices.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::client::Client;
use crate::harness::gateway::{Gateway, fresh_listener};
use crate::harness::h2::{self, H2Origin};
use crate::harness::load::Load;
use crate::harness::origin::Origin;
use crate::harness::setup::Setup;
use crate::harness::tls::{Leaf, Pki};
use crate::harness::{Engine, eventually, on_both_engines, process, websocket};

on_both_engines!(
    kept_connections_take_the_new_routes_with_their_next_request,
    a_request_on_its_way_ends_as_it_began,
    streams_of_http2_take_the_new_routes,
    connections_to_unchanged_clusters_are_kept_and_others_replaced,
    what_is_known_of_an_endpoint_outlives_a_change_of_its_cluster,
    a_new_listener_opens_and_a_removed_one_drains,
    an_idle_connection_of_a_removed_listener_is_closed_after_the_grace,
    a_relay_of_a_removed_listener_goes_on,
    a_listener_that_speaks_otherwise_keeps_its_port,
    a_changed_address_moves_the_listener,
    every_problem_is_told_and_the_old_configuration_stays_whole,
    an_address_in_use_is_told_at_its_line,
    a_crash_after_a_reload_begins_with_the_new_configuration,
    nothing_fails_under_load_while_it_is_reloaded,
    many_reloads_cost_no_memory,
);

fn answering(engine: Engine, body: &str) -> Setup {
    Setup::new(engine).route(&format!("respond = {{ status = 200, body = \"{body}\" }}"))
}

/// A further HTTP listener that answers from here.
fn listener(name: &str) -> String {
    format!(
        "[[listener]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{{port:{name}}}\"\n\
         [[route]]\nlistener = \"{name}\"\nrespond = {{ status = 200, body = \"{name}\" }}\n"
    )
}

fn kept_connections_take_the_new_routes_with_their_next_request(engine: Engine) {
    let mut gateway = answering(engine, "one").start();
    let mut client = gateway.client();
    assert_eq!(client.get("/").text(), "one");
    gateway.reload_to(&answering(engine, "two").text());
    let second = client.get("/");
    assert_eq!((second.text(), second.closes()), ("two".to_owned(), false));
    // By signal as well.
    gateway.rewrite(&answering(engine, "three").text());
    process::signal(gateway.supervisor(), libc::SIGHUP);
    eventually("the third configuration is in use", || client.get("/").text() == "three");
    assert!(gateway.admin("/config").unwrap().text().contains("three"));
    assert_eq!(gateway.metric("ringfort_reloads_total", "result=\"ok\""), 2.0);
    assert_eq!(gateway.metric("ringfort_connections_accepted_total", ""), 1.0);
}

fn a_request_on_its_way_ends_as_it_began(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).start();
    let mut client = gateway.client();
    client.send("GET /late/600 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("the request is at the origin", || origin.requests().len() == 1);
    gateway.reload_to(&answering(engine, "new").text());
    assert_eq!(gateway.get("/").text(), "new");
    let first = client.read_response();
    assert_eq!((first.status, first.closes()), (200, false));
    assert_ne!(first.text(), "new");
    assert_eq!(client.get("/").text(), "new");
    eventually("what no configuration has is closed", || origin.open() == 0);
    eventually("and not counted any more", || {
        !gateway.admin("/metrics").unwrap().text().contains("cluster=\"site\"")
    });
}

fn streams_of_http2_take_the_new_routes(engine: Engine) {
    let mut gateway = answering(engine, "one").start();
    h2::run(async {
        let mut connection = h2::connect(gateway.web()).await;
        assert_eq!(h2::fetch(&mut connection, h2::get("/")).await.unwrap().text(), "one");
        gateway.reload_to(&answering(engine, "two").text());
        assert_eq!(h2::fetch(&mut connection, h2::get("/")).await.unwrap().text(), "two");
    });
    assert_eq!(gateway.metric("ringfort_http2_goaways_sent_total", ""), 0.0);
}

fn connections_to_unchanged_clusters_are_kept_and_others_replaced(engine: Engine) {
    let (kept, changed) = (Origin::serving(), Origin::serving());
    let setup = |timeout: u64| {
        let keys = format!("request_timeout_ms = {timeout}");
        Setup::new(engine)
            .route("path_prefix = \"/kept\"\ncluster = \"kept\"")
            .route("path_prefix = \"/changed\"\ncluster = \"changed\"")
            .cluster("kept", &[kept.address()])
            .sections(&format!(
                "[[cluster]]\nname = \"changed\"\nendpoints = [\"{}\"]\n{keys}\n",
                changed.address()
            ))
    };
    let mut gateway = setup(5_000).start();
    let mut client = gateway.client();
    for path in ["/kept", "/changed"] {
        assert_eq!(client.get(path).status, 200);
    }
    gateway.reload_to(&setup(6_000).text());
    for path in ["/kept", "/changed", "/kept", "/changed"] {
        assert_eq!(client.get(path).status, 200);
    }
    assert_eq!((kept.accepted(), changed.accepted()), (1, 2));
    eventually("the connection of the old cluster is closed", || changed.open() == 1);
    // Counts of a name go on.
    let requests =
        |cluster: &str| gateway.metric("ringfort_upstream_requests_total", &format!("cluster=\"{cluster}\""));
    assert_eq!((requests("kept"), requests("changed")), (3.0, 3.0));
    let idle = gateway.metric("ringfort_upstream_connections_idle", "");
    assert_eq!(idle, 2.0, "gauges of the old cluster are given back");
}

fn what_is_known_of_an_endpoint_outlives_a_change_of_its_cluster(engine: Engine) {
    let (good, dead) = (Origin::serving(), fresh_listener());
    let endpoints = [good.address(), dead.local_addr().unwrap().to_string()];
    drop(dead);
    let setup = |idle: u64| {
        Setup::to_all(engine, &endpoints)
            .ejection(1, 20_000)
            .cluster_keys(&format!("pool_idle_timeout_ms = {idle}"))
    };
    let mut gateway = setup(20_000).start();
    gateway.expect_log("ejected");
    eventually("the dead endpoint is ejected", || {
        gateway.get("/");
        gateway.metric("ringfort_upstream_ejections_total", "") == 1.0
    });
    let failures = gateway.metric("ringfort_upstream_connect_failures_total", "");
    gateway.reload_to(&setup(21_000).text());
    for _ in 0..20 {
        assert_eq!(gateway.get("/").status, 200);
    }
    assert_eq!(
        gateway.metric("ringfort_upstream_connect_failures_total", ""),
        failures,
        "it is not tried again"
    );
}

fn a_new_listener_opens_and_a_removed_one_drains(engine: Engine) {
    let origin = Origin::serving();
    let setup = |sections: &str| Setup::to(engine, &origin).sections(sections).drain(5_000, 10_000);
    let late = "[[listener]]\nname = \"late\"\nlisten = \"127.0.0.1:{port:late}\"\n\
                [[route]]\nlistener = \"late\"\ncluster = \"site\"\n";
    let mut gateway = setup("").start();
    gateway.reload_to(&setup(late).text());
    let port = gateway.port("late");
    let (mut idle, mut busy) = (Client::connect(port), Client::connect(port));
    assert_eq!(idle.get("/1").status, 200);
    busy.send("GET /late/700 HTTP/1.1\r\nHost: a.test\r\n\r\n");
    eventually("the request is at the origin", || {
        origin.targets().iter().any(|target| target == "/late/700")
    });
    assert_eq!(gateway.metric("ringfort_connections_active", "listener=\"late\""), 2.0);

    gateway.reload_to(&setup("").text());
    eventually("new connections are refused", || TcpStream::connect(("127.0.0.1", port)).is_err());
    let told = idle.get("/2");
    assert_eq!((told.status, told.closes()), (200, true), "served as before, and told to leave");
    idle.expect_end();
    let told = busy.read_response();
    assert_eq!((told.status, told.closes()), (200, true));
    busy.expect_end();
    eventually("its series are gone as a whole", || {
        !gateway.admin("/metrics").unwrap().text().contains("listener=\"late\"")
    });
    assert_eq!(gateway.get("/").status, 200);
    // And back again, on the same port.
    gateway.reload_to(&setup(late).text());
    assert_eq!(Client::connect(port).get("/3").status, 200);
}

fn an_idle_connection_of_a_removed_listener_is_closed_after_the_grace(engine: Engine) {
    let setup = |more: &str| Setup::answering(engine).sections(more).drain(300, 10_000);
    let mut gateway = setup(&listener("late")).start();
    let mut client = Client::connect(gateway.port("late"));
    assert_eq!(client.get("/").status, 200);
    let mut streams = h2::raw::RawClient::connect(gateway.port("late"));
    let mut other = gateway.client();
    assert_eq!(other.get("/").status, 200);
    let start = Instant::now();
    gateway.reload_to(&setup("").text());
    client.expect_end();
    assert!(start.elapsed() >= Duration::from_millis(250), "{:?}", start.elapsed());
    streams.until(|frame| frame.kind == 7).expect("a GOAWAY");
    assert_eq!(other.get("/").status, 200, "those of other listeners stay");
}

fn a_relay_of_a_removed_listener_goes_on(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).relay("").start();
    let mut relayed = Client::connect(gateway.port("relay"));
    assert_eq!(relayed.get("/1").status, 200);
    gateway.reload_to(&Setup::to(engine, &origin).text());
    let port = gateway.port("relay");
    eventually("new connections are refused", || TcpStream::connect(("127.0.0.1", port)).is_err());
    assert_eq!(relayed.get("/2").status, 200);
}

fn a_listener_that_speaks_otherwise_keeps_its_port(engine: Engine) {
    let origin = Origin::serving();
    let mut gateway = Setup::to(engine, &origin).sections(&listener("other")).drain(5_000, 10_000).start();
    let port = gateway.port("other");
    let mut old = Client::connect(port);
    assert_eq!(old.get("/").text(), "other");
    let relay = "[[listener]]\nname = \"other\"\nlisten = \"127.0.0.1:{port:other}\"\nprotocol = \"tcp\"\ncluster = \"site\"\n";
    gateway.reload_to(&Setup::to(engine, &origin).sections(relay).drain(5_000, 10_000).text());
    let told = old.get("/");
    assert_eq!((told.text(), told.closes()), ("other".to_owned(), true), "the last one of the old kind");
    assert_ne!(Client::connect(port).get("/").text(), "other");
    assert_eq!(gateway.metric("ringfort_connections_accepted_total", "listener=\"other\""), 2.0);
}

fn a_changed_address_moves_the_listener(engine: Engine) {
    let at = |name: &str| answering(engine, "x").text().replace("{port:web}", &format!("{{port:{name}}}"));
    let mut gateway = answering(engine, "x").start();
    let mut old = gateway.client();
    assert_eq!(old.get("/").status, 200);
    gateway.reload_to(&at("moved"));
    assert_eq!(Client::connect(gateway.port("moved")).get("/").status, 200);
    let web = gateway.web();
    eventually("nobody listens there any more", || TcpStream::connect(("127.0.0.1", web)).is_err());
    assert!(old.get("/").closes());
    gateway.drain();
}

fn every_problem_is_told_and_the_old_configuration_stays_whole(engine: Engine) {
    let pki = Pki::new();
    let mut gateway = answering(engine, "old").start();
    let good = answering(engine, "new").text();
    let missing = format!(
        "[listener.tls]\ncertificates = [{{ cert = {:?}, key = {:?} }}]\n",
        pki.path("no.pem"),
        pki.path("no.key")
    );
    let table = [
        (good.replace("[workers]", "[workers"), vec!["ringfort.toml:1:"]),
        (good.replace("status = 200", "statu = 200") + "[x]\n", vec!["did you mean \"status\"?", "\"x\""]),
        (
            good.clone() + "[[route]]\nlistener = \"web\"\ncluster = \"none\"\n",
            vec!["there is no cluster \"none\""],
        ),
        (Setup::answering(engine).sections(&missing).text(), vec!["no.pem: No such file"]),
        (
            good.replace("cpus = \"0\"", "cpus = \"0-1\"").replace("{port:admin}", "{port:other}"),
            vec![
                ":2:1: error: workers.cpus cannot change by a reload; run \"ringfort upgrade\"",
                "admin.listen cannot change by a reload",
            ],
        ),
    ];
    for (round, (text, expected)) in table.iter().enumerate() {
        let printed = gateway.refuse(text);
        for words in expected {
            assert!(printed.contains(words), "{words:?} in {printed}");
        }
        assert!(printed.lines().all(|line| !line.is_empty()), "{printed}");
        assert_eq!(gateway.get("/").text(), "old");
        let ready = gateway.admin("/readyz").unwrap();
        assert!(ready.status == 200 && ready.text().contains("reload"), "{}", ready.text());
        assert!(ready.text().contains(&expected[0].replace('"', "\\\"")), "{}", ready.text());
        assert_eq!(gateway.metric("ringfort_reloads_total", "result=\"refused\""), round as f64 + 1.0);
        assert_eq!(gateway.metric("ringfort_config_last_reload_successful", ""), 0.0);
    }
    gateway.reload_to(&good);
    assert_eq!(gateway.get("/").text(), "new");
    assert!(!gateway.admin("/readyz").unwrap().text().contains("reload"));
    assert_eq!(gateway.metric("ringfort_config_last_reload_successful", ""), 1.0);
    std::fs::remove_file(gateway.config()).unwrap();
    gateway.expect_log("the configuration was not reloaded");
    let (code, printed) = gateway.try_reload();
    assert!(code == Some(1) && printed.contains("No such file"), "{printed}");
}

fn an_address_in_use_is_told_at_its_line(engine: Engine) {
    let taken = fresh_listener();
    let mut gateway = Setup::answering(engine).start();
    let text = listener("late").replace("{port:late}", &taken.local_addr().unwrap().port().to_string());
    let printed = gateway.refuse(&Setup::answering(engine).sections(&(text + &listener("more"))).text());
    assert!(
        printed.contains("listener \"late\": cannot listen on") && printed.contains("in use"),
        "{printed}"
    );
    let line = printed.split(':').nth(1).and_then(|line| line.parse::<usize>().ok()).expect("a line");
    let config = std::fs::read_to_string(gateway.config()).unwrap();
    assert!(config.lines().nth(line - 1).unwrap().starts_with("listen = "), "line {line} of {config}");
    let more = gateway.port("more");
    eventually("what was opened beside it is closed", || TcpStream::connect(("127.0.0.1", more)).is_err());
    drop(taken);
    gateway.reload();
    assert_eq!(Client::connect(more).get("/").text(), "more");
}

#[test]
fn without_descriptors_for_new_listeners_nothing_changes_and_none_is_left_open() {
    let mut gateway = Setup::answering(Engine::Epoll).start();
    gateway.expect_log("the configuration was not reloaded");
    let data = gateway.data_process();
    process::limit_open_files(data, process::open_files(data) as u64 + 8);
    let names: Vec<String> = (0..16).map(|number| format!("late{number}")).collect();
    let late: String = names.iter().map(|name| listener(name)).collect();
    let printed = gateway.refuse(&Setup::answering(Engine::Epoll).sections(&late).text());
    assert!(printed.contains("raise LimitNOFILE="), "{printed}");
    for name in &names {
        let port = gateway.port(name);
        eventually("nobody listens", || TcpStream::connect(("127.0.0.1", port)).is_err());
    }
    gateway.reload_to(&answering(Engine::Epoll, "new").sections(&listener("late0")).text());
    assert_eq!(Client::connect(gateway.port("late0")).get("/").text(), "late0");
}

fn a_crash_after_a_reload_begins_with_the_new_configuration(engine: Engine) {
    let mut gateway = Setup::answering(engine).sections(&listener("old")).start();
    gateway.expect_log("data process");
    gateway.reload_to(&answering(engine, "new").sections(&listener("late")).text());
    // What was not taken into use has no part in it.
    gateway.refuse(&answering(engine, "refused").text().replace("status", "x"));
    let data = gateway.data_process();
    process::signal(data, libc::SIGKILL);
    // What a dying process still accepts dies with it.
    let entry = std::path::PathBuf::from(format!("/proc/{data}"));
    eventually("it is gone", || !entry.exists());
    assert_eq!(gateway.get("/").text(), "new");
    assert_eq!(Client::connect(gateway.port("late")).get("/").text(), "late");
    assert!(TcpStream::connect(("127.0.0.1", gateway.port("old"))).is_err());
    gateway.reload_to(&answering(engine, "newer").text());
    assert_eq!(gateway.get("/").text(), "newer");
}

/// Everything through one gateway: what is asked for by path.
fn busy(engine: Engine, origin: &Origin, streams: &H2Origin, chat: &Origin, round: usize) -> Setup {
    Setup::new(engine)
        .route("path_prefix = \"/chat\"\ncluster = \"chat\"\ntunnels = [\"websocket\"]")
        .route("path_prefix = \"/echo\"\ncluster = \"streams\"")
        .route(&format!("path_prefix = \"/round/{round}\"\nrespond = {{ status = 200 }}"))
        .route("cluster = \"site\"")
        .cluster("chat", &[chat.address()])
        .sections(&format!(
            "[[cluster]]\nname = \"streams\"\nprotocol = \"h2\"\nendpoints = [\"{}\"]\n\
             [[cluster]]\nname = \"site\"\nendpoints = [\"{}\"]\nrequest_timeout_ms = {}\n",
            streams.address(),
            origin.address(),
            20_000 + round
        ))
        .sections(&if round.is_multiple_of(2) { listener("more") } else { String::new() })
}

fn nothing_fails_under_load_while_it_is_reloaded(engine: Engine) {
    let (origin, streams) = (Origin::serving(), H2Origin::start());
    let chat = Origin::start(websocket::serve);
    let mut gateway = busy(engine, &origin, &streams, &chat, 0).start();
    let port = gateway.web();
    let load = Load::start()
        .keep_alive(port)
        .keep_alive(port)
        .new_connections(port)
        .streams(port)
        .websocket(port, true)
        .call(port, "/echo");
    load.goes_on(20);
    for round in 1..=20 {
        gateway.reload_to(&busy(engine, &origin, &streams, &chat, round).text());
        load.goes_on(10);
    }
    assert!(load.stop() >= 200);
    assert_eq!(gateway.metric("ringfort_reloads_total", "result=\"ok\""), 20.0);
    assert_eq!(gateway.metric("ringfort_requests_total", "class=\"5xx\""), 0.0);
    gateway.drain();
}

fn many_reloads_cost_no_memory(engine: Engine) {
    let origin = Origin::serving();
    let text = |round: usize| {
        Setup::to(engine, &origin)
            .cluster_keys(&format!("request_timeout_ms = {}", 20_000 + round))
            .sections(&if round.is_multiple_of(2) { listener("more") } else { String::new() })
            .text()
    };
    let mut gateway = Setup::to(engine, &origin).start();
    let mut kept = gateway.client();
    let mut round = |gateway: &mut Gateway, rounds: std::ops::Range<usize>| {
        for round in rounds {
            gateway.reload_to(&text(round));
            assert_eq!(kept.get("/").status, 200);
        }
        (process::anonymous_bytes(gateway.data_process()), process::open_files(gateway.data_process()))
    };
    let (before, files_before) = round(&mut gateway, 0..40);
    let (after, files_after) = round(&mut gateway, 40..120);
    assert!(after as f64 <= before as f64 * 1.05, "{before} bytes, then {after}");
    assert!(files_after <= files_before + 2, "{files_before} files, then {files_after}");
}

#[test]
fn a_move_between_one_address_and_all_of_them_takes_a_restart_and_says_so() {
    let one = Setup::answering(Engine::Epoll);
    let all = one.text().replace("127.0.0.1:{port:web}", "0.0.0.0:{port:web}");
    let mut gateway = one.start();
    let told = "which is served; restart the gateway to change from one to the other";
    let printed = gateway.refuse(&all);
    assert!(printed.contains(told), "{printed}");
    gateway.expect_log("the upgrade did not come about");
    let (code, printed) = gateway.try_upgrade();
    assert!(code == Some(1) && printed.contains(told), "{printed}");
    assert_eq!(gateway.get("/").status, 200);
    gateway.drain();
    gateway.restart();
    assert_eq!(gateway.get("/").status, 200);
}

#[test]
fn a_reload_of_names_keeps_their_addresses() {
    let origin = Origin::serving();
    let endpoint = format!("localhost:{}", origin.port());
    let setup = |timeout: u64| {
        Setup::to_all(Engine::Epoll, std::slice::from_ref(&endpoint))
            .cluster_keys(&format!("request_timeout_ms = {timeout}"))
    };
    let mut gateway = setup(5_000).start();
    assert_eq!(gateway.get("/").status, 200);
    for round in 1..4 {
        gateway.reload_to(&setup(5_000 + round).text());
        assert_eq!(gateway.get("/").status, 200);
    }
}

#[test]
fn unchanged_certificates_go_on_and_changed_ones_come_with_the_reload() {
    let pki = Pki::new();
    let until = |year| Leaf { years: Some((2020, year)), ..Leaf::server(&["a.test"]) };
    pki.issue("a", &until(2040));
    pki.issue("b", &until(2041));
    let config = |pair: &str, body: &str| {
        format!(
            "[workers]\ncpus = \"0\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
             [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n[listener.tls]\n\
             certificates = [{{ cert = {:?}, key = {:?} }}]\n\
             [[route]]\nrespond = {{ status = 200, body = \"{body}\" }}\n",
            pki.path(&format!("{pair}.pem")),
            pki.path(&format!("{pair}.key")),
        )
    };
    let mut gateway = Gateway::start(&config("a", "one"));
    let served = |gateway: &Gateway| {
        let mut client = pki.client().connect(gateway.web(), "a.test");
        client.stream().conn.peer_certificates().expect("a certificate")[0].to_vec()
    };
    let resuming = pki.client().resuming();
    let mut old = resuming.connect(gateway.web(), "a.test");
    assert_eq!(old.get("/").text(), "one");
    let first = served(&gateway);
    gateway.reload_to(&config("a", "two"));
    assert_eq!(old.get("/").text(), "two");
    assert_eq!(served(&gateway), first);
    let resumed = gateway.metric("ringfort_tls_resumed_total", "");
    assert_eq!(resuming.connect(gateway.web(), "a.test").get("/").text(), "two");
    assert_eq!(gateway.metric("ringfort_tls_resumed_total", ""), resumed + 1.0, "tickets stay good");
    gateway.reload_to(&config("b", "three"));
    assert_ne!(served(&gateway), first);
    assert_eq!(old.get("/").text(), "three");
}

#[test]
fn what_is_done_about_lost_time_changes_at_once() {
    let setup = |mode: &str| Setup::answering(Engine::Epoll).sections(&format!("[steal]\nmode = \"{mode}\""));
    let mut gateway = setup("off").start();
    let mode = |gateway: &Gateway| {
        let text = gateway.admin("/steal").unwrap().text();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["mode"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(mode(&gateway), "off");
    for next in ["observe", "act", "off", "act", "observe"] {
        gateway.reload_to(&setup(next).text());
        eventually("the mode is in use", || mode(&gateway) == next);
        assert_eq!(gateway.get("/").status, 200);
    }
}
