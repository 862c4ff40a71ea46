//! A few seconds of the CPUs' counters, made into shares. Reads none itself: lines and times come in.

use std::time::Duration;

use crate::base::time::Instant;
use crate::steal::counters::{COLUMNS, CpuTicks, STEAL};
use crate::steal::meter::{CpuMeter, Trust};

const IDLE: usize = 3;
const IOWAIT: usize = 4;
const SOFTIRQ: usize = 6;
const SECOND: Duration = Duration::from_secs(1);

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    pub seconds: f64,
    pub cpus: Vec<CpuSample>,
    /// Some counter said again and again what cannot be.
    pub is_suspect: bool,
    /// Share of the time in which some task waited for a CPU.
    pub pressure: Option<f64>,
}

/// Shares of the time, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuSample {
    pub cpu: u16,
    pub steal: f64,
    /// Of the second that lost most; of all where it was no longer than one.
    pub worst: f64,
    /// Work, and time stolen from work.
    pub busy: f64,
    pub softirq: f64,
}

impl Sample {
    pub fn steal_mean(&self) -> f64 {
        mean(self.cpus.iter().map(|cpu| cpu.steal))
    }

    pub fn busy_mean(&self) -> f64 {
        mean(self.cpus.iter().map(|cpu| cpu.busy))
    }
}

/// The mean of shares; 0 of none.
pub fn mean(shares: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = shares.fold((0.0, 0u32), |(sum, count), share| (sum + share, count + 1));
    sum / f64::from(count.max(1))
}

/// One CPU since boot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SinceBoot {
    pub cpu: u16,
    /// Share of all time, 0 to 1.
    pub steal: f64,
    /// Share of the time in which it had work, 0 to 1.
    pub steal_of_work: f64,
    pub seconds: u64,
}

/// What was stolen since boot. A CPU that counted nothing is left out.
pub fn since_boot(cpus: &[CpuTicks]) -> Vec<SinceBoot> {
    let share = |cpu: &CpuTicks| {
        let (total, idle) = (sum(&cpu.ticks), cpu.ticks[IDLE].saturating_add(cpu.ticks[IOWAIT]));
        let part = |of: u64| cpu.ticks[STEAL] as f64 / of.max(1) as f64;
        let (steal, steal_of_work) = (part(total), part(total.saturating_sub(idle)).min(1.0));
        let counted = cpu.has_steal && total > 0;
        counted.then_some(SinceBoot { cpu: cpu.cpu, steal, steal_of_work, seconds: total / 100 })
    };
    cpus.iter().filter_map(share).collect()
}

fn sum(ticks: &[u64]) -> u64 {
    ticks.iter().fold(0, |sum, ticks| sum.saturating_add(*ticks))
}

/// Gathers samples.
#[derive(Debug)]
pub struct Sampling {
    started: Instant,
    last: Instant,
    cpus: Vec<Cpu>,
    trust: Trust,
    is_trusted: bool,
}

#[derive(Debug)]
struct Cpu {
    number: u16,
    meter: CpuMeter,
    first: [u64; COLUMNS],
    last: [u64; COLUMNS],
    lost_ns: u64,
    /// In the second that began last.
    second: (Instant, u64),
    worst: f64,
}

impl Sampling {
    pub fn start(now: Instant, ticks: &[CpuTicks]) -> Self {
        let cpu = |ticks: &CpuTicks| {
            let mut meter = CpuMeter::default();
            meter.read(now, Some(ticks));
            let (number, first) = (ticks.cpu, ticks.ticks);
            Cpu { number, meter, first, last: first, lost_ns: 0, second: (now, 0), worst: 0.0 }
        };
        let cpus = ticks.iter().filter(|ticks| ticks.has_steal).map(cpu).collect();
        Self { started: now, last: now, cpus, trust: Trust::default(), is_trusted: true }
    }

    /// Takes the lines as they stand at `now`.
    pub fn take(&mut self, now: Instant, ticks: &[CpuTicks]) {
        let mut is_suspect = false;
        for cpu in &mut self.cpus {
            let ticks = ticks.iter().find(|ticks| ticks.cpu == cpu.number && ticks.has_steal);
            let reading = cpu.meter.read(now, ticks);
            is_suspect |= reading.is_suspect;
            cpu.lost_ns = cpu.lost_ns.saturating_add(reading.lost_ns);
            cpu.second.1 = cpu.second.1.saturating_add(reading.lost_ns);
            if now.since(cpu.second.0) >= SECOND {
                cpu.close_second(now);
            }
            if let Some(ticks) = ticks {
                cpu.last = ticks.ticks;
            }
        }
        self.is_trusted &= self.trust.judge(now, is_suspect);
        self.last = now;
    }

