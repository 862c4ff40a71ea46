//! Routes of listeners that pass TLS on undecrypted: what of a `[[route]]` can be seen in a ClientHello.

use super::listeners::Kind;
use super::routes::Reader;
use crate::config::node::shorten;
use crate::config::problem::Finding;
use crate::route::{Action, HostPattern};

/// Keys of a route that mean something where nothing is decrypted.
const KEYS: [&str; 6] = ["name", "listener", "hosts", "alpn", "cluster", "clusters"];
/// RFC 7301 §3.1: a length of one byte.
const PROTOCOL_BYTES_MAX: usize = 255;

impl Reader<'_, '_> {
    /// Whether what the route asks for and does can be had on the listeners it names. Tells what cannot.
    pub(super) fn suits(&mut self, listeners: &[u16], hosts: &[HostPattern]) -> bool {
        let node = self.node;
        let is = |index: &u16, kind| self.listeners.kinds.get(usize::from(*index)) == Some(&kind);
        if listeners.iter().any(|index| is(index, Kind::Unknown)) {
            return true;
        }
        let Some(passing) = listeners.iter().find(|index| is(index, Kind::Passthrough)) else {
            let Some(span) = node.key_span("alpn") else { return true };
            let what = "\"alpn\" is for listeners of protocol \"tls-passthrough\", and the route names none";
            self.error(&span, what, "remove it, or name such a listener");
            return false;
        };
        let name = shorten(self.listeners.names.at(*passing).0);
        if let Some(other) = listeners.iter().find(|index| !is(index, Kind::Passthrough)) {
            let other = shorten(self.listeners.names.at(*other).0);
            let what = format!(
                "listener \"{name}\" passes TLS on and \"{other}\" speaks HTTP: one route cannot serve both"
            );
            self.error(&node.value_span("listener"), what, "make a route for each");
            return false;
        }
        let mut suits = true;
        for (key, span) in node.keys().filter(|(key, _)| !KEYS.contains(key)) {
            let what = format!("\"{key}\" on listener \"{name}\", which decrypts nothing");
            let cure =
                "remove it: server names (hosts), alpn and a cluster are all that a route can have there";
            self.error(&span, what, cure);
            suits = false;
        }
        self.warn_addresses(hosts);
        suits
    }

    /// Whether the route leads from a listener that passes TLS on to a cluster that puts TLS of its own around what it
    /// is given: no endpoint of HTTP could take that apart. Tells it.
    pub(super) fn wraps_twice(&mut self, listeners: &[u16], action: Option<&Action>) -> bool {
        let passes =
            |index: &&u16| self.listeners.kinds.get(usize::from(**index)) == Some(&Kind::Passthrough);
        let Some(passing) = listeners.iter().find(passes) else { return false };
        let name = shorten(self.listeners.names.at(*passing).0);
        let reached: Vec<u16> = match action {
            Some(Action::Cluster(cluster)) => vec![*cluster],
            Some(Action::WeightedClusters(clusters)) => clusters.weights().map(|(index, _)| index).collect(),
            _ => Vec::new(),
        };
        let mut wraps = false;
        for cluster in reached.iter().filter_map(|index| self.clusters.get(usize::from(*index))) {
            if cluster.tls.is_none() {
                continue;
            }
            let weighted = self.node.tables("clusters");
            let weighted = weighted.iter().filter_map(|node| node.text("name"));
            let mut named = self.node.text("cluster").into_iter().chain(weighted);
            let named = named.find(|name| name.text == &*cluster.name);
            let span = named.map_or_else(|| self.node.span(), |name| name.span);
            let what = format!(
                "cluster \"{}\" has \"tls\", but listener \"{name}\" passes the clients' own TLS on",
                shorten(&cluster.name)
            );
            self.error(&span, what, "name a cluster of the same endpoints without \"tls\"");
            wraps = true;
        }
        wraps
    }

    /// An address is no server name (RFC 6066 §3), so such a host is never met.
    fn warn_addresses(&mut self, hosts: &[HostPattern]) {
        for host in hosts {
            let HostPattern::Exact(host) = host else { continue };
            if host.starts_with('[') || host.parse::<std::net::Ipv4Addr>().is_ok() {
                let what = format!("\"{host}\" matches no client: TLS sends no addresses as server names");
                let span = self.node.value_span("hosts");
                let cure = "leave hosts out to take clients that send no name";
                self.findings.push(Finding::warning(&span, what).cure(cure));
            }
        }
    }

    pub(super) fn alpn(&mut self) -> Option<Vec<Box<str>>> {
        let texts = self.node.texts("alpn");
        if texts.is_empty() && self.node.has("alpn") {
            let span = self.node.value_span("alpn");
            self.error(&span, "an empty list of protocols", "leave \"alpn\" out to take any client");
            return None;
        }
        let mut protocols: Vec<Box<str>> = Vec::new();
        let mut complete = true;
        for text in &texts {
            if !(1..=PROTOCOL_BYTES_MAX).contains(&text.text.len()) {
                let what = format!("\"{}\" is no protocol that a client can offer", shorten(text.text));
                self.error(&text.span, what, "write it as \"h2\" or \"http/1.1\"");
                complete = false;
            } else if protocols.iter().any(|other| **other == *text.text) {
                let what = format!("protocol \"{}\" is there twice", shorten(text.text));
                self.findings.push(Finding::warning(&text.span, what).cure("remove one"));
            } else {
                protocols.push(text.text.into());
            }
        }
        complete.then_some(protocols)
    }
}
