//! Connections of one worker to the endpoints of its clusters: which endpoint gets a request, which connection
//! carries it, which are kept for the next. The most recently used connection is taken first: it is the least
//! likely to have been closed by the endpoint meanwhile. Nothing is ever read from an idle connection; one on which
//! anything arrived is dropped.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{Balancer, Member};
use crate::base::hash::hash_address;
use crate::base::random::Random;
use crate::base::time::Instant;
use crate::health::ClusterHealth;
use crate::limit::circuit::Share;
use crate::limit::retry::Budget;
use crate::metrics::shard::ClusterShard;
use crate::metrics::{ClusterCounter, ClusterGauge, ClusterHistogram};
use crate::proxy_protocol;
use crate::runtime::{Deadline, Runtime, Socket, TimedOut};
use crate::tls::{self, Client, ClientMaterial, Purpose, Session};

use super::caller::Caller;
use super::snapshot::change::{Change, Was};
use super::snapshot::{self, EndpointAddress, Snapshot};
use super::stream::{Failure, Stream, TlsStream};

mod choice;
mod circuit;
mod multiplex;
mod pending;
mod tried;
mod view;

use circuit::Queue;
pub use multiplex::{Acquired, Exchange};
use multiplex::{Making, Shared};
use pending::Pending;
use tried::Spared;
pub use tried::Tried;
pub use view::{ClusterView, EndpointView};

/// Why no connection could be had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AcquireError {
    /// The cluster has no endpoint (left to try).
    NoEndpoint,
    /// Active checks took out every endpoint (left to try).
    Unhealthy,
    /// The cluster's connections are all in use, and none became free in time.
    Busy,
    /// As many requests as the cluster takes are under way.
    TooMany,
    /// The last endpoint tried refused or was unreachable.
    Refused,
    /// The last endpoint tried did not answer within the connect deadline.
    TimedOut,
    /// The last endpoint tried was not whom it should be, or refused us, in the TLS handshake.
    Untrusted,
    /// This machine has no descriptor, port or memory for another connection. No endpoint is to blame.
    Local,
}

/// An endpoint was taken out of balancing; for the log.
#[derive(Debug)]
pub struct Ejected {
    pub cluster: Box<str>,
    pub endpoint: SocketAddr,
    pub duration: Duration,
    /// What it was ejected for.
    pub cause: &'static str,
}

/// A TLS handshake with an endpoint failed; for the log.
#[derive(Debug)]
pub struct TlsFailed {
    pub cluster: Box<str>,
    pub endpoint: SocketAddr,
    pub error: String,
}

pub struct Upstreams {
    runtime: Runtime,
    /// Those that go on are shared with the configuration before.
    clusters: Vec<Rc<Cluster>>,
    http: snapshot::HttpSpec,
    random: RefCell<Random>,
    notes: Rc<Notes>,
    /// Of what is asked of a cluster that is not there.
    nowhere: ClusterShard,
}

/// What nobody has logged yet, of every configuration.
#[derive(Default)]
struct Notes {
    /// At most `NOTES_KEPT_MAX`, all are counted.
    ejected: RefCell<Vec<Ejected>>,
    /// Handshakes that failed, as many.
    tls_failed: RefCell<Vec<TlsFailed>>,
}

/// Clusters of former configurations, looked after until nobody uses them any more.
#[derive(Default)]
pub struct Left(Vec<Weak<Cluster>>);

impl Left {
    pub fn add(&mut self, left: Self) {
        self.0.extend(left.0);
    }

    /// Closes what is idle of them: requests on their way may have opened more.
    pub fn sweep(&mut self, upstreams: &Upstreams) {
        self.0.retain(|cluster| match cluster.upgrade() {
            Some(cluster) => {
                upstreams.close_idle_of(&cluster);
                true
            }
            None => false,
        });
    }
}

/// Ejections and failed handshakes kept for the log between two looks of the worker.
const NOTES_KEPT_MAX: usize = 64;

