//! A seeded model of workers that lose time: what the control law does to clients, and what other laws would do. Connections
//! arrive at random, cost a handshake, and bring requests after a pause each; a worker serves in order and stands still in
//! stolen slices. It is a model: no kernel, no retries, no upstream. Kept as evidence for the law, and against the laws that
//! were not chosen.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::base::random::Random;
use crate::base::time::Instant;
use crate::steal::controller::{Controller, Level, Reading, Weights};
use crate::steal::counters::{COLUMNS, CpuTicks};
use crate::steal::drain::Drain;
use crate::steal::meter::CpuMeter;
use crate::steal::shed::Shedder;
use crate::steal::trace::parse_row;
use crate::steal::{Mode, Spec};

const WORKERS: usize = 2;
const HANDSHAKE_US: u64 = 1_000;
const REQUEST_US: u64 = 150;
const THINK_US: u64 = 50_000;
const REJECT_US: u64 = 20;
const OBJECTIVE_US: u64 = 25_000;
const SAMPLE_US: u64 = 100_000;

/// What is done about lost time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Law {
    Nothing,
    /// Connections never go to a worker at level 2 while there is another: what suggests itself, and does harm.
    Gate,
    Weights,
    WeightsAndDrain,
    /// And shedding.
    All,
}

/// Stolen slices: the first `slice` of every period.
#[derive(Clone, Debug)]
struct Theft {
    period_us: u64,
    /// By period; the last one goes on.
    slices_us: Vec<u64>,
}

impl Theft {
    fn none() -> Self {
        Self::periodic(SAMPLE_US, 0)
    }

    fn periodic(period_us: u64, slice_us: u64) -> Self {
        Self { period_us, slices_us: vec![slice_us] }
    }

    fn slice(&self, period: u64) -> u64 {
        let last = self.slices_us.len() - 1;
        self.slices_us[(period as usize).min(last)].min(self.period_us)
    }

    /// When work that begins at `at` is done.
    fn run(&self, mut at: u64, mut work: u64) -> u64 {
        loop {
            let (period, phase) = (at / self.period_us, at % self.period_us);
            let begin = phase.max(self.slice(period));
            let room = self.period_us - begin;
            at = period * self.period_us + begin;
            if work <= room && room > 0 {
                return at + work;
            }
            work -= room;
            at += room;
        }
    }

    fn stolen_before(&self, at: u64) -> u64 {
        let (period, phase) = (at / self.period_us, at % self.period_us);
        let whole: u64 = if self.slices_us.len() == 1 {
            period * self.slice(0)
        } else {
            (0..period).map(|period| self.slice(period)).sum()
        };
        whole + phase.min(self.slice(period))
    }
}

struct Case {
    theft: [Theft; WORKERS],
    /// Share of both workers' whole time.
    load: f64,
    requests: u32,
    seconds: u64,
    /// What comes before it is not counted.
    counts_from_s: u64,
}

#[derive(Debug, Default)]
struct Outcome {
    latencies_us: Vec<u64>,
    shed: usize,
    moved: usize,
}

impl Outcome {
    fn p99_ms(&mut self) -> f64 {
        self.latencies_us.sort_unstable();
        self.latencies_us[self.latencies_us.len() * 99 / 100] as f64 / 1e3
    }

    fn all(&self) -> f64 {
        (self.latencies_us.len() + self.shed) as f64
    }

    fn within_objective(&self) -> f64 {
        self.latencies_us.iter().filter(|latency| **latency <= OBJECTIVE_US).count() as f64 / self.all()
    }

    fn shed_share(&self) -> f64 {
        self.shed as f64 / self.all()
    }
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Event {
    Sample,
    Connect,
    /// A client that was asked to go elsewhere comes back.
    Reconnect {
        left: u32,
    },
    Request {
        worker: usize,
        left: u32,
    },
    Close {
        worker: usize,
    },
}

struct Worker {
    free_us: u64,
    connections: u64,
    meter: CpuMeter,
    shedder: Shedder,
    drain: Drain,
}

struct Model<'c> {
    case: &'c Case,
    law: Law,
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    numbered: u64,
    workers: [Worker; WORKERS],
    controller: Controller,
    shares: [f64; WORKERS],
    outcome: Outcome,
}

