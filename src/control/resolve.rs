//! Names among the endpoints of clusters, looked up in the background and told to the workers when they change.
//! A name that cannot be looked up keeps the addresses it had.

use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use crate::limits;
use crate::proxy::snapshot::{Cluster, EndpointAddress};

/// How soon a name that failed is tried again, unless the cluster's own interval is shorter.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long the first look-up may hold up the start. Slow names go on in the background.
pub const FIRST_LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for one look-up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);
/// Look-ups of one cluster under way together: each holds a thread.
const LOOKUPS_AT_ONCE: usize = 8;
static THREADS: Semaphore = Semaphore::const_new(limits::LOOKUP_THREADS_MAX);

/// The names of one cluster and what they last resolved to.
pub struct Names {
    name: Box<str>,
    /// Addresses given as such.
    fixed: Vec<SocketAddr>,
    lookups: Vec<Lookup>,
    interval: Duration,
    told: Option<Vec<SocketAddr>>,
    answers: Answers,
}

/// What names last resolved to, whichever cluster they are of.
#[derive(Clone, Default)]
pub struct Answers(Arc<Mutex<ByName>>);

type ByName = HashMap<(Box<str>, u16), Vec<SocketAddr>>;

impl Answers {
    fn of(&self, host: &str, port: u16) -> Vec<SocketAddr> {
        self.lock().get(&(host.into(), port)).cloned().unwrap_or_default()
    }

    fn keep(&self, lookup: &Lookup) {
        self.lock().insert((lookup.host.clone(), lookup.port), lookup.addresses.clone());
    }

    /// Forgets all but these.
    pub fn retain(&self, is_used: impl Fn(&str, u16) -> bool) {
        self.lock().retain(|(host, port), _| is_used(host, *port));
    }

    fn lock(&self) -> MutexGuard<'_, ByName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lookup {
    host: Box<str>,
    port: u16,
    addresses: Vec<SocketAddr>,
    failing: bool,
}

impl Names {
    /// The names of a cluster, or `None` if all its endpoints are addresses. They keep what `answers` has of them.
    pub fn of(spec: &Cluster, answers: &Answers) -> Option<Self> {
        let (mut fixed, mut lookups) = (Vec::new(), Vec::new());
        for endpoint in &spec.endpoints {
            match endpoint {
                EndpointAddress::Socket(address) => fixed.push(*address),
                EndpointAddress::Name { host, port } => lookups.push(Lookup {
                    host: host.clone(),
                    port: *port,
                    addresses: answers.of(host, *port),
                    failing: false,
                }),
            }
        }
        let interval = spec.resolve_interval;
        let answers = answers.clone();
        (!lookups.is_empty()).then(|| Self {
            name: spec.name.clone(),
            fixed,
            lookups,
            interval,
            told: None,
            answers,
        })
    }

    /// All addresses, where some name has one before it was ever looked up here.
    pub fn begin(&mut self) -> Option<Vec<SocketAddr>> {
        let some = self.lookups.iter().any(|lookup| !lookup.addresses.is_empty());
        some.then(|| self.changed()).flatten()
    }

    /// Looks every name up, several at once, and tells all addresses of the cluster, ascending, after each answer
    /// that changed them: a name that is slow or dead keeps no other away.
    pub async fn refresh(&mut self, tell: impl FnMut(Vec<SocketAddr>)) {
        self.refresh_with(look_up, tell).await;
    }

    async fn refresh_with<F>(
        &mut self,
        look_up: impl Fn(Box<str>, u16) -> F,
        mut tell: impl FnMut(Vec<SocketAddr>),
    ) where
        F: Future<Output = Result<Vec<SocketAddr>, String>> + Send + 'static,
    {
        let mut under_way = JoinSet::new();
        let mut waiting = 0..self.lookups.len();
        loop {
            while under_way.len() < LOOKUPS_AT_ONCE
                && let Some(index) = waiting.next()
            {
                let answer = look_up(self.lookups[index].host.clone(), self.lookups[index].port);
                under_way.spawn(async move { (index, answer.await) });
            }
            let Some(answered) = under_way.join_next().await else { break };
            // No look-up is cancelled, and a panic ends the process.
            let Ok((index, result)) = answered else { continue };
            let found = result.is_ok();
            self.take(index, result);
            if found && let Some(addresses) = self.changed() {
                tell(addresses);
            }
        }
        // That there are none is only known now.
        if let Some(addresses) = self.changed() {
            tell(addresses);
        }
    }

    /// How long to wait before the next [`Self::refresh`].
    pub fn pause(&self) -> Duration {
        let failing = self.lookups.iter().any(|lookup| lookup.failing);
        if failing { self.interval.min(RETRY_INTERVAL) } else { self.interval }
    }

    fn take(&mut self, index: usize, result: Result<Vec<SocketAddr>, String>) {
        let lookup = &mut self.lookups[index];
        let error = match result {
            Ok(found) if !found.is_empty() => {
                if lookup.failing {
                    tracing::info!(cluster = &*self.name, host = &*lookup.host, "name resolves again");
                }
                (lookup.addresses, lookup.failing) = (found, false);
                self.answers.keep(lookup);
                return;
            }
            Ok(_) => "no address".to_string(),
            Err(error) => error,
        };
        // Once a failure, not once a try.
        if !std::mem::replace(&mut lookup.failing, true) {
            let kept = lookup.addresses.len();
            tracing::warn!(
                cluster = &*self.name,
                host = &*lookup.host,
                error,
                addresses_kept = kept,
                "name of an endpoint does not resolve; its last addresses stay in use and it is tried again"
            );
        }
    }

