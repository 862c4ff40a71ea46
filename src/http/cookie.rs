//! Cookies of a request, as far as anything is decided by one (RFC 6265 §4.2.1). Never decodes a value.

use super::trim_ows;

/// The value of the first cookie of this name (in this case), as sent: quotes are part of it.
pub fn find<'b>(fields: &[httparse::Header<'b>], name: &str) -> Option<&'b [u8]> {
    let cookies = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("cookie"));
    let pairs = cookies.flat_map(|field| field.value.split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (trim_ows(&pair[..at]) == name.as_bytes()).then(|| trim_ows(&pair[at + 1..]))
    });
    values.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cookie_of_the_name_is_found() {
        let field = |name, value: &'static [u8]| httparse::Header { name, value };
        let fields = [
            field("Host", b"id=0"),
            field("Cookie", b"a=1; xid=2;id=3=x ; id=4"),
            field("cookie", b"b; c=\"5\""),
        ];
        for (name, wanted) in [
            ("a", Some(&b"1"[..])),
            ("id", Some(b"3=x")),
            ("c", Some(b"\"5\"")),
            ("b", None),
            ("ID", None),
            ("", None),
        ] {
            assert_eq!(find(&fields, name), wanted, "{name}");
        }
    }
}
