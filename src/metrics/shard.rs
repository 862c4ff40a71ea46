//! One worker's share of the metrics. Exactly one thread writes a shard, so an increment is a load and a store,
//! never a locked instruction; any thread may read it. Never allocates after it was made.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::catalog::{
    AcceptError, BUCKET_BOUNDS_NS, ClusterCounter, ClusterGauge, ClusterHistogram, Counter, Drained,
    GRPC_STATUS, Gauge, HISTOGRAM_CELLS, HandshakeFailure, Histogram, ListenerCounter, ListenerGauge,
    LogDrop, Overflow, ProxyHeader, RateLimited, Shed, TunnelProtocol, class_index, offsets, width,
};

/// Values of one worker. Counters only grow, gauges may go both ways, durations are nanoseconds.
///
/// The writer is the worker the shard was made for. A second writer would lose counts, never more. The lists of
/// listeners and clusters are for readers and for whoever changes the configuration; the worker holds what it writes.
pub struct Shard {
    worker: u32,
    reasons: &'static [&'static str],
    cells: Cells,
    owners: Mutex<Owners>,
}

#[derive(Default)]
struct Owners {
    listeners: Vec<Arc<ListenerShard>>,
    clusters: Vec<Arc<ClusterShard>>,
    /// Requests of listeners that are gone.
    requests_gone: u64,
}

/// What one worker counts of one listener.
pub struct ListenerShard {
    name: Box<str>,
    reasons: &'static [&'static str],
    cells: Cells,
}

/// What one worker counts of one cluster.
pub struct ClusterShard {
    name: Box<str>,
    cells: Cells,
}

/// The parts of a shard that one configuration uses, in its order.
#[derive(Clone)]
pub struct Share {
    pub listeners: Vec<Arc<ListenerShard>>,
    pub clusters: Vec<Arc<ClusterShard>>,
}

impl Shard {
    /// A shard of zeros for worker number `worker`. `listeners` and `clusters` are names; `reasons` is the fixed list
    /// of termination reasons, addressed by position.
    pub fn new(
        worker: u32,
        listeners: &[String],
        clusters: &[String],
        reasons: &'static [&'static str],
    ) -> Self {
        let shard = Self { worker, reasons, cells: Cells::new(WORKER_CELLS), owners: Mutex::default() };
        shard.share(listeners.iter().map(String::as_str), clusters.iter().map(String::as_str));
        shard
    }

    /// The parts for these listeners and clusters: those there are under the names, and new ones of zeros. To be called
    /// for every shard alike, or their lists would differ. Never by the worker.
    pub fn share<'n>(
        &self,
        listeners: impl Iterator<Item = &'n str>,
        clusters: impl Iterator<Item = &'n str>,
    ) -> Share {
        let mut owners = self.owners();
        let Owners { listeners: had_listeners, clusters: had_clusters, .. } = &mut *owners;
        let listeners = listeners.map(|name| {
            let make = || ListenerShard::new(name, self.reasons);
            of_name(had_listeners, |had| *had.name == *name, make)
        });
        let clusters =
            clusters.map(|name| of_name(had_clusters, |had| *had.name == *name, || ClusterShard::new(name)));
        Share { listeners: listeners.collect(), clusters: clusters.collect() }
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub const fn worker(&self) -> u32 {
        self.worker
    }

    pub fn listeners(&self) -> Vec<Arc<ListenerShard>> {
        self.owners().listeners.clone()
    }

    pub fn clusters(&self) -> Vec<Arc<ClusterShard>> {
        self.owners().clusters.clone()
    }

    pub const fn reasons(&self) -> &'static [&'static str] {
        self.reasons
    }

    pub fn add(&self, counter: Counter, n: u64) {
        self.cells.add(COUNTER_AT[counter as usize], n);
    }

    /// Counts new work that was refused.
    pub fn shed(&self, cause: Shed) {
        self.cells.add(COUNTER_AT[Counter::Shed as usize] + cause as usize, 1);
    }

    /// What was refused for this cause.
    pub fn sheds(&self, cause: Shed) -> u64 {
        self.cells.load(COUNTER_AT[Counter::Shed as usize] + cause as usize)
    }

    /// Counts a connection that was asked to end.
    pub fn drained(&self, reason: Drained) {
        self.cells.add(COUNTER_AT[Counter::Drained as usize] + reason as usize, 1);
    }

    /// Connections that were asked to end for this reason.
    pub fn drains(&self, reason: Drained) -> u64 {
        self.cells.load(COUNTER_AT[Counter::Drained as usize] + reason as usize)
    }

    /// Counts lines of the access log that were lost.
    pub fn log_dropped(&self, reason: LogDrop, lines: u64) {
        self.cells.add(COUNTER_AT[Counter::AccessLogDropped as usize] + reason as usize, lines);
    }

    /// Lines of the access log that were lost for this reason.
    pub fn log_drops(&self, reason: LogDrop) -> u64 {
        self.cells.load(COUNTER_AT[Counter::AccessLogDropped as usize] + reason as usize)
    }

    /// Counts one error of `accept`.
    pub fn accept_error(&self, cause: AcceptError) {
        self.cells.add(COUNTER_AT[Counter::AcceptErrors as usize] + cause as usize, 1);
    }

    /// Sets a gauge. A gauge of seconds takes nanoseconds.
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.cells.store(GAUGE_AT[gauge as usize], value);
    }

    /// Raises a gauge to `value` if it is lower.
    pub fn set_max(&self, gauge: Gauge, value: u64) {
        let at = GAUGE_AT[gauge as usize];
        if value > self.cells.load(at) {
            self.cells.store(at, value);
        }
    }

    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.cells.load(GAUGE_AT[gauge as usize])
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        self.cells.load(COUNTER_AT[counter as usize])
    }

    pub fn observe(&self, histogram: Histogram, value: Duration) {
        self.cells.observe(HISTOGRAM_AT[histogram as usize], value);
    }

    /// Downstream connections open now, over all listeners.
    pub fn connections_active(&self) -> u64 {
        let active = |listener: &Arc<ListenerShard>| listener.gauge(ListenerGauge::ConnectionsActive);
        self.owners().listeners.iter().map(active).sum()
    }

    /// Requests answered, over all listeners, classes and configurations.
    pub fn requests_total(&self) -> u64 {
        let owners = self.owners();
        owners.listeners.iter().map(|listener| listener.requests_total()).sum::<u64>() + owners.requests_gone
    }

    pub(super) fn load(&self, at: usize) -> u64 {
        self.cells.load(at)
    }
}

