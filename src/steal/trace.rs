//! The counters of the last quarter of an hour, as they were read: what an operator can show the provider. Bounded in
//! rows and in bytes; forgets the oldest first. Written as CSV in the columns of `/proc/stat`.

use std::collections::VecDeque;
use std::fmt::Write;

use super::counters::{COLUMNS, CpuTicks};
use crate::base::time::Instant;
use crate::limits::{STEAL_TRACE_BYTES_MAX, STEAL_TRACE_SAMPLES_MAX};

/// Samples of one segment: what is forgotten at once.
const SEGMENT_SAMPLES: usize = 600;
/// The same in rows of one CPU, where there are many.
const SEGMENT_ROWS: usize = STEAL_TRACE_BYTES_MAX / 32 / size_of::<[u16; COLUMNS]>();
pub const CSV_HEADING: &str = "t_ms,cpu,user,nice,system,idle,iowait,irq,softirq,steal\n";

/// Samples of all CPUs, 16 bytes each where counters grow as they should.
#[derive(Debug, Default)]
pub struct Trace {
    segments: VecDeque<Segment>,
    samples: usize,
}

/// Samples of the same CPUs, none of whose counters went back: the first one whole, then what was added.
#[derive(Debug)]
struct Segment {
    first: Vec<CpuTicks>,
    last: Vec<CpuTicks>,
    times: Vec<Instant>,
    /// For each sample, what each CPU's counters grew by.
    growth: Vec<[u16; COLUMNS]>,
}

impl Segment {
    fn new(at: Instant, cpus: &[CpuTicks]) -> Self {
        Self {
            first: cpus.into(),
            last: cpus.into(),
            times: vec![at],
            growth: vec![[0; COLUMNS]; cpus.len()],
        }
    }

    /// Adds a sample, if it can follow here.
    fn push(&mut self, at: Instant, cpus: &[CpuTicks]) -> bool {
        let same = self.last.len() == cpus.len() && self.last.iter().zip(cpus).all(|(a, b)| a.cpu == b.cpu);
        let is_full = self.times.len() >= SEGMENT_SAMPLES || self.growth.len() + cpus.len() > SEGMENT_ROWS;
        if !same || is_full {
            return false;
        }
        let held = self.growth.len();
        for (before, cpu) in self.last.iter().zip(cpus) {
            let Some(growth) = growth(before, cpu) else {
                self.growth.truncate(held);
                return false;
            };
            self.growth.push(growth);
        }
        self.last.clear();
        self.last.extend_from_slice(cpus);
        self.times.push(at);
        true
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + (self.first.capacity() + self.last.capacity()) * size_of::<CpuTicks>()
            + self.times.capacity() * size_of::<Instant>()
            + self.growth.capacity() * size_of::<[u16; COLUMNS]>()
    }
}

fn growth(before: &CpuTicks, now: &CpuTicks) -> Option<[u16; COLUMNS]> {
    let mut growth = [0; COLUMNS];
    for ((growth, before), now) in growth.iter_mut().zip(before.ticks).zip(now.ticks) {
        *growth = u16::try_from(now.checked_sub(before)?).ok()?;
    }
    Some(growth)
}

impl Trace {
    /// Adds a sample; without a CPU it is none.
    pub fn push(&mut self, at: Instant, cpus: &[CpuTicks]) {
        if cpus.is_empty() {
            return;
        }
        if !self.segments.back_mut().is_some_and(|segment| segment.push(at, cpus)) {
            self.segments.push_back(Segment::new(at, cpus));
        }
        self.samples += 1;
        let kept_max = STEAL_TRACE_SAMPLES_MAX + SEGMENT_SAMPLES;
        while self.segments.len() > 1 && (self.samples > kept_max || self.bytes() > STEAL_TRACE_BYTES_MAX) {
            self.samples -= self.segments.pop_front().map_or(0, |segment| segment.times.len());
        }
    }

