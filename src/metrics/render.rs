//! Shards and process facts to the Prometheus text format 0.0.4. A pure function; reads no clock and no file.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::catalog::{
    Across, BUCKET_BOUNDS_NS, BUILD_INFO, CERTIFICATE_NOT_AFTER, CERTIFICATE_RELOAD_FAILURES,
    CERTIFICATE_RELOADS, ClusterCounter, ClusterGauge, ClusterHistogram, Counter, Gauge, HEALTH_ENDPOINTS,
    HEALTH_ENDPOINTS_HEALTHY, HEALTH_PROBES, Histogram, Kind, ListenerCounter, ListenerGauge, Metric,
    PROBE_RESULT, Process, RELOAD_RESULT, RELOADS, SESSIONS_ENDED, TUNNELS_ENDED, Unit, WORKER_ENGINE,
};
use super::shard::{self, ClusterShard, ListenerShard, Shard};
use super::steal::StealFacts;

/// Value of the `Content-Type` field for [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Facts of the whole process, beside the shards.
pub struct ProcessFacts {
    version: &'static str,
    values: [u64; Process::TABLE.len()],
    certificates: CertificateFacts,
    steal: StealFacts,
    /// Reloads that succeeded and that were refused.
    reloads: [u64; RELOAD_RESULT.values.len()],
    health: Vec<HealthFacts>,
}

/// What the control thread knows of the endpoints of a cluster that it probes.
#[derive(Clone, Debug)]
pub struct HealthFacts {
    pub cluster: String,
    pub endpoints: u64,
    pub healthy: u64,
    /// By [`super::ProbeResult`].
    pub probes: Arc<[AtomicU64; PROBE_RESULT.values.len()]>,
}

/// What the control thread knows of the files of TLS.
#[derive(Clone, Debug, Default)]
pub struct CertificateFacts {
    pub reloads: u64,
    pub failures: u64,
    /// Each once.
    pub ends: Vec<CertificateEnd>,
}

/// Until when something in use is valid.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct CertificateEnd {
    /// Whose: `listener` or `cluster`.
    pub kind: &'static str,
    pub name: String,
    pub file: String,
    pub unix_s: i64,
}

impl ProcessFacts {
    pub fn new(version: &'static str, certificates: CertificateFacts, steal: StealFacts) -> Self {
        let values = [0; Process::TABLE.len()];
        Self { version, values, certificates, steal, reloads: [0; 2], health: Vec::new() }
    }

    /// Reloads taken into use, and refused.
    pub const fn set_reloads(&mut self, ok: u64, refused: u64) {
        self.reloads = [ok, refused];
    }

    pub fn set_health(&mut self, health: Vec<HealthFacts>) {
        self.health = health;
    }

    pub const fn set(&mut self, fact: Process, value: u64) {
        self.values[fact as usize] = value;
    }
}

/// What does not change while a worker lives.
#[derive(Clone, Debug)]
pub struct WorkerFacts {
    pub worker: u32,
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// `io_uring` or `epoll`.
    pub engine: &'static str,
}

/// The whole exposition. All shards must have been given the same names.
pub fn text(shards: &[&Shard], workers: &[WorkerFacts], process: &ProcessFacts) -> String {
    let read = |shard: &&Shard| Owners { listeners: shard.listeners(), clusters: shard.clusters() };
    let owners: Vec<Owners> = shards.iter().map(read).collect();
    let mut page = Page { out: String::with_capacity(16 * 1024), shards, owners: &owners };
    page.info(process, workers);
    page.process(process);
    page.certificates(&process.certificates);
    page.steal(&process.steal);
    page.health(&process.health);
    page.family(&Counter::TABLE, &shard::COUNTER_AT, Scope::Worker);
    page.family(&Gauge::TABLE, &shard::GAUGE_AT, Scope::Worker);
    page.family(&Histogram::TABLE, &shard::HISTOGRAM_AT, Scope::Worker);
    page.family(&ListenerCounter::TABLE, &shard::LISTENER_COUNTER_AT, Scope::Listener);
    page.family(&ListenerGauge::TABLE, &shard::LISTENER_GAUGE_AT, Scope::Listener);
    page.ended(&SESSIONS_ENDED, ListenerShard::sessions_ended);
    page.ended(&TUNNELS_ENDED, ListenerShard::tunnels_ended);
    page.family(&ClusterCounter::TABLE, &shard::CLUSTER_COUNTER_AT, Scope::Cluster);
    page.family(&ClusterGauge::TABLE, &shard::CLUSTER_GAUGE_AT, Scope::Cluster);
    page.family(&ClusterHistogram::TABLE, &shard::CLUSTER_HISTOGRAM_AT, Scope::Cluster);
    page.out
}