/// Lets go of what no configuration in use names and no worker holds any more: a name's counts leave all shards
/// together, so that a sum over workers only grows until it is gone. The present configuration's parts must be held by
/// somebody.
pub fn forget_unused(shards: &[Arc<Shard>]) {
    let mut all: Vec<_> = shards.iter().map(|shard| shard.owners()).collect();
    let listeners = all.first().map_or(0, |owners| owners.listeners.len());
    for at in (0..listeners).rev() {
        if all.iter().all(|owners| owners.listeners.get(at).is_some_and(|had| Arc::strong_count(had) == 1)) {
            for owners in &mut all {
                let gone = owners.listeners.remove(at);
                owners.requests_gone += gone.requests_total();
            }
        }
    }
    let clusters = all.first().map_or(0, |owners| owners.clusters.len());
    for at in (0..clusters).rev() {
        if all.iter().all(|owners| owners.clusters.get(at).is_some_and(|had| Arc::strong_count(had) == 1)) {
            all.iter_mut().for_each(|owners| drop(owners.clusters.remove(at)));
        }
    }
}

/// The part that there is, or a new one at the end.
fn of_name<T>(had: &mut Vec<Arc<T>>, is_it: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Arc<T> {
    match had.iter().find(|part| is_it(part)) {
        Some(part) => part.clone(),
        None => {
            let part = Arc::new(make());
            had.push(part.clone());
            part
        }
    }
}

impl fmt::Debug for ListenerShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl ListenerShard {
    fn new(name: &str, reasons: &'static [&'static str]) -> Self {
        Self {
            name: name.into(),
            reasons,
            cells: Cells::new(LISTENER_CELLS + ENDED_FAMILIES * reasons.len()),
        }
    }

    pub const fn name(&self) -> &str {
        &self.name
    }

    pub fn add(&self, counter: ListenerCounter, n: u64) {
        self.cells.add(LISTENER_COUNTER_AT[counter as usize], n);
    }

    /// Counts one request by the status sent downstream; `None` when it ended without one.
    pub fn request(&self, status: Option<u16>) {
        let at = LISTENER_COUNTER_AT[ListenerCounter::Requests as usize] + class_index(status);
        self.cells.add(at, 1);
    }

    fn requests_total(&self) -> u64 {
        let at = LISTENER_COUNTER_AT[ListenerCounter::Requests as usize];
        let classes = ListenerCounter::TABLE[ListenerCounter::Requests as usize].width();
        (at..at + classes).map(|at| self.cells.load(at)).sum()
    }

    /// Counts a TLS handshake that failed.
    pub fn handshake_failed(&self, cause: HandshakeFailure) {
        let at = LISTENER_COUNTER_AT[ListenerCounter::TlsFailures as usize] + cause as usize;
        self.cells.add(at, 1);
    }

    /// Counts what a connection began with where a PROXY header is expected.
    pub fn proxy_header(&self, outcome: ProxyHeader) {
        self.cells.add(LISTENER_COUNTER_AT[ListenerCounter::ProxyHeaders as usize] + outcome as usize, 1);
    }

    /// Counts a request that a rate limit refused.
    pub fn rate_limited(&self, budget: RateLimited) {
        self.cells.add(LISTENER_COUNTER_AT[ListenerCounter::RateLimited as usize] + budget as usize, 1);
    }

    /// Counts a tunnel as opened.
    pub fn tunnel_opened(&self, protocol: TunnelProtocol) {
        let at = LISTENER_COUNTER_AT[ListenerCounter::Tunnels as usize] + protocol as usize;
        self.cells.add(at, 1);
    }

    pub fn gauge_add(&self, gauge: ListenerGauge, delta: i64) {
        self.cells.gauge_add(LISTENER_GAUGE_AT[gauge as usize], delta);
    }

    pub fn gauge(&self, gauge: ListenerGauge) -> u64 {
        self.cells.load(LISTENER_GAUGE_AT[gauge as usize])
    }

    /// Counts the end of a session. `reason` is a position in the list the shard was made with.
    pub fn session_ended(&self, reason: usize) {
        self.ended(0, reason);
    }

    /// Counts the end of a tunnel, as `session_ended`.
    pub fn tunnel_ended(&self, reason: usize) {
        self.ended(1, reason);
    }

    fn ended(&self, family: usize, reason: usize) {
        debug_assert!(reason < self.reasons.len());
        if reason < self.reasons.len() {
            self.cells.add(LISTENER_CELLS + family * self.reasons.len() + reason, 1);
        }
    }

    pub fn sessions_ended(&self, reason: usize) -> u64 {
        if reason < self.reasons.len() { self.cells.load(LISTENER_CELLS + reason) } else { 0 }
    }

    pub fn tunnels_ended(&self, reason: usize) -> u64 {
        let reasons = self.reasons.len();
        if reason < reasons { self.cells.load(LISTENER_CELLS + reasons + reason) } else { 0 }
    }

    pub(super) fn load(&self, at: usize) -> u64 {
        self.cells.load(at)
    }
}

