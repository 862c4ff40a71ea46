//! What of a client matters to which endpoint is chosen and to what that endpoint is told. Known once the head is judged,
//! or the connection is accepted; kept for as long as endpoints are tried.

use std::rc::Rc;

use crate::proxy_protocol::Addresses;
use crate::runtime::Socket;

use super::facts::Facts;
use super::snapshot::Cluster;

/// Whom a connection to an endpoint is for.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// What a PROXY header to the endpoint says. `None`: that the connection is our own.
    pub ends: Option<Rc<Addresses>>,
}

impl Caller {
    /// Of a request that goes to this cluster. `socket`: its connection, where the facts of it are not all known yet.
    pub fn new(spec: &Cluster, facts: &mut Facts, socket: Option<&Socket>) -> Self {
        let ends = spec.proxy_protocol.and_then(|_| match socket {
            Some(socket) => facts.learn_ends(socket).cloned(),
            None => facts.ends().cloned(),
        });
        Self { ends }
    }
}
