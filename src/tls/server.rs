//! How one worker serves TLS on one listener: a rustls configuration of its own, so that no count of references is
//! shared between cores. Never sees a socket.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, UnbufferedServerConnection,
};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};

use super::certificates::Certificate;
use super::identity::not_after;
use super::material::ServerMaterial;
use super::session::Session;
use super::spec::MtlsMode;
use super::suites::versions;
use super::tickets::{TicketKeys, Ticketer};

pub struct Server {
    config: Arc<ServerConfig>,
    tickets: Option<Arc<DatedTickets>>,
    known: Shared,
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
        let known = Shared::default();
        let builder = match material.client_verifier.clone() {
            Some(inner) => {
                builder.with_client_cert_verifier(Arc::new(DatingVerifier { inner, known: known.clone() }))
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_cert_resolver(Arc::new(Resolver { material: material.clone(), known: known.clone() }));
        config.ignore_client_order = true;
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        // No session outlives its connection in memory: what is resumed comes with its ticket.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        let tickets = spec.session_tickets.then(|| {
            let ticketer = Ticketer::new(listener, &material.policy_digest, keys);
            Arc::new(DatedTickets { ticketer, known: known.clone() })
        });
        match &tickets {
            Some(tickets) => config.ticketer = tickets.clone(),
            None => config.send_tls13_tickets = 0,
        }
        Ok(Self { config: Arc::new(config), tickets, known, mtls: spec.mtls })
    }

    /// # Errors
    /// Where rustls refuses the configuration.
    pub fn session(&self) -> Result<Session, Error> {
        UnbufferedServerConnection::new(self.config.clone()).map(Session::server)
    }

    pub fn set_ticket_keys(&self, keys: &TicketKeys) {
        if let Some(tickets) = &self.tickets {
            tickets.ticketer.set_keys(keys);
        }
    }

    pub const fn mtls(&self) -> MtlsMode {
        self.mtls
    }

    /// Says what is known of the client whose session takes something next. rustls asks the resolver, the verifier and
    /// the ticketer without saying for which session: sessions of one worker take turns, so it is this one.
    pub fn put(&self, known: Known) {
        *locked(&self.known) = known;
    }

    /// What is known now that it has.
    pub fn take(&self) -> Known {
        std::mem::take(&mut locked(&self.known))
    }
}

/// What came out about a client during its handshake.
#[derive(Debug, Default)]
pub struct Known {
    /// The certificate that it gets, and why. That of the last ClientHello: there are two after a HelloRetryRequest.
    pub chosen: Option<Chosen>,
    now_unix_s: i64,
    /// When the certificate that it presented ends.
    client_not_after: Option<i64>,
}

impl Known {
    pub fn new(now_unix_s: i64) -> Self {
        Self { now_unix_s, ..Self::default() }
    }
}

/// Locked by its worker alone: rustls asks for types that could be shared.
type Shared = Arc<Mutex<Known>>;

fn locked(known: &Shared) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chooses the certificate, also for a session that is resumed.
struct Resolver {
    material: Arc<ServerMaterial>,
    known: Shared,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let server_name = hello.server_name();
        let certificate = self.material.certificates.choose(server_name, hello.signature_schemes())?;
        let chosen = Chosen {
            certificate: certificate.clone(),
            server_name: server_name.map(|name| name.to_ascii_lowercase().into()),
        };
        locked(&self.known).chosen = Some(chosen);
        Some(certificate.key.clone())
    }
}

/// Judges a client's certificate as the material does, and notes when it ends.
struct DatingVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    known: Shared,
}

impl ClientCertVerifier for DatingVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        locked(&self.known).client_not_after = not_after(end_entity);
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Tickets that are good for no longer than the client's certificate: a session that is resumed has it judged by nobody.
/// One that has ended makes a full handshake of it, in which the client can present its next one.
struct DatedTickets {
    ticketer: Ticketer,
    known: Shared,
}

impl ProducesTickets for DatedTickets {
    fn enabled(&self) -> bool {
        self.ticketer.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.ticketer.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let not_after = locked(&self.known).client_not_after.unwrap_or(i64::MAX);
        self.ticketer.encrypt(&[&not_after.to_be_bytes(), plain].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let plain = self.ticketer.decrypt(ticket)?;
        let (not_after, session) = plain.split_first_chunk()?;
        let not_after = i64::from_be_bytes(*not_after);
        let mut known = locked(&self.known);
        if not_after < known.now_unix_s {
            return None;
        }
        known.client_not_after = Some(not_after);
        Some(session.to_vec())
    }
}

macro_rules! opaque {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}

opaque!(Resolver, DatingVerifier, DatedTickets);
