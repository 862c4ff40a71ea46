//! Samples lost CPU time ten times a second on the control thread, has it judged, and shows and logs what came of it.
//! Reads files of the kernel, under the roots that the configuration names; decides nothing itself.

pub mod files;
mod in_time;
pub mod page;
mod steering;
pub mod view;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::base::time::Instant;
use crate::config::HostSpec;
use crate::control::admin::State;
use crate::metrics::{Counter, Gauge, Shard, Shed};
use crate::steal::controller::{Actions, Controller, Reading};
use crate::steal::counters::CpuTicks;
use crate::steal::meter::{CpuMeter, Losses, Meter, Smooth, Trust};
use crate::steal::shed::STANDS_AFTER;
use crate::steal::source::{self, Machine, Seen};
use crate::steal::{SAMPLE_INTERVAL, Spec};
use crate::sys::clock;
use crate::worker::{Ease, Handle, Message};

use files::Files;
use in_time::InTime;
pub use steering::Steering;
pub use view::View;

/// Samples between two looks at what seldom changes.
const SELDOM: u64 = 10;
/// Times in a row that optional work may be put off.
const POSTPONED_MAX: u32 = 4;
/// TLS handshakes that a worker may begin in a turn however much it loses.
const HANDSHAKES_MIN: u32 = 2;

/// The sampler, its meters and the control loop.
pub struct Sampler {
    spec: Spec,
    machine: Machine,
    files: Files,
    workers: Vec<Worker>,
    /// By position in what was last read.
    cpus: Vec<Cpu>,
    throttled: Meter,
    trust: Trust,
    controller: Controller,
    steering: Steering,
    handshakes_per_turn_max: u32,
    last: Option<Instant>,
    /// Kept for its memory.
    ticks: Vec<CpuTicks>,
    ever_above_zero: bool,
    ever_had_column: bool,
    samples: u64,
    in_time: InTime,
    postponed: u32,
}

struct Worker {
    cpu: usize,
    thread: u32,
    shard: Arc<Shard>,
    wait: Meter,
    wait_total_ns: Option<u64>,
    wait_smooth: Smooth,
    gap: Meter,
    gap_smooth: Smooth,
    losses: Losses,
    /// What it lost in the samples of this second, added up.
    lost_sum: f64,
    /// What it was told to do less of.
    ease: Ease,
    /// For how long its queue has stood.
    standing: Duration,
}

struct Cpu {
    number: u16,
    meter: CpuMeter,
    /// Of the last sample.
    ratio: f64,
    smooth: Smooth,
    stolen_ns: u64,
}

impl Sampler {
    /// `workers`: the CPU, the thread and the shard of each.
    pub fn new(
        spec: Spec,
        host: &HostSpec,
        workers: Vec<(usize, u32, Arc<Shard>)>,
        steering: Steering,
        handshakes_per_turn_max: u32,
    ) -> Self {
        let worker = |(cpu, thread, shard)| Worker {
            cpu,
            thread,
            shard,
            wait: Meter::new(1),
            wait_total_ns: None,
            wait_smooth: Smooth::default(),
            gap: Meter::published(),
            gap_smooth: Smooth::default(),
            losses: Losses::default(),
            lost_sum: 0.0,
            ease: Ease::usual(handshakes_per_turn_max),
            standing: Duration::ZERO,
        };
        Self {
            spec,
            machine: files::machine(),
            files: Files::new(host),
            controller: Controller::new(spec, workers.len()),
            workers: workers.into_iter().map(worker).collect(),
            cpus: Vec::new(),
            throttled: Meter::new(1),
            trust: Trust::default(),
            steering,
            handshakes_per_turn_max,
            last: None,
            ticks: Vec::new(),
            ever_above_zero: false,
            ever_had_column: false,
            samples: 0,
            in_time: InTime::default(),
            postponed: 0,
        }
    }

    /// Goes on under another specification, with these listeners. Another mode or threshold begins at level 0.
    pub fn change(&mut self, spec: Spec, listeners: &[Option<TcpListener>], handshakes_per_turn_max: u32) {
        self.handshakes_per_turn_max = handshakes_per_turn_max;
        // Workers were told of the bound with the configuration.
        let usual = Ease::usual(handshakes_per_turn_max);
        self.workers.iter_mut().for_each(|worker| worker.ease = usual);
        let is_same = spec == self.spec;
        if !is_same {
            self.spec = spec;
            self.controller = Controller::new(spec, self.workers.len());
        }
        self.steering.change(listeners, is_same);
    }

