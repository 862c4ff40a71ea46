//! Files of certificates while the gateway runs: what a start refuses, what a change brings, what `check` says.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::Engine;
use crate::harness::gateway::{Gateway, TempDir, ringfort, with_ports};
use crate::harness::tls::{Leaf, Pki, mirror};
use crate::harness::{eventually, on_both_engines, process};

on_both_engines!(
    a_changed_certificate_is_served_to_new_connections_while_old_ones_go_on,
    a_changed_revocation_list_refuses_the_client_it_names,
    endpoints_are_spoken_to_with_the_authorities_that_are_there_now,
    a_start_with_an_authority_that_has_ended_is_told,
);

const RELOADS: &str = "ringfort_certificate_reloads_total";
const FAILURES: &str = "ringfort_certificate_reload_failures_total";
const ENDS: &str = "ringfort_certificate_not_after_seconds";
/// 2040-01-01 and 2041-01-01.
const END_2040: f64 = 2_208_988_800.0;
const END_2041: f64 = 2_240_611_200.0;

fn until(to_year: i32) -> Leaf {
    Leaf { years: Some((2020, to_year)), ..Leaf::server(&["a.test"]) }
}

/// One listener `web` with TLS, answering from here.
fn config(engine: Engine, pki: &Pki, keys: &str) -> String {
    format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n[listener.tls]\n\
         certificates = [{{ cert = {:?}, key = {:?} }}]\n{keys}\n\
         [[route]]\nrespond = {{ status = 200, body = \"ok\\n\" }}\n",
        engine.key(),
        pki.path("a.pem"),
        pki.path("a.key"),
    )
}

/// Certificate of the leaf that a new connection is served with.
fn served(gateway: &Gateway, pki: &Pki) -> Vec<u8> {
    let mut client = pki.client().connect(gateway.web(), "a.test");
    let chain = client.stream().conn.peer_certificates().expect("a certificate");
    chain[0].to_vec()
}

fn a_changed_certificate_is_served_to_new_connections_while_old_ones_go_on(engine: Engine) {
    let pki = Pki::new();
    pki.issue("a", &until(2040));
    let mut gateway = Gateway::start(&config(engine, &pki, ""));
    let mut old = pki.client().connect(gateway.web(), "a.test");
    assert_eq!(old.get("/").status, 200);
    let first = served(&gateway, &pki);
    assert_eq!(gateway.metric(ENDS, "listener=\"web\""), END_2040);

    pki.issue("a", &until(2041));
    // The chain may be seen before its key.
    gateway.expect_log("the private key is not that of the certificate");
    gateway.wait_for_metric(ENDS, "listener=\"web\"", |end| end == END_2041);
    eventually("new connections get the new one", || served(&gateway, &pki) != first);
    assert_eq!(old.get("/").status, 200, "the connection of before goes on");

    let second = served(&gateway, &pki);
    gateway.expect_log("half-written");
    let chain = std::fs::read_to_string(pki.path("a.pem")).unwrap();
    let failures = gateway.metric(FAILURES, "");
    std::fs::write(pki.path("a.pem"), &chain[..chain.len() / 2]).unwrap();
    gateway.wait_for_metric(FAILURES, "", |now| now > failures);
    assert_eq!(served(&gateway, &pki), second, "the last good one stays");
    let ready = gateway.admin("/readyz").unwrap();
    assert!(ready.status == 200 && ready.text().contains("a.pem: certificate begins"), "{}", ready.text());

    std::fs::write(pki.path("a.pem"), chain).unwrap();
    eventually("nothing is wrong any more", || !gateway.admin("/readyz").unwrap().text().contains("a.pem"));
}

fn a_changed_revocation_list_refuses_the_client_it_names(engine: Engine) {
    let pki = Pki::new();
    pki.issue("a", &until(2040));
    let client = pki.issue("client", &Leaf { serial: Some(7), ..Leaf::workload("spiffe://td/a") });
    let crl = pki.revoke("crl.pem", &[]);
    let keys = format!("mtls = \"strict\"\nclient_ca = {:?}\nclient_crl = {crl:?}", pki.path("ca.pem"));
    let gateway = Gateway::start(&config(engine, &pki, &keys));
    let client = pki.client().presenting(&client);
    assert_eq!(client.try_get(gateway.web(), "a.test").unwrap().status, 200);
    pki.revoke("crl.pem", &[7]);
    eventually("the client is refused", || client.try_get(gateway.web(), "a.test").is_err());
}

fn endpoints_are_spoken_to_with_the_authorities_that_are_there_now(engine: Engine) {
    let (pki, others) = (Pki::new(), Pki::of("another authority"));
    let pair = pki.issue("origin", &Leaf { ip: vec![[127, 0, 0, 1].into()], ..Leaf::server(&[]) });
    let origin = pki.origin(&pair, false, mirror);
    let ca = others.path("mesh.pem");
    std::fs::copy(others.path("ca.pem"), &ca).unwrap();
    let text = format!(
        "[workers]\ncpus = \"0\"\nengine = \"{}\"\n[admin]\nlisten = \"127.0.0.1:{{port:admin}}\"\nsocket = \"admin.sock\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{{port:web}}\"\n[[route]]\ncluster = \"site\"\n\
         [[cluster]]\nname = \"site\"\nendpoints = [\"{origin}\"]\ntls = {{ ca = {ca:?} }}\n",
        engine.key()
    );
    let mut gateway = Gateway::start(&text);
    gateway.expect_log("UnknownIssuer");
    gateway.expect_log("endpoint ejected");
    assert_eq!(gateway.get("/").status, 502, "another authority signed the endpoint's certificate");
    assert_eq!(gateway.metric(RELOADS, ""), 0.0);
    std::fs::copy(pki.path("ca.pem"), &ca).unwrap();
    gateway.wait_for_metric(RELOADS, "", |reloads| reloads >= 1.0);
    eventually("the endpoint is trusted", || gateway.get("/").status == 200);
}

fn a_start_with_an_authority_that_has_ended_is_told(engine: Engine) {
    let (pki, old) = (Pki::new(), Pki::until("old authority", 2025));
    pki.issue("a", &until(2040));
    let keys = format!("mtls = \"strict\"\nclient_ca = {:?}", old.path("ca.pem"));
    let mut gateway = Gateway::start(&config(engine, &pki, &keys));
    gateway.expect_log("no authority of a bundle in use is valid any more");
    gateway.wait_for_log("ca.pem\",\"problem\":\"expired on 2025-01-01");
    let ready = gateway.admin("/readyz").unwrap();
    assert!(
        ready.status == 200 && ready.text().contains("ca.pem: expired on 2025-01-01"),
        "{}",
        ready.text()
    );
    std::fs::copy(pki.path("ca.pem"), old.path("ca.pem")).unwrap();
    eventually("nothing is wrong any more", || !gateway.admin("/readyz").unwrap().text().contains("ca.pem"));
}

#[test]
fn a_hang_up_reads_all_files_at_once_and_ends_nothing() {
    let pki = Pki::new();
    pki.issue("a", &until(2040));
    let gateway = Gateway::start(&config(Engine::Epoll, &pki, ""));
    let mut old = pki.client().connect(gateway.web(), "a.test");
    let processes = process::tree(gateway.supervisor());
    for _ in 0..3 {
        process::signal(gateway.supervisor(), libc::SIGHUP);
    }
    gateway.wait_for_log("certificates are read anew");
    // Asked for after the signals came, so answered after them.
    gateway.reload();
    pki.issue("a", &until(2041));
    process::signal(gateway.supervisor(), libc::SIGHUP);
    gateway.wait_for_metric(ENDS, "listener=\"web\"", |end| end == END_2041);
    assert_eq!(old.get("/").status, 200);
    assert_eq!(process::tree(gateway.supervisor()), processes, "no process was replaced");
}

#[test]
fn a_start_without_usable_files_says_which_and_why() {
    let pki = Pki::new();
    pki.issue("a", &until(2040));
    pki.issue("b", &until(2040));
    std::fs::copy(pki.path("b.key"), pki.path("a.key")).unwrap();
    let ca = pki.path("none.pem");
    let (text, _) =
        with_ports(&config(Engine::Epoll, &pki, &format!("mtls = \"strict\"\nclient_ca = {ca:?}")));
    let dir = TempDir::new();
    let output = ringfort().args(["run", "--config"]).arg(dir.file("ringfort.toml", &text)).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    for words in ["a.key: the private key is not that of the certificate; ", "none.pem: No such file"] {
        assert!(told.contains(words), "{words} in {told}");
    }
}

/// Code and output of `ringfort check`.
fn check(config: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output = ringfort().arg("check").args(more).arg("--config").arg(config).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn check_reads_the_files_and_tells_what_is_wrong_at_the_key_that_names_them() {
    let pki = Pki::new();
    pki.issue("a", &until(2040));
    let dir = TempDir::new();
    let (text, _) = with_ports(&config(Engine::Epoll, &pki, ""));
    let file = dir.file("ringfort.toml", &text);
    let (code, told) = check(&file, &[]);
    assert!(code == Some(0) && told.contains(": good: 1 listener, 1 route, 0 clusters\n"), "{told}");
    std::fs::set_permissions(pki.path("a.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, told) = check(&file, &[]);
    assert!(code == Some(0) && told.contains("ringfort.toml:11:"), "{told}");
    assert!(
        told.contains("warning: ") && told.contains("a.key: the private key can be read by everybody"),
        "{told}"
    );
    pki.issue("a", &until(2025));
    let (code, told) = check(&file, &[]);
    assert!(code == Some(1) && told.contains("ringfort.toml:11:26: error: "), "{told}");
    assert!(told.contains("a.pem: expired on ") && told.contains("; renew it\n"), "{told}");
    assert!(told.ends_with("ringfort.toml: 1 error, 1 warning\n"), "{told}");
    std::fs::remove_file(pki.path("a.pem")).unwrap();
    let (code, told) = check(&file, &["--json"]);
    let value: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(
        (code, &value["ok"], &value["problems"][0]["line"]),
        (Some(1), &false.into(), &11.into()),
        "{told}"
    );
}

#[test]
fn check_proves_that_nothing_carries_plaintext() {
    let pki = Pki::new();
    pki.issue("a", &until(2040));
    let dir = TempDir::new();
    let (text, _) = with_ports(&config(Engine::Epoll, &pki, ""));
    let file = dir.file("ringfort.toml", &text);
    let (code, told) = check(&file, &["--require-encryption"]);
    assert!(code == Some(0) && told.ends_with("nothing carries plaintext\n"), "{told}");
    let (code, told) = check(&file, &["--require-encryption", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((code, &value["plaintext"]), (Some(0), &serde_json::json!([])), "{told}");
    let plain = "[[listener]]\nname = \"pass\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"tls-passthrough\"\n\
                 [[listener]]\nname = \"relay\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"tcp\"\ncluster = \"plain\"\n\
                 [[route]]\nlistener = \"pass\"\nhosts = [\"c.test\"]\ncluster = \"passed\"\n\
                 [[cluster]]\nname = \"plain\"\nendpoints = [\"127.0.0.1:1\"]\n\
                 [[cluster]]\nname = \"passed\"\nendpoints = [\"127.0.0.1:2\"]\n";
    let file = dir.file("ringfort.toml", &format!("{text}{plain}"));
    let (code, told) = check(&file, &["--require-encryption"]);
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("carries plaintext")).collect();
    assert_eq!(code, Some(1), "{told}");
    assert_eq!(lines.len(), 2, "{told}");
    assert!(
        lines[0].starts_with("listener \"relay\"") && lines[1].starts_with("cluster \"plain\""),
        "{told}"
    );
    let (code, told) = check(&file, &["--require-encryption", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(
        (code, &value["ok"], &value["plaintext"][1]["name"]),
        (Some(1), &false.into(), &"plain".into())
    );
}

#[test]
fn the_samples_of_the_contract_are_good_beside_the_files_they_name() {
    let pki = Pki::new();
    pki.issue("a.test", &Leaf::server(&["a.test"]));
    pki.issue("b.test", &Leaf::server(&["b.test"]));
    pki.issue("gateway", &Leaf::workload("spiffe://cluster.local/ns/edge/sa/gateway"));
    for bundle in ["client-ca.pem", "mesh-ca.pem"] {
        std::fs::copy(pki.path("ca.pem"), pki.path(bundle)).unwrap();
    }
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/contract");
    for (sample, plaintext) in [
        ("tls.toml", &["listener \"permissive\"", "cluster \"site\""][..]),
        ("upstream-tls.toml", &["listener \"web\""]),
    ] {
        std::fs::copy(samples.join(sample), pki.path(sample)).unwrap();
        let (code, told) = check(&pki.path(sample), &[]);
        assert!(code == Some(0) && !told.contains("error: "), "{told}");
        let (_, told) = check(&pki.path(sample), &["--require-encryption"]);
        let found = told.lines().filter(|line| line.contains(" carries plaintext: "));
        let found: Vec<&str> = found.map(|line| line.split(" carries").next().unwrap()).collect();
        assert_eq!(found, plaintext, "{told}");
    }
}