fn at(us: u64) -> Instant {
    Instant::from_nanos(1_000_000_000 + us * 1_000)
}

fn simulate(case: &Case, law: Law, seed: u64) -> Outcome {
    let spec = Spec { mode: Mode::Act, ..Spec::default() };
    let worker = || Worker {
        free_us: 0,
        connections: 0,
        meter: CpuMeter::default(),
        shedder: Shedder::new(spec.latency_objective, at(0)),
        drain: Drain::default(),
    };
    let mut model = Model {
        case,
        law,
        random: Random::new(seed),
        events: BinaryHeap::new(),
        numbered: 0,
        workers: std::array::from_fn(|_| worker()),
        controller: Controller::new(spec, WORKERS),
        shares: [1.0 / WORKERS as f64; WORKERS],
        outcome: Outcome::default(),
    };
    model.push(0, Event::Sample);
    model.push(0, Event::Connect);
    while let Some(Reverse((now, _, event))) = model.events.pop() {
        if now >= case.seconds * 1_000_000 {
            break;
        }
        match event {
            Event::Sample => model.sample(now),
            Event::Connect => model.connect(now),
            Event::Reconnect { left } => model.open(now, left),
            Event::Request { worker, left } => model.request(now, worker, left),
            Event::Close { worker } => model.workers[worker].connections -= 1,
        }
    }
    model.outcome
}

impl Model<'_> {
    fn push(&mut self, at: u64, event: Event) {
        self.numbered += 1;
        self.events.push(Reverse((at, self.numbered, event)));
    }

    fn unit(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn sample(&mut self, now: u64) {
        let mut readings = [Reading::default(); WORKERS];
        for (index, worker) in self.workers.iter_mut().enumerate() {
            let mut ticks = [0; COLUMNS];
            ticks[COLUMNS - 1] = self.case.theft[index].stolen_before(now) / 10_000;
            let line = CpuTicks { cpu: index as u16, ticks, has_steal: true };
            let lost = worker.meter.read(at(now), Some(&line)).ratio;
            readings[index] =
                Reading { lost_ratio: Some(lost), connections: worker.connections, stands: false };
        }
        let even = [1.0 / WORKERS as f64; WORKERS];
        let actions = self.controller.step(at(now), &readings);
        if matches!(self.law, Law::WeightsAndDrain | Law::All) {
            for (index, worker) in self.workers.iter_mut().enumerate() {
                worker.drain.allow(at(now), actions.drains_per_s.get(index).copied().unwrap_or(0.0));
            }
        }
        let weights = actions.weights;
        match (self.law, weights) {
            (Law::Nothing, _) => {}
            (Law::Gate, _) => {
                let open = [0, 1].map(|worker| f64::from(self.controller.level(worker) < Level::Stolen));
                self.shares = if open == [0.0, 0.0] || open == [1.0, 1.0] { even } else { open };
            }
            (_, Weights::Even) => self.shares = even,
            (_, Weights::Shares(shares)) => self.shares.copy_from_slice(&shares),
            (_, Weights::Unchanged) => {}
        }
        self.push(now + SAMPLE_US, Event::Sample);
    }

    fn connect(&mut self, now: u64) {
        let cost_us = HANDSHAKE_US + u64::from(self.case.requests) * REQUEST_US;
        let between_us = cost_us as f64 / (self.case.load * WORKERS as f64);
        let pause = -(1.0 - self.unit()).ln() * between_us;
        self.push(now + pause as u64, Event::Connect);
        self.open(now, self.case.requests);
    }

    fn open(&mut self, now: u64, left: u32) {
        let worker = usize::from(self.unit() >= self.shares[0]);
        self.workers[worker].connections += 1;
        match self.serve(now, worker, HANDSHAKE_US) {
            Ok(done) => self.push(done, Event::Request { worker, left }),
            Err(done) => {
                self.outcome.shed += usize::from(self.counts(now));
                self.push(done, Event::Close { worker });
            }
        }
    }

    fn request(&mut self, now: u64, worker: usize, left: u32) {
        let done = match self.serve(now, worker, REQUEST_US) {
            Ok(done) if self.counts(now) => {
                self.outcome.latencies_us.push(done - now);
                done
            }
            Ok(done) => done,
            Err(done) => {
                self.outcome.shed += usize::from(self.counts(now));
                done
            }
        };
        if left > 1 && self.workers[worker].drain.takes(at(done), 1) {
            self.outcome.moved += 1;
            self.push(done, Event::Close { worker });
            self.push(done + THINK_US, Event::Reconnect { left: left - 1 });
        } else if left > 1 {
            self.push(done + THINK_US, Event::Request { worker, left: left - 1 });
        } else {
            self.push(done, Event::Close { worker });
        }
    }

    fn counts(&self, now: u64) -> bool {
        now >= self.case.counts_from_s * 1_000_000
    }

    /// Work that arrives now, behind what the worker has already: when it is done, or when it is refused.
    fn serve(&mut self, now: u64, index: usize, work_us: u64) -> Result<u64, u64> {
        let (worker, theft) = (&mut self.workers[index], &self.case.theft[index]);
        if worker.free_us <= now {
            worker.shedder.emptied(at(now));
        }
        let begin = theft.run(worker.free_us.max(now), 0);
        let age = at(begin).since(at(now));
        let admits = self.law != Law::All || worker.shedder.admits(at(begin), age);
        worker.free_us = theft.run(begin, if admits { work_us } else { REJECT_US });
        if admits { Ok(worker.free_us) } else { Err(worker.free_us) }
    }
}