    /// Takes one sample and does what it asks for.
    pub fn sample(&mut self, state: &State, handles: &[Handle]) {
        let cpu_before = clock::thread_cpu();
        let now = clock::now();
        let pause = self.last.replace(now).map_or(SAMPLE_INTERVAL, |last| now.since(last));
        let had_cpus = self.read_cpus(now, pause);
        let seen = Seen {
            has_column: self.ever_had_column,
            ever_above_zero: self.ever_above_zero,
            other_root: self.files.is_other_root(),
            accounting_off: self.files.is_accounting_off(),
        };
        let suspect = had_cpus.is_some_and(|is_suspect| is_suspect);
        let is_trusted = self.trust.judge(now, suspect);
        let source = source::source(self.machine, seen);
        let steal_counts = source.is_reported() && is_trusted;
        let throttled = self.files.throttled_ns();
        let share = self.throttled.read(now, throttled).lost_ns / self.workers.len().max(1) as u64;
        let throttled_ratio = (share as f64 / pause.as_nanos().max(1) as f64).min(1.0);
        let readings = self.read_workers(now, pause, steal_counts, throttled_ratio);
        let actions = self.controller.step(now, &readings);
        self.steering.set(&actions.weights);
        self.ease(&actions, handles);
        self.tell(&actions, source.word());
        self.samples += 1;
        let mut view = state.steal();
        if self.samples.is_multiple_of(SELDOM) {
            self.steering.assert();
            for (index, worker) in self.workers.iter_mut().enumerate() {
                view.push_lost(index, std::mem::take(&mut worker.lost_sum) / SELDOM as f64);
            }
            let shards = || self.workers.iter().map(|worker| &worker.shard);
            let requests = |shard: &Arc<Shard>| shard.requests_total() + shard.sheds(Shed::Http2);
            let in_time = shards().map(|shard| shard.counter(Counter::RequestsInTime)).sum();
            self.in_time.push(in_time, shards().map(requests).sum());
            view.in_time_ratio = self.in_time.ratio();
        }
        if had_cpus.is_some() {
            view.trace.push(now, &self.ticks);
        }
        view.mode = self.spec.mode;
        view.latency_objective = self.spec.latency_objective;
        view.levels_from = [self.spec.elevated_ratio, self.spec.stolen_ratio];
        view.machine = self.machine;
        view.source = Some((source, is_trusted));
        view.sampled = Some(now);
        view.throttled_ns = throttled;
        view.throttled_ratio = throttled_ratio;
        for change in &actions.changes {
            view.transitions[usize::from(change.from.number())][usize::from(change.to.number())] += 1;
        }
        self.show(&mut view, steal_counts);
        view.sampler_cpu += clock::thread_cpu().saturating_sub(cpu_before);
    }

    /// Tells each worker what to do less of: a handshake costs as much as ten requests, so one that loses time begins
    /// fewer in a turn. Tells it again with every sample: a worker that hears nothing for a second goes its own way.
    fn ease(&mut self, actions: &Actions, handles: &[Handle]) {
        let most = self.handshakes_per_turn_max;
        for (index, (worker, handle)) in self.workers.iter_mut().zip(handles).enumerate() {
            let share = self.controller.handshake_share(index);
            let ease = Ease {
                handshakes_per_turn_max: ((f64::from(most) * share) as u32)
                    .clamp(HANDSHAKES_MIN.min(most), most),
                drains_per_s: actions.drains_per_s.get(index).copied().unwrap_or(0.0),
                postpones: self.controller.postpones(index),
                is_steered: self.controller.is_steering(),
            };
            let before = std::mem::replace(&mut worker.ease, ease);
            if before != ease || ease != Ease::usual(most) {
                handle.send(Message::Ease(ease));
            }
        }
    }

    /// Whether optional work of the control thread, which shares a CPU with a worker, is to wait for another time; not for
    /// ever.
    pub fn postpones(&mut self) -> bool {
        let postpones = self.workers.iter().any(|worker| worker.ease.postpones);
        self.postponed = if postpones && self.postponed < POSTPONED_MAX { self.postponed + 1 } else { 0 };
        self.postponed > 0
    }

    /// Whether any CPU's counter was suspect; `None` where no CPU could be read.
    fn read_cpus(&mut self, now: Instant, pause: Duration) -> Option<bool> {
        self.files.cpus(&mut self.ticks);
        if self.ticks.is_empty() {
            self.cpus.iter_mut().for_each(|cpu| cpu.ratio = 0.0);
            return None;
        }
        for ticks in &self.ticks {
            self.ever_had_column |= ticks.has_steal;
            self.ever_above_zero |= ticks.ticks[crate::steal::counters::STEAL] > 0;
            if !self.cpus.iter().any(|cpu| cpu.number == ticks.cpu) {
                let (number, meter) = (ticks.cpu, CpuMeter::default());
                self.cpus.push(Cpu { number, meter, ratio: 0.0, smooth: Smooth::default(), stolen_ns: 0 });
            }
        }
        let mut is_suspect = false;
        for cpu in &mut self.cpus {
            let ticks = self.ticks.iter().find(|ticks| ticks.cpu == cpu.number && ticks.has_steal);
            let reading = cpu.meter.read(now, ticks);
            is_suspect |= reading.is_suspect;
            cpu.ratio = reading.ratio;
            cpu.smooth.follow(reading.ratio, pause);
            cpu.stolen_ns += reading.lost_ns;
        }
        Some(is_suspect)
    }

