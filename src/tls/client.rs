//! How one worker speaks TLS to the endpoints of one cluster. Never sees a socket.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, Error};

use super::expect::EndpointVerifier;
use super::material::ClientMaterial;
use super::session::Session;
use super::spec::ServerNameSource;
use super::suites::versions;

pub struct Client {
    config: Arc<ClientConfig>,
    server_name: ServerNameSource,
}

impl Client {
    /// `alpn`: the protocols offered, by preference; empty where none is asked for.
    ///
    /// # Errors
    /// Where rustls refuses the combination.
    pub fn new(
        material: &ClientMaterial,
        provider: &Arc<CryptoProvider>,
        alpn: &[&[u8]],
    ) -> Result<Self, Error> {
        let spec = &material.spec;
        let verifier = EndpointVerifier::new(material, provider);
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions(spec.version_min))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &material.certificate {
            Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone()))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self { config: Arc::new(config), server_name: spec.server_name.clone() })
    }

    /// A session towards an endpoint at `address`.
    ///
    /// # Errors
    /// Where rustls refuses the configuration.
    pub fn session(&self, address: IpAddr) -> Result<Session, Error> {
        let name = match &self.server_name {
            ServerNameSource::Fixed(name) => name.clone(),
            ServerNameSource::Address => ServerName::IpAddress(address.into()),
        };
        UnbufferedClientConnection::new(self.config.clone(), name).map(Session::client)
    }
}