const SEEDS: [u64; 2] = [1, 2];

/// p99 in ms, share within the objective, share shed: over all seeds.
fn measure(case: &Case, law: Law) -> (f64, f64, f64) {
    measure_with(case, law, &SEEDS)
}

fn measure_with(case: &Case, law: Law, seeds: &[u64]) -> (f64, f64, f64) {
    let mut all = Outcome::default();
    for seed in seeds.iter().copied() {
        let outcome = simulate(case, law, seed);
        all.latencies_us.extend(outcome.latencies_us);
        all.shed += outcome.shed;
        all.moved += outcome.moved;
    }
    let measured = (all.p99_ms(), all.within_objective(), all.shed_share());
    let (p99, within, shed) = measured;
    println!("{law:?}: p99 {p99:.1} ms, within {within:.4}, shed {shed:.4}, moved {}", all.moved);
    measured
}

/// Core 0 loses slices, core 1 nothing.
fn one_core(period_us: u64, slice_us: u64, load: f64, requests: u32) -> Case {
    Case {
        theft: [Theft::periodic(period_us, slice_us), Theft::none()],
        load,
        requests,
        seconds: 20,
        counts_from_s: 0,
    }
}

#[test]
fn at_60_percent_load_a_gate_does_the_harm_that_weights_avoid() {
    let case = one_core(10_000, 3_000, 0.6, 20);
    let nothing = measure(&case, Law::Nothing);
    let gate = measure(&case, Law::Gate);
    let weights = measure(&case, Law::Weights);
    let both = measure(&case, Law::All);
    assert!(
        gate.0 > 5.0 * nothing.0 && gate.1 < 0.6,
        "the gate throws 0.7 of a core away to save 0.3: {gate:?}"
    );
    assert!(weights.0 < nothing.0 && weights.1 > 0.999, "{weights:?}");
    assert!(both.0 < nothing.0 && both.2 < 0.001, "{both:?}");
}

#[test]
fn at_80_percent_load_the_stolen_core_is_over_its_capacity_and_helped() {
    let case = one_core(10_000, 3_000, 0.8, 20);
    let nothing = measure(&case, Law::Nothing);
    let both = measure(&case, Law::All);
    assert!(nothing.1 < 0.8, "{nothing:?}");
    assert!(both.0 <= nothing.0 / 5.0 && both.1 >= 0.99 && both.2 <= 0.01, "{both:?}");
}

#[test]
fn a_core_that_loses_60_percent_at_60_percent_load_is_helped() {
    let case = one_core(10_000, 6_000, 0.6, 20);
    let nothing = measure(&case, Law::Nothing);
    let both = measure(&case, Law::All);
    assert!(both.0 <= nothing.0 / 10.0 && both.1 >= 0.98, "{both:?}");
}

