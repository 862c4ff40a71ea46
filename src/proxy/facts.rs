//! What is known of a downstream connection. Routing, policy, logs and metrics read it here; none asks a transport.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use crate::proxy_protocol::Addresses;
use crate::runtime::Socket;
use crate::tls::{Names, PeerIdentity};

/// Facts of one downstream connection.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The client's address, once somebody needed it: the peer's, or what a trusted proxy in front said.
    pub peer: Option<IpAddr>,
    /// The client's address and port and those that it connected to, once somebody needed them.
    ends: Option<Rc<Addresses>>,
    /// There from the end of the handshake on; `None` on a plaintext connection.
    pub tls: Option<Rc<TlsFacts>>,
    /// Whether the server name is known to be one of the certificate's.
    server_name_covered: bool,
}

/// What a TLS handshake settled.
#[derive(Clone, Debug)]
pub struct TlsFacts {
    /// As the client sent it (SNI), in lower case.
    pub server_name: Option<Box<str>>,
    /// Of the certificate that was served.
    pub certificate_names: Arc<Names>,
    /// Such as `TLSv1.3`.
    pub version: &'static str,
    /// IANA's name of the suite, such as `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// From a ticket, without certificates on the wire.
    pub resumed: bool,
    pub alpn: Option<Box<[u8]>>,
    /// Whom the client's certificate names; `None` where it presented none.
    pub identity: Option<Rc<PeerIdentity>>,
}

impl Facts {
    /// Of a connection whose client a trusted proxy in front has named.
    pub fn proxied(ends: Addresses) -> Self {
        Self { peer: Some(ends.source.ip()), ends: Some(Rc::new(ends)), ..Self::default() }
    }

    /// The client's address, asked of the kernel once a connection. `None`: the client is gone.
    pub fn learn_peer(&mut self, socket: &Socket) -> Option<IpAddr> {
        if self.peer.is_none() {
            self.peer = socket.peer_address().ok().map(|peer| peer.ip());
        }
        self.peer
    }

    /// Both ends of the connection, asked of the kernel once.
    pub fn learn_ends(&mut self, socket: &Socket) -> Option<&Rc<Addresses>> {
        if self.ends.is_none() {
            let (peer, local) = (socket.peer_address().ok()?, socket.local_address().ok()?);
            self.ends = Some(Rc::new(Addresses::new(peer, local)));
        }
        self.ends.as_ref()
    }

    /// Both ends of the connection, where somebody asked for them before.
    pub const fn ends(&self) -> Option<&Rc<Addresses>> {
        self.ends.as_ref()
    }

    /// The client's address and port as a trusted proxy in front said them, else the peer's.
    pub fn client(&self, socket: &Socket) -> Option<SocketAddr> {
        match &self.ends {
            Some(ends) => Some(ends.source),
            None => socket.peer_address().ok(),
        }
    }

    /// Of a connection in plaintext.
    pub fn of_peer(peer: Option<IpAddr>) -> Self {
        Self { peer, ..Self::default() }
    }

    /// Whether the handshake settled on HTTP/2.
    pub fn speaks_h2(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.alpn.as_deref() == Some(b"h2"))
    }

    /// How the client reached us.
    pub const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Whom the client's certificate names, where it presented one.
    pub fn identity(&self) -> Option<&PeerIdentity> {
        self.tls.as_ref()?.identity.as_deref()
    }

    /// The client's SPIFFE id.
    pub fn spiffe(&self) -> Option<&str> {
        self.identity()?.spiffe.as_deref()
    }

    /// Whether a request for this host (without port, in any case) may be answered on this connection: always in
    /// plaintext; in TLS where the certificate served has the name. Without one it is misdirected (RFC 9110 §15.5.20).
    pub fn may_answer(&mut self, host: &str) -> bool {
        let Some(tls) = &self.tls else { return true };
        // Nearly every request is for the name that the handshake was for: one comparison.
        let is_server_name = tls.server_name.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(host));
        if is_server_name && self.server_name_covered {
            return true;
        }
        // A certificate of a mesh names an identity and no host: there is nothing to judge a host by.
        let covered = tls.certificate_names.is_empty() || tls.certificate_names.covers(host);
        self.server_name_covered |= is_server_name && covered;
        covered
    }
}
