//! Files that change, break and end, and what is in use meanwhile.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject;

use super::*;
use crate::config::{self, Config, Severity};
use crate::tls::fixture::{Authority, END_UNIX_S, NOW_UNIX_S, Pair, params};

const DAY_S: i64 = 86_400;

/// A folder with the files of a configuration, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("ringfort-certificates-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Writes `NAME.pem` and `NAME.key`.
    fn pair(&self, name: &str, pair: &Pair) {
        self.write(&format!("{name}.pem"), &pair.chain);
        self.write(&format!("{name}.key"), &pair.key);
    }

    fn config(&self, listener: &str, cluster: &str) -> Config {
        let text = format!(
            "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\n{listener}\n[[route]]\ncluster = \"site\"\n\
             [[cluster]]\nname = \"site\"\nendpoints = [\"a.test:1\"]\n{cluster}\n"
        );
        let name = self.path("t.toml");
        config::parse(name.to_str().unwrap(), &text).map_err(config::LoadError::Problems).unwrap().0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const ONE: &str = "tls = { certificates = [{ cert = \"a.pem\", key = \"a.key\" }] }";
const MUTUAL: &str = "tls = { certificates = [{ cert = \"a.pem\", key = \"a.key\" }], mtls = \"strict\", \
                      client_ca = \"ca.pem\", client_crl = \"crl.pem\" }";

fn leaf(to_year: i32) -> Pair {
    let mut params = params("leaf", &["a.test"]);
    params.not_after = rcgen::date_time_ymd(to_year, 1, 1);
    Pair::with(&params, false)
}

/// With the first material of its one listener.
fn open(config: &Config) -> (Certificates, Arc<ServerMaterial>) {
    let (certificates, changes) = Certificates::open(&config.snapshot, NOW_UNIX_S).unwrap();
    (certificates, listener(changes))
}

#[track_caller]
fn listener(mut changes: Vec<TlsChange>) -> Arc<ServerMaterial> {
    match changes.pop() {
        Some(TlsChange::Listener(0, material)) if changes.is_empty() => material,
        other => panic!("{other:?} and {changes:?}"),
    }
}

fn served(material: &ServerMaterial) -> &Certificate {
    material.certificates.choose(None, &[]).unwrap()
}

/// Looks as often as it takes for files that could not be used to be tried again.
fn look_on(certificates: &mut Certificates) -> Vec<TlsChange> {
    (0..20).flat_map(|_| certificates.look(NOW_UNIX_S, false)).collect()
}

#[test]
fn a_new_pair_is_taken_over_once_it_is_whole() {
    let folder = Folder::new();
    folder.pair("a", &leaf(2040));
    let (mut certificates, first) = open(&folder.config(ONE, ""));
    assert!(look_on(&mut certificates).is_empty(), "nothing has changed");
    let new = leaf(2041);
    folder.write("a.pem", &new.chain);
    assert!(look_on(&mut certificates).is_empty(), "its key is not there yet");
    assert_eq!(certificates.facts().failures, 1, "told once");
    assert!(certificates.problems()[0].contains("a.key: the private key is not that of the certificate; "));
    folder.write("a.key", &new.key);
    let material = listener(look_on(&mut certificates));
    assert!(served(&material).not_after > served(&first).not_after);
    assert_eq!((certificates.facts().reloads, certificates.problems()), (1, Vec::new()));
}

#[test]
fn what_is_half_written_empty_gone_or_ended_leaves_the_last_good_one() {
    let folder = Folder::new();
    let good = leaf(2040);
    folder.pair("a", &good);
    let (mut certificates, _) = open(&folder.config(ONE, ""));
    let ended = leaf(2025);
    let half = &good.chain[..good.chain.len() / 2];
    for (index, (chain, key, told)) in [
        (half, &*good.key, "half-written"),
        ("", &good.key, "empty"),
        (&ended.chain, &ended.key, "expired on"),
    ]
    .into_iter()
    .enumerate()
    {
        folder.write("a.pem", chain);
        folder.write("a.key", key);
        assert!(look_on(&mut certificates).is_empty(), "{told}");
        assert!(certificates.problems()[0].contains(told), "{:?}", certificates.problems());
        assert_eq!(certificates.facts().ends[0].unix_s, END_UNIX_S, "the last good one is in use");
        assert!(certificates.facts().failures > index as u64);
    }
    fs::remove_file(folder.path("a.pem")).unwrap();
    assert!(look_on(&mut certificates).is_empty());
    assert!(certificates.problems()[0].contains("No such file"), "{:?}", certificates.problems());
    folder.pair("a", &good);
    assert!(look_on(&mut certificates).is_empty(), "it is what is in use");
    assert!(certificates.problems().is_empty());
}

#[test]
fn a_pair_that_cannot_be_used_holds_up_no_other() {
    let folder = Folder::new();
    folder.pair("a", &leaf(2040));
    folder.pair("b", &leaf(2040));
    let both = ONE.replace("[{", "[{ cert = \"b.pem\", key = \"b.key\" }, {");
    let (mut certificates, _) = open(&folder.config(&both, ""));
    folder.write("b.pem", "broken");
    folder.pair("a", &leaf(2041));
    let material = listener(look_on(&mut certificates));
    let ends: Vec<i64> = material.certificates.certificates().iter().map(|one| one.not_after).collect();
    assert_eq!(ends, [END_UNIX_S, END_UNIX_S + 366 * DAY_S]);
}

#[test]
fn a_link_that_leads_elsewhere_is_a_change() {
    use std::os::unix::fs::symlink;
    let folder = Folder::new();
    for (version, to_year) in [("v1", 2040), ("v2", 2041)] {
        fs::create_dir(folder.path(version)).unwrap();
        folder.pair(&format!("{version}/a"), &leaf(to_year));
    }
    symlink("v1", folder.path("now")).unwrap();
    let (mut certificates, _) = open(&folder.config(&ONE.replace("\"a.", "\"now/a."), ""));
    symlink("v2", folder.path("next")).unwrap();
    fs::rename(folder.path("next"), folder.path("now")).unwrap();
    assert_eq!(served(&listener(look_on(&mut certificates))).not_after, END_UNIX_S + 366 * DAY_S);
}

#[test]
fn revocation_lists_and_authorities_are_taken_over_too() {
    let folder = Folder::new();
    let authority = Authority::new("ours");
    folder.pair("a", &leaf(2040));
    folder.write("ca.pem", &authority.pem());
    folder.write("crl.pem", &authority.revoke(&[]));
    let (mut certificates, first) = open(&folder.config(MUTUAL, ""));
    folder.write("crl.pem", &authority.revoke(&[7]));
    let second = listener(look_on(&mut certificates));
    assert_ne!(first.policy_digest, second.policy_digest);
    folder.write("ca.pem", "");
    assert!(look_on(&mut certificates).is_empty());
    assert!(certificates.problems()[0].contains("ca.pem: the file is empty"));
}

#[test]
fn a_start_tells_every_file_that_cannot_be_used() {
    let folder = Folder::new();
    folder.pair("a", &leaf(2040));
    folder.write("ca.pem", "nothing");
    let config = folder.config(MUTUAL, "tls = { ca = \"ca.pem\", cert = \"none.pem\", key = \"a.key\" }");
    let Err(failures) = Certificates::open(&config.snapshot, NOW_UNIX_S) else { panic!("it opened") };
    let told: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    for words in ["none.pem: No such file", "crl.pem: No such file", "ca.pem: no certificate in it"] {
        assert!(told.iter().any(|told| told.contains(words)), "{words} in {told:?}");
    }
    assert!(told.iter().all(|told| told.contains("; ")), "{told:?}");
}

#[test]
fn a_start_with_a_certificate_that_has_ended_serves_and_tells() {
    let folder = Folder::new();
    folder.pair("a", &leaf(2025));
    let (mut certificates, _) = open(&folder.config(ONE, ""));
    assert!(certificates.problems()[0].contains("expired on"), "{:?}", certificates.problems());
    assert!(look_on(&mut certificates).is_empty());
    assert_eq!(certificates.facts().failures, 0, "nothing was reloaded");
    folder.pair("a", &leaf(2040));
    assert_eq!(served(&listener(look_on(&mut certificates))).not_after, END_UNIX_S);
    assert!(certificates.problems().is_empty());
}

#[test]
fn authorities_that_have_ended_are_used_and_told_at_start_and_later() {
    let folder = Folder::new();
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    folder.pair("a", &leaf(2050));
    folder.write("ca.pem", &ours.pem());
    folder.write("crl.pem", &ours.revoke(&[]));
    let config = folder.config(MUTUAL, "tls = { ca = \"ca.pem\" }");
    let now = END_UNIX_S + DAY_S;
    let open = |now| Certificates::open(&config.snapshot, now).unwrap();
    let expired = |certificates: &Certificates| {
        let told = certificates.problems();
        assert!(
            told.iter().all(|told| told.contains("ca.pem: expired on ") && told.contains("; put ")),
            "{told:?}"
        );
        told.len()
    };
    // As that of the listener's clients, and as that of the cluster's endpoints.
    let (mut certificates, changes) = open(now);
    assert_eq!((changes.len(), expired(&certificates)), (2, 2));
    assert!(look_on(&mut certificates).is_empty());
    assert_eq!(certificates.facts().failures, 0, "nothing was reloaded");
    // What ends while it is in use.
    let (mut running, _) = open(END_UNIX_S - DAY_S);
    assert_eq!(expired(&running), 0);
    running.look(now, false);
    assert_eq!(expired(&running), 2);
    // A revocation is not kept out by the end of the authority.
    folder.write("crl.pem", &ours.revoke(&[7]));
    let TlsChange::Listener(_, before) = &changes[0] else { panic!("{changes:?}") };
    let changes: Vec<TlsChange> = (0..20).flat_map(|_| certificates.look(now, false)).collect();
    assert_ne!(listener(changes).policy_digest, before.policy_digest);
    assert_eq!(expired(&certificates), 2);
    folder.write("ca.pem", &others.until(2050).pem());
    folder.write("crl.pem", &others.revoke(&[]));
    let changes: Vec<TlsChange> = (0..20).flat_map(|_| certificates.look(now, false)).collect();
    assert_eq!((changes.len(), expired(&certificates)), (2, 0));
    // One that has ended never replaces one that has not.
    folder.write("ca.pem", &ours.pem());
    assert!((0..20).all(|_| certificates.look(now, false).is_empty()));
    assert_eq!(expired(&certificates), 2);
}

#[test]
fn each_step_towards_the_end_is_told_once() {
    let folder = Folder::new();
    folder.pair("a", &leaf(2040));
    let mut source: Source<Certificate> = Source::new(vec![folder.path("a.pem"), folder.path("a.key")]);
    assert_eq!(source.look(NOW_UNIX_S, true), Looked::Changed);
    let mut at = |days_left: i64| source.expiry(END_UNIX_S - days_left * DAY_S);
    assert_eq!(at(31), Expiry::Told);
    assert_eq!(at(30), Expiry::Due { days_left: 30 });
    assert_eq!((at(29), at(8)), (Expiry::Told, Expiry::Told));
    assert_eq!((at(7), at(6)), (Expiry::Due { days_left: 7 }, Expiry::Told));
    assert_eq!((at(1), at(0)), (Expiry::Due { days_left: 1 }, Expiry::Told));
    assert_eq!((at(-1), at(-2)), (Expiry::Ended, Expiry::Told));
    assert!(source.failure().unwrap().what.contains("expired on"));
    folder.pair("a", &leaf(2041));
    assert_eq!(source.look(NOW_UNIX_S, false), Looked::Changed);
    assert_eq!(
        source.expiry(END_UNIX_S + 366 * DAY_S),
        Expiry::Due { days_left: 0 },
        "told anew of a new one"
    );
}

#[test]
fn the_end_of_what_is_in_use_is_known_by_owner_and_file() {
    let folder = Folder::new();
    folder.pair("a", &leaf(2040));
    folder.write("ca.pem", &Authority::new("ours").pem());
    let config = folder.config(ONE, "tls = { ca = \"ca.pem\", cert = \"a.pem\", key = \"a.key\" }");
    let (certificates, changes) = Certificates::open(&config.snapshot, NOW_UNIX_S).unwrap();
    assert_eq!(changes.len(), 2, "a listener and a cluster");
    let end = |kind, name: &str, file: &str| CertificateEnd {
        kind,
        name: name.into(),
        file: folder.path(file).display().to_string(),
        unix_s: END_UNIX_S,
    };
    let expected =
        [end("cluster", "site", "a.pem"), end("cluster", "site", "ca.pem"), end("listener", "web", "a.pem")];
    assert_eq!(certificates.facts().ends, expected);
}

#[test]
fn a_check_tells_errors_and_warnings_at_the_place_that_names_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let authority = Authority::new("ours");
    let config = folder.config(MUTUAL, "tls = { ca = \"ca.pem\", cert = \"b.pem\", key = \"b.key\" }");
    let told = |now| -> Vec<String> {
        inspect("t.toml", &config, now)
            .iter()
            .map(|problem| problem.to_string().replace(folder.0.to_str().unwrap(), ""))
            .collect()
    };
    folder.pair("a", &leaf(2040));
    folder.pair("b", &leaf(2040));
    folder.write("ca.pem", &authority.pem());
    folder.write("crl.pem", &authority.revoke(&[7]));
    assert_eq!(told(NOW_UNIX_S), [""; 0]);
    fs::set_permissions(folder.path("a.key"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(told(NOW_UNIX_S), [""; 0], "a group is chosen");
    fs::set_permissions(folder.path("a.key"), fs::Permissions::from_mode(0o644)).unwrap();
    folder.write("b.pem", &leaf(2041).chain);
    let now = told(NOW_UNIX_S + 366 * DAY_S);
    assert_eq!(now.len(), 3, "{now:#?}");
    assert!(
        now[0].starts_with("t.toml:4:49: warning: /a.key: the private key can be read by everybody"),
        "{}",
        now[0]
    );
    assert!(now[1].starts_with("t.toml:4:113: warning: /crl.pem: a revocation list was due"), "{}", now[1]);
    assert!(now[2].starts_with("t.toml:10:46: error: /b.key: the private key is not that of"), "{}", now[2]);
    // A certificate without names fits no host; what is only presented to endpoints need not.
    folder.pair("a", &Pair::of(&[]));
    folder.pair("b", &Pair::of(&[]));
    let now = told(END_UNIX_S - 20 * DAY_S);
    let has = |severity, words: &str| {
        let severity = if severity == Severity::Error { "error: " } else { "warning: " };
        now.iter().any(|told| told.contains(&format!("{severity}{words}")))
    };
    assert!(
        has(Severity::Warning, "/a.pem: expires on")
            && has(Severity::Warning, "/a.pem: the certificate has no DNS")
            && !has(Severity::Warning, "/b.pem: the certificate has no DNS"),
        "{now:#?}"
    );
    let now = told(END_UNIX_S + DAY_S);
    assert!(now.iter().any(|told| told.ends_with("; put the authority's new certificate there")), "{now:#?}");
    let expired = |file: &str| now.iter().any(|told| told.contains(&format!("error: {file}: expired on")));
    assert!(expired("/a.pem") && expired("/b.pem") && expired("/ca.pem"), "{now:#?}");
}

#[test]
fn a_file_that_is_none_is_told_and_not_waited_for() {
    let folder = Folder::new();
    folder.pair("a", &leaf(2040));
    fs::create_dir(folder.path("dir.pem")).unwrap();
    let config = folder.config(&ONE.replace("a.pem", "dir.pem"), "");
    let Err(failures) = Certificates::open(&config.snapshot, NOW_UNIX_S) else { panic!("it opened") };
    assert!(failures[0].to_string().contains("dir.pem: not a regular file; "), "{failures:?}");
}

#[test]
fn the_machines_store_may_have_one_authority_and_must_not_have_none() {
    let der =
        rustls::pki_types::CertificateDer::from_pem_slice(Authority::new("ours").pem().as_bytes()).unwrap();
    assert_eq!(Authorities::parse_store(vec![der.to_vec()]).unwrap().store.len(), 1);
    assert!(Authorities::parse_store(Vec::new()).is_err());
}
