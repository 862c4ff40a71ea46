//! One worker's share of the metrics. Exactly one thread writes a shard, so an increment is a load and a store,
//! never a locked instruction; any thread may read it. Never allocates after it was made.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::catalog::{
    AcceptError, BUCKET_BOUNDS_NS, ClusterCounter, ClusterGauge, ClusterHistogram, Counter, Drained,
    GRPC_STATUS, Gauge, HISTOGRAM_CELLS, HandshakeFailure, Histogram, ListenerCounter, ListenerGauge,
    LogDrop, Shed, TunnelProtocol, class_index, offsets, width,
};

/// Values of one worker. Counters only grow, gauges may go both ways, durations are nanoseconds.
///
/// The writer is the worker the shard was made for. A second writer would lose counts, never more.
pub struct Shard {
    worker: u32,
    listeners: Box<[String]>,
    clusters: Box<[String]>,
    reasons: &'static [&'static str],
    lines: Box<[Line]>,
}

/// The part of a shard that belongs to one listener.
#[derive(Clone, Copy)]
pub struct ListenerShard<'a> {
    shard: &'a Shard,
    base: usize,
}

/// The part of a shard that belongs to one cluster.
#[derive(Clone, Copy)]
pub struct ClusterShard<'a> {
    shard: &'a Shard,
    base: usize,
}