impl ClusterShard {
    fn new(name: &str) -> Self {
        Self { name: name.into(), cells: Cells::new(CLUSTER_CELLS) }
    }

    /// Counts into nothing: for a cluster that is not there.
    pub fn nowhere() -> Self {
        Self { name: "".into(), cells: Cells::new(0) }
    }

    pub const fn name(&self) -> &str {
        &self.name
    }

    pub fn add(&self, counter: ClusterCounter, n: u64) {
        self.cells.add(CLUSTER_COUNTER_AT[counter as usize], n);
    }

    /// Counts one request sent upstream by the status received; `None` when none came.
    pub fn response(&self, status: Option<u16>) {
        let at = CLUSTER_COUNTER_AT[ClusterCounter::Requests as usize] + class_index(status);
        self.cells.add(at, 1);
    }

    /// Counts a request or retry that met a limit of the cluster.
    pub fn overflowed(&self, limit: Overflow) {
        self.cells.add(CLUSTER_COUNTER_AT[ClusterCounter::Overflows as usize] + limit as usize, 1);
    }

    /// Counts one response of gRPC by the status that ended it; `None` when none did.
    pub fn grpc_status(&self, code: Option<u8>) {
        let none = GRPC_STATUS.values.len() - 1;
        let at = code.map_or(none, |code| usize::from(code).min(none));
        self.cells.add(CLUSTER_COUNTER_AT[ClusterCounter::GrpcStatus as usize] + at, 1);
    }

    pub fn gauge_add(&self, gauge: ClusterGauge, delta: i64) {
        self.cells.gauge_add(CLUSTER_GAUGE_AT[gauge as usize], delta);
    }

    pub fn observe(&self, histogram: ClusterHistogram, value: Duration) {
        self.cells.observe(CLUSTER_HISTOGRAM_AT[histogram as usize], value);
    }

    pub(super) fn load(&self, at: usize) -> u64 {
        self.cells.load(at)
    }
}

