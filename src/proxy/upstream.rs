//! Connections of one worker to the endpoints of its clusters: which endpoint gets a request, which connection
//! carries it, which are kept for the next. The most recently used connection is taken first: it is the least
//! likely to have been closed by the endpoint meanwhile. Nothing is ever read from an idle connection; one on which
//! anything arrived is dropped.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{self, Candidate};
use crate::base::random::Random;
use crate::base::time::Instant;
use crate::health::{ClusterHealth, Verdict};
use crate::metrics::{ClusterCounter, ClusterGauge, ClusterHistogram, Shard};
use crate::runtime::{Deadline, Runtime, Socket, TimedOut};
use crate::tls::{self, Client, Purpose, Session};

use super::snapshot::{self, EndpointAddress, Snapshot};
use super::stream::{Failure, Stream, TlsStream};
use super::turnstile::Turnstile;

mod multiplex;
mod view;

pub use multiplex::{Acquired, Exchange};
use multiplex::{Avoided, Making, Shared};
pub use view::{ClusterView, EndpointView};

/// Why no connection could be had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AcquireError {
    /// The cluster has no endpoint (left to try).
    NoEndpoint,
    /// The cluster's connections are all in use.
    Busy,
    /// The last endpoint tried refused or was unreachable.
    Refused,
    /// The last endpoint tried did not answer within the connect deadline.
    TimedOut,
    /// The last endpoint tried was not whom it should be, or refused us, in the TLS handshake.
    Untrusted,
    /// This machine has no descriptor, port or memory for another connection. No endpoint is to blame.
    Local,
}

/// Endpoints that failed for one request. Owns memory only once one did.
#[derive(Default)]
pub struct Tried {
    addresses: Vec<SocketAddr>,
    /// Those with which nothing is wrong.
    spared: Vec<(SocketAddr, Spared)>,
    avoided: Avoided,
    /// What a new connection waits for.
    pace: Option<Turnstile>,
}

impl Tried {
    /// Of a request that is one of many that come at once.
    pub fn paced(pace: &Turnstile) -> Self {
        Self { pace: Some(pace.clone()), ..Self::default() }
    }
}

/// Why an endpoint is not asked now.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Spared {
    /// It did not begin the request: asked again only where there is no other.
    Refused,
    /// It has no room at present.
    Full,
}

/// An endpoint was taken out of balancing; for the log.
#[derive(Debug)]
pub struct Ejected {
    pub cluster: Box<str>,
    pub endpoint: SocketAddr,
    pub duration: Duration,
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
    shard: Arc<Shard>,
    clusters: Vec<Rc<Cluster>>,
    http: snapshot::HttpSpec,
    random: RefCell<Random>,
    /// Ejections nobody has logged yet; at most `NOTES_KEPT_MAX`, all are counted.
    ejected: RefCell<Vec<Ejected>>,
    /// Handshakes that failed and nobody has logged yet, as many.
    tls_failed: RefCell<Vec<TlsFailed>>,
}

/// Ejections and failed handshakes kept for the log between two looks of the worker.
const NOTES_KEPT_MAX: usize = 64;

struct Cluster {
    position: usize,
    spec: snapshot::Cluster,
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    health: RefCell<ClusterHealth>,
    /// `None`: endpoints are spoken to in plaintext.
    tls: RefCell<Option<Rc<Client>>>,
    /// Changes with the certificates: a connection of an older one is not kept.
    generation: Cell<u32>,
    /// Busy and idle ones.
    connections: Cell<u32>,
    idle: Cell<u32>,
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

impl Upstreams {
    pub fn new(runtime: &Runtime, shard: &Arc<Shard>, snapshot: &Snapshot, seed: u64) -> Self {
        let clusters = snapshot.clusters.iter().enumerate().map(|(position, spec)| {
            let addresses: Vec<SocketAddr> = spec.endpoints.iter().filter_map(known_address).collect();
            let health = ClusterHealth::new(spec.ejection, addresses.len());
            Rc::new(Cluster {
                position,
                spec: spec.clone(),
                endpoints: RefCell::new(addresses.into_iter().enumerate().map(new_endpoint).collect()),
                health: RefCell::new(health),
                tls: RefCell::default(),
                generation: Cell::new(0),
                connections: Cell::new(0),
                idle: Cell::new(0),
                floods: RefCell::default(),
                drained: RefCell::default(),
            })
        });
        Self {
            runtime: runtime.clone(),
            shard: shard.clone(),
            clusters: clusters.collect(),
            http: snapshot.http,
            random: RefCell::new(Random::new(!seed)),
            ejected: RefCell::default(),
            tls_failed: RefCell::default(),
        }
    }

