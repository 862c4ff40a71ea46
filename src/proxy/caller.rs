//! What of a client matters to which endpoint is chosen and to what that endpoint is told. Known once the head is judged,
//! or the connection is accepted; kept for as long as endpoints are tried.

use std::rc::Rc;

use crate::base::hash::{hash, hash_ip};
use crate::h1::RequestHead;
use crate::http::cookie;
use crate::proxy_protocol::Addresses;
use crate::runtime::Socket;

use super::facts::Facts;
use super::snapshot::{Cluster, HashKey};

/// Whom a connection to an endpoint is for.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Says which endpoint it belongs to, where the cluster hashes.
    pub key: Option<u64>,
    /// What a PROXY header to the endpoint says. `None`: that the connection is our own.
    pub ends: Option<Rc<Addresses>>,
}

impl Caller {
    /// Of a request that goes to this cluster. `socket`: its connection, where the facts of it are not all known yet.
    pub fn of_request(
        spec: &Cluster,
        facts: &mut Facts,
        socket: Option<&Socket>,
        head: &RequestHead<'_, '_>,
        path: &str,
    ) -> Self {
        let mut caller = Self::of_connection(spec, facts, socket);
        match &spec.hash {
            None | Some(HashKey::ClientAddress) => {}
            Some(HashKey::Path) => caller.key = Some(hash(path.as_bytes())),
            Some(HashKey::Field(name)) => caller.key = head.field(name).map(hash),
            Some(HashKey::Cookie(name)) => caller.key = cookie::find(head.fields(), name).map(hash),
        }
        caller
    }

    /// Of a connection whose bytes are relayed: all that there is to hash is its client's address.
    pub fn of_connection(spec: &Cluster, facts: &mut Facts, socket: Option<&Socket>) -> Self {
        let ends = spec.proxy_protocol.and_then(|_| match socket {
            Some(socket) => facts.learn_ends(socket).cloned(),
            None => facts.ends().cloned(),
        });
        let key = match (&spec.hash, socket) {
            (Some(HashKey::ClientAddress), Some(socket)) => facts.learn_peer(socket).map(hash_ip),
            (Some(HashKey::ClientAddress), None) => facts.peer.map(hash_ip),
            _ => None,
        };
        Self { key, ends }
    }
}