struct Cluster {
    counts: Arc<ClusterShard>,
    spec: snapshot::Cluster,
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    /// Of these endpoints.
    balancer: RefCell<Balancer>,
    health: RefCell<ClusterHealth>,
    /// `None`: endpoints are spoken to in plaintext.
    tls: RefCell<Option<Rc<Client>>>,
    /// What that was made of.
    material: RefCell<Option<Arc<ClientMaterial>>>,
    /// No present configuration has it: nothing is kept for later.
    has_left: Cell<bool>,
    /// Changes with the certificates: a connection of an older one is not kept.
    generation: Cell<u32>,
    /// Busy and idle ones.
    connections: Cell<u32>,
    idle: Cell<u32>,
    /// Those who wait for a connection.
    pending: Pending,
    /// This worker's part of the requests that may be under way.
    requests: Share,
    budget: RefCell<Budget>,
    /// Endpoints whose floods nobody has logged yet; at most `NOTES_KEPT_MAX`, all are counted.
    floods: RefCell<Vec<SocketAddr>>,
    /// Endpoints that somebody took out of use.
    drained: RefCell<Vec<SocketAddr>>,
}

/// A connection, and the generation of the certificates that it was made with.
type Made = (Stream, u32);

struct Endpoint {
    address: SocketAddr,
    /// In its cluster; `usize::MAX` once it was taken out.
    position: Cell<usize>,
    in_flight: Cell<u32>,
    idle: RefCell<Vec<Idle>>,
    multiplexed: RefCell<Vec<Shared>>,
    /// The connection in HTTP/2 that is being made.
    connecting: RefCell<Option<Rc<Making>>>,
    /// It chose HTTP/1.1 by ALPN when it was last asked.
    speaks_http1: Cell<bool>,
    /// Streams that it refused since it last answered.
    refusals: Cell<u32>,
}

struct Idle {
    stream: Stream,
    since: Instant,
}

impl Cluster {
    fn new(
        spec: &snapshot::Cluster,
        counts: &Arc<ClusterShard>,
        addresses: Vec<SocketAddr>,
        health: ClusterHealth,
        budget: Budget,
        drained: Vec<SocketAddr>,
    ) -> Rc<Self> {
        Rc::new(Self {
            counts: counts.clone(),
            spec: spec.clone(),
            balancer: RefCell::new(balancer(spec, &addresses)),
            endpoints: RefCell::new(addresses.into_iter().enumerate().map(new_endpoint).collect()),
            health: RefCell::new(health),
            tls: RefCell::default(),
            material: RefCell::default(),
            has_left: Cell::new(false),
            generation: Cell::new(0),
            connections: Cell::new(0),
            idle: Cell::new(0),
            pending: Pending::default(),
            requests: Share::new(&spec.requests),
            budget: RefCell::new(budget),
            floods: RefCell::default(),
            drained: RefCell::new(drained),
        })
    }

    /// As it comes into a configuration. Endpoints that `before` had keep their health, those out of use
    /// stay so, and retries stay counted.
    fn begin(
        spec: &snapshot::Cluster,
        counts: &Arc<ClusterShard>,
        known: Option<&Vec<SocketAddr>>,
        before: Option<&Self>,
        now: Instant,
    ) -> Rc<Self> {
        let given = || spec.endpoints.iter().filter_map(known_address).collect();
        let addresses: Vec<SocketAddr> = known.map_or_else(given, Clone::clone);
        let mut health = ClusterHealth::new(spec.ejection, addresses.len());
        let (mut budget, mut drained) = (Budget::default(), Vec::new());
        if let Some(before) = before {
            let endpoints = before.endpoints.borrow();
            let stood = |address: &SocketAddr| endpoints.iter().position(|had| had.address == *address);
            let stood: Vec<Option<usize>> = addresses.iter().map(stood).collect();
            health = before.health.borrow().rearranged_under(spec.ejection, &stood, now);
            if spec.health_check.is_none() {
                health.set_unhealthy(0, now, |_| false);
            }
            (budget, drained) = (before.budget.borrow().clone(), before.drained.borrow().clone());
        }
        Self::new(spec, counts, addresses, health, budget, drained)
    }
}

impl Upstreams {
    /// `counts`: by cluster of the snapshot.
    pub fn new(runtime: &Runtime, counts: &[Arc<ClusterShard>], snapshot: &Snapshot, seed: u64) -> Self {
        let (clusters, now) = (snapshot.clusters.iter().zip(counts), runtime.now());
        Self {
            runtime: runtime.clone(),
            clusters: clusters.map(|(spec, counts)| Cluster::begin(spec, counts, None, None, now)).collect(),
            http: snapshot.http,
            random: RefCell::new(Random::new(!seed)),
            notes: Rc::default(),
            nowhere: ClusterShard::nowhere(),
        }
    }