    fn changed(&mut self) -> Option<Vec<SocketAddr>> {
        let resolved = self.lookups.iter().flat_map(|lookup| &lookup.addresses);
        let all: BTreeSet<SocketAddr> = self.fixed.iter().chain(resolved).copied().collect();
        let all: Vec<SocketAddr> = all.into_iter().collect();
        if self.told.as_ref() == Some(&all) {
            return None;
        }
        self.told = Some(all.clone());
        Some(all)
    }
}

async fn look_up(host: Box<str>, port: u16) -> Result<Vec<SocketAddr>, String> {
    let answer = tokio::time::timeout(LOOKUP_TIMEOUT, on_thread(host, port)).await;
    answer.unwrap_or_else(|_| Err("no answer in time".to_string()))
}

/// On a thread of its own, as the resolver of the system blocks. Where none can be made, that is a failed look-up.
async fn on_thread(host: Box<str>, port: u16) -> Result<Vec<SocketAddr>, String> {
    let permit = THREADS.acquire().await.map_err(|error| error.to_string())?;
    let (tell, told) = oneshot::channel();
    let ask = move || {
        let found =
            (&*host, port).to_socket_addrs().map(Iterator::collect).map_err(|error| error.to_string());
        drop(permit);
        // Whoever asked may have waited for long enough.
        let _ = tell.send(found);
    };
    let thread = std::thread::Builder::new().name("look-up".into()).spawn(ask);
    thread.map_err(|error| format!("no thread can be started to look it up: {error}"))?;
    told.await.map_err(|error| error.to_string())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Notify;

    fn names(fixed: &[&str], hosts: &[&str]) -> Names {
        Names {
            name: "api".into(),
            fixed: addresses(fixed),
            lookups: hosts
                .iter()
                .map(|host| Lookup { host: (*host).into(), port: 80, addresses: Vec::new(), failing: false })
                .collect(),
            interval: Duration::from_secs(30),
            told: None,
            answers: Answers::default(),
        }
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn only_a_changed_set_is_told_whatever_its_order() {
        let mut names = names(&["10.0.0.9:80"], &["a.test"]);
        names.take(0, Ok(addresses(&["10.0.0.2:80", "10.0.0.1:80", "10.0.0.2:80"])));
        assert_eq!(names.changed(), Some(addresses(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"])));
        names.take(0, Ok(addresses(&["10.0.0.1:80", "10.0.0.2:80"])));
        assert_eq!(names.changed(), None);
        names.take(0, Ok(addresses(&["10.0.0.3:80"])));
        assert_eq!(names.changed(), Some(addresses(&["10.0.0.3:80", "10.0.0.9:80"])));
    }

    #[test]
    fn a_name_that_fails_keeps_its_addresses_and_is_tried_sooner() {
        let mut names = names(&[], &["a.test", "b.test"]);
        names.take(0, Ok(addresses(&["10.0.0.1:80"])));
        names.take(1, Err("no such name".into()));
        assert_eq!(names.changed(), Some(addresses(&["10.0.0.1:80"])));
        assert_eq!(names.pause(), RETRY_INTERVAL);
        names.take(0, Ok(Vec::new()));
        assert_eq!(names.changed(), None);
        names.take(0, Ok(addresses(&["10.0.0.1:80"])));
        names.take(1, Ok(addresses(&["10.0.0.2:80"])));
        assert_eq!(names.changed(), Some(addresses(&["10.0.0.1:80", "10.0.0.2:80"])));
        assert_eq!(names.pause(), Duration::from_secs(30));
    }

    #[test]
    fn a_cluster_that_never_resolved_is_told_as_empty_once() {
        let mut names = names(&[], &["a.test"]);
        names.take(0, Err("no such name".into()));
        assert_eq!(names.changed(), Some(Vec::new()));
        assert_eq!(names.changed(), None);
    }

    #[tokio::test]
    async fn a_name_without_an_answer_keeps_no_other_away() {
        let mut names = names(&[], &["dead.test", "b.test", "c.test"]);
        let (told, dead) = (&mut Vec::new(), Arc::new(Notify::new()));
        let look_up = |host: Box<str>, port| {
            let dead = dead.clone();
            async move {
                if &*host == "dead.test" {
                    dead.notified().await;
                    return Err("no answer in time".to_string());
                }
                Ok(vec![SocketAddr::from(([10, 0, 0, host.as_bytes()[0]], port))])
            }
        };
        let tell = |addresses: Vec<SocketAddr>| {
            if addresses.len() == 2 {
                dead.notify_one();
            }
            told.push(addresses);
        };
        let refreshed = tokio::time::timeout(Duration::from_secs(10), names.refresh_with(look_up, tell));
        refreshed.await.expect("the others are told while one has no answer");
        assert_eq!(told.last(), Some(&addresses(&["10.0.0.98:80", "10.0.0.99:80"])));
        assert_eq!(told.len(), 2);
    }

    #[tokio::test]
    async fn localhost_resolves() {
        let mut names = names(&[], &["localhost"]);
        let mut found = Vec::new();
        names.refresh(|addresses| found = addresses).await;
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
        assert!(!found.is_empty());
    }
}
