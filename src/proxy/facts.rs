//! What is known of a downstream connection. Routing, policy, logs and metrics read it here; none asks a transport.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::tls::{Names, PeerIdentity};

/// Facts of one downstream connection.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The peer's address, once somebody needed it.
    pub peer: Option<IpAddr>,
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
    pub fn new(tls: Option<Rc<TlsFacts>>) -> Self {
        Self { tls, ..Self::default() }
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
