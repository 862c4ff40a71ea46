//! What the control thread knows of lost CPU time, as samples of the exposition. Measures nothing.

use super::catalog::{
    ACCEPT_WEIGHT, CGROUP_THROTTLED, CPU_LOST_RATIO, CPU_STEAL, CPU_STEAL_RATIO, IN_TIME_RATIO, Metric,
    RUN_QUEUE_WAIT, STEAL_SAMPLE_AGE, STEAL_SAMPLER_CPU, STEAL_SOURCE, THROTTLE_LEVEL, THROTTLE_TRANSITIONS,
};

/// Empty where nothing is measured.
#[derive(Clone, Debug, Default)]
pub struct StealFacts {
    pub cpus: Vec<CpuFacts>,
    pub workers: Vec<WorkerLoss>,
    /// Where steal is read from, and whether it is believed.
    pub source: Option<(&'static str, bool)>,
    /// Time for which a quota held the process, in nanoseconds; `None` without a quota.
    pub throttled_ns: Option<u64>,
    /// Level changes so far: from, to, how many.
    pub transitions: Vec<(u8, u8, u64)>,
    /// Share of the last minute's requests that were answered in time; `None` where there were none.
    pub in_time_ratio: Option<f64>,
    /// Since the last sample, in nanoseconds.
    pub sample_age_ns: Option<u64>,
    /// CPU time that sampling took so far, in nanoseconds.
    pub sampler_cpu_ns: u64,
}

#[derive(Clone, Debug)]
pub struct CpuFacts {
    pub cpu: u16,
    /// Stolen since the start, in nanoseconds, and the present share; `None` where it is not reported.
    pub steal: Option<(u64, f64)>,
    pub lost_ratio: f64,
}

#[derive(Clone, Debug)]
pub struct WorkerLoss {
    pub worker: u32,
    /// Ready and not running, in nanoseconds since the start; `None` where the kernel does not say.
    pub wait_ns: Option<u64>,
    pub level: u8,
    pub accept_weight: f64,
}

impl StealFacts {
    /// Calls `take` with each metric and its samples: labels and value.
    pub(super) fn each(&self, mut take: impl FnMut(&Metric, Vec<(Vec<(&'static str, String)>, String)>)) {
        let of_cpus = |value: &dyn Fn(&CpuFacts) -> Option<String>| {
            let sample = |facts: &CpuFacts| Some((vec![("cpu", facts.cpu.to_string())], value(facts)?));
            self.cpus.iter().filter_map(sample).collect::<Vec<_>>()
        };
        take(&CPU_STEAL, of_cpus(&|facts| facts.steal.map(|(ns, _)| super::render::seconds(ns))));
        take(&CPU_STEAL_RATIO, of_cpus(&|facts| facts.steal.map(|(_, ratio)| ratio_text(ratio))));
        take(&CPU_LOST_RATIO, of_cpus(&|facts| Some(ratio_text(facts.lost_ratio))));
        let of_workers = |value: &dyn Fn(&WorkerLoss) -> Option<String>| {
            let sample =
                |facts: &WorkerLoss| Some((vec![("worker", facts.worker.to_string())], value(facts)?));
            self.workers.iter().filter_map(sample).collect::<Vec<_>>()
        };
        take(&RUN_QUEUE_WAIT, of_workers(&|facts| facts.wait_ns.map(super::render::seconds)));
        take(&THROTTLE_LEVEL, of_workers(&|facts| Some(facts.level.to_string())));
        take(&ACCEPT_WEIGHT, of_workers(&|facts| Some(ratio_text(facts.accept_weight))));
        let transition = |(from, to, count): &(u8, u8, u64)| {
            (vec![("from", from.to_string()), ("to", to.to_string())], count.to_string())
        };
        take(&THROTTLE_TRANSITIONS, self.transitions.iter().map(transition).collect());
        let source = |(source, trusted): (&str, bool)| {
            (vec![("source", source.to_owned()), ("trusted", trusted.to_string())], "1".to_owned())
        };
        take(&STEAL_SOURCE, self.source.map(source).into_iter().collect());
        let plain =
            |ns: Option<u64>| ns.map(|ns| (Vec::new(), super::render::seconds(ns))).into_iter().collect();
        take(&CGROUP_THROTTLED, plain(self.throttled_ns));
        let in_time = self.in_time_ratio.map(|ratio| (Vec::new(), ratio_text(ratio)));
        take(&IN_TIME_RATIO, in_time.into_iter().collect());
        take(&STEAL_SAMPLE_AGE, plain(self.sample_age_ns));
        take(&STEAL_SAMPLER_CPU, plain(Some(self.sampler_cpu_ns)));
    }
}

fn ratio_text(ratio: f64) -> String {
    format!("{ratio:.4}")
}