/// Numbers with one writer and any readers. A position past the end counts into nothing.
struct Cells(Box<[Line]>);

impl Cells {
    fn new(count: usize) -> Self {
        Self((0..count.div_ceil(LINE_CELLS)).map(|_| Line::default()).collect())
    }

    fn add(&self, at: usize, n: u64) {
        self.store(at, self.load(at).wrapping_add(n));
    }

    fn gauge_add(&self, at: usize, delta: i64) {
        self.store(at, self.load(at).wrapping_add_signed(delta));
    }

    fn observe(&self, at: usize, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKET_BOUNDS_NS.partition_point(|&bound| bound < nanos);
        self.add(at + bucket, 1);
        self.add(at + HISTOGRAM_CELLS - 1, nanos);
    }

    fn load(&self, at: usize) -> u64 {
        self.cell(at).map_or(0, |cell| cell.load(Relaxed))
    }

    fn store(&self, at: usize, value: u64) {
        if let Some(cell) = self.cell(at) {
            cell.store(value, Relaxed);
        }
    }

    fn cell(&self, at: usize) -> Option<&AtomicU64> {
        self.0.get(at / LINE_CELLS).map(|line| &line.0[at % LINE_CELLS])
    }
}

/// Two cache lines, the unit that the adjacent-line prefetcher of x86 moves: shards of two workers never share one.
#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; LINE_CELLS]);

const LINE_CELLS: usize = 16;
/// Counters of a listener by termination reason: sessions and tunnels that ended.
const ENDED_FAMILIES: usize = 2;

// Each block begins at its first cell; a listener's has its reasons last.
pub(super) const COUNTER_AT: [usize; Counter::TABLE.len()] = offsets(&Counter::TABLE, 0);
pub(super) const GAUGE_AT: [usize; Gauge::TABLE.len()] = offsets(&Gauge::TABLE, width(&Counter::TABLE));
pub(super) const HISTOGRAM_AT: [usize; Histogram::TABLE.len()] =
    offsets(&Histogram::TABLE, width(&Counter::TABLE) + width(&Gauge::TABLE));
const WORKER_CELLS: usize = width(&Counter::TABLE) + width(&Gauge::TABLE) + width(&Histogram::TABLE);

pub(super) const LISTENER_COUNTER_AT: [usize; ListenerCounter::TABLE.len()] =
    offsets(&ListenerCounter::TABLE, 0);
pub(super) const LISTENER_GAUGE_AT: [usize; ListenerGauge::TABLE.len()] =
    offsets(&ListenerGauge::TABLE, width(&ListenerCounter::TABLE));
const LISTENER_CELLS: usize = width(&ListenerCounter::TABLE) + width(&ListenerGauge::TABLE);

pub(super) const CLUSTER_COUNTER_AT: [usize; ClusterCounter::TABLE.len()] =
    offsets(&ClusterCounter::TABLE, 0);
pub(super) const CLUSTER_GAUGE_AT: [usize; ClusterGauge::TABLE.len()] =
    offsets(&ClusterGauge::TABLE, width(&ClusterCounter::TABLE));
pub(super) const CLUSTER_HISTOGRAM_AT: [usize; ClusterHistogram::TABLE.len()] =
    offsets(&ClusterHistogram::TABLE, width(&ClusterCounter::TABLE) + width(&ClusterGauge::TABLE));
const CLUSTER_CELLS: usize =
    width(&ClusterCounter::TABLE) + width(&ClusterGauge::TABLE) + width(&ClusterHistogram::TABLE);

#[cfg(test)]
mod tests {
    use super::*;

    impl Shard {
        fn listener(&self, index: usize) -> Arc<ListenerShard> {
            self.listeners()[index].clone()
        }

        fn cluster(&self, index: usize) -> Arc<ClusterShard> {
            self.clusters()[index].clone()
        }
    }

    fn shard() -> Shard {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        Shard::new(3, &names(&["web", "relay"]), &names(&["api", "site"]), &["done", "client_reset"])
    }