    /// Memory held.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(Segment::bytes).sum()
    }

    /// Calls `take` with every sample of the last quarter of an hour: its time, and the CPUs' counters then.
    pub fn each(&self, mut take: impl FnMut(Instant, &[CpuTicks])) {
        let mut skip = self.samples.saturating_sub(STEAL_TRACE_SAMPLES_MAX);
        for segment in &self.segments {
            let mut cpus = segment.first.clone();
            for (at, growth) in segment.times.iter().zip(segment.growth.chunks(cpus.len().max(1))) {
                for (cpu, growth) in cpus.iter_mut().zip(growth) {
                    cpu.ticks.iter_mut().zip(growth).for_each(|(ticks, growth)| *ticks += u64::from(*growth));
                }
                if skip == 0 {
                    take(*at, &cpus);
                } else {
                    skip -= 1;
                }
            }
        }
    }

    /// The samples as CSV, times in milliseconds from the first one; with the time of that one.
    pub fn csv(&self) -> (String, Option<Instant>) {
        let mut text = String::from(CSV_HEADING);
        let mut start = None;
        self.each(|at, cpus| {
            let ms = at.since(*start.get_or_insert(at)).as_millis();
            for CpuTicks { cpu, ticks: [user, nice, system, idle, iowait, irq, softirq, steal], .. } in cpus {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "{ms},{cpu},{user},{nice},{system},{idle},{iowait},{irq},{softirq},{steal}"
                );
            }
        });
        (text, start)
    }
}

/// One row of such a CSV; `None` for the heading and for what is no row.
pub fn parse_row(line: &str) -> Option<(u64, CpuTicks)> {
    let mut numbers = line.trim_end().split(',').map(|text| text.parse::<u64>().ok());
    let ms = numbers.next()??;
    let cpu = u16::try_from(numbers.next()??).ok()?;
    let mut ticks = [0; COLUMNS];
    for tick in &mut ticks {
        *tick = numbers.next()??;
    }
    numbers.next().is_none().then_some((ms, CpuTicks { cpu, ticks, has_steal: true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(count: u16, value: u64) -> Vec<CpuTicks> {
        (0..count).map(|cpu| CpuTicks { cpu, ticks: [value; COLUMNS], has_steal: true }).collect()
    }

    fn at(n: usize) -> Instant {
        Instant::from_millis(5_000 + n as u64 * 100)
    }

    #[test]
    fn what_was_read_comes_out_as_it_was() {
        let mut trace = Trace::default();
        // It grows, jumps, goes back, loses a CPU and gets it back.
        let samples = [(2, 10), (2, 15), (2, 90_000), (2, 90_001), (2, 3), (1, 4), (2, 5), (2, 5)];
        for (n, (count, value)) in samples.into_iter().enumerate() {
            trace.push(at(n), &cpus(count, value));
        }
        let (text, start) = trace.csv();
        assert_eq!(start, Some(at(0)));
        let mut rows = text.lines();
        assert_eq!(rows.next(), Some(CSV_HEADING.trim_end()));
        for (n, (count, value)) in samples.into_iter().enumerate() {
            for cpu in cpus(count, value) {
                assert_eq!(rows.next().and_then(parse_row), Some((n as u64 * 100, cpu)));
            }
        }
        assert_eq!(rows.next(), None);
    }

    #[test]
    fn a_quarter_of_an_hour_is_kept() {
        let mut trace = Trace::default();
        for n in 0..12_000 {
            trace.push(at(n), &cpus(2, n as u64));
        }
        let mut seen = Vec::new();
        trace.each(|at, cpus| seen.push((at, cpus[1].ticks[0])));
        assert_eq!(seen.len(), STEAL_TRACE_SAMPLES_MAX);
        assert_eq!((seen[0], seen[8_999]), ((at(3_000), 3_000), (at(11_999), 11_999)));
        assert!(trace.bytes() < 700_000, "{}", trace.bytes());
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut trace = Trace::default();
        for n in 0..8_000 {
            // Back and forth: every sample is a segment of its own.
            trace.push(at(n), &cpus(8, (n as u64 % 2) * 100_000));
        }
        assert!(trace.bytes() <= STEAL_TRACE_BYTES_MAX, "{}", trace.bytes());
        trace.push(at(8_000), &[]);
        let mut trace = Trace::default();
        for n in 0..1_000 {
            trace.push(at(n), &cpus(512, n as u64));
        }
        assert!(trace.bytes() <= STEAL_TRACE_BYTES_MAX, "{}", trace.bytes());
    }

    #[test]
    fn text_that_is_no_row_is_none() {
        for line in [
            CSV_HEADING,
            "",
            "1,2,3",
            "0,0,1,1,1,1,1,1,1,1,1",
            "0,0,1,1,1,1,1,1,1,x",
            "0,70000,1,1,1,1,1,1,1,1",
        ] {
            assert_eq!(parse_row(line), None, "{line}");
        }
    }
}
