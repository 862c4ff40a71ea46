//! Counters that grow while time is lost, to the share of time lost. Survives what counters do after a migration, a pause
//! or a bug of a hypervisor: what cannot be true counts as nothing lost, and is told as suspect.

use std::time::Duration;

use super::SAMPLE_INTERVAL;
use super::counters::{COLUMNS, CpuTicks, STEAL, TICK_NS};
use crate::base::time::Instant;

/// Beyond it two samples say nothing about the time between them: the machine was paused, or the control thread was.
const WALL_MAX: Duration = Duration::from_secs(10);
/// What is credited beyond the time that passed waits for later samples, up to this: the guest's tick credits late
/// (220 ms within one sample of 100 ms were seen), but a counter that jumped by hours must not look like hours of theft.
const CARRY_MAX_NS: u64 = 500_000_000;
/// One tick may have gathered for this long before it was counted.
const SPREAD_MAX: Duration = Duration::from_millis(500);

/// What one counter said about the time since its last sample.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Share of the time that was lost, 0 to 1.
    pub ratio: f64,
    /// Lost time that was believed, in nanoseconds.
    pub lost_ns: u64,
    /// The counter said what cannot be.
    pub is_suspect: bool,
}

/// One counter of lost time.
#[derive(Clone, Debug)]
pub struct Meter {
    /// The counter's unit in nanoseconds. All of a counter that is published now and then is one unit.
    grain_ns: u64,
    last: Option<(Instant, u64)>,
    /// When the counter last grew.
    grew_at: Instant,
    carry_ns: u64,
}

impl Meter {
    /// `grain_ns`: the step in which the counter grows, 1 for one of nanoseconds.
    pub const fn new(grain_ns: u64) -> Self {
        Self { grain_ns, last: None, grew_at: Instant::ZERO, carry_ns: 0 }
    }

    /// One that is brought up to date more seldom than it is read.
    pub const fn published() -> Self {
        Self::new(u64::MAX)
    }

    /// Takes the counter as it stands at `now`; `None` where it cannot be read.
    pub fn read(&mut self, now: Instant, value_ns: Option<u64>) -> Reading {
        let Some((then, before)) = std::mem::replace(&mut self.last, value_ns.map(|value| (now, value)))
        else {
            self.grew_at = now;
            return Reading::default();
        };
        let wall = now.since(then);
        let wall_ns = nanos(wall);
        let grown = value_ns.and_then(|value| value.checked_sub(before));
        let (Some(grown), true) = (grown, wall < WALL_MAX) else {
            // Gone, gone backwards (a migration), or too long ago.
            self.carry_ns = 0;
            self.grew_at = now;
            return Reading { is_suspect: grown.is_none(), ..Reading::default() };
        };
        if wall_ns == 0 {
            self.last = Some((then, before));
            return Reading::default();
        }
        let gathered = now.since(self.grew_at);
        if grown > 0 {
            self.grew_at = now;
        }
        let is_suspect = grown > nanos(gathered) + nanos(gathered) / 5 + CARRY_MAX_NS;
        let credit = self.within_this_sample(grown, gathered, wall_ns).saturating_add(self.carry_ns);
        let lost_ns = credit.min(wall_ns);
        self.carry_ns = (credit - lost_ns).min(CARRY_MAX_NS);
        Reading { ratio: lost_ns as f64 / wall_ns as f64, lost_ns, is_suspect }
    }

    /// What of the growth belongs to this sample. The last step of a coarse counter gathered since the one before:
    /// without that, 2 % of steal would read as 10 % in every fifth sample.
    fn within_this_sample(&self, grown: u64, gathered: Duration, wall_ns: u64) -> u64 {
        let step = grown.min(self.grain_ns);
        if self.grain_ns == 1 {
            return grown;
        }
        let gathered_ns = nanos(gathered.min(SPREAD_MAX)).max(wall_ns);
        let of_step = (u128::from(step) * u128::from(wall_ns) / u128::from(gathered_ns)) as u64;
        grown - step + of_step
    }
}

