//! Certificates made by rcgen, and what becomes of them when bytes change.

use proptest::prelude::*;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, KeyPair, SanType};

use super::*;

fn leaf(names: &[SanType], subject: DistinguishedName) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    params.distinguished_name = subject;
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").der().to_vec()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("IA5"))
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().expect("IA5"))
}

fn subject(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    for (kind, value) in parts {
        subject.push(kind.clone(), *value);
    }
    subject
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_identity_is_told_in_envoys_form() {
    let shop = "spiffe://cluster.local/ns/production/sa/shop";
    let names =
        [dns("shop.test"), uri("https://shop.test/"), uri(shop), uri("spiffe://other/x"), dns("b.test")];
    let der =
        leaf(&names, subject(&[(DnType::OrganizationName, "Shop, Inc."), (DnType::CommonName, "shop")]));
    let peer = PeerIdentity::of_leaf(&der, Some("spiffe://cluster.local/ns/edge/sa/gateway"));
    assert_eq!(peer.spiffe.as_deref(), Some(shop));
    assert_eq!(&*peer.subject, "CN=shop,O=Shop\\, Inc.");
    // 4096-01-01, the end of what rcgen makes by default.
    assert_eq!(peer.not_after, Some(67_090_118_400));
    assert_eq!(
        &*peer.forwarded,
        format!(
            "By=spiffe://cluster.local/ns/edge/sa/gateway;Hash={};Subject=\"CN=shop,O=Shop\\, Inc.\";\
             URI=https://shop.test/;URI={shop};URI=spiffe://other/x;DNS=shop.test;DNS=b.test",
            hex(&peer.fingerprint)
        )
    );
    assert_eq!(uri_names(&der), peer.uris.to_vec());
}

#[test]
fn subject_and_uri_are_told_even_where_there_are_none() {
    let peer = PeerIdentity::of_leaf(&leaf(&[], DistinguishedName::new()), None);
    assert_eq!(peer.spiffe, None);
    assert_eq!(&*peer.forwarded, format!("Hash={};Subject=\"\";URI=", hex(&peer.fingerprint)));
}

#[test]
fn the_fingerprint_is_sha_256() {
    // FIPS 180-2, appendix B.1.
    assert_eq!(hex(&sha256(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn a_uri_that_is_no_id_of_a_workload_is_no_identity() {
    for text in ["spiffe://td", "spiffe://TD/a", "spiffe://td:1/a", "spiffe://td/a?b", "https://td/a"] {
        let peer = PeerIdentity::of_leaf(&leaf(&[uri(text)], DistinguishedName::new()), None);
        assert_eq!((peer.spiffe, peer.uris.len()), (None, 1), "{text}");
    }
}

#[test]
fn a_subject_is_escaped_like_openssls() {
    let kinds = [
        (DnType::CountryName, "DE"),
        (DnType::OrganizationalUnitName, " #\"\\<>;+ "),
        (DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]), "a@b.test"),
        (DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 99999, 1]), "x"),
        (DnType::CommonName, "#Zo\u{eb}\n"),
    ];
    let peer = PeerIdentity::of_leaf(&leaf(&[], subject(&kinds)), None);
    assert_eq!(
        &*peer.subject,
        "CN=\\#Zo\\C3\\AB\\0A,1.3.6.1.4.1.99999.1=#0C0178,emailAddress=a@b.test,\
         OU=\\ #\\\"\\\\\\<\\>\\;\\+\\ ,C=DE"
    );
}

#[test]
fn wide_characters_and_latin_1_are_told_in_utf_8() {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, DnValue::BmpString("\u{eb}x".try_into().expect("BMP")));
    subject.push(DnType::LocalityName, DnValue::UniversalString("\u{1f600}".try_into().expect("any")));
    subject.push(DnType::StateOrProvinceName, DnValue::TeletexString("ok".try_into().expect("T.61")));
    let peer = PeerIdentity::of_leaf(&leaf(&[], subject), None);
    assert_eq!(&*peer.subject, "ST=ok,L=\\F0\\9F\\98\\80,CN=\\C3\\ABx");
}

