//! What can be wrong with a certificate, key, authority or revocation list, as a value that says the cause and the
//! cure. Knows no paths: who read the file adds its name.

use std::fmt;

use crate::base::calendar::Moment;

/// Which file of those that belong together a fault is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// The chain of a pair.
    Chain,
    /// The key of a pair.
    Key,
    /// The authorities that are trusted.
    Authorities,
    /// Their revocation lists.
    RevocationLists,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Cause {
    /// No byte but white space.
    Empty,
    /// A PEM section begins and does not end: the file is half-written.
    Cut,
    /// PEM that cannot be decoded.
    NotPem(String),
    /// PEM without a section of the kind that is needed.
    Missing,
    EncryptedKey,
    UnsupportedKey(String),
    /// The key is not that of the first certificate. `position`: of the certificate it does belong to, from 1.
    KeyMismatch {
        position: Option<usize>,
    },
    /// DER that is not what its label says. `position` from 1.
    Malformed {
        position: usize,
        error: String,
    },
    /// Unix seconds.
    Expired {
        not_after: i64,
    },
    /// Unix seconds.
    NotYetValid {
        not_before: i64,
    },
}

/// What keeps files from being used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    pub part: Part,
    pub cause: Cause,
}

impl Fault {
    pub(super) const fn new(part: Part, cause: Cause) -> Self {
        Self { part, cause }
    }

    /// What is wrong, as the end of a sentence that begins with the file's name and a colon.
    pub fn what(&self) -> String {
        let holds = self.part.holds();
        match &self.cause {
            Cause::Empty => "the file is empty".to_owned(),
            Cause::Cut => format!("{holds} begins and does not end: the file is half-written"),
            Cause::NotPem(error) => format!("not PEM: {error}"),
            Cause::Missing => format!("no {holds} in it"),
            Cause::EncryptedKey => "the private key is encrypted".to_owned(),
            Cause::UnsupportedKey(error) => format!("a private key that cannot be used: {error}"),
            Cause::KeyMismatch { position: None } => {
                "the private key is not that of the certificate".to_owned()
            }
            Cause::KeyMismatch { position: Some(position) } => {
                format!("the private key is that of certificate {position}, not of the first")
            }
            Cause::Malformed { position, error } => format!("{holds} {position} cannot be read: {error}"),
            Cause::Expired { not_after } => format!("expired on {}", date(*not_after)),
            Cause::NotYetValid { not_before } => format!("not valid before {}", date(*not_before)),
        }
    }

    /// What to do about it.
    pub const fn cure(&self) -> &'static str {
        match (&self.cause, self.part) {
            (Cause::Empty | Cause::Cut, _) => "write it whole, to another name, and rename it into place",
            (Cause::NotPem(_) | Cause::Missing, Part::Chain) => {
                "write the certificates as PEM (-----BEGIN CERTIFICATE-----), the server's own first"
            }
            (Cause::NotPem(_) | Cause::Missing, Part::Key) => {
                "write the key as PEM (-----BEGIN PRIVATE KEY-----), without a passphrase"
            }
            (Cause::NotPem(_) | Cause::Missing, Part::Authorities) => {
                "write the authorities' certificates as PEM (-----BEGIN CERTIFICATE-----)"
            }
            (Cause::NotPem(_) | Cause::Missing, Part::RevocationLists) => {
                "write the revocation lists as PEM (-----BEGIN X509 CRL-----)"
            }
            (Cause::EncryptedKey, _) => "take the passphrase off: openssl pkey -in KEY -out NEW",
            (Cause::UnsupportedKey(_), _) => "use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits",
            (Cause::KeyMismatch { position: Some(_) }, _) => "put that certificate first in the chain",
            (Cause::KeyMismatch { position: None }, _) => "name the key that the certificate was made for",
            (Cause::Malformed { .. }, _) => "get the file anew from who issued it",
            (Cause::Expired { .. }, Part::Authorities) => "put the authority's new certificate there",
            (Cause::Expired { .. }, _) => "renew it",
            (Cause::NotYetValid { .. }, _) => "set this machine's clock right, or wait",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what(), self.cure())
    }
}

impl std::error::Error for Fault {}

impl Part {
    /// What a file of this kind holds.
    const fn holds(self) -> &'static str {
        match self {
            Self::Chain | Self::Authorities => "certificate",
            Self::Key => "private key",
            Self::RevocationLists => "revocation list",
        }
    }
}

/// A moment in Unix seconds, as RFC 3339 writes it. What is before 1970 counts as that.
pub fn date(unix_s: i64) -> Moment {
    Moment::of_unix(u64::try_from(unix_s).unwrap_or(0))
}
