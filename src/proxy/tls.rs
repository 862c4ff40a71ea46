//! TLS of one worker: its rustls configurations, made of what the control thread read. Never reads a file.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::tls::{self, Client, ClientMaterial, Server, ServerMaterial, TicketKeys};

use super::snapshot::{ClusterProtocol, Protocol, Snapshot};

/// What every worker's TLS is made of. Changes come by mailbox.
#[derive(Clone, Debug)]
pub struct TlsMaterials {
    /// By listener; `None` where it speaks plaintext.
    pub listeners: Vec<Option<Arc<ServerMaterial>>>,
    /// By cluster, likewise.
    pub clusters: Vec<Option<Arc<ClientMaterial>>>,
    pub ticket_keys: Arc<TicketKeys>,
    /// Whether the CPU has instructions for AES: decides which suites go first.
    pub aes_is_fast: bool,
}

impl TlsMaterials {
    /// Of a snapshot without TLS.
    ///
    /// # Errors
    /// Where the system gives no randomness.
    pub fn plaintext(snapshot: &Snapshot) -> Result<Self, tls::NoRandom> {
        Ok(Self {
            listeners: vec![None; snapshot.listeners.len()],
            clusters: vec![None; snapshot.clusters.len()],
            ticket_keys: Arc::new(TicketKeys::new()?),
            aes_is_fast: true,
        })
    }
}

pub struct Tls {
    provider: Arc<CryptoProvider>,
    ticket_keys: RefCell<Arc<TicketKeys>>,
}

impl Tls {
    pub fn new(materials: &TlsMaterials) -> Self {
        Self {
            provider: Arc::new(tls::provider(materials.aes_is_fast)),
            ticket_keys: RefCell::new(materials.ticket_keys.clone()),
        }
    }

    /// How a listener of that name and protocol serves TLS with `material`.
    ///
    /// # Errors
    /// Where rustls refuses it.
    pub fn server(
        &self,
        name: &str,
        protocol: Protocol,
        material: &Arc<ServerMaterial>,
    ) -> Result<Server, rustls::Error> {
        Server::new(name, material, &self.provider, &self.ticket_keys.borrow(), alpn(protocol))
    }

    /// How endpoints of a cluster that speaks `protocol` are spoken to with `material`.
    ///
    /// # Errors
    /// Where rustls refuses it.
    pub fn client(
        &self,
        material: &ClientMaterial,
        protocol: ClusterProtocol,
    ) -> Result<Client, rustls::Error> {
        let alpn: &[&[u8]] = match protocol {
            ClusterProtocol::Http1 => &[b"http/1.1"],
            ClusterProtocol::H2 => &[b"h2"],
            ClusterProtocol::Auto => &[b"h2", b"http/1.1"],
        };
        Client::new(material, &self.provider, alpn)
    }

    /// For the servers made from now on.
    pub fn set_ticket_keys(&self, keys: Arc<TicketKeys>) {
        self.ticket_keys.replace(keys);
    }
}

/// The protocols that sessions of a listener speak.
const fn alpn(protocol: Protocol) -> &'static [&'static [u8]] {
    match protocol {
        Protocol::Http => &[b"h2", b"http/1.1"],
        Protocol::Tcp { .. } | Protocol::TlsPassthrough => &[],
    }
}