    /// Those of the next configuration, and what is left of this one. Clusters that are the same go on with their
    /// connections. `known`: by cluster, addresses found for its names.
    pub fn succeeded_by(
        &self,
        snapshot: &Snapshot,
        change: &Change,
        counts: &[Arc<ClusterShard>],
        known: &[Option<Vec<SocketAddr>>],
    ) -> (Self, Left) {
        let stands = |at: u16| self.clusters.get(usize::from(at));
        let next = snapshot.clusters.iter().zip(counts).enumerate().map(|(at, (spec, counts))| {
            let before = match change.clusters.get(at) {
                Some(&Was::Same(at)) if let Some(same) = stands(at) => return same.clone(),
                Some(&Was::Other(at) | &Was::Same(at)) => stands(at),
                Some(Was::Absent) | None => None,
            };
            let known = known.get(at).and_then(Option::as_ref);
            Cluster::begin(spec, counts, known, before.map(AsRef::as_ref), self.runtime.now())
        });
        let next = Self {
            runtime: self.runtime.clone(),
            clusters: next.collect(),
            http: snapshot.http,
            random: RefCell::new(Random::new(self.random.borrow_mut().next_u64())),
            notes: self.notes.clone(),
            nowhere: ClusterShard::nowhere(),
        };
        let has_left = |cluster: &&Rc<Cluster>| !next.clusters.iter().any(|kept| Rc::ptr_eq(kept, cluster));
        let left = self.clusters.iter().filter(has_left).map(|cluster| {
            cluster.has_left.set(true);
            self.close_idle_of(cluster);
            Rc::downgrade(cluster)
        });
        let left = Left(left.collect());
        (next, left)
    }

    /// Where a cluster counts.
    pub fn counts(&self, cluster: u16) -> &ClusterShard {
        self.clusters.get(usize::from(cluster)).map_or(&self.nowhere, |cluster| &cluster.counts)
    }

    /// Whether the cluster's TLS is made of this.
    pub fn speaks_with(&self, cluster: u16, material: &Arc<ClientMaterial>) -> bool {
        let cluster = self.clusters.get(usize::from(cluster));
        let made_of = |cluster: &Rc<Cluster>| {
            cluster.material.borrow().as_ref().is_some_and(|made_of| Arc::ptr_eq(made_of, material))
        };
        cluster.is_some_and(made_of)
    }

    /// Speaks TLS to the endpoints of a cluster from now on. Idle connections are closed: they were made as, and to,
    /// whom the old certificates named.
    pub fn set_tls(&self, cluster: u16, material: &Arc<ClientMaterial>, client: Client) {
        let Some(cluster) = self.clusters.get(usize::from(cluster)) else { return };
        cluster.tls.replace(Some(Rc::new(client)));
        cluster.material.replace(Some(material.clone()));
        cluster.generation.set(cluster.generation.get() + 1);
        for endpoint in cluster.endpoints.borrow().iter() {
            self.drop_idle(cluster, endpoint, |_| false);
            endpoint.multiplexed.borrow_mut().clear();
        }
    }

    /// Handshakes that failed since the last call.
    pub fn take_tls_failed(&self) -> Vec<TlsFailed> {
        self.notes.tls_failed.take()
    }

    /// Clusters and their endpoints that flooded a connection in HTTP/2 since the last call.
    pub fn take_floods(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.clusters.iter().flat_map(|cluster| {
            cluster.floods.take().into_iter().map(|endpoint| (&*cluster.spec.name, endpoint))
        })
    }

    /// What was ejected since the last call.
    pub fn take_ejected(&self) -> Vec<Ejected> {
        self.notes.ejected.take()
    }

    /// The cluster's specification.
    pub fn spec(&self, cluster: u16) -> Option<&snapshot::Cluster> {
        self.clusters.get(usize::from(cluster)).map(|cluster| &cluster.spec)
    }

