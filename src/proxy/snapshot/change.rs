//! What of one configuration goes on in the next: which listeners and clusters are the same, and which sockets stay.
//! Found once for all workers. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::{Cluster, Listener, Protocol, RateLimit, Snapshot};

/// From one snapshot to the next. Positions are those in the old one, by position in the new one.
#[derive(Debug, Default)]
pub struct Change {
    /// The listener whose sessions go on with this one: of the same name and address, and spoken to alike.
    pub listeners: Vec<Option<u16>>,
    /// The listener whose sockets this one accepts from: of the same address.
    pub sockets: Vec<Option<u16>>,
    pub clusters: Vec<Was>,
}

/// What a cluster was before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Was {
    /// Not there.
    Absent,
    /// There under its name, but otherwise.
    Other(u16),
    /// The same in everything but the files of its certificates.
    Same(u16),
}

impl Change {
    pub fn between(old: &Snapshot, new: &Snapshot) -> Self {
        let sockets = sockets(&old.listeners, &new.listeners);
        let goes_on = |(listener, socket): (&Listener, &Option<u16>)| {
            let before = &old.listeners[usize::from((*socket)?)];
            (before.name == listener.name && is_alike(before, listener)).then_some(*socket)?
        };
        let listeners = new.listeners.iter().zip(&sockets).map(goes_on).collect();
        let by_name: HashMap<&str, u16> =
            old.clusters.iter().map(|cluster| &*cluster.name).zip(0..).collect();
        let was = |cluster: &Cluster| match by_name.get(&*cluster.name) {
            None => Was::Absent,
            Some(&at) if old.clusters[usize::from(at)] == *cluster => Was::Same(at),
            Some(&at) => Was::Other(at),
        };
        Self { listeners, sockets, clusters: new.clusters.iter().map(was).collect() }
    }
}

/// Rate limits that stay as they were go on with what their keys have left, and limits of clusters with what is under way.
pub fn keep_budgets(old: &Snapshot, new: &mut Snapshot) {
    let by_name: HashMap<&str, &Cluster> =
        old.clusters.iter().map(|cluster| (&*cluster.name, cluster)).collect();
    for cluster in &mut new.clusters {
        if let Some(before) = by_name.get(&*cluster.name)
            && before.requests == cluster.requests
        {
            cluster.requests = before.requests.clone();
        }
    }
    for limit in &mut new.rate_limits {
        let is_same = |before: &&RateLimit| {
            (&before.name, &before.by, before.ipv6_prefix_len)
                == (&limit.name, &limit.by, limit.ipv6_prefix_len)
                && before.store.is_like(&limit.store)
        };
        if let Some(before) = old.rate_limits.iter().find(is_same) {
            limit.store = before.store.clone();
        }
    }
}

/// Whether a session of one can go on as one of the other.
fn is_alike(old: &Listener, new: &Listener) -> bool {
    let protocol = match (old.protocol, new.protocol) {
        (Protocol::Tcp { .. }, Protocol::Tcp { .. }) => true,
        (old, new) => old == new,
    };
    protocol && old.tls.is_some() == new.tls.is_some()
}

