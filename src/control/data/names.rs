//! The look-ups of all clusters with names among their endpoints, over reloads: those of clusters that ask for the same
//! names go on, with what they know.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};

use crate::control::resolve::{Answers, FIRST_LOOKUP_TIMEOUT, Names};
use crate::proxy::snapshot::{Cluster, EndpointAddress, Snapshot};

/// Look-ups under way, and what they have found.
pub(super) struct Resolving {
    found: UnboundedSender<u64>,
    changes: UnboundedReceiver<u64>,
    kept: HashMap<Box<str>, Arc<Kept>>,
    answers: Answers,
    next_number: u64,
}

/// The look-ups of one cluster. They end with the last who holds this.
struct Kept {
    number: u64,
    endpoints: Vec<EndpointAddress>,
    interval: Duration,
    known: Arc<Mutex<Option<Vec<SocketAddr>>>>,
    task: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kept {
    fn is_for(&self, cluster: &Cluster) -> bool {
        self.endpoints == cluster.endpoints && self.interval == cluster.resolve_interval
    }

    fn known(&self) -> Option<Vec<SocketAddr>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The look-ups of another snapshot, not yet in use.
pub(super) struct Fresh(HashMap<Box<str>, Arc<Kept>>);

impl Resolving {
    pub(super) fn new() -> Self {
        let (found, changes) = mpsc::unbounded_channel();
        Self { found, changes, kept: HashMap::new(), answers: Answers::default(), next_number: 0 }
    }

    /// Starts what the snapshot needs and is not under way yet. Wait for it with the second, which takes a moment.
    pub(super) fn begin(&mut self, snapshot: &Snapshot) -> (Fresh, JoinSet<()>) {
        let (mut fresh, mut first) = (HashMap::new(), JoinSet::new());
        for cluster in &snapshot.clusters {
            let same = self.kept.get(&cluster.name).filter(|kept| kept.is_for(cluster));
            let kept = match (same, Names::of(cluster, &self.answers)) {
                (Some(same), _) => same.clone(),
                (None, None) => continue,
                (None, Some(mut names)) => {
                    self.next_number += 1;
                    let (number, known) = (self.next_number, Arc::new(Mutex::new(names.begin())));
                    let (looked_up, answer) = oneshot::channel();
                    let task =
                        keep_resolving(names, number, Arc::clone(&known), self.found.clone(), looked_up);
                    first.spawn(async { drop(answer.await) });
                    Arc::new(Kept {
                        number,
                        endpoints: cluster.endpoints.clone(),
                        interval: cluster.resolve_interval,
                        known,
                        task: tokio::spawn(task).abort_handle(),
                    })
                }
            };
            fresh.insert(cluster.name.clone(), kept);
        }
        (Fresh(fresh), first)
    }

    /// Goes on with these. By cluster of the snapshot, what is known; `None` where it has no names.
    pub(super) fn go_on(&mut self, fresh: Fresh, snapshot: &Snapshot) -> Vec<Option<Vec<SocketAddr>>> {
        self.kept = fresh.0;
        let endpoints = snapshot.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        let named: HashSet<(&str, u16)> = endpoints.filter_map(EndpointAddress::name).collect();
        self.answers.retain(|host, port| named.contains(&(host, port)));
        let known = |cluster: &Cluster| {
            let kept = self.kept.get(&cluster.name)?;
            let given = cluster.endpoints.iter().filter_map(|endpoint| match endpoint {
                EndpointAddress::Socket(address) => Some(*address),
                EndpointAddress::Name { .. } => None,
            });
            Some(kept.known().unwrap_or_else(|| given.collect()))
        };
        snapshot.clusters.iter().map(known).collect()
    }

    /// Waits for a change: the cluster's name, and all its addresses.
    pub(super) async fn changed(&mut self) -> (Box<str>, Vec<SocketAddr>) {
        loop {
            // Never closed: a sender is kept here.
            let Some(number) = self.changes.recv().await else { std::future::pending().await };
            // Of one that is not in use, or not any more: what it found is taken when it comes into use.
            let of = self.kept.iter().find(|(_, kept)| kept.number == number);
            if let Some((name, addresses)) = of.and_then(|(name, kept)| Some((name.clone(), kept.known()?))) {
                return (name, addresses);
            }
        }
    }
}

/// Waits a while for the first answers.
pub(super) async fn first_answers(mut first: JoinSet<()>) {
    let all = async { while first.join_next().await.is_some() {} };
    if tokio::time::timeout(FIRST_LOOKUP_TIMEOUT, all).await.is_err() {
        tracing::warn!("names of endpoints are slow to resolve: serving goes on without them");
    }
}

async fn keep_resolving(
    mut names: Names,
    number: u64,
    known: Arc<Mutex<Option<Vec<SocketAddr>>>>,
    found: UnboundedSender<u64>,
    looked_up: oneshot::Sender<()>,
) {
    let mut looked_up = Some(looked_up);
    loop {
        let tell = |addresses| {
            *known.lock().unwrap_or_else(PoisonError::into_inner) = Some(addresses);
            let _ = found.send(number);
        };
        names.refresh(tell).await;
        looked_up.take().map(|looked_up| looked_up.send(()));
        tokio::time::sleep(names.pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn snapshot(text: &str) -> Snapshot {
        let listener = "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\n";
        let (config, _) = config::parse("names.toml", &[listener, text].concat()).unwrap();
        config.snapshot
    }

    fn cluster(name: &str, endpoint: &str, keys: &str) -> String {
        format!(
            "[[route]]\nlistener = \"web\"\npath_prefix = \"/{name}\"\ncluster = \"{name}\"\n\
             [[cluster]]\nname = \"{name}\"\nendpoints = [\"{endpoint}\"]\n{keys}\n"
        )
    }

    #[tokio::test]
    async fn look_ups_of_the_same_names_go_on_and_know_what_they_knew() {
        let mut resolving = Resolving::new();
        let fixed = cluster("fixed", "127.0.0.1:1", "");
        let old = snapshot(&[cluster("named", "localhost:7", ""), fixed.clone()].concat());
        let (fresh, first) = resolving.begin(&old);
        first_answers(first).await;
        let known = resolving.go_on(fresh, &old);
        assert!(known[0].as_ref().is_some_and(|addresses| !addresses.is_empty()), "{known:?}");
        assert_eq!(known[1], None);
        let number = resolving.kept["named"].number;

        let keys = "connect_timeout_ms = 7";
        let new = snapshot(&[fixed, cluster("named", "localhost:7", keys)].concat());
        let (fresh, mut first) = resolving.begin(&new);
        assert!(first.join_next().await.is_none(), "nothing is to be waited for");
        assert_eq!(resolving.go_on(fresh, &new), [None, known[0].clone()]);
        assert_eq!(resolving.kept["named"].number, number);

        // Looked up anew, and known all the same.
        let often = snapshot(&cluster("renamed", "localhost:7", "resolve_interval_ms = 1000"));
        let (fresh, _) = resolving.begin(&often);
        assert_eq!(fresh.0["renamed"].known(), known[0]);
        drop(fresh);

        let other = snapshot(&cluster("named", "localhost:8", ""));
        let (fresh, first) = resolving.begin(&other);
        first_answers(first).await;
        drop(fresh);
        assert_eq!(resolving.kept["named"].number, number, "refused: the old look-ups go on");
        let none = snapshot(&cluster("fixed", "127.0.0.1:1", ""));
        let (fresh, _) = resolving.begin(&none);
        resolving.go_on(fresh, &none);
        let (fresh, _) = resolving.begin(&often);
        assert_eq!(fresh.0["renamed"].known(), None, "no configuration named it meanwhile");
    }
}
