//! Active checks of endpoints: probed on the control thread, once for all workers, which get the verdicts by mailbox.
//! Probes pass no worker's door and wait for no worker. Never decides: `health::check` does.

mod probe;
mod wait;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::AbortHandle;

use crate::base::random::Random;
use crate::control::admin::State;
use crate::health::check::{CheckSpec, Checked, Outcome};
use crate::limits;
use crate::metrics::{HealthFacts, ProbeResult};
use crate::proxy::snapshot::{self, EndpointAddress, Snapshot};
use crate::proxy::tls::{Tls, TlsMaterials};
use crate::sys::random;
use crate::tls::ClientMaterial;
use crate::worker::{Handle, Message};

use probe::Prober;

/// The probers of every cluster that is checked.
pub struct Health {
    /// By position in the snapshot.
    clusters: Vec<Option<Cluster>>,
    tls: Tls,
    told: UnboundedReceiver<Told>,
    tell: UnboundedSender<Told>,
    slots: Arc<Semaphore>,
}

struct Cluster {
    name: Box<str>,
    check: CheckSpec,
    prober: Prober,
    endpoints: HashMap<SocketAddr, Endpoint>,
    counts: Arc<Counts>,
}

/// Probes by their result, as [`ProbeResult`] counts them.
type Counts = [AtomicU64; ProbeResult::NAMES.len()];

struct Endpoint {
    is_healthy: bool,
    task: AbortHandle,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A verdict that changed.
pub struct Told {
    cluster: u16,
    endpoint: SocketAddr,
    is_healthy: bool,
    /// What the last probe failed of.
    cause: String,
}

impl Health {
    /// Begins to probe the endpoints whose addresses are known.
    pub fn start(snapshot: &Snapshot, materials: &TlsMaterials, state: &State) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let slots = Arc::new(Semaphore::new(limits::HEALTH_PROBES_AT_ONCE));
        let clusters = snapshot.clusters.iter().map(Cluster::of).collect();
        let mut health = Self { clusters, tls: Tls::new(materials), told, tell, slots };
        for (position, cluster) in (0..).zip(&snapshot.clusters) {
            if let Some(Some(material)) = materials.clusters.get(usize::from(position)) {
                health.set_tls(position, material);
            }
            let known = cluster.endpoints.iter().filter_map(|endpoint| match endpoint {
                EndpointAddress::Socket(address) => Some(*address),
                EndpointAddress::Name { .. } => None,
            });
            health.watch(position, &known.collect::<Vec<_>>());
        }
        health.show(state);
        health
    }

    /// Speaks TLS with the endpoints of a cluster as `material` says from the next probe on.
    pub fn set_tls(&mut self, cluster: u16, material: &ClientMaterial) {
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
        if self.watch(cluster, addresses) {
            self.tell_workers(cluster, handles);
            self.show(state);
        }
    }

    fn watch(&mut self, position: u16, addresses: &[SocketAddr]) -> bool {
        let Some(Some(cluster)) = self.clusters.get_mut(usize::from(position)) else { return false };
        cluster.endpoints.retain(|address, _| addresses.contains(address));
        for &endpoint in addresses {
            if cluster.endpoints.contains_key(&endpoint) {
                continue;
            }
            let watch = Watch {
                cluster: position,
                endpoint,
                check: cluster.check.clone(),
                prober: cluster.prober.clone(),
                counts: cluster.counts.clone(),
                slots: self.slots.clone(),
                tell: self.tell.clone(),
            };
            let task = tokio::spawn(watch.run()).abort_handle();
            cluster.endpoints.insert(endpoint, Endpoint { is_healthy: true, task });
        }
        true
    }

    /// The next verdict that changed; for ever where nothing is checked.
    pub async fn changed(&mut self) -> Option<Told> {
        self.told.recv().await
    }

    /// Takes over a verdict: logs it, tells the workers and shows it.
    pub fn take(&mut self, told: Told, state: &State, handles: &[Handle]) {
        let Some(Some(cluster)) = self.clusters.get_mut(usize::from(told.cluster)) else { return };
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
        self.tell_workers(told.cluster, handles);
        self.show(state);
    }

    fn tell_workers(&self, position: u16, handles: &[Handle]) {
        let Some(Some(cluster)) = self.clusters.get(usize::from(position)) else { return };
        let unhealthy = cluster.endpoints.iter().filter(|(_, endpoint)| !endpoint.is_healthy);
        let addresses: Vec<SocketAddr> = unhealthy.map(|(address, _)| *address).collect();
        for handle in handles {
            handle.send(Message::Unhealthy { cluster: position, addresses: addresses.clone() });
        }
    }

    fn show(&self, state: &State) {
        state.set_health(self.clusters.iter().flatten().map(Cluster::facts).collect());
    }
}

impl Cluster {
    fn of(spec: &snapshot::Cluster) -> Option<Self> {
        let check = spec.health_check.clone()?;
        let (name, prober) = (spec.name.clone(), Prober::new(spec));
        Some(Self { name, check, prober, endpoints: HashMap::new(), counts: Arc::default() })
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
    cluster: u16,
    endpoint: SocketAddr,
    check: CheckSpec,
    prober: Prober,
    counts: Arc<Counts>,
    slots: Arc<Semaphore>,
    tell: UnboundedSender<Told>,
}

impl Watch {
    async fn run(self) {
        let mut random = Random::new(random::seed());
        let mut checked = Checked::default();
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
            if checked.on_outcome(&self.check, outcome) {
                let (cluster, endpoint, is_healthy) = (self.cluster, self.endpoint, checked.is_healthy());
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
