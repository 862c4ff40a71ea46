//! Active checks of endpoints: probed on the control thread, once for all workers, which get the verdicts by mailbox.
//! Probes pass no worker's door and wait for no worker. Never decides: `health::check` does.

mod probe;
mod wait;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::AbortHandle;

use crate::base::random::Random;
use crate::control::admin::State;
use crate::health::check::{CheckSpec, Checked, Outcome};
use crate::limits;
use crate::metrics::{HealthFacts, ProbeResult};
use crate::proxy::snapshot::change::{Change, Was};
use crate::proxy::snapshot::{self, EndpointAddress, Snapshot};
use crate::proxy::tls::{Tls, TlsMaterials};
use crate::sys::random;
use crate::tls::ClientMaterial;
use crate::worker::{Handle, Message};

use probe::Prober;

/// The probers of every cluster that is checked.
pub struct Health {
    /// By position in the snapshot that the workers were sent last.
    clusters: Vec<Option<Cluster>>,
    /// Clusters begun so far.
    begun: u64,
    tls: Tls,
    told: UnboundedReceiver<Told>,
    tell: UnboundedSender<Told>,
    slots: Arc<Semaphore>,
}

struct Cluster {
    /// Its position may change; this does not.
    number: u64,
    name: Box<str>,
    check: CheckSpec,
    prober: Prober,
    endpoints: HashMap<SocketAddr, Endpoint>,
    counts: Arc<Counts>,
}

/// Probes by their result, as [`ProbeResult`] counts them.
type Counts = [AtomicU64; ProbeResult::NAMES.len()];

struct Endpoint {
    /// As the workers were told.
    is_healthy: bool,
    shown: Shown,
    task: AbortHandle,
}

/// What the probes showed, for who probes the endpoint next.
#[derive(Clone)]
struct Shown(Arc<Mutex<Checked>>);

