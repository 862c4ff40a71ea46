//! What a listener or a cluster is to do about TLS, as configured: names of files, never their content.

use std::path::PathBuf;

use rustls::pki_types::ServerName;

use crate::base::identity::IdentityPattern;

/// A chain and its key, each a PEM file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateFiles {
    /// The leaf first, then what leads to the root.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// How a listener treats clients without a certificate, in the words of Istio's `PeerAuthentication`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MtlsMode {
    /// TLS; no certificate is asked for.
    #[default]
    Disable,
    /// Plaintext, TLS and mutual TLS on one port, told apart by the first bytes. A certificate that is presented must
    /// be trusted.
    Permissive,
    /// Mutual TLS or nothing.
    Strict,
}

/// The oldest version that is spoken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum VersionMin {
    #[default]
    Tls12,
    Tls13,
}

/// `[listener.tls]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerSpec {
    /// At least one. The first is the default where no name matches.
    pub certificates: Vec<CertificateFiles>,
    pub mtls: MtlsMode,
    /// PEM bundle of the authorities that client certificates must lead to. There unless `mtls` is `Disable`.
    pub client_ca: Option<PathBuf>,
    /// PEM bundle of revocation lists of those authorities.
    pub client_crl: Option<PathBuf>,
    /// Whether a returning client may resume its session.
    pub session_tickets: bool,
    pub version_min: VersionMin,
}

/// `[cluster.tls]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientSpec {
    /// PEM bundle of the authorities that endpoints must lead to. `None`: the machine's own store.
    pub ca: Option<PathBuf>,
    /// Presented to the endpoint.
    pub certificate: Option<CertificateFiles>,
    pub server_name: ServerNameSource,
    /// Replaces the check of the name where it is not empty: one of the endpoint's SPIFFE ids must match one of these.
    pub expect_identity: Vec<IdentityPattern>,
    pub version_min: VersionMin,
}

/// The name that is sent to an endpoint (SNI) and looked for in its certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerNameSource {
    Fixed(ServerName<'static>),
    /// The endpoint's address; no name is sent.
    Address,
}
