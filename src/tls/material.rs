//! What a listener or a cluster does its TLS with, out of the bytes of the files that its spec names. Immutable: a
//! change of a file makes a new one. Never reads a file or a clock.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::hash::Context;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::certificates::{Certificate, CertificateSet, malformed, parse, words};
use super::fault::{Cause, Fault, Part};
use super::pem;
use super::spec::{ClientSpec, MtlsMode, ServerSpec};

/// What a listener serves with.
#[derive(Debug)]
pub struct ServerMaterial {
    pub spec: ServerSpec,
    pub certificates: CertificateSet,
    /// Asks for a client certificate and judges it. `None`: none is asked for.
    pub client_verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// SHA-256 of the mTLS mode, the authorities and their revocation lists. A ticket is good only under the policy
    /// that it was issued under (CVE-2025-23419).
    pub policy_digest: [u8; 32],
}

impl ServerMaterial {
    /// `certificates` in the order of the spec; `trust` unless its mode is `Disable`, under which it has no part.
    ///
    /// # Errors
    /// That rustls makes no verifier of the trust, or that there is no trust where clients are to be judged by one.
    pub fn new(
        spec: ServerSpec,
        certificates: Vec<Arc<Certificate>>,
        trust: Option<&ClientTrust>,
    ) -> Result<Self, Fault> {
        let trust = match (spec.mtls, trust) {
            (MtlsMode::Disable, _) => None,
            // Without a verifier everybody would come in.
            (_, None) => return Err(Fault::new(Part::Authorities, Cause::Missing)),
            (_, trust) => trust,
        };
        let client_verifier = trust.map(|trust| trust.verifier(spec.mtls)).transpose()?;
        let mut digest = sha256();
        digest.update(match spec.mtls {
            MtlsMode::Disable => b"disable",
            MtlsMode::Permissive => b"permissive",
            MtlsMode::Strict => b"strict",
        });
        digest.update(&trust.map_or([0; 32], |trust| trust.digest));
        let policy_digest = finish(digest);
        Ok(Self { spec, certificates: CertificateSet::new(certificates), client_verifier, policy_digest })
    }
}

/// What a cluster's endpoints are spoken to with.
#[derive(Debug)]
pub struct ClientMaterial {
    pub spec: ClientSpec,
    pub roots: Arc<RootCertStore>,
    /// Presented to an endpoint that asks for one.
    pub certificate: Option<Arc<CertifiedKey>>,
}

impl ClientMaterial {
    pub fn new(spec: ClientSpec, roots: &Authorities, certificate: Option<&Certificate>) -> Self {
        let certificate = certificate.map(|certificate| certificate.key.clone());
        Self { spec, roots: roots.store.clone(), certificate }
    }
}

/// Authorities that certificates must lead to. At least one.
#[derive(Debug)]
pub struct Authorities {
    pub store: Arc<RootCertStore>,
    /// End of the one that ends last, in Unix seconds: beyond it nothing leads to a valid one.
    pub not_after: i64,
    der: Vec<CertificateDer<'static>>,
}

impl Authorities {
    /// # Errors
    /// No certificate in it, or one that cannot be read.
    pub fn from_pem(bytes: &[u8]) -> Result<Self, Fault> {
        let der: Vec<CertificateDer<'static>> = pem::sections(bytes, Part::Authorities)?;
        let ends = parse(&der, Part::Authorities)?;
        let ends = ends.iter().map(|certificate| certificate.validity().not_after.timestamp());
        let not_after = ends.max().unwrap_or_default();
        let mut store = RootCertStore::empty();
        for (index, der) in der.iter().enumerate() {
            store.add(der.clone()).map_err(|error| malformed(Part::Authorities, index, words(&error)))?;
        }
        Ok(Self { store: Arc::new(store), not_after, der })
    }

    /// Those of the machine's own store. What cannot be read among them is left out, as such a store is not ours.
    pub fn of_machine(der: Vec<CertificateDer<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(der);
        Self { store: Arc::new(store), not_after: i64::MAX, der: Vec::new() }
    }

    /// # Errors
    /// That not one of them is valid any more at `now_unix_s`. Path validation does not look at the dates of a trust
    /// anchor (RFC 5280 §6.1.1), but what an authority signed ends with it as a rule.
    pub const fn check_dates(&self, now_unix_s: i64) -> Result<(), Fault> {
        if now_unix_s > self.not_after {
            return Err(Fault::new(Part::Authorities, Cause::Expired { not_after: self.not_after }));
        }
        Ok(())
    }
}

/// Who may vouch for clients, and whom they vouch for no more.
#[derive(Debug)]
pub struct ClientTrust {
    pub authorities: Authorities,
    /// When the first of the revocation lists is due to be replaced, in Unix seconds. A list stays in force beyond it.
    pub next_update: Option<i64>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    digest: [u8; 32],
}

impl ClientTrust {
    /// From the bytes of the bundle of authorities and of that of revocation lists.
    ///
    /// # Errors
    /// Nothing in one of them, or something that cannot be read.
    pub fn from_pem(authorities: &[u8], lists: Option<&[u8]>) -> Result<Self, Fault> {
        let authorities = Authorities::from_pem(authorities)?;
        let lists: Vec<CertificateRevocationListDer<'static>> =
            lists.map_or_else(|| Ok(Vec::new()), |lists| pem::sections(lists, Part::RevocationLists))?;
        let mut next_update: Option<i64> = None;
        for (index, der) in lists.iter().enumerate() {
            let (_, list) = CertificateRevocationList::from_der(der)
                .map_err(|error| malformed(Part::RevocationLists, index, error.to_string()))?;
            let next = list.next_update().map(|time| time.timestamp());
            next_update = next_update.into_iter().chain(next).min();
        }
        let mut digest = sha256();
        for bytes in authorities.der.iter().map(AsRef::as_ref).chain(lists.iter().map(AsRef::as_ref)) {
            // With the length before each, so that no two lists of files give the same bytes.
            digest.update(&(bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        }
        let trust = Self { authorities, next_update, lists, digest: finish(digest) };
        // What rustls says to them is known now, not when the first listener is made.
        trust.verifier(MtlsMode::Strict)?;
        Ok(trust)
    }

    /// A client certificate must lead to an authority, and no list that covers its issuer, or that of an authority
    /// between, may name it. Under `Permissive` there may be none. Where no list covers an issuer nothing is known to
    /// be revoked; a list beyond its next update still counts: old news is better than none, and refusing everybody
    /// because a list was not fetched in time would be an outage.
    fn verifier(&self, mode: MtlsMode) -> Result<Arc<dyn ClientCertVerifier>, Fault> {
        let provider = Arc::new(default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(self.authorities.store.clone(), provider)
            .with_crls(self.lists.iter().cloned())
            .allow_unknown_revocation_status();
        let builder = if mode == MtlsMode::Strict { builder } else { builder.allow_unauthenticated() };
        builder.build().map_err(|error| malformed(Part::RevocationLists, 0, error.to_string()))
    }
}

fn sha256() -> Box<dyn Context> {
    let suite = &cipher_suite::TLS13_AES_128_GCM_SHA256;
    suite
        .tls13()
        .map_or_else(|| unreachable!("it is a suite of TLS 1.3"), |suite| suite.common.hash_provider.start())
}

fn finish(digest: Box<dyn Context>) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.finish().as_ref());
    bytes
}

#[cfg(test)]
mod tests;
