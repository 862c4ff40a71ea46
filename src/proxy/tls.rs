//! TLS of one worker: its rustls configurations, made of what the control thread read. Never reads a file.

use std::cell::RefCell;
use std::rc::Rc;
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
    /// By listener: its name, what it offers by ALPN, and how it serves.
    servers: Vec<RefCell<Option<Rc<Server>>>>,
}

impl Tls {
    pub fn new(materials: &TlsMaterials) -> Self {
        Self {
            provider: Arc::new(tls::provider(materials.aes_is_fast)),
            ticket_keys: RefCell::new(materials.ticket_keys.clone()),
            servers: materials.listeners.iter().map(|_| RefCell::default()).collect(),
        }
    }

    /// How the listener serves TLS; `None` where it does not.
    pub fn server(&self, listener: u16) -> Option<Rc<Server>> {
        self.servers.get(usize::from(listener))?.borrow().clone()
    }

    /// Has new connections to the listener served with `material`.
    ///
    /// # Errors
    /// Where rustls refuses it; the listener goes on as before.
    pub fn set_server(
        &self,
        snapshot: &Snapshot,
        listener: u16,
        material: &Arc<ServerMaterial>,
    ) -> Result<(), rustls::Error> {
        let at = usize::from(listener);
        let (Some(spec), Some(slot)) = (snapshot.listeners.get(at), self.servers.get(at)) else {
            return Ok(());
        };
        let keys = self.ticket_keys.borrow().clone();
        let server = Server::new(&spec.name, material, &self.provider, &keys, alpn(spec.protocol))?;
        slot.replace(Some(Rc::new(server)));
        Ok(())
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

    pub fn set_ticket_keys(&self, keys: Arc<TicketKeys>) {
        for server in self.servers.iter().filter_map(|server| server.borrow().clone()) {
            server.set_ticket_keys(&keys);
        }
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
