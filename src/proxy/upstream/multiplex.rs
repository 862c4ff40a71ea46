//! Endpoints that are spoken to in HTTP/2: which connection has room for a request, when another one is made, when one
//! is given up. Requests that find a connection being made wait for it: a burst makes one, not as many.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use crate::metrics::shard::ClusterShard;
use crate::metrics::{ClusterCounter, ClusterGauge};

use super::super::caller::Caller;
use super::super::http2::{Connecting, Multiplexed, Slot};
use super::super::snapshot::ClusterProtocol;
use super::super::stream::Stream;
use super::circuit::Queue;
use super::{
    AcquireError, Cluster, Connection, Counted, Endpoint, Load, Made, NOTES_KEPT_MAX, Purpose, Spared, Tried,
    Upstreams,
};

/// What a request goes up on.
pub enum Acquired {
    Connection(Connection),
    Stream(Exchange),
}

/// A stream of a multiplexed connection, held by one request.
pub struct Exchange {
    pub slot: Slot,
    lease: StreamLease,
}

impl Exchange {
    pub fn endpoint(&self) -> SocketAddr {
        self.lease.endpoint.address
    }

    /// Where its cluster counts.
    pub fn counts(&self) -> &ClusterShard {
        &self.lease.cluster.counts
    }
}

/// Counts a request at its endpoint until it is dropped.
struct StreamLease {
    cluster: Rc<Cluster>,
    endpoint: Rc<Endpoint>,
    open: Rc<Open>,
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
        self.open.set_requests(self.open.requests.get().saturating_sub(1));
        self.open.add(ClusterGauge::RequestsActive, -1);
        self.cluster.requests.release();
        self.cluster.pending.call_one();
    }
}

/// A connection that is being made, for those who wait for it.
pub(super) type Making = Connecting<Result<(), AcquireError>>;

/// Who makes a connection; the others learn when it gives up.
struct Maker<'a> {
    cluster: &'a Cluster,
    endpoint: &'a Endpoint,
    connecting: Rc<Making>,
}

impl Drop for Maker<'_> {
    fn drop(&mut self) {
        let own = |other: &mut Rc<_>| Rc::ptr_eq(other, &self.connecting);
        drop(self.endpoint.connecting.borrow_mut().take_if(own));
        self.connecting.finish(None);
        // Those in line did not wait for it here.
        self.cluster.pending.call_one();
    }
}

/// A connection in HTTP/2 as an endpoint keeps it.
pub(super) struct Shared {
    multiplexed: Multiplexed,
    open: Rc<Open>,
}

/// A connection that refused a request, which is not to take it again if another can.
#[derive(Default)]
pub(super) struct Avoided(Weak<Open>);

impl Avoided {
    fn is(&self, open: &Rc<Open>) -> bool {
        std::ptr::eq(self.0.as_ptr(), Rc::as_ptr(open))
    }
}

/// Refusals in a row that count as a failure while other requests are on their way: an endpoint at its limit of streams
/// is well. One that refuses the only request it has is not.
const REFUSALS_MAX: u32 = 32;

/// Counts one connection in HTTP/2: idle, or active while it carries a request, until it has ended.
struct Open {
    cluster: Rc<Cluster>,
    requests: Cell<u32>,
    ended: Cell<bool>,
}

impl Open {
    fn new(cluster: &Rc<Cluster>) -> Rc<Self> {
        cluster.connections.set(cluster.connections.get() + 1);
        let (requests, ended) = (Cell::new(0), Cell::new(false));
        let open = Self { cluster: cluster.clone(), requests, ended };
        open.add(ClusterGauge::ConnectionsIdle, 1);
        Rc::new(open)
    }

    fn add(&self, gauge: ClusterGauge, delta: i64) {
        self.cluster.counts.gauge_add(gauge, delta);
    }

    fn gauge(&self) -> ClusterGauge {
        match self.requests.get() {
            0 => ClusterGauge::ConnectionsIdle,
            _ => ClusterGauge::ConnectionsActive,
        }
    }

    fn set_requests(&self, requests: u32) {
        if self.ended.get() {
            return;
        }
        self.add(self.gauge(), -1);
        self.requests.set(requests);
        self.add(self.gauge(), 1);
    }