/// Steal of one CPU, held against what else the CPU did.
#[derive(Clone, Debug)]
pub struct CpuMeter {
    steal: Meter,
    window: Option<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    start: Instant,
    stolen_ns: u64,
    /// All other columns at the start.
    others: u64,
}

/// How long a CPU that was stolen whole is held against what it did meanwhile.
const CONTRADICTION_WINDOW: Duration = Duration::from_secs(10);

impl Default for CpuMeter {
    fn default() -> Self {
        Self { steal: Meter::new(TICK_NS), window: None }
    }
}

impl CpuMeter {
    /// Takes the CPU's line; `None` for a CPU that has none, as after it was unplugged.
    pub fn read(&mut self, now: Instant, ticks: Option<&CpuTicks>) -> Reading {
        let value = ticks.map(|cpu| cpu.ticks[STEAL].saturating_mul(TICK_NS));
        let mut reading = self.steal.read(now, value);
        let Some(others) = ticks.map(others) else {
            self.window = None;
            return reading;
        };
        let window = self.window.get_or_insert(Window { start: now, stolen_ns: 0, others });
        window.stolen_ns = window.stolen_ns.saturating_add(reading.lost_ns);
        let wall = now.since(window.start);
        if wall >= CONTRADICTION_WINDOW {
            // Kernels 4.8 to 4.10 on Xen show 100 % for ever: a CPU cannot be gone and at work for as long.
            let worked = others.saturating_sub(window.others).saturating_mul(TICK_NS);
            let gone = window.stolen_ns > nanos(wall) / 10 * 9;
            reading.is_suspect |= gone && worked > nanos(wall) / 2;
            self.window = None;
        }
        reading
    }
}

fn others(cpu: &CpuTicks) -> u64 {
    cpu.ticks[..COLUMNS - 1].iter().fold(0, |sum, ticks| sum.wrapping_add(*ticks))
}

/// A ratio that rises fast and falls slowly.
#[derive(Clone, Copy, Debug, Default)]
pub struct Smooth(f64);

/// Share by which it follows a rise and a fall within one sample: some 150 ms and 1 s.
const ATTACK: f64 = 0.5;
const RELEASE: f64 = 0.1;

impl Smooth {
    pub const fn value(self) -> f64 {
        self.0
    }

    /// Takes a sample that speaks for `pause`; the value now.
    pub fn follow(&mut self, ratio: f64, pause: Duration) -> f64 {
        let rate = if ratio > self.0 { ATTACK } else { RELEASE };
        let samples = pause.as_secs_f64() / SAMPLE_INTERVAL.as_secs_f64();
        self.0 += (1.0 - (1.0 - rate).powf(samples)) * (ratio - self.0);
        self.0
    }
}

/// Follows rises and falls alike, some 400 ms late.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean(f64);

const FOLLOW: f64 = 0.2;

impl Mean {
    pub const fn value(self) -> f64 {
        self.0
    }

    /// Takes a sample that speaks for `pause`.
    pub fn follow(&mut self, ratio: f64, pause: Duration) {
        let samples = pause.as_secs_f64() / SAMPLE_INTERVAL.as_secs_f64();
        self.0 += (1.0 - (1.0 - FOLLOW).powf(samples)) * (ratio - self.0);
    }
}

/// What took time from one worker since the last sample, each as a share of that time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// By the hypervisor; `None` where it does not report it or is not believed.
    pub steal: Option<f64>,
    /// By other threads of this machine; `None` where the kernel does not say.
    pub wait: Option<f64>,
    /// By what only the loop saw.
    pub gap: f64,
    /// By a quota.
    pub throttled: f64,
}

impl Losses {
    /// The share lost in all.
    ///
    /// Steal and wait may overlap where the thread waited in a stolen slice: they are added all the same. Gaps count only
    /// where steal is not reported: what neither counter explains is then a long turn of our own, such as a burst of
    /// handshakes, and throttling for it would feed on itself. A quota's hold is part of wait on some kernels.
    pub fn lost_ratio(self) -> f64 {
        let wait = self.wait.unwrap_or(0.0);
        let taken = self.steal.map_or_else(|| wait.max(self.gap), |steal| steal + wait);
        taken.max(self.throttled).clamp(0.0, 1.0)
    }
}

