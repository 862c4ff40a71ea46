//! SPIFFE identities and what they are compared with (SPIFFE-ID, "The SPIFFE Identity"). Never parses a certificate.

use std::fmt;

/// Longest id, in bytes (SPIFFE-ID §2.3).
pub const ID_BYTES_MAX: usize = 2_048;
/// Longest name of a trust domain, in bytes (SPIFFE-ID §2.1).
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

const SCHEME: &str = "spiffe://";

/// A valid id of a workload: `spiffe://trust-domain/path`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpiffeId<'a> {
    text: &'a str,
    trust_domain_len: usize,
}

/// What keeps a text from being an id or a pattern.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IdentityError {
    Scheme,
    Length,
    NoTrustDomain,
    TrustDomainLength,
    /// A port, user information or an upper-case letter among them.
    TrustDomainByte(char),
    /// An id of a trust domain alone names no workload.
    NoPath,
    EmptySegment,
    DotSegment,
    /// A query, a fragment or a percent-encoding among them.
    PathByte(char),
    /// A `*` that does not stand alone behind the trust domain.
    Wildcard,
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme => write!(f, "it does not begin with \"{SCHEME}\""),
            Self::Length => write!(f, "it has more than {ID_BYTES_MAX} bytes"),
            Self::NoTrustDomain => f.write_str("its trust domain is empty"),
            Self::TrustDomainLength => {
                write!(f, "its trust domain has more than {TRUST_DOMAIN_BYTES_MAX} bytes")
            }
            Self::TrustDomainByte(':') => f.write_str("a trust domain has no port"),
            Self::TrustDomainByte('@') => f.write_str("a trust domain has no user"),
            Self::TrustDomainByte(byte) if byte.is_ascii_uppercase() => {
                f.write_str("a trust domain has no upper-case letters")
            }
            Self::TrustDomainByte(byte) => write!(f, "a trust domain has no '{}'", byte.escape_debug()),
            Self::NoPath => f.write_str("no path follows its trust domain"),
            Self::EmptySegment => f.write_str("its path has an empty segment or ends with '/'"),
            Self::DotSegment => f.write_str("its path has a segment \".\" or \"..\""),
            Self::PathByte('?') => f.write_str("an id has no query"),
            Self::PathByte('#') => f.write_str("an id has no fragment"),
            Self::PathByte('%') => f.write_str("an id has no percent-encoding"),
            Self::PathByte(byte) => write!(f, "the path of an id has no '{}'", byte.escape_debug()),
            Self::Wildcard => f.write_str("'*' stands only alone behind the trust domain"),
        }
    }
}

impl<'a> SpiffeId<'a> {
    /// # Errors
    /// Where it is no id of a workload by SPIFFE-ID §2. The scheme is taken in lower case only: what is compared byte
    /// for byte must have one spelling.
    pub fn parse(text: &'a str) -> Result<Self, IdentityError> {
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityError::Scheme)?;
        if text.len() > ID_BYTES_MAX {
            return Err(IdentityError::Length);
        }
        let trust_domain_len = rest.find('/').unwrap_or(rest.len());
        let (trust_domain, path) = rest.split_at(trust_domain_len);
        // A query or a fragment may follow the trust domain at once.
        check_trust_domain(trust_domain)?;
        let path = path.strip_prefix('/').filter(|path| !path.is_empty()).ok_or(IdentityError::NoPath)?;
        check_path(path)?;
        Ok(Self { text, trust_domain_len })
    }

    pub const fn as_str(&self) -> &'a str {
        self.text
    }

    pub fn trust_domain(&self) -> &'a str {
        &self.text[SCHEME.len()..SCHEME.len() + self.trust_domain_len]
    }

    /// Begins with `/`.
    pub fn path(&self) -> &'a str {
        &self.text[SCHEME.len() + self.trust_domain_len..]
    }
}

/// SPIFFE-ID §2.1.
fn check_trust_domain(name: &str) -> Result<(), IdentityError> {
    if name.is_empty() {
        return Err(IdentityError::NoTrustDomain);
    }
    if let Some(wrong) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
        return Err(match wrong {
            '?' | '#' | '%' => IdentityError::PathByte(wrong),
            '*' => IdentityError::Wildcard,
            _ => IdentityError::TrustDomainByte(wrong),
        });
    }
    if name.len() > TRUST_DOMAIN_BYTES_MAX { Err(IdentityError::TrustDomainLength) } else { Ok(()) }
}

