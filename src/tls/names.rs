//! The names a certificate is for, and whether a host is one of them. Pure.

use std::borrow::Cow;
use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// DNS and IP names of a certificate's subject alternative names, and the first URI among them. The common name takes no part (RFC 9525 §2).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    /// In lower case.
    exact: Vec<Box<str>>,
    /// `*.api.test` as `api.test`, in lower case.
    wildcard: Vec<Box<str>>,
    ips: Vec<IpAddr>,
    uri: Option<Box<str>>,
}

impl Names {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut names = Self::default();
        // Two extensions of one kind, or one that cannot be read: verifiers refuse the certificate.
        let Ok(Some(alternative)) = certificate.subject_alternative_name() else { return names };
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.add_dns(name),
                GeneralName::IPAddress(octets) => names.ips.extend(ip(octets)),
                GeneralName::URI(uri) if names.uri.is_none() => names.uri = Some((*uri).into()),
                _ => {}
            }
        }
        names
    }

    fn add_dns(&mut self, name: &str) {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        // RFC 9525 §6.3: the wildcard is the whole leftmost label.
        match name.strip_prefix("*.") {
            Some(rest) if !rest.contains('*') && !rest.is_empty() => self.wildcard.push(rest.into()),
            None if !name.contains('*') && !name.is_empty() => self.exact.push(name.into()),
            _ => {}
        }
    }

    /// Whether `host` is one of them: a DNS name in any case, or an IP address, in brackets or not. Without port. Asked
    /// for each request, so it allocates nothing.
    pub fn covers(&self, host: &str) -> bool {
        if let Ok(ip) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).parse()
        {
            return self.ips.contains(&ip);
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        self.exact.iter().any(|name| name.eq_ignore_ascii_case(host))
            || parent(host)
                .is_some_and(|parent| self.wildcard.iter().any(|name| name.eq_ignore_ascii_case(parent)))
    }

    /// The first URI name: whom a certificate of a mesh is for.
    pub fn uri(&self) -> Option<&str> {
        self.uri.as_deref()
    }

    /// Whether it has neither a DNS name nor an IP address, as a certificate of a mesh has it.
    pub const fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.ips.is_empty()
    }

    /// DNS names, without wildcards.
    pub(super) fn exact(&self) -> &[Box<str>] {
        &self.exact
    }

    /// What stands behind `*.` in the wildcards.
    pub(super) fn wildcard(&self) -> &[Box<str>] {
        &self.wildcard
    }

    /// Whether every name of `other` is one of these.
    pub(super) fn include(&self, other: &Self) -> bool {
        other.exact.iter().all(|name| self.exact.contains(name))
            && other.wildcard.iter().all(|name| self.wildcard.contains(name))
            && other.ips.iter().all(|ip| self.ips.contains(ip))
    }
}

/// In lower case and without a final dot. Allocates only where there is an upper-case letter.
pub(super) fn normal(host: &str) -> Cow<'_, str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// The name without its leftmost label, which must not be empty.
pub(super) fn parent(host: &str) -> Option<&str> {
    host.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent)
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dns: &[&str], ips: &[&str]) -> Names {
        let mut names = Names::default();
        dns.iter().for_each(|name| names.add_dns(name));
        names.ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        names
    }

    #[test]
    fn a_host_is_covered_by_its_name_in_any_case() {
        let names = names(&["A.test", "b.test."], &[]);
        for host in ["a.test", "A.TEST", "a.test.", "B.test"] {
            assert!(names.covers(host), "{host}");
        }
        for host in ["", "test", "x.a.test", "aatest", "a.test.."] {
            assert!(!names.covers(host), "{host}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label_alone() {
        let names = names(&["*.a.test", "f*.b.test", "*", "*.*.c.test"], &[]);
        assert!(names.covers("x.a.test") && names.covers("X.A.Test"));
        for host in ["a.test", ".a.test", "x.y.a.test", "foo.b.test", "any", "x.y.c.test"] {
            assert!(!names.covers(host), "{host}");
        }
    }

    #[test]
    fn addresses_are_compared_as_addresses() {
        let names = names(&["10.0.0.2", "*.0.0.3"], &["10.0.0.1", "2001:db8::1"]);
        for host in ["10.0.0.1", "2001:db8::1", "[2001:DB8:0::1]"] {
            assert!(names.covers(host), "{host}");
        }
        for host in ["10.0.0.2", "10.0.0.3", "[10.0.0.2]"] {
            assert!(!names.covers(host), "{host}: no DNS name covers an address");
        }
    }
}
