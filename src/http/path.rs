//! The one normalisation of a path. Routing and forwarding both use its result, so that a rule cannot be passed by
//! spelling a path differently. `//` and `%2f` stay as they are: only an endpoint knows what they mean to it.

use crate::http::reject::Reject;

/// Removes dot segments (RFC 3986 §5.2.4), `%2e` counting as a dot; climbing stops at the root. `%00` is refused.
/// Returns `path` itself, without a copy, where there is nothing to do.
pub fn normalize_path<'a>(path: &'a str, scratch: &'a mut String) -> Result<&'a str, Reject> {
    let bytes = path.as_bytes();
    if has_encoded_nul(bytes) {
        return Err(Reject::BAD_TARGET);
    }
    if !bytes.starts_with(b"/") || !may_have_dot_segment(bytes) {
        return Ok(path);
    }
    scratch.clear();
    scratch.reserve(path.len() + 1);
    let mut ends_in_dots = false;
    for segment in path[1..].split('/') {
        let dots = dots_of(segment.as_bytes());
        ends_in_dots = dots.is_some();
        match dots {
            Some(1) => {}
            Some(_) => scratch.truncate(scratch.rfind('/').unwrap_or(0)),
            None => {
                scratch.push('/');
                scratch.push_str(segment);
            }
        }
    }
    if ends_in_dots {
        scratch.push('/');
    }
    Ok(scratch)
}

/// Whether `%00` stands anywhere: it ends strings in C, so it means another path to half of the backends.
pub fn has_encoded_nul(path: &[u8]) -> bool {
    memchr::memchr_iter(b'%', path).any(|at| path[at + 1..].starts_with(b"00"))
}

/// False only where no segment can be made of dots: none starts with `.` or `%2e`.
fn may_have_dot_segment(path: &[u8]) -> bool {
    memchr::memchr2_iter(b'.', b'%', path)
        .any(|at| at > 0 && path[at - 1] == b'/' && (path[at] == b'.' || is_encoded_dot(&path[at..])))
}

/// 1 or 2 where the segment is `.` or `..` once decoded.
fn dots_of(mut segment: &[u8]) -> Option<u8> {
    for dots in 0..=2 {
        match segment {
            [] => return (dots > 0).then_some(dots),
            [b'.', rest @ ..] => segment = rest,
            _ if is_encoded_dot(segment) => segment = &segment[3..],
            _ => return None,
        }
    }
    None
}

fn is_encoded_dot(bytes: &[u8]) -> bool {
    matches!(bytes, [b'%', b'2', b'e' | b'E', ..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dot_segments_are_removed_also_when_encoded() {
        for (path, want) in [
            ("/a/b/../c", "/a/c"),
            ("/a/./b", "/a/b"),
            ("/a/%2e%2e/etc", "/etc"),
            ("/a/%2E./etc", "/etc"),
            ("/a/.%2e/etc", "/etc"),
            ("/../../etc/passwd", "/etc/passwd"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/.", "/"),
            ("/a//../b", "/a/b"),
            ("/a/b/%2e", "/a/b/"),
        ] {
            assert_eq!(normalize_path(path, &mut String::new()), Ok(want), "{path}");
        }
    }

    #[test]
    fn other_paths_are_returned_without_a_copy() {
        for path in ["/", "/a", "/a.b/c..d/...", "//a//b", "/a%2fb", "/.well-known/x", "/%2eb", "*", ""] {
            let mut scratch = String::new();
            assert_eq!(normalize_path(path, &mut scratch), Ok(path));
        }
        let mut scratch = String::new();
        let path = "/index.html";
        assert_eq!(normalize_path(path, &mut scratch).unwrap().as_ptr(), path.as_ptr());
    }

    #[test]
    fn encoded_nul_is_refused() {
        for path in ["/%00", "/a%00.html", "/a/../%00"] {
            assert_eq!(normalize_path(path, &mut String::new()), Err(Reject::BAD_TARGET));
        }
        assert!(normalize_path("/%0", &mut String::new()).is_ok());
    }

    proptest! {
        #[test]
        fn normal_paths_are_absolute_dotless_and_stay_so(path in "/([a.%2eE/]){0,24}") {
            let (mut first, mut second) = (String::new(), String::new());
            if let Ok(normal) = normalize_path(&path, &mut first) {
                prop_assert!(normal.starts_with('/'));
                prop_assert!(normal[1..].split('/').all(|segment| dots_of(segment.as_bytes()).is_none()));
                prop_assert_eq!(normalize_path(normal, &mut second), Ok(normal));
            }
        }
    }
}
