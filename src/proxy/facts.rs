//! What is known of a downstream connection. Routing, policy, logs and metrics read it here; none asks a transport.

use std::net::IpAddr;

/// Facts of one downstream connection.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Position of the listener in the snapshot that accepted it.
    pub listener: u16,
    /// The peer's address, once somebody needed it.
    pub peer: Option<IpAddr>,
}

impl Facts {
    pub const fn new(listener: u16) -> Self {
        Self { listener, peer: None }
    }
}
