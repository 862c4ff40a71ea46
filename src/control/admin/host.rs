//! What browsers may ask of the admin endpoints over TCP. A page on another site can make the operator's browser connect to
//! loopback under a name of its own (DNS rebinding); it cannot make it send one of the names below. It can also have it ask
//! under one of those names, without reading the answer; browsers say so (Fetch Metadata). Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, HeaderValue, Uri, header};

/// Whether the request names this machine's loopback and nothing else: exactly one Host field, and a target that
/// agrees where it is in absolute form.
pub fn names_loopback(uri: &Uri, headers: &HeaderMap) -> bool {
    let mut fields = headers.get_all(header::HOST).iter();
    let (Some(field), None) = (fields.next(), fields.next()) else {
        return false;
    };
    let target_agrees = uri.authority().is_none_or(|authority| is_loopback(authority.as_str()));
    target_agrees && field.to_str().is_ok_and(is_loopback)
}

/// Whether a page of another site has the browser ask, for itself and not to show the answer in a window.
pub fn comes_from_another_site(headers: &HeaderMap) -> bool {
    // W3C Fetch Metadata. "none": the user typed it. Who is no browser sends neither.
    let said = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    let is_ours = matches!(said("sec-fetch-site"), None | Some(b"same-origin" | b"none"));
    !is_ours && !matches!(said("sec-fetch-dest"), Some(b"document"))
}

/// Whether `host[:port]` is `localhost`, an address of 127.0.0.0/8 or `[::1]`, with any port.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = if authority.starts_with('[') {
        match authority.split_once(']') {
            Some((host, rest)) => (&host[1..], rest),
            None => return false,
        }
    } else {
        authority.find(':').map_or((authority, ""), |colon| authority.split_at(colon))
    };
    let port_is_sound = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok() && !digits.starts_with('+'),
        None => port.is_empty(),
    };
    let address = if authority.starts_with('[') {
        host.parse::<Ipv6Addr>().map(IpAddr::V6)
    } else {
        host.parse::<Ipv4Addr>().map(IpAddr::V4)
    };
    let bracketed = authority.starts_with('[');
    let named = !bracketed && host.eq_ignore_ascii_case("localhost");
    port_is_sound && (named || address.is_ok_and(|address| address.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_let_in() {
        let table = [
            ("localhost", true),
            ("LocalHost:9901", true),
            ("127.0.0.1", true),
            ("127.0.0.1:1", true),
            ("127.1.2.3:65535", true),
            ("[::1]", true),
            ("[::1]:9901", true),
            ("", false),
            (":9901", false),
            ("localhost:", false),
            ("localhost:+80", false),
            ("localhost:65536", false),
            ("localhost:80:80", false),
            ("localhost.", false),
            ("localhost.evil.test", false),
            ("127.0.0.1.evil.test", false),
            ("evil.test", false),
            ("evil.test:9901", false),
            ("user@localhost", false),
            ("10.0.0.1", false),
            ("0.0.0.0", false),
            ("128.0.0.1", false),
            ("127.1", false),
            ("0x7f.0.0.1", false),
            ("2130706433", false),
            ("::1", false),
            ("[::1", false),
            ("[::]", false),
            ("[::1]x", false),
            ("[localhost]", false),
            ("[127.0.0.1]", false),
            ("[::ffff:127.0.0.1]", false),
        ];
        for (host, expected) in table {
            assert_eq!(is_loopback(host), expected, "{host:?}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_told_from_links_and_from_who_is_no_browser() {
        let table = [
            (None, None, false),
            (Some("none"), Some("document"), false),
            (Some("same-origin"), Some("empty"), false),
            (Some("cross-site"), Some("document"), false),
            (Some("cross-site"), Some("empty"), true),
            (Some("cross-site"), Some("iframe"), true),
            (Some("cross-site"), None, true),
            (Some("same-site"), Some("image"), true),
            (Some(""), Some("empty"), true),
        ];
        for (site, dest, expected) in table {
            let mut headers = HeaderMap::new();
            for (name, value) in [("sec-fetch-site", site), ("sec-fetch-dest", dest)] {
                if let Some(value) = value {
                    headers.append(name, HeaderValue::from_static(value));
                }
            }
            assert_eq!(comes_from_another_site(&headers), expected, "{site:?} {dest:?}");
        }
    }

    #[test]
    fn no_host_two_hosts_and_a_foreign_target_are_refused() {
        let (origin, foreign) = (Uri::from_static("/"), Uri::from_static("http://evil.test/"));
        let mut headers = HeaderMap::new();
        assert!(!names_loopback(&origin, &headers));
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(names_loopback(&origin, &headers));
        assert!(!names_loopback(&foreign, &headers));
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        assert!(!names_loopback(&origin, &headers));
    }
}
