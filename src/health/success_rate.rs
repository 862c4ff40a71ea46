//! Which endpoints of a cluster succeed markedly less often than the others, as Envoy defines it: below the mean of all by
//! so many standard deviations. Pure.

use std::time::Duration;

/// When endpoints are ejected for their rate of success. Part of a cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SuccessRateSpec {
    /// Of one count; each begins anew.
    pub interval: Duration,
    /// Standard deviations below the mean that eject, in thousandths.
    pub stdev_factor_thousandths: u32,
    /// Endpoints with enough requests that are needed to compare.
    pub endpoints_min: u32,
    /// Requests within an interval that an endpoint is judged by.
    pub requests_min: u32,
}

/// What an endpoint made of its requests within an interval.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    pub succeeded: u32,
    pub failed: u32,
}

impl Tally {
    pub const fn count(&mut self, is_success: bool) {
        let of = if is_success { &mut self.succeeded } else { &mut self.failed };
        *of = of.saturating_add(1);
    }

    fn requests(self) -> u64 {
        u64::from(self.succeeded) + u64::from(self.failed)
    }

    fn rate(self) -> f64 {
        f64::from(self.succeeded) / self.requests().max(1) as f64
    }
}

/// Positions of endpoints that had enough requests, where there are enough of them to compare.
#[derive(Debug, Default)]
pub struct Compared {
    /// Those to eject, the worst first.
    pub outliers: Vec<usize>,
    pub others: Vec<usize>,
}

pub fn compare(spec: &SuccessRateSpec, tallies: &[Tally]) -> Compared {
    let judged = |tally: &Tally| tally.requests() >= u64::from(spec.requests_min.max(1));
    let mut rates: Vec<(usize, f64)> = tallies
        .iter()
        .enumerate()
        .filter(|(_, tally)| judged(tally))
        .map(|(at, tally)| (at, tally.rate()))
        .collect();
    if rates.len() < spec.endpoints_min.max(2) as usize {
        return Compared::default();
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, rate)| (rate - mean) * (rate - mean)).sum::<f64>() / count;
    // Rates that are alike differ by what rounding makes of them.
    let threshold = mean - variance.sqrt() * f64::from(spec.stdev_factor_thousandths) / 1_000.0 - 1e-9;
    rates.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    let (outliers, others) = rates.split_at(rates.partition_point(|(_, rate)| *rate < threshold));
    let positions = |of: &[(usize, f64)]| of.iter().map(|(at, _)| *at).collect();
    Compared { outliers: positions(outliers), others: positions(others) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPEC: SuccessRateSpec = SuccessRateSpec {
        interval: Duration::from_secs(10),
        stdev_factor_thousandths: 1_900,
        endpoints_min: 5,
        requests_min: 100,
    };

    fn tallies(of: &[(u32, u32)]) -> Vec<Tally> {
        of.iter().map(|&(succeeded, failed)| Tally { succeeded, failed }).collect()
    }

    fn outliers(spec: &SuccessRateSpec, tallies: &[Tally]) -> Vec<usize> {
        compare(spec, tallies).outliers
    }

    #[test]
    fn the_one_that_fails_more_than_the_others_is_found() {
        // Mean 0.9, standard deviation 0.2: the threshold is 0.52.
        let of = [(100, 0), (100, 0), (50, 50), (100, 0), (100, 0)];
        assert_eq!(outliers(&SPEC, &tallies(&of)), [2]);
        assert_eq!(compare(&SPEC, &tallies(&of)).others, [0, 1, 3, 4]);
        assert_eq!(outliers(&SPEC, &tallies(&[(90, 10); 5])), [0; 0], "all alike");
    }

    #[test]
    fn too_few_endpoints_or_requests_tell_nothing() {
        let of = [(100, 0), (100, 0), (0, 100), (100, 0)];
        assert_eq!(outliers(&SPEC, &tallies(&of)), [0; 0]);
        let of = [(100, 0), (100, 0), (0, 99), (100, 0), (100, 0), (100, 0)];
        assert_eq!(outliers(&SPEC, &tallies(&of)), [0; 0], "99 requests");
        assert!(!compare(&SPEC, &tallies(&of)).others.contains(&2));
    }

    #[test]
    fn the_worst_comes_first() {
        let spec = SuccessRateSpec { stdev_factor_thousandths: 500, ..SPEC };
        let of = [(100, 0), (60, 40), (100, 0), (20, 80), (100, 0), (100, 0)];
        assert_eq!(outliers(&spec, &tallies(&of)), [3, 1]);
    }

    proptest! {
        #[test]
        fn none_at_or_above_the_mean_is_ejected_nor_all(
            of in proptest::collection::vec((0u32..1_000, 0u32..1_000), 0..40), factor in 0u32..5_000,
        ) {
            let spec = SuccessRateSpec { stdev_factor_thousandths: factor, requests_min: 1, ..SPEC };
            let tallies = tallies(&of);
            let Compared { outliers: out, others } = compare(&spec, &tallies);
            let judged: Vec<f64> = tallies.iter().filter(|tally| tally.requests() > 0).map(|tally| tally.rate()).collect();
            let mean = judged.iter().sum::<f64>() / judged.len().max(1) as f64;
            prop_assert!(out.iter().all(|&at| tallies[at].rate() < mean));
            prop_assert!(out.is_empty() || out.len() < judged.len());
            prop_assert!(others.is_empty() || out.len() + others.len() == judged.len());
        }
    }
}