impl Shown {
    fn get(&self) -> Checked {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The verdict, if this outcome changed it.
    fn on_outcome(&self, check: &CheckSpec, outcome: Outcome) -> Option<bool> {
        let mut checked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        checked.on_outcome(check, outcome).then(|| checked.is_healthy())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A verdict that changed.
pub struct Told {
    /// Its number.
    cluster: u64,
    endpoint: SocketAddr,
    is_healthy: bool,
    /// What the last probe failed of.
    cause: String,
}

impl Health {
    /// Begins to probe the endpoints whose addresses are known. `known`: by cluster, addresses found for its names.
    pub fn start(
        snapshot: &Snapshot,
        materials: &TlsMaterials,
        known: &[Option<Vec<SocketAddr>>],
        state: &State,
    ) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let slots = Arc::new(Semaphore::new(limits::HEALTH_PROBES_AT_ONCE));
        let tls = Tls::new(materials);
        let mut health = Self { clusters: Vec::new(), begun: 0, tls, told, tell, slots };
        health.go_on(snapshot, &Change::default(), materials, known);
        health.show(state);
        health
    }

    /// Goes on with another snapshot, which the workers have just been sent, and tells them. A cluster that is the same
    /// keeps its probers; one that was changed is probed as it is now, and begins with the verdicts that there are.
    pub fn change(
        &mut self,
        snapshot: &Snapshot,
        change: &Change,
        materials: &TlsMaterials,
        known: &[Option<Vec<SocketAddr>>],
        state: &State,
        handles: &[Handle],
    ) {
        self.go_on(snapshot, change, materials, known);
        for position in 0..self.clusters.len() {
            self.tell_workers(position as u16, handles);
        }
        self.show(state);
    }

    fn go_on(
        &mut self,
        snapshot: &Snapshot,
        change: &Change,
        materials: &TlsMaterials,
        known: &[Option<Vec<SocketAddr>>],
    ) {
        let mut old = std::mem::take(&mut self.clusters);
        for (position, spec) in snapshot.clusters.iter().enumerate() {
            let mut stood = |at: u16| old.get_mut(usize::from(at)).and_then(Option::take);
            let (cluster, before) = match change.clusters.get(position) {
                Some(&Was::Same(at)) => (stood(at), None),
                Some(&Was::Other(at)) => self.begin(spec, stood(at)),
                Some(Was::Absent) | None => self.begin(spec, None),
            };
            self.clusters.push(cluster);
            let at = position as u16;
            if let Some(Some(material)) = materials.clusters.get(position) {
                self.set_tls(at, material);
            }
            let given = spec.endpoints.iter().filter_map(|endpoint| match endpoint {
                EndpointAddress::Socket(address) => Some(*address),
                EndpointAddress::Name { .. } => None,
            });
            let addresses = known.get(position).cloned().flatten().unwrap_or_else(|| given.collect());
            self.watch(at, &addresses, before.as_ref());
        }
    }

    /// The cluster as it is probed from now on, and as it was before.
    fn begin(
        &mut self,
        spec: &snapshot::Cluster,
        before: Option<Cluster>,
    ) -> (Option<Cluster>, Option<Cluster>) {
        self.begun += 1;
        let cluster = spec.health_check.clone().map(|check| Cluster {
            number: self.begun,
            name: spec.name.clone(),
            check,
            prober: Prober::new(spec),
            endpoints: HashMap::new(),
            counts: before.as_ref().map(|before| before.counts.clone()).unwrap_or_default(),
        });
        (cluster, before)
    }

    /// Speaks TLS with the endpoints of a cluster as `material` says from the next probe on.
    pub fn set_tls(&mut self, cluster: u16, material: &Arc<ClientMaterial>) {
        let Some(Some(cluster)) = self.clusters.get_mut(usize::from(cluster)) else { return };
        // Workers tell where it cannot be used.
        if let Ok(client) = self.tls.client(material, cluster.prober.protocol) {
            cluster.prober.tls.replace(Arc::new(client));
        }
    }

    /// Probes these endpoints of a cluster, and no others, and tells the workers anew: they forgot who left.
    pub fn set_endpoints(
        &mut self,
        cluster: u16,
        addresses: &[SocketAddr],
        state: &State,
        handles: &[Handle],
    ) {
        if self.watch(cluster, addresses, None) {
            self.tell_workers(cluster, handles);
            self.show(state);
        }
    }

    /// `before`: the cluster as it was. Its endpoints are not new.
    fn watch(&mut self, position: u16, addresses: &[SocketAddr], before: Option<&Cluster>) -> bool {
        let Some(Some(cluster)) = self.clusters.get_mut(usize::from(position)) else { return false };
        cluster.endpoints.retain(|address, _| addresses.contains(address));
        for &endpoint in addresses {
            if cluster.endpoints.contains_key(&endpoint) {
                continue;
            }
            let known = before.and_then(|before| before.endpoints.get(&endpoint));
            let checked = known.map_or_else(Checked::default, |known| known.shown.get());
            let (is_healthy, shown) = (checked.is_healthy(), Shown(Arc::new(Mutex::new(checked))));
            let watch = Watch {
                cluster: cluster.number,
                endpoint,
                shown: shown.clone(),
                check: cluster.check.clone(),
                prober: cluster.prober.clone(),
                counts: cluster.counts.clone(),
                slots: self.slots.clone(),
                tell: self.tell.clone(),
            };
            let task = tokio::spawn(watch.run()).abort_handle();
            cluster.endpoints.insert(endpoint, Endpoint { is_healthy, shown, task });
        }
        true
    }

    /// The next verdict that changed; for ever where nothing is checked.
    pub async fn changed(&mut self) -> Option<Told> {
        self.told.recv().await
    }

    /// Takes over a verdict: logs it, tells the workers and shows it.
    pub fn take(&mut self, told: Told, state: &State, handles: &[Handle]) {
        let is_it = |cluster: &Option<Cluster>| cluster.as_ref().is_some_and(|at| at.number == told.cluster);
        // One that is not probed any more may have said something before.
        let Some(position) = self.clusters.iter().position(is_it) else { return };
        let Some(Some(cluster)) = self.clusters.get_mut(position) else { return };
        let Some(known) = cluster.endpoints.get_mut(&told.endpoint) else { return };
        known.is_healthy = told.is_healthy;
        let (name, endpoint) = (&*cluster.name, told.endpoint);
        let healthy = cluster.endpoints.values().filter(|endpoint| endpoint.is_healthy).count();
        let of = cluster.endpoints.len();
        if told.is_healthy {
            tracing::info!(cluster = name, %endpoint, healthy, of, "endpoint healthy again: its probes pass");
        } else {
            let cause = told.cause;
            tracing::warn!(cluster = name, %endpoint, cause, healthy, of, "endpoint unhealthy: its probes fail");
        }
        self.tell_workers(position as u16, handles);
        self.show(state);
    }

    fn tell_workers(&self, position: u16, handles: &[Handle]) {
        let Some(Some(cluster)) = self.clusters.get(usize::from(position)) else { return };
        let addresses = cluster.unhealthy();
        for handle in handles {
            handle.send(Message::Unhealthy { cluster: position, addresses: addresses.clone() });
        }
    }

    fn show(&self, state: &State) {
        state.set_health(self.clusters.iter().flatten().map(Cluster::facts).collect());
    }
}

impl Cluster {
    fn unhealthy(&self) -> Vec<SocketAddr> {
        let unhealthy = self.endpoints.iter().filter(|(_, endpoint)| !endpoint.is_healthy);
        unhealthy.map(|(address, _)| *address).collect()
    }

    fn facts(&self) -> HealthFacts {
        HealthFacts {
            cluster: self.name.to_string(),
            endpoints: self.endpoints.len() as u64,
            healthy: self.endpoints.values().filter(|endpoint| endpoint.is_healthy).count() as u64,
            probes: self.counts.clone(),
        }
    }
}

/// One endpoint under watch.
struct Watch {
    cluster: u64,
    endpoint: SocketAddr,
    shown: Shown,
    check: CheckSpec,
    prober: Prober,
    counts: Arc<Counts>,
    slots: Arc<Semaphore>,
    tell: UnboundedSender<Told>,
}

impl Watch {
    async fn run(self) {
        let mut random = Random::new(random::seed());
        let mut pause = self.check.first_pause(&mut random);
        loop {
            tokio::time::sleep(pause).await;
            let (outcome, cause) = {
                // However many endpoints there are, so many probes are under way: the control thread shares a CPU.
                let Ok(_slot) = self.slots.acquire().await else { return };
                self.probe(self.check.timeout).await
            };
            let result = match outcome {
                Outcome::Passed => ProbeResult::Passed,
                Outcome::Failed => ProbeResult::Failed,
                Outcome::Excused => ProbeResult::Excused,
            };
            self.counts[result as usize].fetch_add(1, Relaxed);
            if let Some(is_healthy) = self.shown.on_outcome(&self.check, outcome) {
                let (cluster, endpoint) = (self.cluster, self.endpoint);
                let _ = self.tell.send(Told { cluster, endpoint, is_healthy, cause });
            }
            pause = self.check.pause(&mut random);
        }
    }

    /// One probe, and what it failed of.
    async fn probe(&self, timeout: Duration) -> (Outcome, String) {
        let probe = self.prober.probe(&self.check.probe, self.endpoint);
        match wait::within(timeout, probe).await {
            Ok(Ok(())) => (Outcome::Passed, String::new()),
            Ok(Err(cause)) => (Outcome::Failed, cause),
            Err(wait::Late::Prober) => (Outcome::Excused, String::new()),
            Err(wait::Late::Endpoint) => (Outcome::Failed, format!("no answer within {timeout:?}")),
        }
    }
}