#[test]
fn a_name_cannot_pose_as_another_element() {
    let hostile = "spiffe://a/x;URI=spiffe://b/admin,By=\"\\ \u{1}";
    let peer = PeerIdentity::of_leaf(&leaf(&[uri(hostile)], DistinguishedName::new()), None);
    assert_eq!(peer.spiffe, None);
    let end = r#";URI="spiffe://a/x;URI=spiffe://b/admin,By=\"\\%20%01""#;
    assert!(peer.forwarded.ends_with(end), "{}", peer.forwarded);
}

#[test]
fn more_than_is_kept_is_left_out_but_never_the_identity() {
    let id = format!("spiffe://td/{}", "a".repeat(1_900));
    let mut names: Vec<SanType> =
        (0..30).map(|n| uri(&format!("https://{n}.test/{}", "b".repeat(100)))).collect();
    names.push(uri(&id));
    names.extend((0..200).map(|n| dns(&format!("{n}.test"))));
    let long = subject(&[(DnType::CommonName, &"c".repeat(PEER_SUBJECT_BYTES_MAX + 1))]);
    let peer = PeerIdentity::of_leaf(&leaf(&names, long), None);
    assert_eq!(peer.spiffe.as_deref(), Some(&*id));
    assert_eq!((peer.uris.len(), peer.dns.len()), (31, PEER_NAMES_MAX));
    assert_eq!(&*peer.subject, "", "half a subject could be another's");
    assert!(peer.forwarded.contains(&*id));
    assert!(peer.forwarded.len() < 5_000, "{}", peer.forwarded.len());
}

#[test]
fn dns_names_take_no_room_from_the_identity() {
    let id = format!("spiffe://td/{}", "s".repeat(300));
    let long = ["a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(40)].join(".");
    let mut names: Vec<SanType> = (0..40).map(|n| dns(&format!("{n}.{long}.test"))).collect();
    names.push(uri(&id));
    let peer = PeerIdentity::of_leaf(&leaf(&names, DistinguishedName::new()), None);
    assert_eq!(peer.spiffe.as_deref(), Some(&*id));
    let bytes: usize = peer.dns.iter().map(|name| name.len()).sum();
    assert!(peer.dns.len() > 20 && bytes <= PEER_NAMES_BYTES_MAX - id.len(), "{} of {bytes}", peer.dns.len());
}

#[test]
fn alternative_names_given_twice_count_for_nothing() {
    // Sequence of one URI name.
    let second = b"\x30\x0f\x86\x0dspiffe://td/x";
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri("spiffe://td/y")];
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], second.to_vec())];
    let key = KeyPair::generate().expect("a key");
    let der = params.self_signed(&key).expect("a certificate").der().to_vec();
    assert_eq!(PeerIdentity::of_leaf(&der, None).spiffe, None);
}

#[test]
fn of_what_is_no_certificate_only_the_fingerprint_is_known() {
    let peer = PeerIdentity::of_leaf(b"junk", None);
    assert_eq!((peer.spiffe, peer.not_after, peer.fingerprint), (None, None, sha256(b"junk")));
}

fn sample() -> &'static [u8] {
    static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SAMPLE.get_or_init(|| {
        let parts = [(DnType::CommonName, "shop"), (DnType::OrganizationName, "Shop")];
        leaf(&[uri("spiffe://td/shop"), dns("shop.test"), dns("b.test")], subject(&parts))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_mutated_certificate_never_panics_nor_breaks_the_field(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut der = sample().to_vec();
        for (at, byte) in changes {
            let at = at.index(der.len());
            der[at] = byte;
        }
        if let Some(cut) = cut {
            der.truncate(cut.index(der.len()));
        }
        fuzz_peer_identity(&der);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(der: Vec<u8>) {
        fuzz_peer_identity(&der);
    }

    #[test]
    fn any_name_is_one_value(name in "[ -~]{0,30}") {
        let element = forwarded::element(None, &[0; 32], "", None, &[name.as_str().into()], &[]);
        let (_, value) = element.split_once(";URI=").expect("a URI");
        let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        // What stands outside of quotes has no separator; inside, each quote is escaped.
        match inner {
            None => prop_assert!(!value.contains([',', ';', '=', '"', '\\'])),
            Some(inner) => {
                let mut bytes = inner.bytes();
                while let Some(byte) = bytes.next() {
                    prop_assert_ne!(byte, b'"');
                    if byte == b'\\' {
                        prop_assert!(matches!(bytes.next(), Some(b'"' | b'\\')));
                    }
                }
            }
        }
    }
}
