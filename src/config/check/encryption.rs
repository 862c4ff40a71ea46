//! `ringfort check --require-encryption`: which listeners and clusters carry plaintext. A proof for an auditor: what
//! cannot be shown to be encrypted counts as plaintext, loopback or not.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::proxy::snapshot::{Protocol, Snapshot};
use crate::route::Action;
use crate::tls::MtlsMode;

/// A listener or cluster that carries plaintext.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Plaintext {
    /// `listener` or `cluster`.
    pub kind: &'static str,
    pub name: String,
    pub why: &'static str,
    pub cure: &'static str,
}

/// All of them, in the order of the file, listeners first.
pub(super) fn plaintext(snapshot: &Snapshot) -> Vec<Plaintext> {
    let listeners = snapshot.listeners.iter().filter_map(|listener| {
        let (why, cure) = match (&listener.protocol, &listener.tls) {
            (Protocol::TlsPassthrough, _) => return None,
            (_, Some(tls)) if tls.mtls != MtlsMode::Permissive => return None,
            (_, Some(_)) => ("it takes plaintext beside TLS", "set mtls = \"strict\" or \"disable\""),
            (_, None) => ("it has no [listener.tls]", "add it, with a certificate"),
        };
        Some(Plaintext { kind: "listener", name: listener.name.to_string(), why, cure })
    });
    let reached = decrypted(snapshot);
    let clusters = (0u16..).zip(&snapshot.clusters);
    let clusters = clusters.filter(|(index, cluster)| cluster.tls.is_none() && reached.contains(index));
    let clusters = clusters.map(|(_, cluster)| Plaintext {
        kind: "cluster",
        name: cluster.name.to_string(),
        why: "it has no [cluster.tls]",
        cure: "add it; endpoints must speak TLS",
    });
    listeners.chain(clusters).collect()
}

/// Clusters that are sent what was decrypted here, or came as plaintext. What nothing refers to is sent nothing, and
/// what passes through stays as encrypted as it came.
fn decrypted(snapshot: &Snapshot) -> BTreeSet<u16> {
    let mut reached = BTreeSet::new();
    for listener in &snapshot.listeners {
        if let Protocol::Tcp { cluster } = listener.protocol {
            reached.insert(cluster);
        }
    }
    let passes_through = |index: &u16| {
        let listener = snapshot.listeners.get(usize::from(*index));
        listener.is_some_and(|listener| listener.protocol == Protocol::TlsPassthrough)
    };
    for route in snapshot.routes.routes() {
        // None named stands for all HTTP listeners.
        if !route.listeners().is_empty() && route.listeners().iter().all(passes_through) {
            continue;
        }
        match &route.action {
            Action::Cluster(cluster) => drop(reached.insert(*cluster)),
            Action::WeightedClusters(weighted) => {
                reached.extend(weighted.weights().map(|(cluster, _)| cluster))
            }
            Action::Respond(_) | Action::Redirect(_) => {}
        }
    }
    reached
}