#[derive(Clone, Copy)]
enum Scope {
    Worker,
    Listener,
    Cluster,
}

/// What a shard has beside the worker's own.
struct Owners {
    listeners: Vec<Arc<ListenerShard>>,
    clusters: Vec<Arc<ClusterShard>>,
}

struct Page<'a> {
    out: String,
    shards: &'a [&'a Shard],
    /// By shard.
    owners: &'a [Owners],
}

impl<'a> Page<'a> {
    fn info(&mut self, process: &ProcessFacts, workers: &[WorkerFacts]) {
        self.head(&BUILD_INFO);
        self.sample(BUILD_INFO.name, "", &[("version", process.version)], "1");
        self.head(&WORKER_ENGINE);
        for facts in workers {
            let worker = facts.worker.to_string();
            self.sample(WORKER_ENGINE.name, "", &[("worker", &worker), ("engine", facts.engine)], "1");
        }
    }

    fn process(&mut self, process: &ProcessFacts) {
        for (metric, value) in Process::TABLE.iter().zip(process.values) {
            self.head(metric);
            self.sample(metric.name, "", &[], &value.to_string());
        }
        self.head(&RELOADS);
        for (word, count) in RELOAD_RESULT.values.iter().zip(process.reloads) {
            self.sample(RELOADS.name, "", &[(RELOAD_RESULT.name, word)], &count.to_string());
        }
    }

    fn certificates(&mut self, facts: &CertificateFacts) {
        for (metric, value) in
            [(CERTIFICATE_RELOADS, facts.reloads), (CERTIFICATE_RELOAD_FAILURES, facts.failures)]
        {
            self.head(&metric);
            self.sample(metric.name, "", &[], &value.to_string());
        }
        self.head(&CERTIFICATE_NOT_AFTER);
        for CertificateEnd { kind, name, file, unix_s } in &facts.ends {
            let labels = [(*kind, name.as_str()), ("file", file.as_str())];
            self.sample(CERTIFICATE_NOT_AFTER.name, "", &labels, &unix_s.to_string());
        }
    }

    fn steal(&mut self, facts: &StealFacts) {
        facts.each(|metric, samples| {
            self.head(metric);
            for (labels, value) in samples {
                let labels: Vec<_> = labels.iter().map(|(key, word)| (*key, word.as_str())).collect();
                self.sample(metric.name, "", &labels, &value);
            }
        });
    }

    fn health(&mut self, clusters: &[HealthFacts]) {
        for (metric, value) in [
            (HEALTH_ENDPOINTS, (|facts| facts.endpoints) as fn(&HealthFacts) -> u64),
            (HEALTH_ENDPOINTS_HEALTHY, |facts| facts.healthy),
        ] {
            self.head(&metric);
            for facts in clusters {
                self.sample(metric.name, "", &[("cluster", &facts.cluster)], &value(facts).to_string());
            }
        }
        self.head(&HEALTH_PROBES);
        for facts in clusters {
            for (result, count) in PROBE_RESULT.values.iter().zip(&*facts.probes) {
                let labels = [("cluster", facts.cluster.as_str()), (PROBE_RESULT.name, result)];
                self.sample(HEALTH_PROBES.name, "", &labels, &count.load(Relaxed).to_string());
            }
        }
    }