    /// What came of it. `pressure`: time in which some task waited.
    pub fn finish(mut self, pressure: Option<Duration>) -> Sample {
        let wall = self.last.since(self.started);
        let share = |of: Duration| (of.as_secs_f64() / wall.as_secs_f64().max(1e-9)).min(1.0);
        let last = self.last;
        if wall < SECOND {
            self.cpus.iter_mut().for_each(|cpu| cpu.close_second(last));
        }
        let cpu = |cpu: &Cpu| {
            let grown: Vec<u64> =
                cpu.last.iter().zip(cpu.first).map(|(last, first)| last.saturating_sub(first)).collect();
            let total = sum(&grown);
            let part = |ticks: u64| ticks as f64 / total.max(1) as f64;
            let idle = grown[IDLE].saturating_add(grown[IOWAIT]);
            CpuSample {
                cpu: cpu.number,
                steal: share(Duration::from_nanos(cpu.lost_ns)),
                worst: cpu.worst,
                busy: part(total.saturating_sub(idle)),
                softirq: part(grown[SOFTIRQ]),
            }
        };
        Sample {
            seconds: wall.as_secs_f64(),
            cpus: self.cpus.iter().map(cpu).collect(),
            is_suspect: !self.is_trusted,
            pressure: pressure.map(share),
        }
    }
}

impl Cpu {
    fn close_second(&mut self, now: Instant) {
        let (start, lost_ns) = std::mem::replace(&mut self.second, (now, 0));
        let wall_ns = now.since(start).as_nanos().max(1);
        self.worst = self.worst.max(lost_ns as f64 / wall_ns as f64).min(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(idle: u64, steal: u64) -> CpuTicks {
        CpuTicks { cpu: 0, ticks: [idle, 0, 0, idle, 0, 0, idle / 2, steal], has_steal: true }
    }

    #[test]
    fn a_second_of_theft_stands_out_of_ten() {
        let mut sampling = Sampling::start(Instant::from_millis(0), &[line(0, 100)]);
        for n in 1..=100 {
            let stolen = n.min(50) - n.min(40);
            sampling.take(Instant::from_millis(n * 100), &[line(n * 2, 100 + stolen * 5)]);
        }
        let sample = sampling.finish(Some(Duration::from_secs(1)));
        let cpu = sample.cpus[0];
        assert!((0.04..=0.05).contains(&cpu.steal) && (0.4..=0.5).contains(&cpu.worst), "{sample:?}");
        assert!((sample.seconds, sample.pressure, sample.is_suspect) == (10.0, Some(0.1), false));
        assert_eq!((cpu.busy, cpu.softirq), (350.0 / 550.0, 100.0 / 550.0));
    }

    #[test]
    fn since_boot_is_the_share_of_all_columns() {
        let list = [line(4_000, 250), CpuTicks { has_steal: false, ..line(1, 1) }, line(0, 0)];
        let shares = since_boot(&list);
        let expected =
            SinceBoot { cpu: 0, steal: 250.0 / 10_250.0, steal_of_work: 250.0 / 6_250.0, seconds: 102 };
        assert_eq!(shares, [expected]);
    }

    #[test]
    fn a_counter_that_jumps_about_is_suspect() {
        let mut sampling = Sampling::start(Instant::from_millis(0), &[line(0, 100)]);
        for n in 1..20 {
            sampling.take(Instant::from_millis(n * 100), &[line(n, if n % 2 == 0 { 900_000 } else { 1 })]);
        }
        assert!(sampling.finish(None).is_suspect);
    }

    proptest! {
        #[test]
        fn any_counters_make_shares(samples in proptest::collection::vec((0u64..3_000, any::<[u64; COLUMNS]>()), 1..30)) {
            let lines = |ticks| [CpuTicks { cpu: 0, ticks, has_steal: true }];
            let mut ms = 0;
            let mut sampling = Sampling::start(Instant::from_millis(ms), &lines(samples[0].1));
            for (pause, ticks) in samples {
                ms += pause;
                sampling.take(Instant::from_millis(ms), &lines(ticks));
                since_boot(&lines(ticks));
            }
            let sample = sampling.finish(Some(Duration::from_millis(ms * 2)));
            for cpu in &sample.cpus {
                for share in [cpu.steal, cpu.worst, cpu.busy, cpu.softirq] {
                    prop_assert!((0.0..=1.0).contains(&share), "{sample:?}");
                }
            }
        }
    }
}