    /// The endpoint sent more frames that cost than work.
    fn note_flood(&self, endpoint: SocketAddr) {
        self.cluster.counts.add(ClusterCounter::Http2Floods, 1);
        let mut floods = self.cluster.floods.borrow_mut();
        if floods.len() < NOTES_KEPT_MAX {
            floods.push(endpoint);
        }
    }

    fn end(&self) {
        if self.ended.replace(true) {
            return;
        }
        self.cluster.freed(1);
        self.add(self.gauge(), -1);
    }
}

/// Ends the count, however the task of a connection ends.
struct Ended(Rc<Open>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Upstreams {
    /// Whether endpoints of the cluster may be spoken to in HTTP/2.
    pub fn may_multiplex(&self, cluster: u16) -> bool {
        self.spec(cluster).is_some_and(|spec| spec.protocol != ClusterProtocol::Http1)
    }

    /// As `acquire`, for a cluster whose endpoints speak HTTP/2 or are asked what they speak.
    ///
    /// # Errors
    /// When no endpoint is left; the last failure.
    pub async fn acquire_any(
        &self,
        cluster: u16,
        fresh: bool,
        tried: &mut Tried,
    ) -> Result<Acquired, AcquireError> {
        let at = usize::from(cluster);
        let cluster = self.clusters.get(at).ok_or(AcquireError::NoEndpoint)?.clone();
        let asks = cluster.spec.protocol == ClusterProtocol::Auto && cluster.tls.borrow().is_none();
        if asks || cluster.spec.protocol == ClusterProtocol::Http1 {
            return self.acquire(at as u16, fresh, tried).await.map(Acquired::Connection);
        }
        let mut last_error = Self::nobody(&cluster);
        tried.spared.retain(|(_, why)| *why != Spared::Full);
        let admitted = self.admit(&cluster, tried)?;
        let mut queue = Queue::new(self, &cluster);
        if cluster.pending.len() > 0 {
            Box::pin(queue.wait()).await?;
        }
        loop {
            let Some(endpoint) = self.pick(&cluster, tried) else {
                if last_error != AcquireError::Busy {
                    return Err(last_error);
                }
                Box::pin(queue.wait()).await?;
                tried.spared.retain(|(_, why)| *why != Spared::Full);
                last_error = Self::nobody(&cluster);
                continue;
            };
            match self.stream_to(&cluster, &endpoint, fresh, tried, &mut queue).await {
                Ok(acquired) => {
                    admitted.keep();
                    return Ok(acquired);
                }
                Err(AcquireError::Local) => return Err(AcquireError::Local),
                Err(AcquireError::Busy) => {
                    // Nothing failed: another endpoint may have room.
                    last_error = AcquireError::Busy;
                    tried.spared.push((endpoint.address, Spared::Full));
                    continue;
                }
                Err(error) => last_error = error,
            }
            tried.addresses.push(endpoint.address);
            if !self.connects_again(&cluster, tried) {
                return Err(last_error);
            }
        }
    }

    /// As `acquire_any`, for a request that asks to change the protocol. Where the endpoint is asked what it speaks, it is
    /// asked for HTTP/1.1: few that choose HTTP/2 change protocols there (RFC 8441).
    ///
    /// # Errors
    /// As `acquire_any`.
    pub async fn acquire_to_upgrade(
        &self,
        cluster: u16,
        tried: &mut Tried,
    ) -> Result<Acquired, AcquireError> {
        match self.spec(cluster).map(|spec| spec.protocol) {
            Some(ClusterProtocol::H2) => self.acquire_any(cluster, true, tried).await,
            _ => self.acquire_for(Purpose::Http1, cluster, true, tried).await.map(Acquired::Connection),
        }
    }

    /// A stream to this endpoint, or a connection where it speaks HTTP/1.1.
    async fn stream_to(
        &self,
        cluster: &Rc<Cluster>,
        endpoint: &Rc<Endpoint>,
        fresh: bool,
        tried: &Tried,
        queue: &mut Queue<'_>,
    ) -> Result<Acquired, AcquireError> {
        let mut waited = false;
        loop {
            if let Some(exchange) = self.take_slot(cluster, endpoint, &tried.avoided) {
                return Ok(Acquired::Stream(exchange));
            }
            if !fresh && let Some(idle) = self.take_idle(cluster, endpoint) {
                cluster.health.borrow_mut().on_request(endpoint.position.get(), self.runtime.now());
                return Ok(Acquired::Connection(self.begin(cluster, endpoint.clone(), idle, true)));
            }
            let connecting = endpoint.connecting.borrow().clone();
            if let Some(connecting) = connecting {
                if queue.is_in_line() {
                    return Err(AcquireError::Busy);
                }
                let outcome = {
                    let _load = Load::of(endpoint);
                    connecting.outcome().await
                };
                match outcome {
                    Some(Err(error)) => return Err(error),
                    Some(Ok(())) | None => continue,
                }
            }
            // One that speaks HTTP/2 is connected to once for all.
            if let (Some(pace), true, false) = (&tried.pace, endpoint.speaks_http1.get(), waited)
                && !queue.is_in_line()
            {
                pace.pass().await;
                waited = true;
                continue;
            }
            let open = endpoint.multiplexed.borrow().len();
            let full = cluster.connections.get() >= cluster.spec.connections_max;
            if open >= cluster.spec.http2_connections_max as usize
                || (full && !self.drop_oldest_idle(cluster))
            {
                let exchange = self.take_slot(cluster, endpoint, &Avoided::default());
                return exchange.map(Acquired::Stream).ok_or(AcquireError::Busy);
            }
            queue.leave();
            if let Some(made) = self.make(cluster, endpoint).await? {
                return Ok(Acquired::Connection(self.begin(cluster, endpoint.clone(), made, false)));
            }
        }
    }

    /// Makes another connection to the endpoint. `Some`: it speaks HTTP/1.1.
    async fn make(
        &self,
        cluster: &Rc<Cluster>,
        endpoint: &Rc<Endpoint>,
    ) -> Result<Option<Made>, AcquireError> {
        let connecting = Rc::new(Connecting::default());
        // Each request needs a connection of its own where the endpoint is known to speak HTTP/1.1.
        if !endpoint.speaks_http1.get() {
            endpoint.connecting.replace(Some(connecting.clone()));
        }
        let maker = Maker { cluster, endpoint, connecting };
        let made = self.make_multiplexed(cluster, endpoint).await;
        if let Err(error) = made.as_ref()
            && *error != AcquireError::Local
        {
            cluster.counts.add(ClusterCounter::ConnectFailures, 1);
            self.not_connected(cluster, endpoint, *error);
        }
        maker.connecting.finish(Some(made.as_ref().map(|_| ()).map_err(|error| *error)));
        made
    }

    async fn make_multiplexed(
        &self,
        cluster: &Rc<Cluster>,
        endpoint: &Rc<Endpoint>,
    ) -> Result<Option<Made>, AcquireError> {
        let (stream, generation) =
            Box::pin(self.connect(cluster, endpoint, Purpose::Http, &Caller::default())).await?;
        // `connect` leaves the count to whoever keeps the connection.
        let counted = Counted::adopt(cluster);
        let speaks_h2 = matches!(stream, Stream::Socket(_)) || stream.alpn().as_deref() == Some(b"h2");
        endpoint.speaks_http1.set(!speaks_h2);
        if !speaks_h2 && cluster.spec.protocol == ClusterProtocol::Auto {
            counted.keep();
            return Ok(Some((stream, generation)));
        }
        if !speaks_h2 {
            let why = "the endpoint did not choose HTTP/2 by ALPN".to_owned();
            return Err(self.untrusted(cluster, endpoint.address, why));
        }
        let open = Open::new(cluster);
        drop(counted);
        let ended = Ended(open.clone());
        let address = endpoint.address;
        let on_end = move |flooded| {
            if flooded {
                ended.0.note_flood(address);
            }
        };
        let started = Multiplexed::start(&self.runtime, stream, &cluster.spec, &self.http, on_end);
        let multiplexed = started.await.map_err(|_| AcquireError::Refused)?;
        // The certificates changed meanwhile: the next look makes another connection, with them.
        // So does one past the bound: several were made at once while the endpoint was thought to speak HTTP/1.1.
        let open_max = cluster.spec.http2_connections_max as usize;
        if generation == cluster.generation.get() && endpoint.multiplexed.borrow().len() < open_max {
            endpoint.multiplexed.borrow_mut().push(Shared { multiplexed, open });
        }
        Ok(None)
    }

    /// A stream of the least busy connection that has room and is not `avoided`.
    fn take_slot(
        &self,
        cluster: &Rc<Cluster>,
        endpoint: &Rc<Endpoint>,
        avoided: &Avoided,
    ) -> Option<Exchange> {
        let mut multiplexed = endpoint.multiplexed.borrow_mut();
        multiplexed.retain(|shared| shared.multiplexed.is_alive());
        let with_room =
            multiplexed.iter().filter(|shared| shared.multiplexed.has_room() && !avoided.is(&shared.open));
        let Shared { multiplexed, open } = with_room.min_by_key(|shared| shared.multiplexed.streams())?;
        let slot = multiplexed.slot(&self.runtime);
        open.set_requests(open.requests.get() + 1);
        if slot.reused {
            cluster.counts.add(ClusterCounter::ConnectionsReused, 1);
        }
        cluster.counts.add(ClusterCounter::Http2Streams, 1);
        cluster.health.borrow_mut().on_request(endpoint.position.get(), self.runtime.now());
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
        let lease = StreamLease { cluster: cluster.clone(), endpoint: endpoint.clone(), open: open.clone() };
        Some(Exchange { slot, lease })
    }

    /// Closes the connection in HTTP/2 that has been idle for longest. `false` where none is idle.
    pub(super) fn drop_oldest_idle_multiplexed(&self, cluster: &Cluster) -> bool {
        let endpoints = cluster.endpoints.borrow();
        let idle = endpoints.iter().flat_map(|endpoint| {
            let multiplexed = endpoint.multiplexed.borrow();
            let idle = |shared: &Shared| Some((shared.multiplexed.idle_since()?, shared.open.clone()));
            let idle: Vec<_> = multiplexed.iter().filter_map(idle).collect();
            idle.into_iter().map(move |(since, open)| (since, endpoint, open))
        });
        let Some((_, endpoint, open)) = idle.min_by_key(|(since, ..)| *since) else { return false };
        // It has nothing to finish: its place is free at once.
        open.end();
        endpoint.multiplexed.borrow_mut().retain(|shared| !Rc::ptr_eq(&shared.open, &open));
        true
    }

    /// Gives up connections in HTTP/2 that are of no use any more: requests on their way finish.
    pub(super) fn sweep_multiplexed(&self, cluster: &Cluster, endpoint: &Endpoint, all_idle: bool) {
        let now = self.runtime.now();
        endpoint.multiplexed.borrow_mut().retain(|Shared { multiplexed: connection, .. }| {
            let idle = connection.idle_since();
            let idle_too_long =
                idle.is_some_and(|since| all_idle || now.since(since) >= cluster.spec.idle_timeout);
            connection.is_alive() && !idle_too_long
        });
    }

    /// Reports that the endpoint answered; `is_error`: with a status of 5xx.
    pub fn on_stream_answer(&self, exchange: &Exchange, is_error: bool) {
        let lease = &exchange.lease;
        lease.endpoint.refusals.set(0);
        lease.cluster.health.borrow_mut().on_answer(lease.endpoint.position.get(), is_error);
    }

    /// Reports that the endpoint did not begin the request, or its connection ended first: another endpoint is asked
    /// before this one, another connection before this one.
    pub fn on_stream_refusal(&self, exchange: &Exchange, tried: &mut Tried) {
        let StreamLease { cluster, endpoint, open } = &exchange.lease;
        tried.spared.push((endpoint.address, Spared::Refused));
        tried.avoided = Avoided(Rc::downgrade(open));
        // A connection that ends or goes away says nothing of the endpoint.
        if exchange.slot.is_alive() {
            let in_a_row = endpoint.refusals.get().wrapping_add(1);
            endpoint.refusals.set(in_a_row);
            if endpoint.in_flight.get() == 1 || in_a_row.is_multiple_of(REFUSALS_MAX) {
                self.failed(cluster, endpoint);
            }
        }
    }

    /// Reports that the endpoint broke its word.
    pub fn on_stream_failure(&self, exchange: &Exchange) {
        self.failed(&exchange.lease.cluster, &exchange.lease.endpoint);
    }
}