    fn family(&mut self, table: &[Metric], offsets: &[usize], scope: Scope) {
        for (metric, &at) in table.iter().zip(offsets) {
            self.head(metric);
            for (label, index) in self.owners(scope) {
                let labels: Vec<_> = label.into_iter().collect();
                let (shards, owners) = (self.shards, self.owners);
                let each = || shards.iter().zip(owners);
                match metric.across {
                    Across::Sum => self.values(metric, &labels, |cell| {
                        // Wrapping: a gauge of one worker may stand below zero when another's makes up for it.
                        each().fold(0u64, |sum, (shard, owners)| {
                            sum.wrapping_add(load(shard, owners, scope, index, at + cell))
                        })
                    }),
                    Across::PerWorker => {
                        for (shard, owners) in each() {
                            let worker = shard.worker().to_string();
                            let labels = [&labels[..], &[("worker", &worker)]].concat();
                            self.values(metric, &labels, |cell| load(shard, owners, scope, index, at + cell));
                        }
                    }
                }
            }
        }
    }

    /// By termination reason.
    fn ended(&mut self, metric: &Metric, count: impl Fn(&ListenerShard, usize) -> u64) {
        self.head(metric);
        for (label, index) in self.owners(Scope::Listener) {
            let reasons = self.shards.first().map_or(&[][..], |shard| shard.reasons());
            for (reason, word) in reasons.iter().enumerate() {
                let of = |owners: &Owners| Some(count(owners.listeners.get(index)?, reason));
                let ended: u64 = self.owners.iter().filter_map(of).sum();
                let labels: Vec<_> = label.into_iter().chain([("reason", *word)]).collect();
                self.sample(metric.name, "", &labels, &ended.to_string());
            }
        }
    }

