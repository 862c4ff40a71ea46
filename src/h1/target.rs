//! The request target in its four forms (RFC 9112 §3.2). Decides what a target is, not where it goes.

use crate::http::path::has_encoded_nul;
use crate::http::{Authority, Reject};

/// A valid request target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target<'b> {
    Origin {
        /// Starts with `/`.
        path: &'b str,
        /// What follows `?`, which may be nothing.
        query: Option<&'b str>,
    },
    Absolute {
        /// As sent: `http` or `https` in any case.
        scheme: &'b str,
        authority: Authority<'b>,
        /// Starts with `/`, or is `*` for `OPTIONS` without a path (RFC 9112 §3.2.4).
        path: &'b str,
        query: Option<&'b str>,
    },
    /// `CONNECT` only.
    Authority(Authority<'b>),
    /// `OPTIONS` only.
    Asterisk,
}

impl<'b> Target<'b> {
    /// What to route by and to forward, before normalisation. Empty for `CONNECT`.
    pub fn path(&self) -> &'b str {
        match self {
            Self::Origin { path, .. } | Self::Absolute { path, .. } => path,
            Self::Authority(_) => "",
            Self::Asterisk => "*",
        }
    }

    pub fn query(&self) -> Option<&'b str> {
        match self {
            Self::Origin { query, .. } | Self::Absolute { query, .. } => *query,
            Self::Authority(_) | Self::Asterisk => None,
        }
    }

    #[inline]
    pub(super) fn parse(text: &'b str, method: &str) -> Result<Self, Reject> {
        let seen = text.bytes().fold(0, |seen, byte| seen | TARGET_CLASSES[usize::from(byte)]);
        if seen & REFUSED != 0 {
            return Err(Reject::BAD_TARGET);
        }
        let target = if method == "CONNECT" {
            Self::parse_authority(text)
        } else if text.starts_with('/') {
            let (path, query) = split_query(text, seen);
            Some(Self::Origin { path, query })
        } else if text == "*" {
            (method == "OPTIONS").then_some(Self::Asterisk)
        } else {
            Self::parse_absolute(text, method, seen)
        };
        match target {
            Some(target) if seen & PERCENT == 0 || !has_encoded_nul(target.path().as_bytes()) => Ok(target),
            _ => Err(Reject::BAD_TARGET),
        }
    }

    /// RFC 9110 §9.3.6: host and port, both needed.
    fn parse_authority(text: &'b str) -> Option<Self> {
        Authority::parse(text.as_bytes()).filter(|authority| authority.port.is_some()).map(Self::Authority)
    }

    fn parse_absolute(text: &'b str, method: &str, seen: u8) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let authority_len = rest.bytes().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(authority_len);
        let authority = Authority::parse(authority.as_bytes())?;
        let (path, query) = split_query(rest, seen);
        let path = match path {
            "" if method == "OPTIONS" && query.is_none() => "*",
            "" => "/",
            path => path,
        };
        Some(Self::Absolute { scheme, authority, path, query })
    }
}

#[inline]
fn split_query(text: &str, seen: u8) -> (&str, Option<&str>) {
    if seen & QUESTION_MARK == 0 {
        return (text, None);
    }
    match memchr::memchr(b'?', text.as_bytes()) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// Whether `httparse` takes this byte for part of a target, for measuring one that it refused.
pub(super) fn is_target_byte(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

const REFUSED: u8 = 1;
const QUESTION_MARK: u8 = 2;
const PERCENT: u8 = 4;

static TARGET_CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            // A fragment is never sent (RFC 9112 §3.2.1), and hides what follows from rules (CVE-2023-45539).
            b'#' => REFUSED,
            // Some backends read `\` as `/`.
            b'\\' => REFUSED,
            0..=b' ' | 0x7f.. => REFUSED,
            b'?' => QUESTION_MARK,
            b'%' => PERCENT,
            _ => 0,
        };
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_split_into_their_parts() {
        let origin = Target::parse("/a/b?c=d?e", "GET").unwrap();
        assert_eq!((origin.path(), origin.query()), ("/a/b", Some("c=d?e")));
        let origin = Target::parse("/a?", "GET").unwrap();
        assert_eq!((origin.path(), origin.query()), ("/a", Some("")));
        for (text, host, path, query) in [
            ("http://a", "a", "/", None),
            ("HTTPS://a:443/b?c", "a", "/b", Some("c")),
            ("http://[::1]?q", "[::1]", "/", Some("q")),
        ] {
            let Target::Absolute { authority, path: got_path, query: got_query, .. } =
                Target::parse(text, "GET").unwrap()
            else {
                panic!("{text} is in absolute form")
            };
            assert_eq!((authority.host, got_path, got_query), (host, path, query), "{text}");
        }
    }

    #[test]
    fn options_without_a_path_is_for_the_server_itself() {
        assert_eq!(Target::parse("*", "OPTIONS"), Ok(Target::Asterisk));
        assert_eq!(Target::parse("http://a", "OPTIONS").unwrap().path(), "*");
        assert_eq!(Target::parse("http://a/", "OPTIONS").unwrap().path(), "/");
    }

    #[test]
    fn targets_of_the_wrong_form_or_with_wrong_bytes_are_refused() {
        for (method, text) in [
            ("GET", "*"),
            ("GET", "host:80"),
            ("GET", "admin"),
            ("GET", "ftp://a/"),
            ("GET", "http://"),
            ("GET", "http:///a"),
            ("GET", "http://u@a/"),
            ("GET", "http://a,b/"),
            ("GET", "/a#b"),
            ("GET", "/a\\b"),
            ("GET", "/é"),
            ("GET", "/a%00b"),
            ("CONNECT", "a"),
            ("CONNECT", "/a"),
            ("CONNECT", "http://a:80/"),
            ("CONNECT", "a:"),
        ] {
            assert_eq!(Target::parse(text, method), Err(Reject::BAD_TARGET), "{method} {text}");
        }
        assert!(Target::parse("/a?b=%00", "GET").is_ok());
    }
}