    fn read_workers(
        &mut self,
        now: Instant,
        pause: Duration,
        steal_counts: bool,
        throttled: f64,
    ) -> Vec<Reading> {
        let mut readings = Vec::with_capacity(self.workers.len());
        if self.samples.is_multiple_of(SELDOM) {
            self.files.look_at_preferred();
        }
        for worker in &mut self.workers {
            let cpu = self.cpus.iter().find(|cpu| usize::from(cpu.number) == worker.cpu);
            let total = self.files.run_wait_ns(worker.thread);
            let wait = worker.wait.read(now, total);
            worker.wait_total_ns = total;
            let gap = worker.gap.read(now, Some(worker.shard.counter(Counter::LoopGaps)));
            worker.losses = Losses {
                steal: cpu.filter(|_| steal_counts).map(|cpu| cpu.ratio),
                wait: total.map(|_| wait.ratio),
                gap: worker.gap_smooth.follow(gap.ratio, pause),
                throttled,
            };
            worker.wait_smooth.follow(wait.ratio, pause);
            let mut lost = worker.losses.lost_ratio();
            worker.lost_sum += lost;
            if self.files.is_avoided(worker.cpu) {
                // The kernel's own steal governor has taken work off this CPU; a pinned worker is to do likewise.
                lost = lost.max(self.spec.stolen_ratio);
            }
            worker.standing = Duration::from_nanos(worker.shard.gauge(Gauge::QueueStanding));
            readings.push(Reading {
                lost_ratio: Some(lost),
                connections: worker.shard.connections_active(),
                stands: worker.standing >= STANDS_AFTER,
            });
        }
        readings
    }

    /// One line for each level that changed, with what it was made from.
    fn tell(&self, actions: &Actions, source: &'static str) {
        for change in &actions.changes {
            let Some(Worker { cpu, losses, standing, .. }) = self.workers.get(change.worker) else {
                continue;
            };
            tracing::info!(
                worker = change.worker,
                cpu,
                from = change.from.number(),
                to = change.to.number(),
                lost_ratio = rounded(losses.lost_ratio()),
                smooth_ratio = rounded(self.controller.lost_ratio(change.worker)),
                steal_ratio = losses.steal.map(rounded),
                wait_ratio = losses.wait.map(rounded),
                gap_ratio = rounded(losses.gap),
                throttled_ratio = rounded(losses.throttled),
                queue_standing_ms = standing.as_millis() as u64,
                source,
                mode = self.spec.mode.word(),
                "level of lost CPU time changed"
            );
        }
    }

    fn show(&self, view: &mut View, steal_counts: bool) {
        view.workers.clear();
        view.cpus.clear();
        for (index, worker) in self.workers.iter().enumerate() {
            view.workers.push(view::Worker {
                wait_ns: worker.wait_total_ns,
                level: self.controller.level(index).number(),
                accept_weight: self.controller.accept_weight(index),
            });
            if !self.cpus.iter().any(|cpu| usize::from(cpu.number) == worker.cpu) {
                view.cpus.push(self.cpu_view(worker.cpu, None, steal_counts));
            }
        }
        for cpu in &self.cpus {
            view.cpus.push(self.cpu_view(cpu.number.into(), Some(cpu), steal_counts));
        }
        view.cpus.sort_unstable_by_key(|cpu| cpu.cpu);
    }

    fn cpu_view(&self, number: usize, cpu: Option<&Cpu>, steal_counts: bool) -> view::Cpu {
        let index = self.workers.iter().position(|worker| worker.cpu == number);
        let worker = index.map(|index| &self.workers[index]);
        let steal = cpu.filter(|_| steal_counts);
        let steal_ratio = steal.map(|cpu| rounded(cpu.smooth.value()));
        let wait = worker.filter(|worker| worker.losses.wait.is_some());
        view::Cpu {
            cpu: number,
            worker: index,
            stolen_ns: steal.map(|cpu| cpu.stolen_ns),
            steal_ratio,
            wait_ratio: wait.map(|worker| rounded(worker.wait_smooth.value())),
            lost_ratio: match index {
                Some(index) => rounded(self.controller.lost_ratio(index)),
                None => steal_ratio.unwrap_or(0.0),
            },
            level: index.map(|index| self.controller.level(index).number()),
            accept_weight: index.map(|index| rounded(self.controller.accept_weight(index))),
        }
    }
}

fn rounded(ratio: f64) -> f64 {
    (ratio * 1e4).round() / 1e4
}
