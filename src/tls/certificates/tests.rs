//! Certificates out of good and bad PEM, and the choice among them.

use super::*;
use crate::tls::fixture::{Authority, END_UNIX_S, NOW_UNIX_S, Pair, key, params};

const ECDSA: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];
const RSA: &[SignatureScheme] = &[SignatureScheme::RSA_PSS_SHA256];
const BOTH: &[SignatureScheme] = &[SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256];

fn cause(chain: &str, key: &str) -> (Part, Cause) {
    let fault = Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
    assert!(!fault.cure().is_empty() && fault.to_string().contains("; "), "{fault}");
    (fault.part, fault.cause)
}

#[test]
fn a_pair_is_read_with_its_names_and_dates() {
    let certificate = Pair::of(&["a.test", "*.b.test", "10.0.0.1"]).parse();
    assert!(["a.test", "x.b.test", "10.0.0.1"].iter().all(|host| certificate.names.covers(host)));
    assert!(!certificate.names.covers("leaf"), "the common name takes no part");
    assert_eq!(certificate.not_after, END_UNIX_S);
    assert_eq!(certificate.remarks(), []);
}

#[test]
fn nothing_or_half_of_it_is_told_apart_from_what_is_not_pem() {
    let Pair { chain, key } = Pair::of(&["a.test"]);
    assert_eq!(cause("", &key), (Part::Chain, Cause::Empty));
    assert_eq!(cause(&chain, " \n"), (Part::Key, Cause::Empty));
    for cut in ["-----BEGIN CERTIFICATE-----".len() + 1, 100, chain.len() - 30] {
        assert_eq!(cause(&chain[..cut], &key), (Part::Chain, Cause::Cut), "cut at {cut}");
    }
    assert_eq!(cause(&chain, &key[..60]), (Part::Key, Cause::Cut));
    assert_eq!(cause("just text", &key), (Part::Chain, Cause::Missing));
    assert_eq!(cause(&key, &key), (Part::Chain, Cause::Missing), "a key is no certificate");
    assert_eq!(cause(&chain, &chain), (Part::Key, Cause::Missing));
    let garbled = "-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----\n";
    assert!(matches!(cause(garbled, &key), (Part::Chain, Cause::NotPem(_))));
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(cause(no_der, &key), (Part::Chain, Cause::Malformed { position: 1, .. })));
    let second = format!("{chain}{no_der}");
    assert!(matches!(cause(&second, &key), (Part::Chain, Cause::Malformed { position: 2, .. })));
}

#[test]
fn one_file_may_hold_the_chain_and_the_key() {
    let Pair { chain, key } = Pair::of(&["a.test"]);
    let both = format!("Bag Attributes: none\n{key}{chain}");
    assert!(Certificate::from_pem(both.as_bytes(), both.as_bytes()).is_ok());
}

#[test]
fn a_key_that_is_anothers_encrypted_or_unknown_is_told() {
    let (pair, other) = (Pair::of(&["a.test"]), Pair::of(&["a.test"]));
    assert_eq!(cause(&pair.chain, &other.key), (Part::Key, Cause::KeyMismatch { position: None }));
    let chain = format!("{}{}", other.chain, pair.chain);
    assert_eq!(cause(&chain, &pair.key), (Part::Key, Cause::KeyMismatch { position: Some(2) }));
    let encrypted = pair.key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    assert_eq!(cause(&pair.chain, &encrypted), (Part::Key, Cause::EncryptedKey));
    let older = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n\
                 -----END RSA PRIVATE KEY-----\n";
    assert_eq!(cause(&pair.chain, older), (Part::Key, Cause::EncryptedKey));
    let unknown = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(matches!(cause(&pair.chain, unknown), (Part::Key, Cause::UnsupportedKey(_))));
}

#[test]
fn no_bytes_make_it_panic_and_no_fault_shows_them() {
    let Pair { chain, key } = Pair::of(&["a.test"]);
    let secret = key.lines().nth(1).unwrap();
    for step in 1..key.len() {
        let mut broken = key.clone().into_bytes();
        broken[step] ^= 1 << (step % 7);
        if let Err(fault) = Certificate::from_pem(chain.as_bytes(), &broken) {
            assert!(!format!("{fault:?} {fault}").contains(&secret[20..40]), "{fault:?}");
        }
    }
    for step in 1..chain.len() {
        let mut broken = chain.clone().into_bytes();
        broken[step] ^= 1 << (step % 7);
        let _ = Certificate::from_pem(&broken, key.as_bytes());
    }
}

