//! TLS as the load generator speaks it: what it offers, and what must come of it. Never accepts less: a
//! connection that was negotiated otherwise than its workload says fails the run.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    HandshakeKind, NamedGroup, ProtocolVersion, SignatureScheme, SupportedCipherSuite,
};
use serde::Serialize;

/// A server's signature is verified on one connection in so many, unless everything is to be verified: it is
/// the dearest part of a client's handshake, and the generator must not be what limits.
const SIGNATURES_VERIFIED_EVERY: u64 = 64;
/// A slot resumes from the newest ticket and never holds more than a few.
const SESSIONS_KEPT: usize = 8;

/// What a connection of the generator offers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Offer {
    /// TLS 1.3, TLS_AES_128_GCM_SHA256 and X25519, and nothing else
    Aes128,
    /// As OpenSSL 3.0: AES-256-GCM first, X25519 first, and TLS 1.2
    Openssl,
    /// The same with X25519MLKEM768 before X25519, as OpenSSL 3.5 and browsers
    Hybrid,
}

/// How the generator's connections are secured.
#[derive(Clone, Debug)]
pub struct Tls {
    pub server_name: String,
    pub offer: Offer,
    /// Each connection resumes from the one before it on its slot; the first is a full handshake. Otherwise all
    /// are full handshakes.
    pub resume: bool,
    /// Whether the server may send session tickets.
    pub tickets: bool,
    /// The only certificate to accept; `None`: any.
    pub certificate: Option<CertificateDer<'static>>,
}

/// What a handshake came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Handshake {
    version: ProtocolVersion,
    suite: CipherSuite,
    group: Option<NamedGroup>,
    kind: HandshakeKind,
}

/// What the handshakes of a run came to, in words, and how many there were in the phase measured.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Negotiated {
    pub suite: String,
    pub group: String,
    pub resumed: bool,
    pub handshakes: u64,
    pub tickets: u64,
}

impl Tls {
    /// The configuration of connections that share a store of sessions; those of `resume` need one for each
    /// slot.
    pub fn config(&self, verify_all: bool) -> io::Result<ClientConfig> {
        let provider = CryptoProvider {
            cipher_suites: self.offer.suites(),
            kx_groups: self.offer.groups(),
            ..aws_lc_rs::default_provider()
        };
        let versions = match self.offer {
            Offer::Aes128 => &[&rustls::version::TLS13][..],
            Offer::Openssl | Offer::Hybrid => rustls::ALL_VERSIONS,
        };
        let verifier = Verifier {
            certificate: self.certificate.clone(),
            algorithms: provider.signature_verification_algorithms,
            every: if verify_all { 1 } else { SIGNATURES_VERIFIED_EVERY },
            seen: AtomicU64::new(0),
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// One configuration for all slots, or one for each where sessions are resumed.
    pub fn configs(&self, slots: usize, verify_all: bool) -> io::Result<Vec<Arc<ClientConfig>>> {
        let config = self.config(verify_all)?;
        if !self.resume {
            return Ok(vec![Arc::new(config)]);
        }
        let with_store = |_| {
            let mut config = config.clone();
            config.resumption = Resumption::in_memory_sessions(SESSIONS_KEPT);
            Arc::new(config)
        };
        Ok((0..slots.max(1)).map(with_store).collect())
    }

    pub fn server_name(&self) -> io::Result<ServerName<'static>> {
        ServerName::try_from(self.server_name.clone()).map_err(io::Error::other)
    }

    /// What a handshake that has just ended came to, if that is what it should have come to.
    pub fn judge(&self, session: &ClientConnection, resumption_due: bool) -> Result<Handshake, String> {
        let handshake = Handshake::of(session).ok_or("handshake over without a suite")?;
        let Handshake { version, suite, group, kind } = handshake;
        if version != ProtocolVersion::TLSv1_3 {
            return Err(format!("{version:?} negotiated, not TLS 1.3"));
        }
        let wanted = if resumption_due { HandshakeKind::Resumed } else { HandshakeKind::Full };
        if kind != wanted {
            return Err(format!("handshake {kind:?}, not {wanted:?}"));
        }
        let offered = (CipherSuite::TLS13_AES_128_GCM_SHA256, Some(NamedGroup::X25519));
        if self.offer == Offer::Aes128 && (suite, group) != offered {
            return Err(format!("{suite:?} and {group:?} negotiated, not {offered:?}"));
        }
        Ok(handshake)
    }
}

impl Offer {
    fn suites(self) -> Vec<SupportedCipherSuite> {
        match self {
            Self::Aes128 => vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
            Self::Openssl | Self::Hybrid => vec![
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
                cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
                cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
                cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
                cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            ],
        }
    }

    fn groups(self) -> Vec<&'static dyn SupportedKxGroup> {
        match self {
            Self::Aes128 => vec![kx_group::X25519],
            Self::Openssl => vec![kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
            Self::Hybrid => {
                vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]
            }
        }
    }
}

impl Handshake {
    fn of(session: &ClientConnection) -> Option<Self> {
        Some(Self {
            version: session.protocol_version()?,
            suite: session.negotiated_cipher_suite()?.suite(),
            group: session.negotiated_key_exchange_group().map(SupportedKxGroup::name),
            kind: session.handshake_kind()?,
        })
    }

    /// Whether both chose the same suite and group.
    pub fn agrees_with(&self, other: &Self) -> bool {
        (self.suite, self.group) == (other.suite, other.group)
    }

    pub fn in_words(&self, handshakes: u64, tickets: u64) -> Negotiated {
        let suite = self.suite.as_str().unwrap_or("unknown suite").replace("TLS13_", "TLS_");
        let group = self.group.and_then(|group| group.as_str()).unwrap_or("no group").to_owned();
        Negotiated { suite, group, resumed: self.kind == HandshakeKind::Resumed, handshakes, tickets }
    }
}

/// Compares certificates instead of validating a chain: the generator knows which one there is.
#[derive(Debug)]
struct Verifier {
    certificate: Option<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    every: u64,
    seen: AtomicU64,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.certificate {
            Some(certificate) if certificate != end_entity => {
                Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 negotiated, not TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !self.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.every) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
