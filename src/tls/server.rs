//! How one worker serves TLS on one listener: a rustls configuration of its own, so that no count of references is
//! shared between cores. Never sees a socket.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, UnbufferedServerConnection};
use rustls::sign::CertifiedKey;
use rustls::{Error, ServerConfig};

use super::certificates::Certificate;
use super::material::ServerMaterial;
use super::session::Session;
use super::spec::MtlsMode;
use super::suites::versions;
use super::tickets::{TicketKeys, Ticketer};

pub struct Server {
    config: Arc<ServerConfig>,
    resolver: Arc<Resolver>,
    ticketer: Option<Arc<Ticketer>>,
    mtls: MtlsMode,
}

/// What was asked for and served by the handshake at hand.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub certificate: Arc<Certificate>,
    /// Lower-case.
    pub server_name: Option<Box<str>>,
}

impl Server {
    /// `alpn`: the protocols that sessions of the listener speak, by preference; empty where the protocol is not asked
    /// about.
    ///
    /// # Errors
    /// Where rustls refuses the combination.
    pub fn new(
        listener: &str,
        material: &Arc<ServerMaterial>,
        provider: &Arc<CryptoProvider>,
        keys: &TicketKeys,
        alpn: &[&[u8]],
    ) -> Result<Self, Error> {
        let spec = &material.spec;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions(spec.version_min))?;
        let builder = match &material.client_verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let resolver = Arc::new(Resolver { material: material.clone(), chosen: Mutex::new(None) });
        let mut config = builder.with_cert_resolver(resolver.clone());
        config.ignore_client_order = true;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        // No session outlives its connection in memory: what is resumed comes with its ticket.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        let ticketer =
            spec.session_tickets.then(|| Arc::new(Ticketer::new(listener, &material.policy_digest, keys)));
        match &ticketer {
            Some(ticketer) => config.ticketer = ticketer.clone(),
            None => config.send_tls13_tickets = 0,
        }
        Ok(Self { config: Arc::new(config), resolver, ticketer, mtls: spec.mtls })
    }

    /// # Errors
    /// Where rustls refuses the configuration.
    pub fn session(&self) -> Result<Session, Error> {
        UnbufferedServerConnection::new(self.config.clone()).map(Session::server)
    }

    pub fn set_ticket_keys(&self, keys: &TicketKeys) {
        if let Some(ticketer) = &self.ticketer {
            ticketer.set_keys(keys);
        }
    }

    pub const fn mtls(&self) -> MtlsMode {
        self.mtls
    }

    /// What the ClientHello that was processed last asked for, once. To be called before any other session of this
    /// server goes on: sessions of one worker take turns.
    pub fn take_chosen(&self) -> Option<Chosen> {
        self.resolver.chosen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Chooses the certificate, also for a session that is resumed.
struct Resolver {
    material: Arc<ServerMaterial>,
    /// Locked by its worker alone: rustls asks for a type that could be shared.
    chosen: Mutex<Option<Chosen>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let server_name = hello.server_name();
        let certificate = self.material.certificates.choose(server_name, hello.signature_schemes())?;
        let chosen = Chosen {
            certificate: certificate.clone(),
            server_name: server_name.map(|name| name.to_ascii_lowercase().into()),
        };
        *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(chosen);
        Some(certificate.key.clone())
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}
