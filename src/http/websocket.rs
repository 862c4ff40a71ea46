//! The opening handshake of WebSocket (RFC 6455 §4), for where its two sides speak different versions of HTTP: in
//! HTTP/1.1 a key proves that the server means this protocol, in HTTP/2 there is none (RFC 8441 §5). Draws no keys.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// As `Upgrade` and `:protocol` name it.
pub const WEBSOCKET: &str = "websocket";
/// The one version there is (RFC 6455 §4.1).
pub const VERSION: &[u8] = b"13";
/// What an answer 426 to another version says beside its status (RFC 6455 §4.4, RFC 9110 §15.5.22).
pub const VERSION_FIELDS: [(&str, &str); 2] = [("Upgrade", WEBSOCKET), ("Sec-WebSocket-Version", "13")];
/// Bytes of a key before and after encoding.
const KEY_BYTES: usize = 16;
const KEY_TEXT_BYTES: usize = 24;

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The value of `Sec-WebSocket-Key` for a nonce.
pub fn key(nonce: u128) -> String {
    base64(&nonce.to_be_bytes())
}

/// Whether a value of `Sec-WebSocket-Key` encodes 16 bytes (RFC 6455 §4.2.1).
pub fn is_key(value: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    value.len() == KEY_TEXT_BYTES && value[..22].iter().all(is_digit) && value.ends_with(b"==")
}

/// The value of `Sec-WebSocket-Accept` that answers a key.
pub fn accept(key: &[u8]) -> String {
    base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat()).as_ref())
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

const _: () = assert!(KEY_TEXT_BYTES == KEY_BYTES.div_ceil(3) * 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648 §10.
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_key_is_answered_as_the_rfc_does() {
        // RFC 6455 §1.3.
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn our_keys_are_keys_and_others_are_not() {
        for nonce in [0, 1, u128::MAX, 0x1234_5678_9abc_def0] {
            assert!(is_key(key(nonce).as_bytes()));
        }
        for wrong in
            ["", "dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25jZQ===", "dGhlIHNhbXBsZSBub25j\u{1}Q=="]
        {
            assert!(!is_key(wrong.as_bytes()), "{wrong}");
        }
    }
}
