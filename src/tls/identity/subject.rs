//! A distinguished name as text, in the form of RFC 2253 that OpenSSL's `XN_FLAG_RFC2253` gives and Envoy forwards: last
//! part first, short names of types, all but printable ASCII escaped.

use std::fmt::Write;

use x509_parser::asn1_rs::{Any, Class, Oid, Tag, ToDer};
use x509_parser::x509::X509Name;

use crate::limits::PEER_SUBJECT_BYTES_MAX;

/// Types of attributes by object identifier, with OpenSSL's short names.
const TYPES: [(&[u64], &str); 22] = [
    (&[2, 5, 4, 3], "CN"),
    (&[2, 5, 4, 4], "SN"),
    (&[2, 5, 4, 5], "serialNumber"),
    (&[2, 5, 4, 6], "C"),
    (&[2, 5, 4, 7], "L"),
    (&[2, 5, 4, 8], "ST"),
    (&[2, 5, 4, 9], "street"),
    (&[2, 5, 4, 10], "O"),
    (&[2, 5, 4, 11], "OU"),
    (&[2, 5, 4, 12], "title"),
    (&[2, 5, 4, 13], "description"),
    (&[2, 5, 4, 15], "businessCategory"),
    (&[2, 5, 4, 17], "postalCode"),
    (&[2, 5, 4, 41], "name"),
    (&[2, 5, 4, 42], "GN"),
    (&[2, 5, 4, 43], "initials"),
    (&[2, 5, 4, 44], "generationQualifier"),
    (&[2, 5, 4, 46], "dnQualifier"),
    (&[2, 5, 4, 65], "pseudonym"),
    (&[0, 9, 2342, 19_200_300, 100, 1, 1], "UID"),
    (&[0, 9, 2342, 19_200_300, 100, 1, 25], "DC"),
    (&[1, 2, 840, 113_549, 1, 9, 1], "emailAddress"),
];

/// Empty where the text would be longer than `PEER_SUBJECT_BYTES_MAX`: half a name could be another's.
pub(super) fn text(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_rdn().collect();
    let mut out = String::new();
    for (place, part) in parts.iter().rev().enumerate() {
        let attributes: Vec<_> = part.iter().collect();
        for (within, attribute) in attributes.iter().rev().enumerate() {
            match (place, within) {
                (0, 0) => {}
                (_, 0) => out.push(','),
                _ => out.push('+'),
            }
            let known = short_name(attribute.attr_type());
            match known {
                Some(short) => out.push_str(short),
                None => out.push_str(&attribute.attr_type().to_id_string()),
            }
            out.push('=');
            // RFC 2253 §2.4: a type without a name has its value in hexadecimal.
            match known.and_then(|_| characters(attribute.attr_value())) {
                Some(value) => write_escaped(&mut out, &value),
                None => write_dump(&mut out, attribute.attr_value()),
            }
            if out.len() > PEER_SUBJECT_BYTES_MAX {
                return String::new();
            }
        }
    }
    out
}

fn short_name(oid: &Oid<'_>) -> Option<&'static str> {
    let same = |known: &[u64]| oid.iter().is_some_and(|arcs| arcs.eq(known.iter().copied()));
    TYPES.iter().find(|(known, _)| same(known)).map(|(_, short)| *short)
}

/// The characters of a value; `None` where it is no text.
fn characters(value: &Any<'_>) -> Option<String> {
    if value.class() != Class::Universal || value.header.is_constructed() {
        return None;
    }
    match value.tag() {
        Tag::Utf8String => std::str::from_utf8(value.data).ok().map(str::to_owned),
        // Of those types that are ASCII by definition, and of the old teletext, OpenSSL reads each byte as Latin-1.
        Tag::NumericString | Tag::PrintableString | Tag::Ia5String | Tag::VisibleString | Tag::T61String => {
            Some(value.data.iter().copied().map(char::from).collect())
        }
        Tag::BmpString => {
            let (units, []) = value.data.as_chunks::<2>() else { return None };
            units.iter().map(|unit| char::from_u32(u32::from(u16::from_be_bytes(*unit)))).collect()
        }
        Tag::UniversalString => {
            let (units, []) = value.data.as_chunks::<4>() else { return None };
            units.iter().map(|unit| char::from_u32(u32::from_be_bytes(*unit))).collect()
        }
        _ => None,
    }
}

/// RFC 2253 §2.4, with every byte of UTF-8 beyond ASCII and every control character in hexadecimal.
fn write_escaped(out: &mut String, value: &str) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(byte)]),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b'#' if at == 0 => out.push_str("\\#"),
            0x20..=0x7e => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

/// The whole value in DER, in hexadecimal behind `#`.
fn write_dump(out: &mut String, value: &Any<'_>) {
    out.push('#');
    // Nothing is shown of what does not go back into DER.
    let der = value.to_der_vec().unwrap_or_default();
    for byte in &der[..der.len().min(PEER_SUBJECT_BYTES_MAX)] {
        let _ = write!(out, "{byte:02X}");
    }
}