    /// The label that names each owner of a block of the scope, with its index.
    fn owners(&self, scope: Scope) -> Vec<Named<'a>> {
        let Some(first) = self.owners.first() else { return Vec::new() };
        match scope {
            Scope::Worker => vec![(None, 0)],
            Scope::Listener => named("listener", first.listeners.iter().map(|listener| listener.name())),
            Scope::Cluster => named("cluster", first.clusters.iter().map(|cluster| cluster.name())),
        }
    }

    fn values(&mut self, metric: &Metric, labels: &[(&str, &str)], value: impl Fn(usize) -> u64) {
        let cells: Vec<u64> = (0..metric.width()).map(value).collect();
        match (metric.kind, metric.label) {
            (Kind::Histogram, _) => self.histogram(metric, labels, &cells),
            (_, Some(label)) => {
                for (word, value) in label.values.iter().zip(&cells) {
                    let own: Vec<_> = label.name.split(',').zip(word.split(',')).collect();
                    let labels = [labels, &own].concat();
                    self.sample(metric.name, "", &labels, &number(metric, *value));
                }
            }
            (_, None) => self.sample(metric.name, "", labels, &number(metric, cells[0])),
        }
    }

    fn histogram(&mut self, metric: &Metric, labels: &[(&str, &str)], cells: &[u64]) {
        let mut count = 0u64;
        for (index, cell) in cells[..=BUCKET_BOUNDS_NS.len()].iter().enumerate() {
            count += cell;
            let bound =
                BUCKET_BOUNDS_NS.get(index).map_or_else(|| "+Inf".to_string(), |bound| seconds(*bound));
            let labels = [labels, &[("le", bound.as_str())]].concat();
            self.sample(metric.name, "_bucket", &labels, &count.to_string());
        }
        self.sample(metric.name, "_sum", labels, &seconds(cells[cells.len() - 1]));
        self.sample(metric.name, "_count", labels, &count.to_string());
    }

    fn head(&mut self, metric: &Metric) {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String cannot fail.
        let _ = write!(self.out, "# HELP {0} {help}\n# TYPE {0} {kind}\n", metric.name);
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &[(&str, &str)], value: &str) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        for (index, (key, word)) in labels.iter().enumerate() {
            self.out.push(if index == 0 { '{' } else { ',' });
            let _ = write!(self.out, "{key}=\"{}\"", escape(word));
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

/// A label that names an owner, and where the owner stands.
type Named<'a> = (Option<(&'static str, &'a str)>, usize);

fn named<'a>(key: &'static str, names: impl Iterator<Item = &'a str>) -> Vec<Named<'a>> {
    names.enumerate().map(|(index, name)| (Some((key, name)), index)).collect()
}

fn load(shard: &Shard, owners: &Owners, scope: Scope, index: usize, at: usize) -> u64 {
    match scope {
        Scope::Worker => shard.load(at),
        Scope::Listener => owners.listeners.get(index).map_or(0, |listener| listener.load(at)),
        Scope::Cluster => owners.clusters.get(index).map_or(0, |cluster| cluster.load(at)),
    }
}

fn number(metric: &Metric, value: u64) -> String {
    match (metric.unit, metric.kind) {
        (Unit::Seconds, _) => seconds(value),
        // A gauge may be read between the two halves of a move and stand below zero for that moment.
        (_, Kind::Gauge) => value.cast_signed().to_string(),
        _ => value.to_string(),
    }
}

pub(super) fn seconds(nanos: u64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::steal::{CpuFacts, WorkerLoss};
    use std::time::Duration;

    fn shards(listener: &str) -> [Shard; 2] {
        [0, 1].map(|worker| Shard::new(worker, &[listener.into()], &["site".into()], &["done", "reset"]))
    }

    fn render(shards: &[Shard]) -> String {
        let workers = [WorkerFacts { worker: 0, cpu: Some(0), engine: "epoll" }];
        let end = |kind, file: &str| CertificateEnd { kind, name: "x".into(), file: file.into(), unix_s: 17 };
        let ends = vec![end("listener", "a.pem"), end("cluster", "b.pem")];
        let certificates = CertificateFacts { reloads: 3, failures: 2, ends };
        let steal = StealFacts {
            cpus: vec![
                CpuFacts { cpu: 0, steal: Some((1_250_000_000, 0.125)), lost_ratio: 0.25 },
                CpuFacts { cpu: 1, steal: None, lost_ratio: 0.0 },
            ],
            workers: vec![WorkerLoss { worker: 0, wait_ns: Some(500_000_000), level: 2, accept_weight: 0.5 }],
            source: Some(("kvm", true)),
            throttled_ns: None,
            transitions: vec![(0, 2, 3)],
            in_time_ratio: Some(0.995),
            sample_age_ns: Some(100_000_000),
            sampler_cpu_ns: 0,
        };
        let mut process = ProcessFacts::new("1.2.3", certificates, steal);
        process.set(Process::Ready, 1);
        text(&shards.iter().collect::<Vec<_>>(), &workers, &process)
    }

    fn line<'a>(page: &'a str, start: &str) -> &'a str {
        let found = page.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no line starts with {start:?} in\n{page}"))
    }

    #[test]
    fn workers_are_summed_unless_the_metric_is_of_the_worker() {
        let shards = shards("web");
        for shard in &shards {
            shard.add(Counter::LoopTurns, 2 + u64::from(shard.worker()));
            shard.listeners()[0].request(Some(200));
            shard.listeners()[0].session_ended(1);
            shard.clusters()[0].gauge_add(ClusterGauge::ConnectionsIdle, 4);
        }
        let page = render(&shards);
        let turns = "ringfort_worker_loop_turns_total";
        assert_eq!(line(&page, &format!("{turns}{{worker=\"0\"")), format!("{turns}{{worker=\"0\"}} 2"));
        assert_eq!(line(&page, &format!("{turns}{{worker=\"1\"")), format!("{turns}{{worker=\"1\"}} 3"));
        assert!(page.contains("\nringfort_requests_total{listener=\"web\",class=\"2xx\"} 2\n"));
        assert!(page.contains("\nringfort_sessions_ended_total{listener=\"web\",reason=\"reset\"} 2\n"));
        assert!(page.contains("\nringfort_upstream_connections_idle{cluster=\"site\"} 8\n"));
        assert!(page.contains("\nringfort_worker_engine{worker=\"0\",engine=\"epoll\"} 1\n"));
        assert!(page.contains("\nringfort_build_info{version=\"1.2.3\"} 1\n"));
        assert!(page.contains("\nringfort_ready 1\n"));
        for line in [
            "cpu_steal_seconds_total{cpu=\"0\"} 1.25",
            "cpu_steal_ratio{cpu=\"0\"} 0.1250",
            "cpu_lost_ratio{cpu=\"1\"} 0.0000",
            "worker_runqueue_wait_seconds_total{worker=\"0\"} 0.5",
            "throttle_level{worker=\"0\"} 2",
            "throttle_transitions_total{from=\"0\",to=\"2\"} 3",
            "steal_source{source=\"kvm\",trusted=\"true\"} 1",
            "steal_sample_age_seconds 0.1",
            "requests_in_time_ratio 0.9950",
            "shed_total{worker=\"1\",stage=\"handshake\",proto=\"tls\",reason=\"age\"} 0",
        ] {
            assert!(page.contains(&format!("\nringfort_{line}\n")), "{line}");
        }
        assert!(
            !page.contains("cpu_steal_ratio{cpu=\"1\"}") && !page.contains("\nringfort_cgroup_throttled")
        );
        assert!(page.contains("\nringfort_certificate_reloads_total 3\n"));
        assert!(page.contains("\nringfort_certificate_reload_failures_total 2\n"));
        let end = "ringfort_certificate_not_after_seconds";
        assert!(page.contains(&format!("\n{end}{{listener=\"x\",file=\"a.pem\"}} 17\n")));
        assert!(page.contains(&format!("\n{end}{{cluster=\"x\",file=\"b.pem\"}} 17\n")));
    }

    #[test]
    fn a_histogram_is_cumulative_and_in_seconds() {
        let shards = shards("web");
        shards[0].observe(Histogram::RequestDuration, Duration::from_micros(50));
        shards[0].observe(Histogram::RequestDuration, Duration::from_millis(2));
        shards[1].observe(Histogram::RequestDuration, Duration::from_secs(61));
        let page = render(&shards);
        let name = "ringfort_request_duration_seconds";
        assert!(page.contains(&format!("# TYPE {name} histogram\n")));
        assert!(page.contains(&format!("\n{name}_bucket{{le=\"0.0001\"}} 1\n")));
        assert!(page.contains(&format!("\n{name}_bucket{{le=\"0.0025\"}} 2\n")));
        assert!(page.contains(&format!("\n{name}_bucket{{le=\"60\"}} 2\n")));
        assert!(page.contains(&format!("\n{name}_bucket{{le=\"+Inf\"}} 3\n")));
        assert!(page.contains(&format!("\n{name}_sum 61.00205\n")));
        assert!(page.contains(&format!("\n{name}_count 3\n")));
    }

    #[test]
    fn label_values_are_escaped() {
        let page = render(&shards("a\"b\\c\nd"));
        assert!(page.contains("ringfort_connections_active{listener=\"a\\\"b\\\\c\\nd\"} 0\n"));
    }

    #[test]
    fn a_gauge_below_zero_is_shown_as_such() {
        let shards = shards("web");
        shards[0].listeners()[0].gauge_add(ListenerGauge::ConnectionsActive, -1);
        assert!(render(&shards).contains("\nringfort_connections_active{listener=\"web\"} -1\n"));
    }

    #[test]
    fn every_sample_follows_the_head_of_its_metric_and_no_line_is_malformed() {
        let page = render(&shards("web"));
        let mut current = "";
        for line in page.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                current = head.split(' ').next().unwrap();
            } else if !line.starts_with("# HELP ") {
                let name = line.split(['{', ' ']).next().unwrap();
                assert!(name.starts_with(current), "{line} under {current}");
                let value = line.rsplit(' ').next().unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
    }
}
