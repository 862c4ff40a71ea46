//! What is known of lost CPU time at the moment, for the admin endpoints: JSON, CSV, metrics. Made by the sampler.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use crate::base::time::Instant;
use crate::metrics::{CpuFacts, StealFacts, WorkerFacts, WorkerLoss};
use crate::steal::controller::Level;
use crate::steal::source::{Hypervisor, Machine, Source};
use crate::steal::trace::Trace;
use crate::steal::{Mode, Spec};

/// Seconds of what each worker lost that are kept for the page: a quarter of an hour.
pub const LOST_SECONDS_MAX: usize = 900;
const LEVELS: usize = Level::ALL.len();

/// The present state. Where nothing is measured, only the mode.
pub struct View {
    pub mode: Mode,
    pub machine: Machine,
    /// Where steal is read from, and whether it is believed.
    pub source: Option<(Source, bool)>,
    pub sampled: Option<Instant>,
    pub sampler_cpu: Duration,
    /// In worker order.
    pub workers: Vec<Worker>,
    /// Ascending.
    pub cpus: Vec<Cpu>,
    pub throttled_ns: Option<u64>,
    pub throttled_ratio: f64,
    pub latency_objective: Duration,
    /// Shares of lost time from which a worker is at level 1 and 2.
    pub levels_from: [f64; 2],
    /// Share of the last minute's requests that were answered within it; `None` where there were none.
    pub in_time_ratio: Option<f64>,
    pub transitions: [[u64; LEVELS]; LEVELS],
    pub trace: Trace,
    /// By worker: what it lost in each of the last seconds, in thousandths.
    lost: Vec<VecDeque<u16>>,
}

pub struct Worker {
    pub wait_ns: Option<u64>,
    pub level: u8,
    pub accept_weight: f64,
}

/// One CPU. The keys are part of the outward contract.
#[derive(Serialize)]
pub struct Cpu {
    pub cpu: usize,
    pub worker: Option<usize>,
    #[serde(skip)]
    pub stolen_ns: Option<u64>,
    pub steal_ratio: Option<f64>,
    pub wait_ratio: Option<f64>,
    pub lost_ratio: f64,
    pub level: Option<u8>,
    pub accept_weight: Option<f64>,
}

/// The answer to `/steal`. The keys are part of the outward contract.
#[derive(Serialize)]
struct Answer<'v> {
    reported: bool,
    source: &'static str,
    trusted: bool,
    /// The provider says that virtual CPUs have a CPU each.
    dedicated: bool,
    mode: &'static str,
    throttled_ratio: Option<f64>,
    latency_objective_ms: u64,
    in_time_ratio: Option<f64>,
    sample_age_ms: Option<u64>,
    cpus: &'v [Cpu],
}

impl Default for View {
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            machine: Machine { hypervisor: Hypervisor::Unknown, kvm_features: 0, kvm_hints: 0 },
            source: None,
            sampled: None,
            sampler_cpu: Duration::ZERO,
            workers: Vec::new(),
            cpus: Vec::new(),
            throttled_ns: None,
            throttled_ratio: 0.0,
            latency_objective: Spec::default().latency_objective,
            levels_from: [Spec::default().elevated_ratio, Spec::default().stolen_ratio],
            in_time_ratio: None,
            transitions: [[0; LEVELS]; LEVELS],
            trace: Trace::default(),
            lost: Vec::new(),
        }
    }
}

impl View {
    /// Measuring was turned on or off: what was seen until now says nothing of what is.
    pub fn turn(&mut self, mode: Mode) {
        self.mode = mode;
        self.sampled = None;
        self.workers.clear();
        self.cpus.clear();
    }

    /// Takes what a worker lost in the last second.
    pub fn push_lost(&mut self, worker: usize, ratio: f64) {
        if self.lost.len() <= worker {
            self.lost.resize_with(worker + 1, VecDeque::new);
        }
        let seconds = &mut self.lost[worker];
        seconds.push_back((ratio.clamp(0.0, 1.0) * 1e3).round() as u16);
        if seconds.len() > LOST_SECONDS_MAX {
            seconds.pop_front();
        }
    }

    /// What a worker lost in each second, the latest last.
    pub fn lost_seconds(&self, worker: usize) -> Vec<Option<f64>> {
        let seconds = self.lost.get(worker).into_iter().flatten();
        seconds.map(|thousandths| Some(f64::from(*thousandths) / 1e3)).collect()
    }

    pub fn is_reported(&self) -> bool {
        self.source.is_some_and(|(source, _)| source.is_reported())
    }

    pub fn source_word(&self) -> &'static str {
        self.source.map_or("none", |(source, _)| source.word())
    }

    /// As JSON.
    pub fn json(&self, now: Instant) -> serde_json::Value {
        let answer = Answer {
            reported: self.is_reported(),
            source: self.source_word(),
            trusted: self.source.is_some_and(|(_, trusted)| trusted),
            dedicated: self.machine.is_dedicated(),
            mode: self.mode.word(),
            throttled_ratio: self.throttled_ns.map(|_| self.throttled_ratio),
            latency_objective_ms: self.latency_objective.as_millis() as u64,
            in_time_ratio: self.in_time_ratio,
            sample_age_ms: self.sampled.map(|sampled| now.since(sampled).as_millis() as u64),
            cpus: &self.cpus,
        };
        serde_json::to_value(answer).unwrap_or_default()
    }

    /// As metrics.
    pub fn facts(&self, now: Instant, workers: &[WorkerFacts]) -> StealFacts {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let cpu = |cpu: &Cpu| CpuFacts {
            cpu: u16::try_from(cpu.cpu).unwrap_or(u16::MAX),
            steal: cpu.stolen_ns.zip(cpu.steal_ratio),
            lost_ratio: cpu.lost_ratio,
        };
        let worker = |(facts, worker): (&WorkerFacts, &Worker)| WorkerLoss {
            worker: facts.worker,
            wait_ns: worker.wait_ns,
            level: worker.level,
            accept_weight: worker.accept_weight,
        };
        let transitions = Level::ALL.into_iter().flat_map(|from| {
            let count =
                move |to: Level| self.transitions[usize::from(from.number())][usize::from(to.number())];
            let others = Level::ALL.into_iter().filter(move |to| *to != from);
            others.map(move |to| (from.number(), to.number(), count(to)))
        });
        StealFacts {
            cpus: self.cpus.iter().map(cpu).collect(),
            workers: workers.iter().zip(&self.workers).map(worker).collect(),
            source: self.source.map(|(source, trusted)| (source.word(), trusted)),
            throttled_ns: self.throttled_ns,
            transitions: if self.sampled.is_some() { transitions.collect() } else { Vec::new() },
            in_time_ratio: self.in_time_ratio,
            sample_age_ns: self.sampled.map(|sampled| nanos(now.since(sampled))),
            sampler_cpu_ns: nanos(self.sampler_cpu),
        }
    }
}
