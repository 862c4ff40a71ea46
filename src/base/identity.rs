//! SPIFFE identities and what they are compared with. Never parses a certificate.

/// Which identities are meant: one, or all of a trust domain.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum IdentityPattern {
    /// A whole SPIFFE id, `spiffe://trust-domain/path`.
    Exact(Box<str>),
    /// `trust-domain/*`: every id of the domain. Holds `spiffe://trust-domain/`.
    TrustDomain(Box<str>),
}

impl IdentityPattern {
    pub fn matches(&self, id: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *id,
            Self::TrustDomain(prefix) => id.len() > prefix.len() && id.starts_with(&**prefix),
        }
    }
}