/// For each new listener, the old one of its address. Listeners whose port the kernel chose are told apart by name.
fn sockets(old: &[Listener], new: &[Listener]) -> Vec<Option<u16>> {
    fn key(listener: &Listener) -> (SocketAddr, &str) {
        let name = if listener.address.port() == 0 { &*listener.name } else { "" };
        (listener.address, name)
    }
    let by_key: HashMap<(SocketAddr, &str), u16> = old.iter().map(key).zip(0..).collect();
    new.iter().map(|listener| by_key.get(&key(listener)).copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config;

    fn snapshot(text: &str) -> Snapshot {
        let (config, _) =
            config::parse("change.toml", text).unwrap_or_else(|problems| panic!("{problems:?}"));
        config.snapshot
    }

    const HTTP: &str = "[[route]]\nlistener = \"web\"\ncluster = \"site\"\n";

    fn listener(name: &str, port: u16, keys: &str) -> String {
        format!("[[listener]]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\n{keys}\n")
    }

    fn cluster(name: &str, port: u16) -> String {
        format!("[[cluster]]\nname = \"{name}\"\nendpoints = [\"127.0.0.1:{port}\"]\n")
    }

    #[test]
    fn what_keeps_name_and_address_goes_on_wherever_it_stands() {
        let tcp = |name, port| listener(name, port, "protocol = \"tcp\"\ncluster = \"site\"");
        let web = listener("web", 8_080, "");
        let old = snapshot(&[&web, &tcp("a", 9_001), &tcp("b", 9_002), HTTP, &cluster("site", 1)].concat());
        let new = snapshot(
            &[&tcp("b", 9_002), &web, &tcp("other", 9_001), &tcp("c", 9_003), HTTP, &cluster("site", 1)]
                .concat(),
        );
        let change = Change::between(&old, &new);
        assert_eq!(change.sockets, [Some(2), Some(0), Some(1), None]);
        assert_eq!(change.listeners, [Some(2), Some(0), None, None], "another name is another listener");
        assert_eq!(change.clusters, [Was::Same(0)]);
    }

    #[test]
    fn a_listener_that_speaks_otherwise_keeps_its_socket_only() {
        let old = snapshot(&[&listener("web", 8_080, ""), HTTP, &cluster("site", 1)].concat());
        let tcp = listener("web", 8_080, "protocol = \"tcp\"\ncluster = \"site\"");
        let new = snapshot(&[tcp, cluster("site", 1)].concat());
        let change = Change::between(&old, &new);
        assert_eq!((change.sockets, change.listeners), (vec![Some(0)], vec![None]));
    }

    #[test]
    fn a_port_of_the_kernels_choice_belongs_to_its_name() {
        let old = snapshot(
            &[&listener("web", 0, ""), &listener("more", 0, ""), HTTP, &cluster("site", 1)].concat(),
        );
        let new = snapshot(
            &[&listener("more", 0, ""), &listener("web", 0, ""), HTTP, &cluster("site", 1)].concat(),
        );
        assert_eq!(Change::between(&old, &new).sockets, [Some(1), Some(0)]);
    }

    #[test]
    fn a_rate_limit_keeps_its_budgets_while_it_stays_what_it_was() {
        let limited = |requests: u32| {
            let limit =
                format!("[[rate_limit]]\nname = \"few\"\nrequests = {requests}\nperiod_ms = 3600000\n");
            let other =
                "[[rate_limit]]\nname = \"other\"\nrequests = 5\nperiod_ms = 3600000\nby = \"everybody\"\n";
            let used = "rate_limits = [\"few\", \"other\"]\n";
            snapshot(&[&limit, other, &listener("web", 8_080, ""), HTTP, used, &cluster("site", 1)].concat())
        };
        let old = limited(3);
        let shared = |new: &Snapshot| -> Vec<bool> {
            let pairs = old.rate_limits.iter().zip(&new.rate_limits);
            pairs.map(|(old, new)| Arc::ptr_eq(&old.store, &new.store)).collect()
        };
        for (requests, expected) in [(3, [true, true]), (4, [false, true])] {
            let mut new = limited(requests);
            assert_eq!(shared(&new), [false, false]);
            keep_budgets(&old, &mut new);
            assert_eq!(shared(&new), expected, "{requests} requests");
        }
    }

    #[test]
    fn a_cluster_is_the_same_only_in_everything() {
        let web = listener("web", 8_080, "") + HTTP;
        let more = "[[route]]\nlistener = \"web\"\npath_prefix = \"/x\"\ncluster = \"more\"\n";
        let old = snapshot(&[&web, more, &cluster("site", 1), &cluster("more", 2)].concat());
        let new = snapshot(&[&web, more, &cluster("more", 2), &cluster("site", 3)].concat());
        assert_eq!(Change::between(&old, &new).clusters, [Was::Same(1), Was::Other(0)]);
        let without = snapshot(&[web, cluster("site", 1)].concat());
        assert_eq!(Change::between(&without, &new).clusters, [Was::Absent, Was::Other(0)]);
    }
}