/// Whether the counters of steal are to be believed: not after three suspect samples within a minute.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    suspects: [Option<Instant>; 3],
    is_lost: bool,
}

const SUSPECTS_WITHIN: Duration = Duration::from_secs(60);
/// Trust returns when nothing was suspect for so long.
const TRUST_RETURNS_AFTER: Duration = Duration::from_secs(600);

impl Trust {
    /// Takes whether any counter of this sample was suspect. Whether steal is to be believed.
    pub fn judge(&mut self, now: Instant, is_suspect: bool) -> bool {
        if is_suspect {
            self.suspects.rotate_left(1);
            self.suspects[2] = Some(now);
            self.is_lost |= self.suspects[0].is_some_and(|first| now.since(first) <= SUSPECTS_WITHIN);
        } else if self.suspects[2].is_none_or(|last| now.since(last) >= TRUST_RETURNS_AFTER) {
            self.is_lost = false;
        }
        !self.is_lost
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000;

    /// Readings of a counter of ticks that is sampled at these times (ms).
    fn readings(samples: &[(u64, Option<u64>)]) -> Vec<Reading> {
        let mut meter = Meter::new(TICK_NS);
        let at = |ms| Instant::from_millis(1_000_000 + ms);
        samples.iter().map(|(ms, ticks)| meter.read(at(*ms), ticks.map(|ticks| ticks * TICK_NS))).collect()
    }

    fn ratios(samples: &[(u64, Option<u64>)]) -> Vec<f64> {
        readings(samples).iter().map(|reading| (reading.ratio * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn a_steady_share_reads_as_itself() {
        let samples: Vec<_> = (0..20).map(|n| (n * 100, Some(500 + n * 3))).collect();
        let ratios = ratios(&samples);
        assert_eq!(ratios[0], 0.0, "one sample says nothing");
        assert!(ratios[1..].iter().all(|ratio| *ratio == 0.3), "{ratios:?}");
    }

    #[test]
    fn a_tick_now_and_then_is_spread_over_the_time_it_gathered_in() {
        // One tick in half a second: 2 %.
        let samples: Vec<_> = (0..50).map(|n| (n * 100, Some(n / 5))).collect();
        assert!(ratios(&samples).iter().all(|ratio| *ratio <= 0.02), "{:?}", ratios(&samples));
    }

    #[test]
    fn what_is_credited_at_once_is_carried_into_the_next_samples() {
        // 22 ticks within 100 ms, as seen on KVM.
        let ratios =
            ratios(&[(0, Some(0)), (100, Some(22)), (200, Some(22)), (300, Some(22)), (400, Some(22))]);
        assert_eq!(ratios, [0.0, 1.0, 1.0, 0.2, 0.0]);
    }

    #[test]
    fn a_counter_that_goes_back_is_suspect_and_nothing_lost() {
        let readings = readings(&[(0, Some(900)), (100, Some(20)), (200, Some(23))]);
        assert_eq!((readings[1].ratio, readings[1].is_suspect), (0.0, true));
        assert_eq!((readings[2].ratio, readings[2].is_suspect), (0.3, false));
    }

    #[test]
    fn a_counter_that_jumps_is_suspect_and_worth_half_a_second_more() {
        let mut samples = vec![(0, Some(5)), (100, Some(u64::MAX / TICK_NS))];
        samples.extend((2..12).map(|n| (n * 100, Some(u64::MAX / TICK_NS))));
        let readings = readings(&samples);
        assert!(readings[1].is_suspect);
        let lost: u64 = readings.iter().map(|reading| reading.lost_ns).sum();
        assert_eq!(lost, 600_000_000);
        assert!(readings[8..].iter().all(|reading| reading.ratio == 0.0));
    }

    #[test]
    fn a_counter_that_is_gone_or_was_not_read_for_long_says_nothing() {
        let readings = readings(&[(0, Some(5)), (100, None), (200, None), (300, Some(90)), (400, Some(95))]);
        assert!(readings[1].is_suspect && !readings[2].is_suspect && !readings[3].is_suspect);
        assert_eq!(
            readings.iter().map(|reading| reading.ratio).collect::<Vec<_>>(),
            [0.0, 0.0, 0.0, 0.0, 0.5]
        );
        assert_eq!(ratios(&[(0, Some(0)), (10 * SECOND, Some(900))]), [0.0, 0.0]);
        assert_eq!(ratios(&[(0, Some(0)), (0, Some(0)), (100, Some(2))])[2], 0.2);
    }

    fn line(ticks: [u64; COLUMNS]) -> CpuTicks {
        CpuTicks { cpu: 0, ticks, has_steal: true }
    }

    #[test]
    fn a_cpu_that_is_gone_and_at_work_at_once_is_suspect() {
        let suspects = |idle_a_sample: u64| {
            let mut meter = CpuMeter::default();
            let reading = |n: u64| {
                let ticks = line([0, 0, 0, n * idle_a_sample, 0, 0, 0, n * 10]);
                meter.read(Instant::from_millis(n * 100), Some(&ticks)).is_suspect
            };
            (0..300).map(reading).filter(|suspect| *suspect).count()
        };
        assert_eq!(suspects(0), 0);
        assert_eq!(suspects(9), 2);
    }

    #[test]
    fn a_counter_that_is_published_now_and_then_reads_no_higher_than_it_is() {
        let mut meter = Meter::published();
        let ratio = |n: u64| meter.read(Instant::from_millis(n * 100), Some(n / 3 * 90_000_000)).ratio;
        let ratios: Vec<f64> = (0..60).map(ratio).collect();
        assert!(ratios.iter().all(|ratio| *ratio <= 0.301), "{ratios:?}");
        assert!(ratios[30..].iter().any(|ratio| *ratio > 0.29), "{ratios:?}");
    }

    #[test]
    fn a_long_turn_of_our_own_is_no_loss_where_steal_is_reported() {
        let losses = Losses { steal: Some(0.1), wait: Some(0.2), gap: 0.9, throttled: 0.25 };
        assert!((losses.lost_ratio() - 0.3).abs() < 1e-9);
        assert_eq!(Losses { steal: None, ..losses }.lost_ratio(), 0.9);
        assert_eq!(Losses { throttled: 0.5, gap: 0.0, ..losses }.lost_ratio(), 0.5);
        assert_eq!(Losses { steal: Some(0.9), wait: Some(0.9), ..losses }.lost_ratio(), 1.0);
        assert_eq!(Losses::default().lost_ratio(), 0.0);
    }

    #[test]
    fn trust_is_lost_by_three_suspect_samples_in_a_minute_and_returns() {
        let mut trust = Trust::default();
        let at = |s: u64| Instant::from_millis(s * SECOND);
        assert!(trust.judge(at(1), true) && trust.judge(at(40), true) && trust.judge(at(80), true));
        assert!(!trust.judge(at(90), true));
        assert!(!trust.judge(at(600), false));
        assert!(trust.judge(at(691), false));
    }

    proptest! {
        #[test]
        fn any_counter_yields_a_share_of_time(samples in proptest::collection::vec((0u64..20_000, any::<Option<u64>>()), 1..60)) {
            let (mut meter, mut cpu, mut ms) = (Meter::new(1), CpuMeter::default(), 0);
            for (pause, value) in samples {
                ms += pause;
                let now = Instant::from_millis(ms);
                let ticks = value.map(|value| line([value, 0, value, 1, 0, 0, 3, value]));
                for reading in [meter.read(now, value), cpu.read(now, ticks.as_ref())] {
                    prop_assert!((0.0..=1.0).contains(&reading.ratio), "{reading:?}");
                    prop_assert!(reading.lost_ns <= pause * 1_000_000);
                }
            }
        }
    }
}