    /// Replaces the endpoints of a cluster. Those that stay keep their connections and their health.
    pub fn set_endpoints(&self, cluster: u16, addresses: &[SocketAddr]) {
        let Some(cluster) = self.clusters.get(usize::from(cluster)) else { return };
        let mut endpoints = cluster.endpoints.borrow_mut();
        let old = std::mem::take(&mut *endpoints);
        let stood = |address| old.iter().position(|endpoint| endpoint.address == address);
        let kept: Vec<Option<usize>> = addresses.iter().map(|&address| stood(address)).collect();
        for gone in old.iter().filter(|old| !addresses.contains(&old.address)) {
            gone.position.set(usize::MAX);
            self.drop_idle(cluster, gone, |_| false);
            gone.multiplexed.borrow_mut().clear();
        }
        for (position, (&address, &stood)) in addresses.iter().zip(&kept).enumerate() {
            let endpoint = stood.map_or_else(|| new_endpoint((position, address)), |at| old[at].clone());
            endpoint.position.set(position);
            endpoints.push(endpoint);
        }
        cluster.balancer.replace(balancer(&cluster.spec, addresses));
        let rearranged = cluster.health.borrow().rearranged(&kept, self.runtime.now());
        *cluster.health.borrow_mut() = rearranged;
    }

    /// A connection for one request: an idle one unless `fresh`, else a new one. Endpoints that cannot be connected
    /// to are added to `tried` and others taken, as often as the cluster allows retries.
    ///
    /// # Errors
    /// When no endpoint is left; the last failure.
    pub async fn acquire(
        &self,
        cluster: u16,
        fresh: bool,
        tried: &mut Tried,
    ) -> Result<Connection, AcquireError> {
        self.acquire_for(Purpose::Http, cluster, fresh, tried).await
    }

    /// A new connection for bytes of any protocol, as `acquire`.
    ///
    /// # Errors
    /// As `acquire`.
    pub async fn acquire_for_relay(&self, cluster: u16, caller: Caller) -> Result<Connection, AcquireError> {
        self.acquire_for(Purpose::Relay, cluster, true, &mut Tried::new(caller)).await
    }

    async fn acquire_for(
        &self,
        purpose: Purpose,
        cluster: u16,
        fresh: bool,
        tried: &mut Tried,
    ) -> Result<Connection, AcquireError> {
        let cluster = self.clusters.get(usize::from(cluster)).ok_or(AcquireError::NoEndpoint)?;
        let mut last_error = Self::nobody(cluster);
        let mut waited = false;
        let admitted = self.admit(cluster, tried)?;
        let mut queue = Queue::new(self, cluster);
        if cluster.pending.len() > 0 {
            Box::pin(queue.wait()).await?;
        }
        loop {
            let Some(endpoint) = self.pick(cluster, tried) else { return Err(last_error) };
            if !fresh && let Some(idle) = self.take_idle(cluster, &endpoint) {
                cluster.health.borrow_mut().on_request(endpoint.position.get(), self.runtime.now());
                admitted.keep();
                return Ok(self.begin(cluster, endpoint, idle, true));
            }
            if let Some(pace) = &tried.pace
                && !queue.is_in_line()
                && !std::mem::replace(&mut waited, true)
            {
                pace.pass().await;
                continue;
            }
            waited = false;
            // Idle connections to other endpoints give way to a request that needs one here.
            if cluster.connections.get() >= cluster.spec.connections_max && !self.drop_oldest_idle(cluster) {
                Box::pin(queue.wait()).await?;
                continue;
            }
            queue.leave();
            // Boxed, as is every connect: requests that find a connection must not pay for its size.
            match Box::pin(self.connect(cluster, &endpoint, purpose, &tried.caller)).await {
                Ok(made) => {
                    admitted.keep();
                    return Ok(self.begin(cluster, endpoint, made, false));
                }
                Err(AcquireError::Local) => return Err(AcquireError::Local),
                Err(error) => last_error = error,
            }
            cluster.counts.add(ClusterCounter::ConnectFailures, 1);
            self.not_connected(cluster, &endpoint, last_error);
            tried.addresses.push(endpoint.address);
            if !self.connects_again(cluster, tried) {
                return Err(last_error);
            }
        }
    }

    /// Closes idle connections that are too old or on which something happened.
    pub fn sweep(&self) {
        let now = self.runtime.now();
        for cluster in &self.clusters {
            self.judge_rates(cluster);
            for endpoint in cluster.endpoints.borrow().iter() {
                self.drop_idle(cluster, endpoint, |idle| {
                    idle.stream.is_quiet() && now.since(idle.since) < cluster.spec.idle_timeout
                });
                self.sweep_multiplexed(cluster, endpoint, false);
            }
        }
    }

