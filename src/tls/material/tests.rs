//! Whom a verifier made from bundles accepts, and what changes the digest of a policy.

use rcgen::{CertificateParams, SerialNumber};
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error};
use std::time::Duration;

use super::*;
use crate::tls::fixture::{Authority, END_UNIX_S, NOW_UNIX_S, Pair, params};

fn spec(mtls: MtlsMode) -> ServerSpec {
    ServerSpec {
        certificates: Vec::new(),
        mtls,
        client_ca: None,
        client_crl: None,
        session_tickets: true,
        version_min: Default::default(),
    }
}

fn client(serial: u64) -> CertificateParams {
    let mut params = params("client", &["client.test"]);
    params.serial_number = Some(SerialNumber::from(serial));
    params
}

fn trust(authorities: &str, lists: Option<&str>) -> ClientTrust {
    ClientTrust::from_pem(authorities.as_bytes(), lists.map(str::as_bytes)).unwrap()
}

fn material(mode: MtlsMode, trust: Option<&ClientTrust>) -> ServerMaterial {
    ServerMaterial::new(spec(mode), vec![Pair::of(&["a.test"]).parse()], trust).unwrap()
}

/// What the verifier says to a chain, leaf first.
fn verify(trust: &ClientTrust, chain: &str) -> Result<(), Error> {
    let material = material(MtlsMode::Strict, Some(trust));
    let chain: Vec<CertificateDer<'static>> = pem::sections(chain.as_bytes(), Part::Chain).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW_UNIX_S as u64));
    let verifier = material.client_verifier.as_ref().unwrap();
    verifier.verify_client_cert(&chain[0], &chain[1..], now).map(|_| ())
}

#[test]
fn only_what_leads_to_an_authority_is_accepted() {
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let middle = ours.below("middle");
    let trust = trust(&ours.pem(), None);
    assert_eq!(verify(&trust, &ours.issue(&client(1)).chain), Ok(()));
    let through = middle.issue(&client(2)).chain;
    assert_eq!(verify(&trust, &format!("{through}{}", middle.pem())), Ok(()));
    let unknown = Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
    assert_eq!(verify(&trust, &through), unknown, "the one between is missing");
    assert_eq!(verify(&trust, &others.issue(&client(3)).chain), unknown);
}

#[test]
fn a_revoked_certificate_is_refused_and_what_no_list_covers_is_not() {
    let (one, two) = (Authority::new("one"), Authority::new("two"));
    let middle = one.below("middle");
    let bundle = format!("{}{}", one.pem(), two.pem());
    let trust = trust(&bundle, Some(&one.revoke(&[7])));
    let revoked = Err(Error::InvalidCertificate(CertificateError::Revoked));
    assert_eq!(verify(&trust, &one.issue(&client(7)).chain), revoked);
    assert_eq!(verify(&trust, &one.issue(&client(8)).chain), Ok(()));
    assert_eq!(verify(&trust, &two.issue(&client(7)).chain), Ok(()), "no list covers its issuer");
    let below = middle.issue(&client(7)).chain;
    assert_eq!(verify(&trust, &format!("{below}{}", middle.pem())), Ok(()), "nor this one's");
    assert_eq!(trust.next_update, Some(1_924_992_000));
}

#[test]
fn permissive_asks_without_insisting_and_disable_does_not_ask() {
    let trust = trust(&Authority::new("ours").pem(), None);
    let strict = material(MtlsMode::Strict, Some(&trust)).client_verifier.unwrap();
    let permissive = material(MtlsMode::Permissive, Some(&trust)).client_verifier.unwrap();
    assert!(strict.client_auth_mandatory() && strict.offer_client_auth());
    assert!(!permissive.client_auth_mandatory() && permissive.offer_client_auth());
    assert!(material(MtlsMode::Disable, Some(&trust)).client_verifier.is_none());
}

