//! One element of `X-Forwarded-Client-Cert` as Envoy writes it: `By=…;Hash=…;Subject="…";URI=…;DNS=…`.

use std::fmt::Write;

use crate::limits::FORWARDED_CLIENT_CERT_BYTES_MAX;

/// Printable ASCII, of at most `FORWARDED_CLIENT_CERT_BYTES_MAX` bytes and what `served_as` and `spiffe` take beside.
/// Names that find no room are left out; `spiffe` always finds room.
pub(super) fn element(
    served_as: Option<&str>,
    fingerprint: &[u8; 32],
    subject: &str,
    spiffe: Option<&str>,
    uris: &[Box<str>],
    dns: &[Box<str>],
) -> String {
    let mut out = String::new();
    if let Some(uri) = served_as {
        out.push_str("By=");
        write_value(&mut out, uri);
        out.push(';');
    }
    out.push_str("Hash=");
    for byte in fingerprint {
        let _ = write!(out, "{byte:02x}");
    }
    // Always there, as is URI: Envoy's form, which readers count on. The text has its quotes escaped already.
    let _ = write!(out, ";Subject=\"{subject}\"");
    let room = out.len() + FORWARDED_CLIENT_CERT_BYTES_MAX;
    if uris.is_empty() {
        out.push_str(";URI=");
    }
    for (key, name) in uris.iter().map(|uri| (";URI=", uri)).chain(dns.iter().map(|name| (";DNS=", name))) {
        let before = out.len();
        out.push_str(key);
        write_value(&mut out, name);
        if out.len() > room && spiffe != Some(&**name) {
            out.truncate(before);
        }
    }
    out
}

/// Appends a name from a certificate. One with a separator in it is quoted, as Envoy's documentation asks (Envoy itself
/// writes names bare, so that one could pose as several elements); what is no visible ASCII is percent-encoded.
fn write_value(out: &mut String, name: &str) {
    let quoted = name.bytes().any(|byte| matches!(byte, b',' | b';' | b'=' | b'"' | b'\\'));
    if quoted {
        out.push('"');
    }
    for byte in name.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            0x21..=0x7e => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    if quoted {
        out.push('"');
    }
}