    /// Closes every idle connection.
    pub fn close_idle(&self) {
        self.clusters.iter().for_each(|cluster| self.close_idle_of(cluster));
    }

    fn close_idle_of(&self, cluster: &Cluster) {
        for endpoint in cluster.endpoints.borrow().iter() {
            self.drop_idle(cluster, endpoint, |_| false);
            self.sweep_multiplexed(cluster, endpoint, true);
        }
    }

    fn take_idle(&self, cluster: &Cluster, endpoint: &Endpoint) -> Option<Made> {
        let mut idle = endpoint.idle.borrow_mut();
        while let Some(Idle { stream, .. }) = idle.pop() {
            cluster.idle.set(cluster.idle.get() - 1);
            cluster.counts.gauge_add(ClusterGauge::ConnectionsIdle, -1);
            if stream.is_quiet() {
                // Those of older certificates were closed when these came.
                return Some((stream, cluster.generation.get()));
            }
            // Bytes, an end or an error that nobody asked for: what comes next could be taken for an answer.
            cluster.freed(1);
        }
        None
    }

    fn drop_idle(&self, cluster: &Cluster, endpoint: &Endpoint, keep: impl Fn(&Idle) -> bool) {
        let mut idle = endpoint.idle.borrow_mut();
        let mut dropped = 0;
        for Idle { stream, .. } in idle.extract_if(.., |idle| !keep(idle)) {
            stream.close();
            dropped += 1;
        }
        if dropped > 0 {
            cluster.idle.set(cluster.idle.get() - dropped);
            cluster.freed(dropped);
            let gauge_delta = -i64::from(dropped);
            cluster.counts.gauge_add(ClusterGauge::ConnectionsIdle, gauge_delta);
        }
    }

    /// Makes room for one connection. `false` where none is idle.
    fn drop_oldest_idle(&self, cluster: &Cluster) -> bool {
        let endpoints = cluster.endpoints.borrow();
        let oldest = |endpoint: &&Rc<Endpoint>| endpoint.idle.borrow().first().map(|idle| idle.since);
        let Some(endpoint) =
            endpoints.iter().filter(|endpoint| oldest(endpoint).is_some()).min_by_key(oldest)
        else {
            return self.drop_oldest_idle_multiplexed(cluster);
        };
        let since = oldest(&endpoint);
        self.drop_idle(cluster, endpoint, |idle| Some(idle.since) != since);
        true
    }

    async fn connect(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        purpose: Purpose,
        caller: &Caller,
    ) -> Result<Made, AcquireError> {
        let started = self.runtime.now();
        // It may be the trial of an endpoint that was ejected.
        cluster.health.borrow_mut().on_request(endpoint.position.get(), started);
        let deadline = self.runtime.deadline();
        deadline.set(started + cluster.spec.connect_timeout);
        let _load = Load::of(endpoint);
        // Counted while it is being made, so that a burst cannot exceed the limit.
        let counted = Counted::new(cluster);
        let connected =
            deadline.within(Socket::connect(&self.runtime, endpoint.address, &cluster.spec.socket)).await;
        let result: io::Result<Socket> = connected.map_err(|_| AcquireError::TimedOut)?;
        let socket = result.map_err(|error| connect_error(&error))?;
        let socket = self.introduced(cluster, socket, purpose, caller);
        // Read together: the certificates may change during the handshake.
        let (client, generation) = (cluster.tls.borrow().clone(), cluster.generation.get());
        let stream = match client {
            None => Stream::Socket(socket),
            Some(client) => {
                let session = client.session(endpoint.address.ip(), purpose);
                self.secure(cluster, endpoint.address, session, socket, &deadline).await?
            }
        };
        counted.keep();
        let counts = &cluster.counts;
        counts.add(ClusterCounter::ConnectionsOpened, 1);
        counts.observe(ClusterHistogram::ConnectDuration, self.runtime.now().since(started));
        Ok((stream, generation))
    }

