//! Active checks of endpoints: when the next probe is due, and how many in a row change what is thought of an endpoint.
//! Pure: outcomes and randomness come in. Never connects: the control thread does, once for all workers.

use std::time::Duration;

use crate::base::random::Random;

/// How the endpoints of a cluster are probed. Part of a cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckSpec {
    pub probe: Probe,
    /// From the end of one probe of an endpoint to the next.
    pub interval: Duration,
    /// Of one probe, connecting included.
    pub timeout: Duration,
    /// By how much of itself the interval varies at random, 0 to 100.
    pub jitter_percent: u8,
    /// Probes that pass in a row and bring an endpoint back.
    pub rise: u32,
    /// Probes that fail in a row and take an endpoint out.
    pub fall: u32,
    /// Below this share of healthy endpoints, 0 to 100, nobody believes the checks: all endpoints are used. 0: never.
    pub panic_percent: u8,
}

/// What an endpoint has to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Probe {
    /// Take a connection.
    Tcp,
    /// Finish a TLS handshake, as the cluster asks for it.
    Tls,
    /// Answer a request in the version of HTTP that the cluster speaks, over TLS where the cluster does.
    Http(HttpProbe),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpProbe {
    /// With its query.
    pub path: Box<str>,
    /// `None`: the address of the endpoint.
    pub host: Option<Box<str>>,
    /// Ranges of statuses that pass, both ends included.
    pub expected: Vec<(u16, u16)>,
}

impl HttpProbe {
    pub fn passes(&self, status: u16) -> bool {
        self.expected.iter().any(|&(first, last)| (first..=last).contains(&status))
    }
}

/// What one probe showed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    Passed,
    Failed,
    /// The prober itself stood still: nothing was shown.
    Excused,
}

impl CheckSpec {
    /// Until the first probe of a new endpoint: those of a cluster are spread.
    pub fn first_pause(&self, random: &mut Random) -> Duration {
        /// An operator waits for it.
        const MAX: Duration = Duration::from_secs(1);
        part(self.interval.min(MAX), random.below(1_001))
    }

    /// Until the next probe.
    pub fn pause(&self, random: &mut Random) -> Duration {
        let percent = u32::from(self.jitter_percent.min(100));
        let shift = if percent == 0 { 0 } else { random.below(20 * percent + 1) };
        part(self.interval, 1_000 - 10 * percent + shift)
    }
}

/// So many thousandths.
fn part(of: Duration, thousandths: u32) -> Duration {
    of.saturating_mul(thousandths) / 1_000
}

/// An endpoint as its probes show it. A new one counts as healthy, but its first failure is enough, as in HAProxy: a
/// gateway that starts must not wait for checks, nor send many requests to what is not there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Checked {
    is_healthy: bool,
    /// Probes in a row that say otherwise.
    against: u32,
    is_new: bool,
}

impl Default for Checked {
    fn default() -> Self {
        Self { is_healthy: true, against: 0, is_new: true }
    }
}

impl Checked {
    pub const fn is_healthy(&self) -> bool {
        self.is_healthy
    }

    /// Takes the outcome of a probe. Whether it changed the verdict.
    pub fn on_outcome(&mut self, spec: &CheckSpec, outcome: Outcome) -> bool {
        let passed = match outcome {
            Outcome::Excused => return false,
            outcome => outcome == Outcome::Passed,
        };
        let is_new = std::mem::replace(&mut self.is_new, false);
        if passed == self.is_healthy {
            self.against = 0;
            return false;
        }
        self.against = self.against.saturating_add(1);
        let needed = match self.is_healthy {
            true if is_new => 1,
            true => spec.fall,
            false => spec.rise,
        };
        if self.against < needed {
            return false;
        }
        self.against = 0;
        self.is_healthy = passed;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    use Outcome::{Excused, Failed, Passed};

    fn spec(rise: u32, fall: u32) -> CheckSpec {
        CheckSpec {
            probe: Probe::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            jitter_percent: 10,
            rise,
            fall,
            panic_percent: 1,
        }
    }

    fn verdicts(spec: &CheckSpec, outcomes: &[Outcome]) -> Vec<bool> {
        let mut checked = Checked::default();
        let step = |outcome: &Outcome| {
            checked.on_outcome(spec, *outcome);
            checked.is_healthy()
        };
        outcomes.iter().map(step).collect()
    }

    #[test]
    fn a_new_endpoint_serves_until_its_first_failure() {
        assert_eq!(verdicts(&spec(2, 3), &[Failed, Passed, Passed]), [false, false, true]);
        assert!(Checked::default().is_healthy());
    }

    #[test]
    fn failures_in_a_row_take_out_and_passes_in_a_row_bring_back() {
        let outcomes =
            [Passed, Failed, Failed, Passed, Failed, Failed, Failed, Passed, Failed, Passed, Passed];
        let healthy = [true, true, true, true, true, true, false, false, false, false, true];
        assert_eq!(verdicts(&spec(2, 3), &outcomes), healthy);
    }

    #[test]
    fn an_excused_probe_neither_counts_nor_starts_over() {
        let outcomes = [Excused, Passed, Failed, Excused, Failed, Excused, Failed];
        assert_eq!(verdicts(&spec(2, 3), &outcomes), [true, true, true, true, true, true, false]);
    }

    #[test]
    fn expected_statuses_are_ranges() {
        let probe = HttpProbe { path: "/".into(), host: None, expected: vec![(200, 299), (401, 401)] };
        let passes = [199, 200, 299, 300, 401, 402].map(|status| probe.passes(status));
        assert_eq!(passes, [false, true, true, false, true, false]);
    }

    proptest! {
        #[test]
        fn the_verdict_changes_only_after_as_many_in_a_row(
            rise in 1u32..5, fall in 1u32..5,
            outcomes in proptest::collection::vec(prop_oneof![Just(Passed), Just(Failed), Just(Excused)], 0..200),
        ) {
            let spec = spec(rise, fall);
            let mut checked = Checked::default();
            let mut shown: Vec<Outcome> = Vec::new();
            for outcome in outcomes {
                let was = checked.is_healthy();
                let changed = checked.on_outcome(&spec, outcome);
                if outcome != Excused {
                    shown.push(outcome);
                }
                prop_assert_eq!(changed, was != checked.is_healthy());
                let needed = if was { fall } else { rise } as usize;
                let against = if was { Failed } else { Passed };
                let in_a_row = shown.iter().rev().take_while(|shown| **shown == against).count();
                let first = was && shown.len() == 1 && in_a_row == 1;
                prop_assert_eq!(changed, outcome != Excused && (first || in_a_row == needed.max(1)));
            }
        }

        #[test]
        fn pauses_stay_within_the_jitter_and_vary(seed: u64, percent in 0u8..=100, millis in 1u64..100_000) {
            let interval = Duration::from_millis(millis);
            let spec = CheckSpec { interval, jitter_percent: percent, ..spec(1, 1) };
            let mut random = Random::new(seed);
            let (low, high) = (part(interval, 1_000 - 10 * u32::from(percent)), part(interval, 1_000 + 10 * u32::from(percent)));
            let pauses: Vec<Duration> = (0..50).map(|_| spec.pause(&mut random)).collect();
            prop_assert!(pauses.iter().all(|pause| (low..=high).contains(pause)));
            prop_assert!(percent == 0 || pauses.iter().any(|pause| *pause != pauses[0]));
            prop_assert!(spec.first_pause(&mut random) <= interval.min(Duration::from_secs(1)));
        }
    }
}