#[test]
fn beyond_all_capacity_weights_alone_make_everyone_late_and_shedding_keeps_most_in_time() {
    let case = one_core(10_000, 6_000, 0.8, 20);
    let weights = measure(&case, Law::Weights);
    let both = measure(&case, Law::All);
    assert!(weights.1 < 0.5, "{weights:?}");
    assert!(both.1 > 0.7 && both.0 < 50.0, "{both:?}");
}

#[test]
fn with_capacity_to_spare_nothing_is_gained_and_nothing_lost() {
    let case = one_core(10_000, 3_000, 0.4, 20);
    let nothing = measure(&case, Law::Nothing);
    let both = measure(&case, Law::All);
    assert!(both.0 <= nothing.0 * 1.05 && both.2 == 0.0, "{both:?}");
    let calm = Case {
        theft: [Theft::none(), Theft::none()],
        load: 0.7,
        requests: 20,
        seconds: 20,
        counts_from_s: 0,
    };
    assert_eq!(measure(&calm, Law::Nothing), measure(&calm, Law::All));
}

#[test]
fn slices_of_30_ms_are_in_the_answers_whatever_is_done_and_few_are_shed_for_them() {
    let case = one_core(100_000, 30_000, 0.6, 20);
    let nothing = measure(&case, Law::Nothing);
    let both = measure(&case, Law::All);
    assert!(both.0 <= nothing.0 && both.0 > 10.0, "{both:?}");
    assert!(both.1 >= nothing.1 && both.2 < 0.005, "{both:?}");
}

#[test]
fn long_lived_connections_are_moved_where_weights_alone_come_too_late() {
    // Theft begins when 400 connections, of half a minute each, are spread evenly.
    let mut slices_us = vec![0; 3_000];
    slices_us.push(6_000);
    let theft = [Theft { period_us: 10_000, slices_us }, Theft::none()];
    let case = Case { theft, load: 0.6, requests: 500, seconds: 60, counts_from_s: 32 };
    let nothing = measure_with(&case, Law::Nothing, &SEEDS[..1]);
    let weights = measure_with(&case, Law::Weights, &SEEDS[..1]);
    let drain = measure_with(&case, Law::WeightsAndDrain, &SEEDS[..1]);
    let all = measure_with(&case, Law::All, &SEEDS[..1]);
    assert!(weights.0 < nothing.0 && weights.1 > nothing.1, "{weights:?}");
    assert!(drain.0 < 0.9 * weights.0 && drain.1 > weights.1, "{drain:?}");
    assert!(all.0 <= nothing.0 / 5.0 && all.1 >= 0.99 && all.2 <= 0.01, "{all:?}");
}

/// Theft as recorded, times `factor`.
fn recorded(factor: u64) -> [Theft; WORKERS] {
    let text = include_str!("../../../tests/data/steal/trace_kvm_2vcpu_120s.csv");
    let rows: Vec<_> = text.lines().filter_map(parse_row).map(|(_, cpu)| cpu).collect();
    [0, 1].map(|cpu| {
        let steal: Vec<u64> =
            rows.iter().filter(|row| row.cpu == cpu).map(|row| row.ticks[COLUMNS - 1]).collect();
        let mut carry = 0;
        let slice = |pair: &[u64]| {
            carry += (pair[1] - pair[0]) * 10_000 * factor;
            let slice = carry.min(SAMPLE_US - 1_000);
            carry -= slice;
            slice
        };
        Theft { period_us: SAMPLE_US, slices_us: steal.windows(2).map(slice).collect() }
    })
}

#[test]
fn on_a_recorded_trace_the_law_is_never_worse_than_none() {
    for factor in [1, 4] {
        for one_core in [false, true] {
            let mut theft = recorded(factor);
            if one_core {
                theft[1] = Theft::none();
            }
            let case = Case { theft, load: 0.7, requests: 20, seconds: 119, counts_from_s: 0 };
            println!("x{factor}, {}", if one_core { "core 0" } else { "both cores" });
            let nothing = measure_with(&case, Law::Nothing, &SEEDS[..1]);
            let both = measure_with(&case, Law::All, &SEEDS[..1]);
            assert!(both.0 <= nothing.0 && both.1 >= nothing.1, "{both:?}");
        }
    }
}
