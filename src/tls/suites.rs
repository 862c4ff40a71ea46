//! Which cipher suites and groups are offered, in which order. Never asks the machine: what it is good at is an
//! argument.

use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs::kx_group};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

use super::spec::VersionMin;

/// AES-128 before AES-256: it is as far out of reach of any attack known, and on CPUs with SHA extensions but no fast
/// SHA-512 the SHA-384 of the AES-256 suites was 22 % of a handshake. ChaCha20 behind both, or first without AES in
/// hardware. Only suites with forward secrecy and authenticated encryption exist here.
const SUITES: [SupportedCipherSuite; 9] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// The hybrid with ML-KEM first, so that what is recorded today stays closed to tomorrow's quantum computers; clients
/// that lack it take X25519.
const GROUPS: [&dyn SupportedKxGroup; 4] =
    [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];

/// What both sides are configured with. `aes_is_fast`: the CPU has AES instructions.
pub fn provider(aes_is_fast: bool) -> CryptoProvider {
    let mut cipher_suites = SUITES.to_vec();
    if !aes_is_fast {
        cipher_suites.sort_by_key(|suite| !is_chacha(suite));
    }
    CryptoProvider { cipher_suites, kx_groups: GROUPS.to_vec(), ..default_provider() }
}

fn is_chacha(suite: &SupportedCipherSuite) -> bool {
    use rustls::CipherSuite as Suite;
    matches!(
        suite.suite(),
        Suite::TLS13_CHACHA20_POLY1305_SHA256
            | Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
    )
}

/// The versions spoken.
pub(super) const fn versions(min: VersionMin) -> &'static [&'static SupportedProtocolVersion] {
    static TLS12_UP: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    static TLS13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    match min {
        VersionMin::Tls12 => &TLS12_UP,
        VersionMin::Tls13 => &TLS13,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::CipherSuite;

    #[test]
    fn aes_128_is_first_where_the_cpu_has_aes_and_chacha_where_not() {
        let first = |fast| provider(fast).cipher_suites[0].suite();
        assert_eq!(first(true), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(first(false), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        assert_eq!(provider(true).cipher_suites.len(), provider(false).cipher_suites.len());
    }
}
