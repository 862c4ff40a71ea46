//! Who the peer is, read from the leaf certificate it presented: SPIFFE id, names, subject, fingerprint, and the element
//! of `X-Forwarded-Client-Cert` that tells an upstream. Never verifies anything: what it reads must be trusted by then.

use std::fmt;

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::base::identity::{ID_BYTES_MAX, SpiffeId};
use crate::limits::{
    FORWARDED_CLIENT_CERT_BYTES_MAX, PEER_NAMES_BYTES_MAX, PEER_NAMES_MAX, PEER_SUBJECT_BYTES_MAX,
};

mod forwarded;
mod subject;

/// What a verified peer's certificate says. Made once for a connection; its texts are bounded, whatever the certificate.
#[derive(Clone, Eq, PartialEq)]
pub struct PeerIdentity {
    /// The first URI name that is a SPIFFE id of a workload.
    pub spiffe: Option<Box<str>>,
    /// As RFC 2253 writes it, last part first, with what is not printable ASCII escaped. Empty where there is none, and
    /// where it would be longer than `PEER_SUBJECT_BYTES_MAX`.
    pub subject: Box<str>,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// Unix time in seconds. `None` where the certificate cannot be read.
    pub not_after: Option<i64>,
    /// URI names in the certificate's order: the first `PEER_NAMES_MAX`.
    pub uris: Box<[Box<str>]>,
    /// DNS names, likewise.
    pub dns: Box<[Box<str>]>,
    /// One element of `X-Forwarded-Client-Cert`: printable ASCII.
    pub forwarded: Box<str>,
}

impl PeerIdentity {
    /// From the DER of the peer's leaf. `served_as` is the URI name of the certificate that it was served, if that has
    /// one. Of a certificate that the verifier took and this cannot read, only the fingerprint is known: it has no
    /// identity, and no pattern matches it.
    pub fn of_leaf(der: &[u8], served_as: Option<&str>) -> Self {
        let fingerprint = sha256(der);
        let (subject, not_after, names) = match X509Certificate::from_der(der) {
            Ok((_, leaf)) => {
                let not_after = leaf.validity().not_after.timestamp();
                (subject::text(leaf.subject()), Some(not_after), names(&leaf))
            }
            Err(_) => (String::new(), None, Names::default()),
        };
        let spiffe = names.uris.iter().find(|uri| SpiffeId::parse(uri).is_ok()).cloned();
        let forwarded =
            forwarded::element(served_as, &fingerprint, &subject, spiffe.as_deref(), &names.uris, &names.dns);
        Self {
            spiffe,
            subject: subject.into(),
            fingerprint,
            not_after,
            uris: names.uris.into(),
            dns: names.dns.into(),
            forwarded: forwarded.into(),
        }
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerIdentity({})", self.forwarded)
    }
}

/// The URI names of a certificate, the first `PEER_NAMES_MAX` of them. None of one that cannot be read.
pub(super) fn uri_names(der: &[u8]) -> Vec<Box<str>> {
    X509Certificate::from_der(der).map(|(_, leaf)| names(&leaf).uris).unwrap_or_default()
}

/// When a certificate ends, in Unix seconds. `None` where it cannot be read.
pub(super) fn not_after(der: &[u8]) -> Option<i64> {
    X509Certificate::from_der(der).ok().map(|(_, leaf)| leaf.validity().not_after.timestamp())
}

#[derive(Default)]
struct Names {
    uris: Vec<Box<str>>,
    dns: Vec<Box<str>>,
}

fn names(leaf: &X509Certificate<'_>) -> Names {
    let mut names = Names::default();
    // Two extensions of alternative names: which one counts is a matter of the reader. Neither does.
    let Ok(Some(alternative)) = leaf.subject_alternative_name() else { return names };
    let all = &alternative.value.general_names;
    let uris = all.iter().filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
    let dns =
        all.iter().filter_map(|name| if let GeneralName::DNSName(dns) = name { Some(*dns) } else { None });
    let mut bytes_left = PEER_NAMES_BYTES_MAX;
    // Identities first: DNS names, however many, take them no room.
    names.uris = kept(uris, &mut bytes_left);
    names.dns = kept(dns, &mut bytes_left);
    names
}

fn kept<'t>(texts: impl Iterator<Item = &'t str>, bytes_left: &mut usize) -> Vec<Box<str>> {
    let mut kept = Vec::new();
    for text in texts {
        if text.len() <= ID_BYTES_MAX && text.len() <= *bytes_left && kept.len() < PEER_NAMES_MAX {
            *bytes_left -= text.len();
            kept.push(text.into());
        }
    }
    kept
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    // The provider hands its digests out by the suites that use them.
    let suite = TLS13_AES_128_GCM_SHA256.tls13().map(|suite| suite.common.hash_provider.hash(bytes));
    suite.and_then(|digest| digest.as_ref().try_into().ok()).unwrap_or_default()
}

/// Fuzzing: any bytes are read without a panic, and what is told of them is one field value of bounded length.
pub fn fuzz_peer_identity(der: &[u8]) {
    let peer = PeerIdentity::of_leaf(der, None);
    assert!(peer.forwarded.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{peer:?}");
    assert!(peer.forwarded.len() <= 2 * FORWARDED_CLIENT_CERT_BYTES_MAX + PEER_SUBJECT_BYTES_MAX + 256);
    assert!(peer.spiffe.is_none_or(|id| SpiffeId::parse(&id).is_ok()));
}

#[cfg(test)]
mod tests;