/// SPIFFE-ID §2.2. `path` is what follows the first `/`.
fn check_path(path: &str) -> Result<(), IdentityError> {
    for segment in path.split('/') {
        match segment {
            "" => return Err(IdentityError::EmptySegment),
            "." | ".." => return Err(IdentityError::DotSegment),
            _ => {}
        }
        let wrong = segment.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')));
        match wrong {
            None => {}
            Some('*') => return Err(IdentityError::Wildcard),
            Some(wrong) => return Err(IdentityError::PathByte(wrong)),
        }
    }
    Ok(())
}

/// Which identities are meant: one, or all of a trust domain.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum IdentityPattern {
    /// A whole SPIFFE id, `spiffe://trust-domain/path`.
    Exact(Box<str>),
    /// `trust-domain/*`: every id of the domain. Holds `spiffe://trust-domain/`.
    TrustDomain(Box<str>),
}

impl IdentityPattern {
    /// From `spiffe://trust-domain/path`, or `trust-domain/*` with or without the scheme.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let Some(domain) = text.strip_suffix("/*") else {
            return SpiffeId::parse(text).map(|id| Self::Exact(id.as_str().into()));
        };
        let domain = domain.strip_prefix(SCHEME).unwrap_or(domain);
        if domain.contains('/') {
            return Err(IdentityError::Wildcard);
        }
        check_trust_domain(domain)?;
        Ok(Self::TrustDomain(format!("{SCHEME}{domain}/").into()))
    }

    /// Whether `id`, a valid one, is meant.
    pub fn matches(&self, id: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *id,
            Self::TrustDomain(prefix) => id.len() > prefix.len() && id.starts_with(&**prefix),
        }
    }

    /// Whether it means every id that `other` does.
    pub fn covers(&self, other: &Self) -> bool {
        match other {
            Self::Exact(id) => self.matches(id),
            Self::TrustDomain(_) => self == other,
        }
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => f.write_str(id),
            Self::TrustDomain(prefix) => {
                write!(f, "{}*", prefix.strip_prefix(SCHEME).unwrap_or(prefix))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_of_workloads_are_taken_apart() {
        for (text, trust_domain, path) in [
            ("spiffe://cluster.local/ns/production/sa/shop", "cluster.local", "/ns/production/sa/shop"),
            ("spiffe://a_b-c.9/X.y_Z-1", "a_b-c.9", "/X.y_Z-1"),
            ("spiffe://td/...", "td", "/..."),
        ] {
            let id = SpiffeId::parse(text).expect(text);
            assert_eq!((id.as_str(), id.trust_domain(), id.path()), (text, trust_domain, path));
        }
    }

    #[test]
    fn what_is_no_id_is_refused_with_the_cause() {
        for (text, why) in [
            ("", "it does not begin with \"spiffe://\""),
            ("cluster.local/ns/a/sa/b", "it does not begin with \"spiffe://\""),
            ("SPIFFE://td/a", "it does not begin with \"spiffe://\""),
            ("https://td/a", "it does not begin with \"spiffe://\""),
            ("spiffe:///a", "its trust domain is empty"),
            ("spiffe://", "its trust domain is empty"),
            ("spiffe://td:80/a", "a trust domain has no port"),
            ("spiffe://me@td/a", "a trust domain has no user"),
            ("spiffe://Td/a", "a trust domain has no upper-case letters"),
            ("spiffe://t\u{e9}/a", "a trust domain has no 'é'"),
            ("spiffe://td?q", "an id has no query"),
            ("spiffe://td#f", "an id has no fragment"),
            ("spiffe://t%64/a", "an id has no percent-encoding"),
            ("spiffe://td", "no path follows its trust domain"),
            ("spiffe://td/", "no path follows its trust domain"),
            ("spiffe://td//a", "its path has an empty segment or ends with '/'"),
            ("spiffe://td/a/", "its path has an empty segment or ends with '/'"),
            ("spiffe://td/a/./b", "its path has a segment \".\" or \"..\""),
            ("spiffe://td/..", "its path has a segment \".\" or \"..\""),
            ("spiffe://td/a?b", "an id has no query"),
            ("spiffe://td/a#b", "an id has no fragment"),
            ("spiffe://td/%61", "an id has no percent-encoding"),
            ("spiffe://td/a b", "the path of an id has no ' '"),
            ("spiffe://td/a\0", "the path of an id has no '\\0'"),
            ("spiffe://td/a*", "'*' stands only alone behind the trust domain"),
        ] {
            assert_eq!(
                SpiffeId::parse(text).map_err(|error| error.to_string()),
                Err(why.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let id = |bytes: usize| format!("spiffe://td/{}", "a".repeat(bytes - "spiffe://td/".len()));
        assert!(SpiffeId::parse(&id(ID_BYTES_MAX)).is_ok());
        assert_eq!(SpiffeId::parse(&id(ID_BYTES_MAX + 1)), Err(IdentityError::Length));
        let id = |bytes: usize| format!("spiffe://{}/a", "d".repeat(bytes));
        assert!(SpiffeId::parse(&id(TRUST_DOMAIN_BYTES_MAX)).is_ok());
        assert_eq!(SpiffeId::parse(&id(TRUST_DOMAIN_BYTES_MAX + 1)), Err(IdentityError::TrustDomainLength));
    }

    #[test]
    fn patterns_are_ids_or_whole_trust_domains() {
        let parse = |text| IdentityPattern::parse(text);
        assert_eq!(parse("spiffe://td/a"), Ok(IdentityPattern::Exact("spiffe://td/a".into())));
        for text in ["td/*", "spiffe://td/*"] {
            assert_eq!(parse(text), Ok(IdentityPattern::TrustDomain("spiffe://td/".into())));
        }
        for (text, why) in [
            ("*", IdentityError::Scheme),
            ("/*", IdentityError::NoTrustDomain),
            ("*/*", IdentityError::Wildcard),
            ("td/ns/*", IdentityError::Wildcard),
            ("spiffe://td/ns/*", IdentityError::Wildcard),
            ("spiffe://*/a", IdentityError::Wildcard),
            ("Td/*", IdentityError::TrustDomainByte('T')),
            ("td/a", IdentityError::Scheme),
        ] {
            assert_eq!(parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn a_pattern_matches_its_id_or_its_trust_domain_and_no_longer_name() {
        let domain = IdentityPattern::parse("td/*").expect("a pattern");
        assert!(domain.matches("spiffe://td/a/b"));
        for other in ["spiffe://td/", "spiffe://td", "spiffe://td.evil/a", "spiffe://a/td/b", "td/a"] {
            assert!(!domain.matches(other), "{other}");
        }
        let exact = IdentityPattern::parse("spiffe://td/a").expect("a pattern");
        assert!(exact.matches("spiffe://td/a"));
        assert!(!exact.matches("spiffe://td/a/b") && !exact.matches("spiffe://td/A"));
        assert!(domain.covers(&exact) && domain.covers(&domain) && exact.covers(&exact));
        assert!(!exact.covers(&domain));
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in ".{0,80}") {
            let _ = SpiffeId::parse(&text);
            let _ = IdentityPattern::parse(&text);
        }

        #[test]
        fn near_ids_are_taken_exactly_where_every_part_is_valid(
            domain in "[a-c._A@:%-]{0,4}",
            segments in prop::collection::vec("[a-bA.%*-]{0,3}", 0..4),
        ) {
            let text = format!("spiffe://{domain}{}", segments.iter().map(|s| format!("/{s}")).collect::<String>());
            let domain_valid = !domain.is_empty() && !domain.contains(['A', '@', ':', '%']);
            let segment_valid = |s: &String| !s.contains(['%', '*']) && !["", ".", ".."].contains(&&**s);
            let valid = domain_valid && !segments.is_empty() && segments.iter().all(segment_valid);
            prop_assert_eq!(SpiffeId::parse(&text).is_ok(), valid, "{}", text);
        }

        #[test]
        fn a_pattern_reads_back_as_it_is_shown(domain in "[a-z0-9._-]{1,20}", path in "[a-z]{1,8}(/[A-Z]{1,8}){0,3}") {
            for text in [format!("{domain}/*"), format!("spiffe://{domain}/{path}")] {
                let pattern = IdentityPattern::parse(&text).expect("a pattern");
                prop_assert_eq!(pattern.to_string(), text);
                let id = format!("spiffe://{domain}/{path}");
                prop_assert!(pattern.matches(&id));
            }
        }
    }
}
