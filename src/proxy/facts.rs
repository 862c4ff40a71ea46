//! What is known of a downstream connection. Routing, policy, logs and metrics read it here; none asks a transport.

use std::net::IpAddr;

/// Facts of one downstream connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The peer's address, once somebody needed it.
    pub peer: Option<IpAddr>,
}