    /// Tells the endpoint whom the connection is for, if it is to be told so.
    // Takes the socket and gives it back: borrowed, it would have two places in every exchange.
    fn introduced(&self, cluster: &Cluster, socket: Socket, purpose: Purpose, caller: &Caller) -> Socket {
        let Some(version) = cluster.spec.proxy_protocol else { return socket };
        let mut header = self.runtime.take_block();
        proxy_protocol::write(&mut header, version, caller.ends.as_deref());
        // A handshake or a head follows at once; of a relay the endpoint may be the one to speak first.
        socket.send(&header, purpose != Purpose::Relay);
        self.runtime.put_block(header);
        socket
    }

    /// The TLS handshake on a new connection.
    async fn secure(
        &self,
        cluster: &Cluster,
        address: SocketAddr,
        session: Result<Session, rustls::Error>,
        socket: Socket,
        deadline: &Deadline,
    ) -> Result<Stream, AcquireError> {
        let counted = &cluster.counts;
        let session = session.map_err(|error| self.untrusted(cluster, address, tls::explain(&error)));
        let tls = TlsStream::new(&self.runtime, socket, session?);
        match deadline.within(tls.handshake(|_| {})).await {
            Ok(Ok(())) => {
                counted.add(ClusterCounter::TlsHandshakes, 1);
                Ok(Stream::Tls(tls))
            }
            Ok(Err(Failure::Protocol(error))) => Err(self.untrusted(cluster, address, tls::explain(&error))),
            Ok(Err(Failure::Closed)) => {
                Err(self.untrusted(cluster, address, "the endpoint closed the connection".into()))
            }
            Err(TimedOut) => Err(AcquireError::TimedOut),
        }
    }

    fn untrusted(&self, cluster: &Cluster, endpoint: SocketAddr, error: String) -> AcquireError {
        cluster.counts.add(ClusterCounter::TlsFailures, 1);
        let mut failed = self.notes.tls_failed.borrow_mut();
        if failed.len() < NOTES_KEPT_MAX {
            failed.push(TlsFailed { cluster: cluster.spec.name.clone(), endpoint, error });
        }
        AcquireError::Untrusted
    }

    fn begin(
        &self,
        cluster: &Rc<Cluster>,
        endpoint: Rc<Endpoint>,
        (stream, generation): Made,
        reused: bool,
    ) -> Connection {
        let counts = &cluster.counts;
        if reused {
            counts.add(ClusterCounter::ConnectionsReused, 1);
        }
        counts.gauge_add(ClusterGauge::ConnectionsActive, 1);
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
        let lease = Lease { cluster: cluster.clone(), endpoint, generation };
        Connection { stream, lease, reused }
    }

    fn not_connected(&self, cluster: &Cluster, endpoint: &Endpoint, error: AcquireError) {
        if error != AcquireError::TimedOut || !self.excuse(cluster, cluster.spec.connect_timeout) {
            self.failed(cluster, endpoint);
        }
    }

    /// Whether a deadline that has just passed says more of this worker, which stood still, than of the endpoint.
    fn excuse(&self, cluster: &Cluster, waited: Duration) -> bool {
        let excused = self.runtime.excuses(waited);
        cluster.counts.add(ClusterCounter::FailuresExcused, u64::from(excused));
        excused
    }

    /// The same for the deadline of the cluster's responses.
    pub fn excuses(&self, cluster: u16) -> bool {
        let cluster = self.clusters.get(usize::from(cluster));
        cluster.is_some_and(|cluster| self.excuse(cluster, cluster.spec.try_timeout()))
    }

    fn failed(&self, cluster: &Cluster, endpoint: &Endpoint) {
        let now = self.runtime.now();
        let verdict = cluster.health.borrow_mut().on_failure(endpoint.position.get(), now);
        self.note_ejection(cluster, endpoint.address, verdict, "consecutive failures");
    }

    /// Reports that the endpoint answered; `is_error`: with a status of 5xx.
    pub fn on_answer(&self, connection: &Connection, is_error: bool) {
        let lease = &connection.lease;
        lease.cluster.health.borrow_mut().on_answer(lease.endpoint.position.get(), is_error);
    }

    /// Reports that the endpoint broke its word: no answer in time, a broken or invalid one.
    pub fn on_failure(&self, connection: &Connection) {
        // A server of TLS 1.3 judges our certificate when our handshake is done: its refusal comes in place of an answer.
        if let Some(alert) = connection.stream.alert() {
            let (cluster, endpoint) = (&connection.lease.cluster, connection.endpoint());
            self.untrusted(cluster, endpoint, format!("the endpoint refused us: alert {alert:?}"));
        }
        self.failed(&connection.lease.cluster, &connection.lease.endpoint);
    }

