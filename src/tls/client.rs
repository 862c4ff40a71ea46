//! How one worker speaks TLS to the endpoints of one cluster. Never sees a socket.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, Error};

use super::expect::EndpointVerifier;
use super::material::ClientMaterial;
use super::session::Session;
use super::spec::ServerNameSource;
use super::suites::versions;

/// What a session is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// Requests, in the version that ALPN settles.
    Http,
    /// A request in HTTP/1.1 and no other, whatever the endpoint prefers.
    Http1,
    /// Bytes of a protocol unknown to us: no ALPN, which its server might refuse.
    Relay,
}

pub struct Client {
    config: Arc<ClientConfig>,
    /// The same with HTTP/1.1 alone.
    http1: Arc<ClientConfig>,
    /// The same without ALPN.
    relay: Arc<ClientConfig>,
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
        // A resumed session would not have its endpoint judged again, and connections are kept: little is lost.
        config.resumption = Resumption::disabled();
        let relay = Arc::new(config.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = Arc::new(config.clone());
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self { config: Arc::new(config), http1, relay, server_name: spec.server_name.clone() })
    }

    /// A session towards an endpoint at `address`.
    ///
    /// # Errors
    /// Where rustls refuses the configuration.
    pub fn session(&self, address: IpAddr, purpose: Purpose) -> Result<Session, Error> {
        let config = match purpose {
            Purpose::Http => &self.config,
            Purpose::Http1 => &self.http1,
            Purpose::Relay => &self.relay,
        };
        let name = match &self.server_name {
            ServerNameSource::Fixed(name) => name.clone(),
            ServerNameSource::Address => ServerName::IpAddress(address.into()),
        };
        UnbufferedClientConnection::new(config.clone(), name).map(Session::client)
    }
}