impl Shard {
    /// A shard of zeros for worker number `worker`. `listeners` and `clusters` are names, addressed by their
    /// position; `reasons` is the fixed list of termination reasons, addressed likewise.
    pub fn new(
        worker: u32,
        listeners: &[String],
        clusters: &[String],
        reasons: &'static [&'static str],
    ) -> Self {
        let cells = WORKER_CELLS
            + listeners.len() * (LISTENER_CELLS + ENDED_FAMILIES * reasons.len())
            + clusters.len() * CLUSTER_CELLS;
        Self {
            worker,
            listeners: listeners.into(),
            clusters: clusters.into(),
            reasons,
            lines: (0..cells.div_ceil(LINE_CELLS)).map(|_| Line::default()).collect(),
        }
    }

    pub const fn worker(&self) -> u32 {
        self.worker
    }

    pub fn listeners(&self) -> &[String] {
        &self.listeners
    }

    pub fn clusters(&self) -> &[String] {
        &self.clusters
    }

    pub const fn reasons(&self) -> &'static [&'static str] {
        self.reasons
    }

    pub fn add(&self, counter: Counter, n: u64) {
        self.add_at(COUNTER_AT[counter as usize], n);
    }

    /// Counts new work that was refused.
    pub fn shed(&self, cause: Shed) {
        self.add_at(COUNTER_AT[Counter::Shed as usize] + cause as usize, 1);
    }

    /// What was refused for this cause.
    pub fn sheds(&self, cause: Shed) -> u64 {
        self.load(COUNTER_AT[Counter::Shed as usize] + cause as usize)
    }

    /// Counts a connection that was asked to end.
    pub fn drained(&self, reason: Drained) {
        self.add_at(COUNTER_AT[Counter::Drained as usize] + reason as usize, 1);
    }

    /// Connections that were asked to end for this reason.
    pub fn drains(&self, reason: Drained) -> u64 {
        self.load(COUNTER_AT[Counter::Drained as usize] + reason as usize)
    }

    /// Counts lines of the access log that were lost.
    pub fn log_dropped(&self, reason: LogDrop, lines: u64) {
        self.add_at(COUNTER_AT[Counter::AccessLogDropped as usize] + reason as usize, lines);
    }

    /// Lines of the access log that were lost for this reason.
    pub fn log_drops(&self, reason: LogDrop) -> u64 {
        self.load(COUNTER_AT[Counter::AccessLogDropped as usize] + reason as usize)
    }

    /// Counts one error of `accept`.
    pub fn accept_error(&self, cause: AcceptError) {
        self.add_at(COUNTER_AT[Counter::AcceptErrors as usize] + cause as usize, 1);
    }

    /// Sets a gauge. A gauge of seconds takes nanoseconds.
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.store(GAUGE_AT[gauge as usize], value);
    }

    /// Raises a gauge to `value` if it is lower.
    pub fn set_max(&self, gauge: Gauge, value: u64) {
        let at = GAUGE_AT[gauge as usize];
        if value > self.load(at) {
            self.store(at, value);
        }
    }

    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.load(GAUGE_AT[gauge as usize])
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        self.load(COUNTER_AT[counter as usize])
    }

    pub fn observe(&self, histogram: Histogram, value: Duration) {
        self.observe_at(HISTOGRAM_AT[histogram as usize], value);
    }

    /// The share of listener number `index`. An index past the end counts into nothing.
    pub fn listener(&self, index: usize) -> ListenerShard<'_> {
        debug_assert!(index < self.listeners.len());
        ListenerShard { shard: self, base: self.listener_base(index) }
    }

    /// The share of cluster number `index`. An index past the end counts into nothing.
    pub fn cluster(&self, index: usize) -> ClusterShard<'_> {
        debug_assert!(index < self.clusters.len());
        ClusterShard { shard: self, base: self.cluster_base(index) }
    }

    /// Downstream connections open now, over all listeners.
    pub fn connections_active(&self) -> u64 {
        (0..self.listeners.len())
            .map(|index| self.listener(index).gauge(ListenerGauge::ConnectionsActive))
            .sum()
    }

    /// Requests answered, over all listeners and classes.
    pub fn requests_total(&self) -> u64 {
        let at = LISTENER_COUNTER_AT[ListenerCounter::Requests as usize];
        let classes = ListenerCounter::TABLE[ListenerCounter::Requests as usize].width();
        let of_listener =
            |index| (0..classes).map(move |class| self.load(self.listener_base(index) + at + class));
        (0..self.listeners.len()).flat_map(of_listener).sum()
    }

    const fn listener_cells(&self) -> usize {
        LISTENER_CELLS + ENDED_FAMILIES * self.reasons.len()
    }

    fn listener_base(&self, index: usize) -> usize {
        if index < self.listeners.len() { WORKER_CELLS + index * self.listener_cells() } else { NOWHERE }
    }

    fn cluster_base(&self, index: usize) -> usize {
        if index < self.clusters.len() {
            WORKER_CELLS + self.listeners.len() * self.listener_cells() + index * CLUSTER_CELLS
        } else {
            NOWHERE
        }
    }

    fn add_at(&self, at: usize, n: u64) {
        self.store(at, self.load(at).wrapping_add(n));
    }

    fn gauge_add_at(&self, at: usize, delta: i64) {
        self.store(at, self.load(at).wrapping_add_signed(delta));
    }

    fn observe_at(&self, at: usize, value: Duration) {
        let nanos = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKET_BOUNDS_NS.partition_point(|&bound| bound < nanos);
        self.add_at(at + bucket, 1);
        self.add_at(at + HISTOGRAM_CELLS - 1, nanos);
    }

    pub(super) fn load(&self, at: usize) -> u64 {
        self.cell(at).map_or(0, |cell| cell.load(Relaxed))
    }

    fn store(&self, at: usize, value: u64) {
        if let Some(cell) = self.cell(at) {
            cell.store(value, Relaxed);
        }
    }

    fn cell(&self, at: usize) -> Option<&AtomicU64> {
        self.lines.get(at / LINE_CELLS).map(|line| &line.0[at % LINE_CELLS])
    }
}