    /// Keeps a connection whose exchange is complete for the next request, if there is room.
    pub fn release(&self, connection: Connection) {
        let Connection { stream, lease, .. } = connection;
        let (cluster, endpoint) = (lease.cluster.clone(), lease.endpoint.clone());
        let outdated = lease.generation != cluster.generation.get()
            || endpoint.position.get() == usize::MAX
            || cluster.has_left.get()
            || cluster.drains(endpoint.address);
        // One that was introduced as a client's must not carry what others ask.
        let is_own = cluster.spec.proxy_protocol.is_some();
        if cluster.idle.get() >= cluster.spec.idle_per_worker_max || outdated || is_own {
            stream.close();
            return;
        }
        stream.watch();
        cluster.idle.set(cluster.idle.get() + 1);
        cluster.connections.set(cluster.connections.get() + 1);
        cluster.counts.gauge_add(ClusterGauge::ConnectionsIdle, 1);
        endpoint.idle.borrow_mut().push(Idle { stream, since: self.runtime.now() });
    }
}

/// A connection in use by one exchange. Dropping it closes it.
pub struct Connection {
    pub stream: Stream,
    lease: Lease,
    /// Whether it carried an exchange before: then it may have died of idleness, and the request can be tried again.
    pub reused: bool,
}

impl Connection {
    pub fn endpoint(&self) -> SocketAddr {
        self.lease.endpoint.address
    }

    /// Where its cluster counts.
    pub fn counts(&self) -> &ClusterShard {
        &self.lease.cluster.counts
    }

    /// Closes it with RST: the endpoint must not take what it got for the whole.
    pub fn abort(self) {
        self.stream.abort();
    }
}

/// Counts one connection in use until it is dropped.
struct Lease {
    cluster: Rc<Cluster>,
    endpoint: Rc<Endpoint>,
    generation: u32,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
        self.cluster.requests.release();
        self.cluster.freed(1);
        self.cluster.counts.gauge_add(ClusterGauge::ConnectionsActive, -1);
        self.cluster.counts.gauge_add(ClusterGauge::RequestsActive, -1);
    }
}

/// Counts who waits for a connection being made as a request of the endpoint: one that takes no connections would else look
/// like the idlest of all.
struct Load<'a>(&'a Endpoint);

impl<'a> Load<'a> {
    fn of(endpoint: &'a Endpoint) -> Self {
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
        Self(endpoint)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

/// Counts one connection being made, unless it is kept.
struct Counted<'a>(Option<&'a Cluster>);

impl<'a> Counted<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.connections.set(cluster.connections.get() + 1);
        Self(Some(cluster))
    }

    /// Takes over a count that somebody kept.
    const fn adopt(cluster: &'a Cluster) -> Self {
        Self(Some(cluster))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(cluster) = self.0 {
            cluster.freed(1);
        }
    }
}

/// Whether a failed connect tells of the endpoint or of this machine.
fn connect_error(error: &io::Error) -> AcquireError {
    match error.raw_os_error() {
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::ENOSPC
            | libc::EADDRNOTAVAIL
            | libc::EAGAIN,
        ) => AcquireError::Local,
        _ => AcquireError::Refused,
    }
}

fn balancer(spec: &snapshot::Cluster, addresses: &[SocketAddr]) -> Balancer {
    let member =
        |address: &SocketAddr| Member { identity: hash_address(*address), weight: spec.weight(*address) };
    Balancer::new(&addresses.iter().map(member).collect::<Vec<_>>(), spec.hash.is_some())
}

fn known_address(endpoint: &EndpointAddress) -> Option<SocketAddr> {
    match endpoint {
        EndpointAddress::Socket(address) => Some(*address),
        EndpointAddress::Name { .. } => None,
    }
}

fn new_endpoint((position, address): (usize, SocketAddr)) -> Rc<Endpoint> {
    Rc::new(Endpoint {
        address,
        position: Cell::new(position),
        in_flight: Cell::new(0),
        idle: RefCell::default(),
        multiplexed: RefCell::default(),
        connecting: RefCell::default(),
        speaks_http1: Cell::new(false),
        refusals: Cell::new(0),
    })
}
