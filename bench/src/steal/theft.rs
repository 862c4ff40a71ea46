//! What is taken from a CPU and when: even slices, or a recorded trace. Takes nothing itself.

use std::time::Duration;

/// Stolen ticks are recorded in units of 10 ms (USER_HZ).
const TICK: Duration = Duration::from_millis(10);
/// Of a sample's time a trace takes no more: the rest of the machine lives on it.
const TAKEN_MAX: f64 = 0.95;
/// Fields of a trace's row: `t_ms,cpu,user,nice,system,idle,iowait,irq,softirq,steal`.
const ROW_FIELDS: usize = 10;

/// Periods, and how much is taken from the beginning of each. After the last one it begins again.
#[derive(Clone, Debug, PartialEq)]
pub struct Theft {
    pub period: Duration,
    pub slices: Vec<Duration>,
}

impl Theft {
    pub fn even(slice: Duration, period: Duration) -> Self {
        Self { period, slices: vec![slice.min(period.mul_f64(TAKEN_MAX))] }
    }

    /// What is taken from the beginning of period `number`.
    pub fn slice(&self, number: usize) -> Duration {
        self.slices.get(number % self.slices.len().max(1)).copied().unwrap_or_default()
    }

    /// Share of the time that is taken.
    pub fn ratio(&self) -> f64 {
        let taken: Duration = self.slices.iter().sum();
        taken.as_secs_f64() / (self.period.as_secs_f64() * self.slices.len().max(1) as f64)
    }
}

/// A trace of stolen time: for each CPU, what was taken in each sample.
#[derive(Clone, Debug)]
pub struct Trace {
    period: Duration,
    cpus: Vec<Vec<Duration>>,
}

impl Trace {
    /// Reads the CSV that `GET /steal?format=csv` gives: counters of each CPU, a sample every so often.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut samples: Vec<Vec<(u64, u64)>> = Vec::new();
        for (number, line) in text.lines().enumerate().skip(1) {
            let fields: Vec<u64> = line.split(',').filter_map(|field| field.trim().parse().ok()).collect();
            let [ms, cpu, .., steal] = fields[..] else {
                return Err(format!("line {}: not a sample", number + 1));
            };
            if fields.len() != ROW_FIELDS || cpu > 1_024 {
                return Err(format!("line {}: not a sample of {ROW_FIELDS} fields", number + 1));
            }
            let cpu = cpu as usize;
            if samples.len() <= cpu {
                samples.resize_with(cpu + 1, Vec::new);
            }
            samples[cpu].push((ms, steal));
        }
        let first = samples.first().filter(|first| first.len() > 1).ok_or("no samples of CPU 0")?;
        let span = first[first.len() - 1].0.saturating_sub(first[0].0);
        let period = Duration::from_millis((span as f64 / (first.len() - 1) as f64).round().max(1.0) as u64);
        let taken =
            |pair: &[(u64, u64)]| TICK * u32::try_from(pair[1].1.saturating_sub(pair[0].1)).unwrap_or(0);
        let cpus = samples.iter().map(|samples| samples.windows(2).map(taken).collect()).collect();
        Ok(Self { period, cpus })
    }

    /// How long it is.
    pub fn span(&self) -> Duration {
        let samples = self.cpus.iter().map(Vec::len).min().unwrap_or(0);
        self.period * u32::try_from(samples).unwrap_or(u32::MAX)
    }

    /// What CPU `cpu` lost from `start` on for `span`, times `scale`. What does not fit into a sample is taken from
    /// the next ones.
    pub fn part(&self, cpu: usize, start: Duration, span: Duration, scale: f64) -> Theft {
        let start = (start.as_secs_f64() / self.period.as_secs_f64()) as usize;
        let wide = (span.as_secs_f64() / self.period.as_secs_f64()).ceil().max(1.0) as usize;
        let taken = self.cpus.get(cpu).map_or(&[][..], |cpu| cpu.get(start..).unwrap_or(&[]));
        let mut owed = Duration::ZERO;
        let slices = taken.iter().take(wide).map(|taken| {
            owed += taken.mul_f64(scale);
            let slice = owed.min(self.period.mul_f64(TAKEN_MAX));
            owed -= slice;
            slice
        });
        Theft { period: self.period, slices: slices.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn trace() -> Trace {
        let mut text = String::from("t_ms,cpu,user,nice,system,idle,iowait,irq,softirq,steal\n");
        for (sample, steal) in [0, 0, 3, 3, 25, 26, 26].into_iter().enumerate() {
            for cpu in 0..2 {
                text.push_str(&format!("{},{cpu},1,2,3,4,5,6,7,{}\n", sample * 100, steal * (cpu + 1)));
            }
        }
        Trace::parse(&text).expect("a trace")
    }

    #[test]
    fn even_slices_take_their_share() {
        let theft = Theft::even(3 * MS, 10 * MS);
        assert!((theft.ratio() - 0.3).abs() < 1e-9);
        assert_eq!((theft.slice(0), theft.slice(77)), (3 * MS, 3 * MS));
    }

    #[test]
    fn what_does_not_fit_a_sample_is_taken_from_the_next() {
        let theft = trace().part(0, Duration::ZERO, 600 * MS, 1.0);
        assert_eq!(theft.slices, [0, 30, 0, 95, 95, 40].map(|ms| ms * MS));
        assert_eq!(trace().part(0, Duration::ZERO, 200 * MS, 4.0).slices, [0, 95].map(|ms| ms * MS));
        assert_eq!(trace().part(1, 400 * MS, 200 * MS, 0.5).slices, [10 * MS, Duration::ZERO]);
        assert_eq!(trace().span(), 600 * MS);
        assert!(trace().part(7, Duration::ZERO, 200 * MS, 1.0).slices.is_empty());
    }

    #[test]
    fn what_is_no_trace_is_told_by_line() {
        assert_eq!(Trace::parse("t_ms,cpu\n1,2\n").err().as_deref(), Some("line 2: not a sample"));
        assert!(Trace::parse("heading\n").is_err());
    }
}
