//! Handshakes in memory with endpoints of several kinds.

use std::sync::Arc;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::*;
use crate::tls::fixture::{Authority, params};
use crate::tls::{Authorities, Certificate, ClientSpec, ServerNameSource, VersionMin, provider};

const SHOP: &str = "spiffe://cluster.local/ns/production/sa/shop";
const CART: &str = "spiffe://cluster.local/ns/production/sa/cart";

fn with_uris(names: &[&str], uris: &[&str]) -> CertificateParams {
    let mut params = params("endpoint", names);
    let uri = |uri: &&str| SanType::URI((*uri).try_into().expect("IA5"));
    params.subject_alt_names.extend(uris.iter().map(uri));
    params
}

fn verifier(authority: &Authority, expected: &[&str]) -> Arc<EndpointVerifier> {
    let spec = ClientSpec {
        ca: None,
        certificate: None,
        server_name: ServerNameSource::Address,
        expect_identity: expected
            .iter()
            .map(|text| IdentityPattern::parse(text).expect("a pattern"))
            .collect(),
        version_min: VersionMin::Tls12,
    };
    let roots = Authorities::from_pem(authority.pem().as_bytes()).expect("an authority");
    EndpointVerifier::new(&ClientMaterial::new(spec, &roots, None), &provider(true))
}

/// Has a client with this verifier meet an endpoint with this certificate; the client's error, if any.
fn meet(
    verifier: Arc<EndpointVerifier>,
    certificate: &Certificate,
    version: &'static rustls::SupportedProtocolVersion,
) -> Result<(), Error> {
    let provider = Arc::new(provider(true));
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[version])?;
    let client = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[version])?;
    let resolver = rustls::sign::SingleCertAndKey::from(certificate.key.clone());
    let server = builder.with_no_client_auth().with_cert_resolver(Arc::new(resolver));
    let name = ServerName::try_from("shop.test").expect("a name");
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    for _ in 0..10 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("memory");
        }
        server.read_tls(&mut &bytes[..]).expect("memory");
        server.process_new_packets()?;
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("memory");
        }
        client.read_tls(&mut &bytes[..]).expect("memory");
        client.process_new_packets()?;
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
    }
    panic!("a handshake without end")
}

fn judge(expected: &[&str], endpoint: &CertificateParams) -> Result<(), String> {
    let authority = Authority::new("mesh");
    let certificate = authority.issue(endpoint).parse();
    let verdicts = [&rustls::version::TLS13, &rustls::version::TLS12].map(|version| {
        meet(verifier(&authority, expected), &certificate, version).map_err(|error| explain(&error))
    });
    assert_eq!(verdicts[0], verdicts[1], "one verdict in both versions");
    verdicts[0].clone()
}

#[test]
fn without_expected_identities_the_name_decides() {
    assert_eq!(judge(&[], &with_uris(&["shop.test"], &[])), Ok(()));
    let why = judge(&[], &with_uris(&["cart.test"], &[SHOP])).expect_err("another name");
    assert!(why.contains("shop.test") && why.contains("cart.test"), "{why}");
}

#[test]
fn an_expected_identity_replaces_the_name() {
    assert_eq!(judge(&[SHOP], &with_uris(&[], &[SHOP])), Ok(()));
    assert_eq!(judge(&[CART, SHOP], &with_uris(&["other.test"], &["https://a.test", SHOP])), Ok(()));
    assert_eq!(judge(&["cluster.local/*"], &with_uris(&[], &[CART])), Ok(()));
}

#[test]
fn a_mismatch_names_what_was_expected_and_what_was_presented() {
    assert_eq!(
        judge(&[SHOP, "other/*"], &with_uris(&["shop.test"], &[CART, "https://a.test/"])),
        Err(format!("another endpoint: expected {SHOP} or other/*, presented {CART} and https://a.test/"))
    );
    assert_eq!(
        judge(&[SHOP], &with_uris(&["shop.test"], &[])),
        Err(format!("another endpoint: expected {SHOP}, presented no identity")),
        "a name alone does not do"
    );
}

#[test]
fn what_is_no_valid_id_is_of_no_trust_domain() {
    for uri in ["spiffe://cluster.local/../a", "spiffe://cluster.local/a?b", "spiffe://cluster.local"] {
        assert!(judge(&["cluster.local/*"], &with_uris(&[], &[uri])).is_err(), "{uri}");
    }
}

#[test]
fn long_lists_are_cut_and_hostile_names_stay_on_their_line() {
    let expected: Vec<_> =
        (0..10).map(|n| IdentityPattern::parse(&format!("td{n}/*")).expect("a pattern")).collect();
    let mismatch = IdentityMismatch { expected: expected.into(), presented: ["a\nb".into()].into() };
    let text = mismatch.to_string();
    assert!(text.ends_with(" or td7/* or 2 more, presented a\\nb"), "{text}");
}

#[test]
fn an_identity_of_another_authority_is_none() {
    let certificate = Authority::new("evil").issue(&with_uris(&["shop.test"], &[SHOP])).parse();
    let error = meet(verifier(&Authority::new("mesh"), &[SHOP]), &certificate, &rustls::version::TLS13);
    assert_eq!(error, Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)));
}

#[test]
fn a_certificate_for_clients_alone_or_one_that_ended_is_refused() {
    let authority = Authority::new("mesh");
    let mut client_only = with_uris(&[], &[SHOP]);
    client_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut ended = with_uris(&[], &[SHOP]);
    ended.not_after = rcgen::date_time_ymd(2021, 1, 1);
    for params in [client_only, ended] {
        let certificate = authority.issue(&params).parse();
        let verdict = meet(verifier(&authority, &[SHOP]), &certificate, &rustls::version::TLS13);
        assert!(matches!(verdict, Err(Error::InvalidCertificate(_))), "{verdict:?}");
        assert!(IdentityMismatch::of(&verdict.expect_err("refused")).is_none());
    }
}