#[test]
fn dates_are_judged_at_both_ends() {
    let certificate = Pair::of(&["a.test"]).parse();
    assert_eq!(certificate.check_dates(NOW_UNIX_S), Ok(()));
    assert_eq!(certificate.check_dates(END_UNIX_S), Ok(()));
    let expired = certificate.check_dates(END_UNIX_S + 1).unwrap_err();
    assert_eq!(expired.cause, Cause::Expired { not_after: END_UNIX_S });
    assert!(expired.to_string().contains("2040"), "{expired}");
    let early = certificate.check_dates(certificate.not_before - 1).unwrap_err();
    assert!(
        matches!(early.cause, Cause::NotYetValid { .. }) && early.to_string().contains("2020"),
        "{early}"
    );
}

#[test]
fn the_order_of_a_chain_is_remarked_on() {
    let root = Authority::new("root");
    let middle = root.below("middle");
    let Pair { chain: leaf, key } = middle.issue(&params("leaf", &["a.test"]));
    let remarks = |parts: &[&str]| {
        let chain = parts.concat();
        Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap().remarks().to_vec()
    };
    let (root, middle) = (root.pem(), middle.pem());
    assert_eq!(remarks(&[&leaf]), []);
    assert_eq!(remarks(&[&leaf, &middle, &root]), []);
    let out_of_order = remarks(&[&leaf, &root, &middle]);
    assert!(out_of_order.contains(&Remark::OutOfOrder { position: 1 }), "{out_of_order:?}");
    assert_eq!(remarks(&[&leaf, &root]), [Remark::LeadsNowhere { position: 1 }]);
    for remark in out_of_order {
        assert!(remark.to_string().contains("; "), "{remark} names no cure");
    }
}

#[test]
fn a_certificate_without_names_is_remarked_on() {
    assert_eq!(Pair::of(&[]).parse().remarks(), [Remark::NoNames]);
}

#[test]
fn a_certificate_of_a_chain_that_ends_before_the_leaf_is_known() {
    let root = Authority::new("root");
    let mut short = params("leaf", &["a.test"]);
    short.not_after = rcgen::date_time_ymd(2029, 1, 1);
    let Pair { chain, key } = root.issue(&short);
    let chain = format!("{chain}{}", root.pem());
    let certificate = Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    assert_eq!(certificate.chain_not_after, Some(END_UNIX_S));
    assert!(certificate.not_after < NOW_UNIX_S && certificate.check_dates(NOW_UNIX_S).is_err());
    assert_eq!(Pair::of(&["a.test"]).parse().chain_not_after, None);
}

fn set(pairs: &[(&[&str], bool)]) -> CertificateSet {
    let one = |(names, rsa): &(&[&str], bool)| Pair::with(&params("leaf", names), *rsa).parse();
    CertificateSet::new(pairs.iter().map(one).collect())
}

/// The position of the chosen one.
fn chosen(set: &CertificateSet, name: Option<&str>, offered: &[SignatureScheme]) -> usize {
    let chosen = set.choose(name, offered).unwrap();
    set.certificates().iter().position(|certificate| Arc::ptr_eq(certificate, chosen)).unwrap()
}

#[test]
fn an_exact_name_wins_over_a_wildcard_and_that_over_the_default() {
    let set = set(&[(&["a.test"], false), (&["*.b.test"], false), (&["x.b.test"], false)]);
    for (name, expected) in [
        (Some("a.test"), 0),
        (Some("X.B.test"), 2),
        (Some("y.b.test"), 1),
        (Some("b.test"), 0),
        (Some("z.y.b.test"), 0),
        (Some("unknown.test"), 0),
        (None, 0),
    ] {
        assert_eq!(chosen(&set, name, ECDSA), expected, "{name:?}");
    }
    assert!(CertificateSet::new(Vec::new()).choose(None, ECDSA).is_none());
}

#[test]
fn of_two_keys_for_one_name_the_offer_decides_and_ecdsa_goes_first() {
    let names: &[&str] = &["a.test", "*.a.test"];
    let set = set(&[(names, true), (&["b.test"], false), (names, false)]);
    for name in [Some("a.test"), Some("w.a.test"), Some("other.test"), None] {
        assert_eq!(chosen(&set, name, BOTH), 2, "{name:?}");
        assert_eq!(chosen(&set, name, ECDSA), 2, "{name:?}");
        assert_eq!(chosen(&set, name, RSA), 0, "{name:?}");
    }
    assert_eq!(chosen(&set, Some("b.test"), RSA), 1, "never one of another name");
}

#[test]
fn a_wildcard_whose_key_fits_wins_over_an_exact_name_whose_key_does_not() {
    let set = set(&[(&["c.test"], false), (&["x.a.test"], false), (&["*.a.test"], true)]);
    assert_eq!(chosen(&set, Some("x.a.test"), RSA), 2);
    assert_eq!(chosen(&set, Some("x.a.test"), BOTH), 1);
}

#[test]
fn the_pem_of_a_key_may_be_of_any_kind_rustls_signs_with() {
    for rsa in [false, true] {
        let key = key(rsa);
        let chain = params("leaf", &["a.test"]).self_signed(&key).unwrap().pem();
        assert!(Certificate::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes()).is_ok());
    }
}