    #[test]
    fn each_value_has_a_cell_of_its_own() {
        let shard = shard();
        shard.add(Counter::LoopTurns, 1);
        shard.shed(Shed::Descriptors);
        shard.accept_error(AcceptError::Other);
        shard.set(Gauge::MemoryBytes, 4);
        shard.observe(Histogram::UpstreamFirstByte, Duration::from_nanos(5));
        shard.listener(0).session_ended(1);
        shard.listener(1).request(None);
        shard.listener(1).session_ended(0);
        shard.cluster(0).response(Some(503));
        shard.cluster(1).add(ClusterCounter::SentBytes, 6);
        shard.cluster(1).observe(ClusterHistogram::ConnectDuration, Duration::from_secs(90));
        let values = |cells: &Cells| -> Vec<u64> {
            (0..cells.0.len() * LINE_CELLS).map(|at| cells.load(at)).filter(|value| *value > 0).collect()
        };
        let mut all = values(&shard.cells);
        shard.listeners().iter().for_each(|listener| all.extend(values(&listener.cells)));
        shard.clusters().iter().for_each(|cluster| all.extend(values(&cluster.cells)));
        let mut values = all;
        values.sort_unstable();
        assert_eq!(values, [1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 5, 6, 90_000_000_000]);
        assert_eq!(shard.listener(0).sessions_ended(1), 1);
        assert_eq!(shard.listener(1).sessions_ended(0), 1);
    }

    #[test]
    fn a_gauge_goes_both_ways_and_its_maximum_only_up() {
        let shard = shard();
        shard.listener(0).gauge_add(ListenerGauge::ConnectionsActive, 3);
        shard.listener(1).gauge_add(ListenerGauge::ConnectionsActive, 1);
        shard.listener(0).gauge_add(ListenerGauge::ConnectionsActive, -2);
        assert_eq!(shard.connections_active(), 2);
        shard.set_max(Gauge::LoopGapMax, 9);
        shard.set_max(Gauge::LoopGapMax, 4);
        assert_eq!(shard.gauge(Gauge::LoopGapMax), 9);
    }

    #[test]
    fn requests_of_every_class_and_listener_are_in_the_total() {
        let shard = shard();
        for status in [Some(101), Some(200), Some(304), Some(404), Some(502), None] {
            shard.listener(0).request(status);
            shard.listener(1).request(status);
        }
        assert_eq!(shard.requests_total(), 12);
    }

    #[test]
    fn a_name_keeps_its_counts_while_anybody_holds_them_and_leaves_all_shards_at_once() {
        let shards = [0, 1].map(|worker| Arc::new(Shard::new(worker, &[], &[], &["done"])));
        let held: Vec<_> =
            shards.iter().map(|shard| shard.share(["a", "b"].into_iter(), ["x"].into_iter())).collect();
        held[0].listeners[0].request(Some(200));
        let names = |shard: &Shard| -> Vec<String> {
            shard.listeners().iter().map(|listener| listener.name().to_string()).collect()
        };
        // Another configuration without "a", while one worker still has a session of it.
        let last = held[0].listeners[0].clone();
        let next: Vec<_> =
            shards.iter().map(|shard| shard.share(["c", "b"].into_iter(), ["x"].into_iter())).collect();
        drop(held);
        forget_unused(&shards);
        assert_eq!([names(&shards[0]), names(&shards[1])], [["a", "b", "c"], ["a", "b", "c"]]);
        let again = shards[0].share(["a"].into_iter(), [].into_iter());
        assert!(Arc::ptr_eq(&again.listeners[0], &last), "the name came back: it counts on");
        drop((again, last));
        forget_unused(&shards);
        assert_eq!([names(&shards[0]), names(&shards[1])], [["b", "c"], ["b", "c"]]);
        assert_eq!(shards[0].requests_total(), 1, "the worker's own sum keeps them");
        assert_eq!(shards[0].clusters().len(), 1);
        drop(next);
    }

    #[test]
    fn a_reader_on_another_thread_sees_counts_only_grow() {
        let shard = Arc::new(shard());
        let reader = std::thread::spawn({
            let shard = shard.clone();
            move || {
                let mut last = 0;
                while last < 10_000 {
                    let now = shard.load(COUNTER_AT[Counter::LoopTurns as usize]);
                    assert!(now >= last);
                    last = now;
                }
            }
        });
        for _ in 0..10_000 {
            shard.add(Counter::LoopTurns, 1);
        }
        reader.join().unwrap();
    }

    #[test]
    fn a_value_on_a_bound_belongs_to_that_bucket() {
        let shard = shard();
        shard.observe(Histogram::RequestDuration, Duration::from_nanos(BUCKET_BOUNDS_NS[3]));
        shard.observe(Histogram::RequestDuration, Duration::from_nanos(BUCKET_BOUNDS_NS[3] + 1));
        let at = HISTOGRAM_AT[Histogram::RequestDuration as usize];
        assert_eq!((shard.load(at + 3), shard.load(at + 4)), (1, 1));
    }
}
