//! Fields that most messages have, as the `h2` crate takes them, at little cost: names that are looked up by length, and of each the
//! value that it had last, shared by all messages of a worker that have the same.

use std::cell::RefCell;

use http::header::{self, HeaderName, HeaderValue};

/// Of a call's deadline.
pub(super) static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// By length. None whose values are secrets: one stays in memory.
static NAMES: [HeaderName; 21] = [
    header::DATE,
    header::ETAG,
    header::VARY,
    header::ACCEPT,
    header::SERVER,
    header::USER_AGENT,
    HeaderName::from_static("grpc-status"),
    header::CONTENT_TYPE,
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-timeout"),
    header::ACCEPT_RANGES,
    header::CACHE_CONTROL,
    header::LAST_MODIFIED,
    HeaderName::from_static("grpc-encoding"),
    header::CONTENT_LENGTH,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("grpc-accept-encoding"),
];

/// Longest value that is kept, in bytes.
const KEPT_BYTES_MAX: usize = 256;
/// Of values that differ from the one before, one in so many is kept: sharing a value costs memory of its own.
const KEPT_OF_MISSES: u32 = 16;

/// What usual fields had last in one worker.
pub struct UsualFields([RefCell<Last>; NAMES.len()]);

struct Last {
    value: HeaderValue,
    /// Values in a row that were others.
    misses: u32,
}

impl Default for UsualFields {
    fn default() -> Self {
        Self([const { RefCell::new(Last { value: HeaderValue::from_static(""), misses: 0 }) }; NAMES.len()])
    }
}

impl UsualFields {
    /// A field from its bytes. `None` where HTTP/2 has no place for it.
    pub(super) fn field(&self, name: &[u8], value: &[u8]) -> Option<(HeaderName, HeaderValue)> {
        let Some(at) = position(name) else { return plain(name, value) };
        let mut last = self.0[at].borrow_mut();
        if last.value.as_bytes() == value {
            last.misses = 0;
            return Some((NAMES[at].clone(), last.value.clone()));
        }
        let value = plain_value(value)?;
        if last.misses.is_multiple_of(KEPT_OF_MISSES) && value.len() <= KEPT_BYTES_MAX {
            last.value = value.clone();
        }
        last.misses = last.misses.wrapping_add(1);
        Some((NAMES[at].clone(), value))
    }
}

/// A field that is kept nowhere.
pub(super) fn plain(name: &[u8], value: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let name = match position(name) {
        Some(at) => NAMES[at].clone(),
        None => HeaderName::from_bytes(name).ok()?,
    };
    Some((name, plain_value(value)?))
}

/// A copy, unless it is one that most calls have. Parts of one copy of the head would cost less, and tables of HPACK would
/// hold a whole head for each value in them.
fn plain_value(value: &[u8]) -> Option<HeaderValue> {
    let known = match value {
        b"0" => "0",
        b"http" => "http",
        b"https" => "https",
        b"gzip" => "gzip",
        b"identity" => "identity",
        b"application/grpc" => "application/grpc",
        _ => return HeaderValue::from_bytes(value).ok(),
    };
    Some(HeaderValue::from_static(known))
}

/// The position of a name of a token's bytes in any case.
fn position(name: &[u8]) -> Option<usize> {
    let of_this_length = match name.len() {
        4 => 0..3,
        6 => 3..5,
        10 => 5..6,
        11 => 6..7,
        12 => 7..10,
        13 => 10..14,
        14 => 14..15,
        15 => 15..18,
        16 => 18..19,
        17 => 19..20,
        20 => 20..21,
        _ => return None,
    };
    let first = name[0] | 0x20;
    NAMES[of_this_length.clone()]
        .iter()
        .position(|known| {
            let known = known.as_str().as_bytes();
            known[0] == first && name.eq_ignore_ascii_case(known)
        })
        .map(|at| of_this_length.start + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_read_in_any_case_known_or_not() {
        assert!((0..NAMES.len()).all(|at| position(NAMES[at].as_str().as_bytes()) == Some(at)));
        let others = ["grpc-statuz", "x-a", "x-forwarded-hosu", "dates", "authorization", "cookie"];
        for name in NAMES.iter().map(HeaderName::as_str).chain(others) {
            for spelled in [name.to_owned(), name.to_ascii_uppercase()] {
                assert_eq!(plain(spelled.as_bytes(), b"1").unwrap().0, name);
            }
        }
        assert_eq!(plain(b"grpc status", b"1"), None);
    }

    #[test]
    fn a_value_that_comes_again_is_shared_and_one_that_never_does_is_seldom_kept() {
        let usual = UsualFields::default();
        let address = |value: &str| usual.field(b"Server", value.as_bytes()).unwrap().1.as_bytes().as_ptr();
        assert_eq!(address("nginx"), address("nginx"));
        assert_eq!(address("other"), address("other"), "the first other one takes its place");
        let kept = || usual.0[position(b"server").unwrap()].borrow().value.clone();
        for number in 0..100 {
            address(&number.to_string());
            assert!(number < 16 || kept() != "other");
        }
        let long = "x".repeat(KEPT_BYTES_MAX + 1);
        for _ in 0..40 {
            address(&long);
        }
        assert_ne!(kept(), long.as_str());
    }

    proptest! {
        #[test]
        fn a_field_is_what_it_was_whatever_came_before(
            fields in proptest::collection::vec((0..NAMES.len() + 1, "[ -~]{0,3}"), 0..60),
        ) {
            let usual = UsualFields::default();
            for (at, value) in fields {
                let name = NAMES.get(at).map_or("x-other", HeaderName::as_str);
                let (name, value) = (name.as_bytes(), value.as_bytes());
                prop_assert_eq!(usual.field(name, value), plain(name, value));
            }
        }
    }
}
