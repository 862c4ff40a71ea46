//! Every metric with its type, unit, labels and meaning, for whoever writes dashboards and alerts. Made of the catalogue;
//! holds no values.

use super::catalog::{
    ACCEPT_WEIGHT, Across, BUILD_INFO, CERTIFICATE_NOT_AFTER, CERTIFICATE_RELOAD_FAILURES,
    CERTIFICATE_RELOADS, CGROUP_THROTTLED, CPU_LOST_RATIO, CPU_STEAL, CPU_STEAL_RATIO, ClusterCounter,
    ClusterGauge, ClusterHistogram, Counter, Gauge, HEALTH_ENDPOINTS, HEALTH_ENDPOINTS_HEALTHY,
    HEALTH_PROBES, Histogram, IN_TIME_RATIO, Kind, ListenerCounter, ListenerGauge, Metric, Process, RELOADS,
    RUN_QUEUE_WAIT, SESSIONS_ENDED, STEAL_SAMPLE_AGE, STEAL_SAMPLER_CPU, STEAL_SOURCE, THROTTLE_LEVEL,
    THROTTLE_TRANSITIONS, TUNNELS_ENDED, Unit, WORKER_ENGINE,
};

/// One metric.
#[derive(Clone, Debug)]
pub struct Description {
    pub name: &'static str,
    /// In Prometheus' words.
    pub kind: &'static str,
    /// `seconds`, `bytes`, `ratio`, or `1` for what is counted.
    pub unit: &'static str,
    pub labels: Vec<LabelDescription>,
    pub help: &'static str,
}

/// One label. Its values are few: names of the configuration, numbers of workers or CPUs, or words of a fixed list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LabelDescription {
    pub name: &'static str,
    /// All of them where the list is fixed, else none.
    pub values: Vec<&'static str>,
}

/// Metrics that are no cell of a shard, with the labels whose values are found while they are counted.
static OTHERS: [(Metric, &[&str]); 23] = [
    (BUILD_INFO, &["version"]),
    (WORKER_ENGINE, &["worker", "engine"]),
    (SESSIONS_ENDED, &["listener"]),
    (TUNNELS_ENDED, &["listener"]),
    (CERTIFICATE_NOT_AFTER, &["listener", "cluster", "file"]),
    (CERTIFICATE_RELOADS, &[]),
    (CERTIFICATE_RELOAD_FAILURES, &[]),
    (RELOADS, &[]),
    (HEALTH_ENDPOINTS, &["cluster"]),
    (HEALTH_ENDPOINTS_HEALTHY, &["cluster"]),
    (HEALTH_PROBES, &["cluster"]),
    (CPU_STEAL, &["cpu"]),
    (CPU_STEAL_RATIO, &["cpu"]),
    (CPU_LOST_RATIO, &["cpu"]),
    (RUN_QUEUE_WAIT, &["worker"]),
    (THROTTLE_LEVEL, &["worker"]),
    (ACCEPT_WEIGHT, &["worker"]),
    (THROTTLE_TRANSITIONS, &["from", "to"]),
    (IN_TIME_RATIO, &[]),
    (STEAL_SOURCE, &["source", "trusted"]),
    (CGROUP_THROTTLED, &[]),
    (STEAL_SAMPLE_AGE, &[]),
    (STEAL_SAMPLER_CPU, &[]),
];

/// All metrics in the order of their names. `reasons`: why sessions and tunnels end.
pub fn all(reasons: &'static [&'static str]) -> Vec<Description> {
    let families: [(&[Metric], &'static [&'static str]); 9] = [
        (&Process::TABLE, &[]),
        (&Counter::TABLE, &[]),
        (&Gauge::TABLE, &[]),
        (&Histogram::TABLE, &[]),
        (&ListenerCounter::TABLE, &["listener"]),
        (&ListenerGauge::TABLE, &["listener"]),
        (&ClusterCounter::TABLE, &["cluster"]),
        (&ClusterGauge::TABLE, &["cluster"]),
        (&ClusterHistogram::TABLE, &["cluster"]),
    ];
    let of_family = families.iter().flat_map(|(table, owners)| {
        table.iter().map(|metric| {
            let per_worker = metric.across == Across::PerWorker;
            describe(metric, owners.iter().copied().chain(per_worker.then_some("worker")))
        })
    });
    let others = OTHERS.iter().map(|(metric, labels)| {
        let mut description = describe(metric, labels.iter().copied());
        if [SESSIONS_ENDED.name, TUNNELS_ENDED.name].contains(&metric.name) {
            description.labels.push(LabelDescription { name: "reason", values: reasons.into() });
        }
        description
    });
    let mut all: Vec<Description> = of_family.chain(others).collect();
    all.sort_by_key(|description| description.name);
    all
}

fn describe(metric: &Metric, found: impl Iterator<Item = &'static str>) -> Description {
    let found = found.map(|name| LabelDescription { name, values: Vec::new() });
    let fixed = metric.label.iter().flat_map(|label| {
        label.name.split(',').enumerate().map(|(at, name)| {
            let mut values: Vec<_> =
                label.values.iter().filter_map(|words| words.split(',').nth(at)).collect();
            values.dedup();
            LabelDescription { name, values }
        })
    });
    Description {
        name: metric.name,
        kind: match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        },
        unit: match metric.unit {
            Unit::Bytes => "bytes",
            Unit::Seconds => "seconds",
            Unit::One if metric.name.ends_with("_seconds") => "seconds",
            Unit::One if metric.name.ends_with("_ratio") => "ratio",
            Unit::One => "1",
        },
        labels: found.chain(fixed).collect(),
        help: metric.help,
    }
}
