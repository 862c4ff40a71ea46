//! Whether an endpoint is who it should be: its chain, its dates, and then its name or, where identities are expected,
//! its identity. Never asks for revocation lists: endpoints' certificates are short-lived in a mesh.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::identity::uri_names;
use super::material::ClientMaterial;
use crate::base::identity::{IdentityPattern, SpiffeId};

/// Names told of those that an endpoint presented, and of those expected: enough to see what is wrong.
const TOLD_MAX: usize = 8;

/// Judges the certificates of one cluster's endpoints.
#[derive(Debug)]
pub struct EndpointVerifier {
    roots: Arc<RootCertStore>,
    /// Empty: the name is checked.
    expected: Arc<[IdentityPattern]>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// An endpoint that is trusted, but is another than the one expected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityMismatch {
    pub expected: Arc<[IdentityPattern]>,
    /// URI names of its certificate.
    pub presented: Box<[Box<str>]>,
}

impl EndpointVerifier {
    pub fn new(material: &ClientMaterial, provider: &CryptoProvider) -> Arc<Self> {
        Arc::new(Self {
            roots: material.roots.clone(),
            expected: material.spec.expect_identity.as_slice().into(),
            algorithms: provider.signature_verification_algorithms,
        })
    }

    /// Whether one of the certificate's SPIFFE ids is expected. What is no valid id is compared with nothing.
    fn check_identity(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let presented = uri_names(leaf);
        let is_expected = |uri: &str| self.expected.iter().any(|pattern| pattern.matches(uri));
        if presented.iter().any(|uri| SpiffeId::parse(uri).is_ok() && is_expected(uri)) {
            return Ok(());
        }
        let mismatch = IdentityMismatch { expected: self.expected.clone(), presented: presented.into() };
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(mismatch)))))
    }
}

impl ServerCertVerifier for EndpointVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)?;
        if self.expected.is_empty() {
            verify_server_name(&leaf, server_name)?;
        } else {
            self.check_identity(end_entity)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Display for IdentityMismatch {
    /// `expected …, presented …`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected ")?;
        list(f, " or ", &self.expected)?;
        f.write_str(", presented ")?;
        if self.presented.is_empty() {
            return f.write_str("no identity");
        }
        let shown: Vec<_> = self.presented.iter().map(|uri| uri.escape_debug()).collect();
        list(f, " and ", &shown)
    }
}

fn list(f: &mut fmt::Formatter<'_>, between: &str, items: &[impl fmt::Display]) -> fmt::Result {
    for (index, item) in items.iter().take(TOLD_MAX).enumerate() {
        write!(f, "{}{item}", if index > 0 { between } else { "" })?;
    }
    match items.len().saturating_sub(TOLD_MAX) {
        0 => Ok(()),
        more => write!(f, "{between}{more} more"),
    }
}

impl std::error::Error for IdentityMismatch {}

impl IdentityMismatch {
    /// What of a failed handshake was a mismatch.
    pub fn of(error: &Error) -> Option<&Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
            _ => None,
        }
    }
}

/// An error of TLS for an operator, on one line; a mismatch of identities names both.
pub fn explain(error: &Error) -> String {
    IdentityMismatch::of(error)
        .map_or_else(|| error.to_string(), |mismatch| format!("another endpoint: {mismatch}"))
}

#[cfg(test)]
mod tests;