#[test]
fn clients_that_are_to_be_judged_are_not_let_in_unjudged() {
    for mode in [MtlsMode::Permissive, MtlsMode::Strict] {
        let fault = ServerMaterial::new(spec(mode), vec![Pair::of(&["a.test"]).parse()], None).unwrap_err();
        assert_eq!(fault, Fault::new(Part::Authorities, Cause::Missing), "{mode:?}");
    }
}

#[test]
fn an_authority_that_has_ended_vouches_for_what_has_not() {
    let authority = Authority::new("ours");
    let trust = trust(&authority.pem(), None);
    let mut params = client(1);
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    let chain: Vec<CertificateDer<'static>> =
        pem::sections(authority.issue(&params).chain.as_bytes(), Part::Chain).unwrap();
    let later = UnixTime::since_unix_epoch(Duration::from_secs(END_UNIX_S as u64 + 86_400));
    let verifier = material(MtlsMode::Strict, Some(&trust)).client_verifier.unwrap();
    assert!(verifier.verify_client_cert(&chain[0], &[], later).is_ok());
    assert_eq!(trust.authorities.check_dates(END_UNIX_S), Ok(()));
    let cause = Cause::Expired { not_after: END_UNIX_S };
    let fault = trust.authorities.check_dates(END_UNIX_S + 1);
    assert_eq!(fault, Err(Fault::new(Part::Authorities, cause)));
}

#[test]
fn the_digest_changes_with_the_mode_the_authorities_and_the_lists_alone() {
    let (one, two) = (Authority::new("one"), Authority::new("two"));
    let digest = |mode, trust: Option<&ClientTrust>| material(mode, trust).policy_digest;
    let (plain, again) = (trust(&one.pem(), None), trust(&format!("# comment\n{}", one.pem()), None));
    let base = digest(MtlsMode::Strict, Some(&plain));
    assert_eq!(base, digest(MtlsMode::Strict, Some(&again)));
    let (wider, listed) =
        (trust(&format!("{}{}", one.pem(), two.pem()), None), trust(&one.pem(), Some(&one.revoke(&[7]))));
    let others = [
        digest(MtlsMode::Permissive, Some(&plain)),
        digest(MtlsMode::Strict, Some(&wider)),
        digest(MtlsMode::Strict, Some(&listed)),
        digest(MtlsMode::Disable, None),
    ];
    assert!(!others.contains(&base));
    assert_eq!(digest(MtlsMode::Disable, None), digest(MtlsMode::Disable, Some(&plain)));
}

#[test]
fn bundles_with_nothing_or_half_of_it_are_told_with_their_part() {
    let authority = Authority::new("ours");
    let list = authority.revoke(&[7]);
    let fault = |authorities: &str, lists: &str| {
        let fault = ClientTrust::from_pem(authorities.as_bytes(), Some(lists.as_bytes())).unwrap_err();
        (fault.part, fault.cause)
    };
    let (pem, cut) = (authority.pem(), list.len() - 10);
    assert_eq!(fault("", &list), (Part::Authorities, Cause::Empty));
    assert_eq!(fault(&list, &list), (Part::Authorities, Cause::Missing));
    assert_eq!(fault(&pem, ""), (Part::RevocationLists, Cause::Empty));
    assert_eq!(fault(&pem, &pem), (Part::RevocationLists, Cause::Missing));
    assert_eq!(fault(&pem, &list[..cut]), (Part::RevocationLists, Cause::Cut));
    let no_der = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    assert!(matches!(fault(&pem, no_der), (Part::RevocationLists, Cause::Malformed { position: 1, .. })));
}

#[test]
fn the_machines_own_store_is_taken_as_far_as_it_can_be_read() {
    let authority = Authority::new("ours");
    let good: Vec<CertificateDer<'static>> = pem::sections(authority.pem().as_bytes(), Part::Chain).unwrap();
    let bad = CertificateDer::from(vec![1, 2, 3]);
    assert_eq!(Authorities::of_machine(vec![bad, good[0].clone()]).store.len(), 1);
}