    /// Speaks TLS to the endpoints of a cluster from now on. Idle connections are closed: they were made as, and to,
    /// whom the old certificates named.
    pub fn set_tls(&self, cluster: u16, client: Client) {
        let Some(cluster) = self.clusters.get(usize::from(cluster)) else { return };
        cluster.tls.replace(Some(Rc::new(client)));
        cluster.generation.set(cluster.generation.get() + 1);
        for endpoint in cluster.endpoints.borrow().iter() {
            self.drop_idle(cluster, endpoint, |_| false);
            endpoint.multiplexed.borrow_mut().clear();
        }
    }

    /// Handshakes that failed since the last call.
    pub fn take_tls_failed(&self) -> Vec<TlsFailed> {
        self.tls_failed.take()
    }

    /// Clusters and their endpoints that flooded a connection in HTTP/2 since the last call.
    pub fn take_floods(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.clusters.iter().flat_map(|cluster| {
            cluster.floods.take().into_iter().map(|endpoint| (&*cluster.spec.name, endpoint))
        })
    }

    /// What was ejected since the last call.
    pub fn take_ejected(&self) -> Vec<Ejected> {
        self.ejected.take()
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
        let rearranged = cluster.health.borrow().rearranged(&kept);
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
    pub async fn acquire_for_relay(&self, cluster: u16) -> Result<Connection, AcquireError> {
        self.acquire_for(Purpose::Relay, cluster, true, &mut Tried::default()).await
    }

    async fn acquire_for(
        &self,
        purpose: Purpose,
        cluster: u16,
        fresh: bool,
        tried: &mut Tried,
    ) -> Result<Connection, AcquireError> {
        let cluster = self.clusters.get(usize::from(cluster)).ok_or(AcquireError::NoEndpoint)?;
        let mut last_error = AcquireError::NoEndpoint;
        let mut waited = false;
        loop {
            let Some(endpoint) = self.pick(cluster, tried) else { return Err(last_error) };
            if !fresh && let Some(idle) = self.take_idle(cluster, &endpoint) {
                cluster.health.borrow_mut().on_request(endpoint.position.get(), self.runtime.now());
                return Ok(self.begin(cluster, endpoint, idle, true));
            }
            if let (Some(pace), false) = (&tried.pace, std::mem::replace(&mut waited, true)) {
                pace.pass().await;
                continue;
            }
            waited = false;
            // Idle connections to other endpoints give way to a request that needs one here.
            if cluster.connections.get() >= cluster.spec.connections_max && !self.drop_oldest_idle(cluster) {
                return Err(AcquireError::Busy);
            }
            match self.connect(cluster, &endpoint, purpose).await {
                Ok(made) => return Ok(self.begin(cluster, endpoint, made, false)),
                Err(AcquireError::Local) => return Err(AcquireError::Local),
                Err(error) => last_error = error,
            }
            self.shard.cluster(cluster.position).add(ClusterCounter::ConnectFailures, 1);
            self.not_connected(cluster, &endpoint, last_error);
            tried.addresses.push(endpoint.address);
            if tried.addresses.len() > cluster.spec.retries_max as usize {
                return Err(last_error);
            }
            self.shard.cluster(cluster.position).add(ClusterCounter::Retries, 1);
        }
    }

    /// Closes idle connections that are too old or on which something happened.
    pub fn sweep(&self) {
        let now = self.runtime.now();
        for cluster in &self.clusters {
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
        for cluster in &self.clusters {
            for endpoint in cluster.endpoints.borrow().iter() {
                self.drop_idle(cluster, endpoint, |_| false);
                self.sweep_multiplexed(cluster, endpoint, true);
            }
        }
    }

    fn pick(&self, cluster: &Cluster, tried: &Tried) -> Option<Rc<Endpoint>> {
        let endpoints = cluster.endpoints.borrow();
        let health = cluster.health.borrow();
        let now = self.runtime.now();
        let all_refused = || {
            let is_left = |endpoint: &Rc<Endpoint>| {
                let address = &endpoint.address;
                !tried.addresses.contains(address)
                    && !tried.spared.iter().any(|(spared, _)| spared == address)
            };
            !endpoints.iter().any(is_left)
        };
        let any_refused = tried.spared.iter().any(|(_, why)| *why == Spared::Refused);
        let spare_refused = any_refused && !all_refused();
        let candidate = |position: usize| {
            let load = endpoints[position].in_flight.get();
            let address = &endpoints[position].address;
            let is_spared = |&(spared, why): &(SocketAddr, Spared)| {
                spared == *address && (why == Spared::Full || spare_refused)
            };
            if cluster.drains(*address)
                || tried.addresses.contains(address)
                || tried.spared.iter().any(is_spared)
            {
                Candidate::Excluded
            } else if health.is_available(position, now) {
                Candidate::Ready { load }
            } else {
                Candidate::Ejected { load }
            }
        };
        let picked = balance::pick(&mut self.random.borrow_mut(), endpoints.len(), candidate)?;
        Some(endpoints[picked].clone())
    }

    fn take_idle(&self, cluster: &Cluster, endpoint: &Endpoint) -> Option<Made> {
        let mut idle = endpoint.idle.borrow_mut();
        while let Some(Idle { stream, .. }) = idle.pop() {
            cluster.idle.set(cluster.idle.get() - 1);
            self.shard.cluster(cluster.position).gauge_add(ClusterGauge::ConnectionsIdle, -1);
            if stream.is_quiet() {
                // Those of older certificates were closed when these came.
                return Some((stream, cluster.generation.get()));
            }
            // Bytes, an end or an error that nobody asked for: what comes next could be taken for an answer.
            cluster.connections.set(cluster.connections.get() - 1);
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
            cluster.connections.set(cluster.connections.get() - dropped);
            let gauge_delta = -i64::from(dropped);
            self.shard.cluster(cluster.position).gauge_add(ClusterGauge::ConnectionsIdle, gauge_delta);
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
    ) -> Result<Made, AcquireError> {
        let started = self.runtime.now();
        // It may be the trial of an endpoint that was ejected.
        cluster.health.borrow_mut().on_request(endpoint.position.get(), started);
        let deadline = self.runtime.deadline();
        deadline.set(started + cluster.spec.connect_timeout);
        // Counted while it is being made, so that a burst cannot exceed the limit.
        let counted = Counted::new(&cluster.connections);
        let connected =
            deadline.within(Socket::connect(&self.runtime, endpoint.address, &cluster.spec.socket)).await;
        let result: io::Result<Socket> = connected.map_err(|_| AcquireError::TimedOut)?;
        let socket = result.map_err(|error| connect_error(&error))?;
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
        let shard = self.shard.cluster(cluster.position);
        shard.add(ClusterCounter::ConnectionsOpened, 1);
        shard.observe(ClusterHistogram::ConnectDuration, self.runtime.now().since(started));
        Ok((stream, generation))
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
        let counted = self.shard.cluster(cluster.position);
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
        self.shard.cluster(cluster.position).add(ClusterCounter::TlsFailures, 1);
        let mut failed = self.tls_failed.borrow_mut();
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
        let shard = self.shard.cluster(cluster.position);
        if reused {
            shard.add(ClusterCounter::ConnectionsReused, 1);
        }
        shard.gauge_add(ClusterGauge::ConnectionsActive, 1);
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
        let lease = Lease { cluster: cluster.clone(), endpoint, shard: self.shard.clone(), generation };
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
        self.shard.cluster(cluster.position).add(ClusterCounter::FailuresExcused, u64::from(excused));
        excused
    }

    /// The same for the deadline of the cluster's responses.
    pub fn excuses(&self, cluster: u16) -> bool {
        let cluster = self.clusters.get(usize::from(cluster));
        cluster.is_some_and(|cluster| self.excuse(cluster, cluster.spec.request_timeout))
    }

    fn failed(&self, cluster: &Cluster, endpoint: &Endpoint) {
        let now = self.runtime.now();
        let verdict = cluster.health.borrow_mut().on_failure(endpoint.position.get(), now);
        if let Verdict::Ejected { until } = verdict {
            self.shard.cluster(cluster.position).add(ClusterCounter::Ejections, 1);
            let mut ejected = self.ejected.borrow_mut();
            if ejected.len() < NOTES_KEPT_MAX {
                let cluster = cluster.spec.name.clone();
                ejected.push(Ejected { cluster, endpoint: endpoint.address, duration: until.since(now) });
            }
        }
    }

    /// Reports that the endpoint answered.
    pub fn on_answer(&self, connection: &Connection) {
        let lease = &connection.lease;
        lease.cluster.health.borrow_mut().on_success(lease.endpoint.position.get());
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
            || cluster.drains(endpoint.address);
        if cluster.idle.get() >= cluster.spec.idle_per_worker_max || outdated {
            stream.close();
            return;
        }
        stream.watch();
        cluster.idle.set(cluster.idle.get() + 1);
        cluster.connections.set(cluster.connections.get() + 1);
        self.shard.cluster(cluster.position).gauge_add(ClusterGauge::ConnectionsIdle, 1);
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

    /// Closes it with RST: the endpoint must not take what it got for the whole.
    pub fn abort(self) {
        self.stream.abort();
    }
}

/// Counts one connection in use until it is dropped.
struct Lease {
    cluster: Rc<Cluster>,
    endpoint: Rc<Endpoint>,
    shard: Arc<Shard>,
    generation: u32,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
        self.cluster.connections.set(self.cluster.connections.get() - 1);
        self.shard.cluster(self.cluster.position).gauge_add(ClusterGauge::ConnectionsActive, -1);
    }
}

/// Counts one connection being made, unless it is kept.
struct Counted<'a>(Option<&'a Cell<u32>>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(Some(count))
    }

    /// Takes over a count that somebody kept.
    const fn adopt(count: &'a Cell<u32>) -> Self {
        Self(Some(count))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count.set(count.get() - 1);
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
