//! Certificates with their keys, out of the bytes of PEM files, and the choice among those of a listener. Never reads
//! a file or a clock; a fault is a value that names cause and cure.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, SignatureAlgorithm, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::fault::{Cause, Fault, Part};
use super::names::{Names, normal, parent};
use super::pem;

/// A chain with the key of its first certificate, the leaf.
#[derive(Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    /// Of the leaf.
    pub names: Arc<Names>,
    /// Of the leaf, in Unix seconds.
    pub not_before: i64,
    /// Of the leaf, in Unix seconds.
    pub not_after: i64,
    /// Of whichever other certificate of the chain ends first, in Unix seconds. Past, it may not matter: a client may
    /// know a shorter way to an authority.
    pub chain_not_after: Option<i64>,
    remarks: Vec<Remark>,
}

/// What does not keep a certificate from being used, but some clients from accepting it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Remark {
    /// The certificate at `position` (from 1) was not issued by the next one, but by another of the chain.
    OutOfOrder { position: usize },
    /// The certificate at `position` (from 1) was issued by none of the chain, though one follows.
    LeadsNowhere { position: usize },
    /// The first certificate is an authority's.
    LeafIsAuthority,
    /// It has no DNS and no IP name.
    NoNames,
}

impl fmt::Display for Remark {
    /// What is wrong, and after a semicolon the cure.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfOrder { position } => write!(
                f,
                "certificate {position} is not followed by the one that issued it; put each before its issuer"
            ),
            Self::LeadsNowhere { position } => write!(
                f,
                "certificate {position} was issued by none of the file; add the intermediate certificates"
            ),
            Self::LeafIsAuthority => {
                f.write_str("the first certificate is an authority's; put the server's own first")
            }
            Self::NoNames => f.write_str(
                "the certificate has no DNS or IP name (subjectAltName), so that it fits no host; issue it with names",
            ),
        }
    }
}

impl Certificate {
    /// From the bytes of the two files. Dates are not looked at: see [`Self::check_dates`].
    ///
    /// # Errors
    /// What makes the pair unusable: nothing in it, half of it, a key that is encrypted, unknown or another's.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Fault> {
        let chain: Vec<CertificateDer<'static>> = pem::sections(chain, Part::Chain)?;
        let parsed = parse(&chain, Part::Chain)?;
        let leaf = &parsed[0];
        let names = Arc::new(Names::of(leaf));
        let not_before = leaf.validity().not_before.timestamp();
        let mut ends = parsed.iter().map(|certificate| certificate.validity().not_after.timestamp());
        let not_after = ends.next().unwrap_or_default();
        let chain_not_after = ends.min();
        let remarks = remarks(&parsed, &names);
        drop(parsed);
        let key = Arc::new(certified(chain, private_key(key)?)?);
        Ok(Self { key, names, not_before, not_after, chain_not_after, remarks })
    }

    /// # Errors
    /// That the certificate is not valid at `now_unix_s`.
    pub const fn check_dates(&self, now_unix_s: i64) -> Result<(), Fault> {
        let cause = if now_unix_s > self.not_after {
            Cause::Expired { not_after: self.not_after }
        } else if now_unix_s < self.not_before {
            Cause::NotYetValid { not_before: self.not_before }
        } else {
            return Ok(());
        };
        Err(Fault::new(Part::Chain, cause))
    }

    /// What some clients will not like about it.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// Rank among the certificates of one name: what costs least to sign with goes first (an ECDSA P-256 signature
    /// takes a tenth of the time of one by RSA-2048).
    fn rank(&self) -> u8 {
        match self.key.key.algorithm() {
            SignatureAlgorithm::ECDSA => 0,
            SignatureAlgorithm::ED25519 | SignatureAlgorithm::ED448 => 1,
            _ => 2,
        }
    }

    /// Whether its key can sign by one of the schemes.
    fn fits(&self, offered: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(offered).is_some()
    }
}

/// All of them, or which one cannot be read. At least one, as `pem::sections` gives them.
pub(super) fn parse<'c>(
    chain: &'c [CertificateDer<'_>],
    part: Part,
) -> Result<Vec<X509Certificate<'c>>, Fault> {
    let one = |(index, der): (usize, &'c CertificateDer<'_>)| match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(malformed(part, index, "bytes behind its end".into())),
        Err(error) => Err(malformed(part, index, error.to_string())),
    };
    chain.iter().enumerate().map(one).collect()
}

pub(super) const fn malformed(part: Part, index: usize, error: String) -> Fault {
    Fault::new(part, Cause::Malformed { position: index + 1, error })
}

fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, Fault> {
    // PKCS #8 (RFC 5958 §3) says it in the label, the older format (RFC 1421 §4.6.1.1) in a line of the section.
    const ENCRYPTED: [&[u8]; 2] = [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"];
    if ENCRYPTED.iter().any(|words| memchr::memmem::find(bytes, words).is_some()) {
        return Err(Fault::new(Part::Key, Cause::EncryptedKey));
    }
    let mut keys = pem::sections(bytes, Part::Key)?;
    Ok(keys.swap_remove(0))
}

/// The chain with its key, if they belong together.
fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, Fault> {
    let unsupported = |error: Error| Fault::new(Part::Key, Cause::UnsupportedKey(words(&error)));
    let key = any_supported_type(&key).map_err(unsupported)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let others = certified.cert.iter().enumerate().skip(1);
            let belongs =
                |der: &CertificateDer<'static>| CertifiedKey::new(vec![der.clone()], certified.key.clone());
            let position = others
                .into_iter()
                .find(|(_, der)| belongs(der).keys_match().is_ok())
                .map(|(index, _)| index + 1);
            Err(Fault::new(Part::Key, Cause::KeyMismatch { position }))
        }
        Err(error @ Error::InconsistentKeys(_)) => Err(unsupported(error)),
        Err(error) => Err(malformed(Part::Chain, 0, words(&error))),
    }
}

/// Without the words that rustls sets before every text of somebody else's.
pub(super) fn words(error: &Error) -> String {
    let text = error.to_string();
    text.strip_prefix("unexpected error: ").map_or_else(|| text.clone(), str::to_owned)
}

fn remarks(chain: &[X509Certificate<'_>], names: &Names) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let issued = |issuer: &X509Certificate<'_>, by: &X509Certificate<'_>| {
        issuer.subject().as_raw() == by.issuer().as_raw()
    };
    for (index, pair) in chain.windows(2).enumerate() {
        let (certificate, next) = (&pair[0], &pair[1]);
        if issued(next, certificate) {
            continue;
        }
        let position = index + 1;
        let elsewhere =
            chain.iter().enumerate().any(|(other, issuer)| other != index && issued(issuer, certificate));
        remarks.push(if elsewhere {
            Remark::OutOfOrder { position }
        } else {
            Remark::LeadsNowhere { position }
        });
    }
    // A self-signed certificate of a test may say that it is an authority too: only a chain shows the mistake.
    if chain.len() > 1 && chain[0].is_ca() {
        remarks.push(Remark::LeafIsAuthority);
    }
    if names.is_empty() {
        remarks.push(Remark::NoNames);
    }
    remarks
}

/// The certificates of a listener, by name. At least one.
#[derive(Debug)]
pub struct CertificateSet {
    list: Vec<Arc<Certificate>>,
    /// By DNS name, positions in the list, in the order in which they are tried.
    exact: HashMap<Box<str>, Vec<u16>>,
    /// As `exact`, by what stands behind `*.`.
    wildcard: HashMap<Box<str>, Vec<u16>>,
    /// The first, and those for all of its names, in the order in which they are tried.
    default: Vec<u16>,
}

impl CertificateSet {
    /// The first is the default where no name matches.
    pub fn new(list: Vec<Arc<Certificate>>) -> Self {
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        let mut order: Vec<u16> = (0..=u16::MAX).take(list.len()).collect();
        // Stable: those of one rank stay in the order of the configuration.
        order.sort_by_key(|index| list[usize::from(*index)].rank());
        let mut default = Vec::new();
        for index in order {
            let names = &list[usize::from(index)].names;
            for name in names.exact() {
                push(&mut exact, name, index);
            }
            for name in names.wildcard() {
                push(&mut wildcard, name, index);
            }
            let first = &list[0].names;
            if index == 0 || (!first.is_empty() && names.include(first)) {
                default.push(index);
            }
        }
        Self { list, exact, wildcard, default }
    }

    /// The certificate for a client: by exact name, then by wildcard, then the default; where several are for the
    /// name, the first whose key can sign by one of the schemes offered, ECDSA before RSA. Where the key of none can,
    /// one for the name all the same: the handshake then fails for what it fails for. `None` only for an empty set.
    pub fn choose(
        &self,
        server_name: Option<&str>,
        offered: &[SignatureScheme],
    ) -> Option<&Arc<Certificate>> {
        let name = server_name.map(normal);
        let exact = name.as_deref().and_then(|name| self.exact.get(name));
        let wildcard = name.as_deref().and_then(parent).and_then(|parent| self.wildcard.get(parent));
        let (first, second) = match (exact, wildcard) {
            (None, None) => (&self.default[..], &[][..]),
            (exact, wildcard) => {
                (exact.map_or(&[][..], Vec::as_slice), wildcard.map_or(&[][..], Vec::as_slice))
            }
        };
        let mut candidates =
            first.iter().chain(second).filter_map(|index| self.list.get(usize::from(*index)));
        let any = candidates.clone().next();
        candidates.find(|certificate| certificate.fits(offered)).or(any)
    }

    /// In the order of the configuration.
    pub fn certificates(&self) -> &[Arc<Certificate>] {
        &self.list
    }
}

fn push(map: &mut HashMap<Box<str>, Vec<u16>>, name: &str, index: u16) {
    let indices = map.entry(name.into()).or_default();
    if !indices.contains(&index) {
        indices.push(index);
    }
}

#[cfg(test)]
mod tests;