impl ListenerShard<'_> {
    pub fn add(self, counter: ListenerCounter, n: u64) {
        self.shard.add_at(self.base + LISTENER_COUNTER_AT[counter as usize], n);
    }

    /// Counts one request by the status sent downstream; `None` when it ended without one.
    pub fn request(self, status: Option<u16>) {
        let at = LISTENER_COUNTER_AT[ListenerCounter::Requests as usize] + class_index(status);
        self.shard.add_at(self.base + at, 1);
    }

    /// Counts a TLS handshake that failed.
    pub fn handshake_failed(self, cause: HandshakeFailure) {
        let at = LISTENER_COUNTER_AT[ListenerCounter::TlsFailures as usize] + cause as usize;
        self.shard.add_at(self.base + at, 1);
    }

    /// Counts a tunnel as opened.
    pub fn tunnel_opened(self, protocol: TunnelProtocol) {
        let at = LISTENER_COUNTER_AT[ListenerCounter::Tunnels as usize] + protocol as usize;
        self.shard.add_at(self.base + at, 1);
    }

    pub fn gauge_add(self, gauge: ListenerGauge, delta: i64) {
        self.shard.gauge_add_at(self.base + LISTENER_GAUGE_AT[gauge as usize], delta);
    }

    pub fn gauge(self, gauge: ListenerGauge) -> u64 {
        self.shard.load(self.base + LISTENER_GAUGE_AT[gauge as usize])
    }

    /// Counts the end of a session. `reason` is a position in the list the shard was made with.
    pub fn session_ended(self, reason: usize) {
        self.ended(0, reason);
    }

    /// Counts the end of a tunnel, as `session_ended`.
    pub fn tunnel_ended(self, reason: usize) {
        self.ended(1, reason);
    }

    fn ended(self, family: usize, reason: usize) {
        let reasons = self.shard.reasons.len();
        debug_assert!(reason < reasons);
        if reason < reasons {
            self.shard.add_at(self.base + LISTENER_CELLS + family * reasons + reason, 1);
        }
    }

    pub fn sessions_ended(self, reason: usize) -> u64 {
        if reason < self.shard.reasons.len() {
            self.shard.load(self.base + LISTENER_CELLS + reason)
        } else {
            0
        }
    }

    pub fn tunnels_ended(self, reason: usize) -> u64 {
        let reasons = self.shard.reasons.len();
        if reason < reasons { self.shard.load(self.base + LISTENER_CELLS + reasons + reason) } else { 0 }
    }

    pub(super) fn load(self, at: usize) -> u64 {
        self.shard.load(self.base + at)
    }
}

impl ClusterShard<'_> {
    pub fn add(self, counter: ClusterCounter, n: u64) {
        self.shard.add_at(self.base + CLUSTER_COUNTER_AT[counter as usize], n);
    }

    /// Counts one request sent upstream by the status received; `None` when none came.
    pub fn response(self, status: Option<u16>) {
        let at = CLUSTER_COUNTER_AT[ClusterCounter::Requests as usize] + class_index(status);
        self.shard.add_at(self.base + at, 1);
    }

    /// Counts one response of gRPC by the status that ended it; `None` when none did.
    pub fn grpc_status(self, code: Option<u8>) {
        let none = GRPC_STATUS.values.len() - 1;
        let at = code.map_or(none, |code| usize::from(code).min(none));
        self.shard.add_at(self.base + CLUSTER_COUNTER_AT[ClusterCounter::GrpcStatus as usize] + at, 1);
    }

    pub fn gauge_add(self, gauge: ClusterGauge, delta: i64) {
        self.shard.gauge_add_at(self.base + CLUSTER_GAUGE_AT[gauge as usize], delta);
    }

    pub fn observe(self, histogram: ClusterHistogram, value: Duration) {
        self.shard.observe_at(self.base + CLUSTER_HISTOGRAM_AT[histogram as usize], value);
    }

    pub(super) fn load(self, at: usize) -> u64 {
        self.shard.load(self.base + at)
    }
}

/// Two cache lines, the unit that the adjacent-line prefetcher of x86 moves: shards of two workers never share one.
#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; LINE_CELLS]);

const LINE_CELLS: usize = 16;
/// Counters of a listener by termination reason: sessions and tunnels that ended.
const ENDED_FAMILIES: usize = 2;

/// A base past every cell of any shard; adding an offset to it cannot overflow.
const NOWHERE: usize = usize::MAX / 2;

// Order of the cells: the worker's own, then a block a listener (with its reasons last), then a block a cluster.
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
    use std::sync::Arc;

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
        let mut values: Vec<u64> =
            (0..shard.lines.len() * LINE_CELLS).map(|at| shard.load(at)).filter(|value| *value > 0).collect();
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
